"""What a shard's format holds of a sample, as one row for all formats."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beamclip.data.cache import CachedViews
from beamclip.data.captions import CAPTION_CHARACTERS, clean_text, is_missing, texts_of
from beamclip.data.lost_samples import in_words
from beamclip.data.parquet_rows import picked_rows
from beamclip.data.row_sets import Rows
from beamclip.data.shard_file import ShardFile, StoreError
from beamclip.data.tar_samples import Contents, tar_samples

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

MISSING_IMAGE = "missing image"
MISSING_CAPTION = "missing caption"
MISSING_LABEL = "missing label"
TOO_LARGE = "too large"
UNREADABLE = "unreadable sample"

MOST_IMAGE_BYTES = 128 << 20
"""Of an encoded image; a photograph of 50 million pixels takes some 25 MB as a JPEG."""
MOST_FIELDS_BYTES = 4 << 20
"""Of a sample's fields as JSON."""
MOST_KEY_CHARACTERS = 4096

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("label", pa.string()),
        ("fields", pa.string()),
        ("draws", pa.binary()),
        ("embeddings", pa.list_(pa.binary())),
        ("epoch", pa.int32()),
        ("problem", pa.string()),
        ("detail", pa.string()),
        ("shard", pa.string()),
    ]
)
"""A row is a sample; where `problem` is set, one that cannot be used, and why; `detail` may say more of it.

Columns that nobody asked for are null. `fields` is JSON; `draws` and `embeddings` are of a teacher cache;
`shard` is the name of its file.
"""

Row = dict[str, Any]

Pending = tuple[str, Callable[[], Row]]
"""What a sample is called where its row cannot be made, and what makes it."""


@dataclass(frozen=True)
class Columns:
    """What a reader takes from a sample beside the pixels."""

    caption: bool = False
    """Whether a text is needed; a sample without one is counted as skipped."""
    more_texts: tuple[str, ...] = ()
    """Fields of the sample's JSON (or parquet columns) with more texts; they join the caption in `texts`."""
    label: str | None = None
    """Field of the sample's JSON (or parquet column) that holds the label."""
    everything: bool = False
    """Whether caption and all other fields come along; a sample without a caption is none the less used."""
    views: CachedViews | None = None
    """What to take from a teacher cache; None takes it for plain images."""


def read_tar(file: ShardFile, columns: Columns, rows: Rows) -> Iterator[Pending]:
    """The samples with these numbers; see `tar_samples` for what is raised."""
    limits = dict.fromkeys(IMAGE_SUFFIXES, MOST_IMAGE_BYTES)
    if columns.caption or columns.everything:
        # In UTF-8 a character takes up to four bytes.
        limits["txt"] = 4 * CAPTION_CHARACTERS
    if columns.label or columns.more_texts or columns.everything:
        limits["json"] = MOST_FIELDS_BYTES
    for key, contents in tar_samples(file, limits, rows, IMAGE_SUFFIXES):
        yield key, partial(_tar_row, key, contents, columns)


def _tar_row(key: str, contents: Contents, columns: Columns) -> Row:
    large = [suffix for suffix, content in contents.items() if content is None]
    if large:
        return {"key": key, "problem": TOO_LARGE, "detail": f"its {large[0]}"}
    caption = clean_text(contents["txt"]) if "txt" in contents else None
    fields, detail = _json_fields(contents.get("json"))
    return {
        "key": key,
        "image": next((contents[suffix] for suffix in IMAGE_SUFFIXES if suffix in contents), None),
        "caption": caption,
        "texts": texts_of([caption, *(fields.get(name) for name in columns.more_texts)]),
        "label": _label(fields, columns),
        "fields": json.dumps(fields) if columns.everything else None,
        "detail": detail,
    }


def _json_fields(text: bytes | str | None) -> tuple[dict[str, Any], str | None]:
    """The fields; none where it is no JSON object, and why."""
    if not text:
        return {}, None
    if len(text) > MOST_FIELDS_BYTES:
        return {}, "its JSON is too large"
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"its JSON: {in_words(error)}"
    return (fields, None) if isinstance(fields, dict) else ({}, "its JSON is no object")


def _label(fields: dict[str, Any], columns: Columns) -> str | None:
    value = fields.get(columns.label) if columns.label else None
    return None if is_missing(value) else clean_text(value)


def read_parquet(file: ShardFile, columns: Columns, rows: Rows) -> Iterator[Pending]:
    """The successful rows with these numbers, counted among such.

    Raises:
        StoreError: it has no images, being what img2dataset writes beside a tar.
        Exception: of pyarrow.
    """
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    image = next((name for name in IMAGE_SUFFIXES if name in names), None)
    if image is None:
        raise StoreError(FileNotFoundError("it has no images, and no tar lies beside it"))
    fields = [*columns.more_texts, *([columns.label] if columns.label else [])]
    wanted = [image, "key", *(["caption"] if columns.caption else []), *fields]
    others = [name for name in names if name not in IMAGE_SUFFIXES]
    taken = [image, *others] if columns.everything else [name for name in wanted if name in names]
    asked = np.asarray(rows)
    numbers = iter(asked.tolist())
    # img2dataset keeps a row for every URL; only the successful ones count as samples.
    if "status" in names:
        status = parquet.read(columns=["status"])["status"]
        samples = np.flatnonzero(pc.equal(status, "success").to_numpy())
        asked = samples[asked[asked < len(samples)]]
    for pick in picked_rows(parquet, taken, asked):
        number = next(numbers)
        yield f"row {number}", partial(_parquet_row, pick, number, image, columns)


def _parquet_row(pick: Callable[[], Row], number: int, image: str, columns: Columns) -> Row:
    row = pick()
    key = row.get("key")
    caption = row.get("caption") if columns.caption or columns.everything else None
    fields = {name: value for name, value in row.items() if name != image}
    if columns.everything:
        fields["caption"] = _first_text(caption)
    return {
        "key": str(number if key is None else key),
        "image": row[image],
        "caption": _first_text(caption),
        "texts": texts_of([caption, *(row.get(name) for name in columns.more_texts)]),
        "label": _label(row, columns),
        "fields": json.dumps(fields, default=str) if columns.everything else None,
    }


def _first_text(value: Any) -> str | None:
    """The caption in a field, which may be a list of them."""
    return next(iter(texts_of([value])), None)


def read_cache(file: ShardFile, columns: Columns, rows: Rows, epoch: int) -> Iterator[Pending]:
    """The rows with these numbers, and of each the view of an epoch; raises what pyarrow does."""
    parquet = pq.ParquetFile(file)
    views = _checked_views(parquet.schema_arrow, columns.views, epoch) if columns.views else []
    from_fields = bool(columns.label or columns.more_texts or columns.everything)
    has_caption = columns.caption or columns.everything
    names = [
        "key",
        "image",
        "problem",
        *(["caption"] if has_caption else []),
        *(["json"] if from_fields else []),
    ]
    asked = np.asarray(rows)
    for number, pick in zip(asked.tolist(), picked_rows(parquet, [*names, *views], asked), strict=False):
        yield f"row {number}", partial(_cache_row, pick, columns, views)


def _checked_views(schema: pa.Schema, views: CachedViews, epoch: int) -> list[str]:
    """The columns of an epoch's view; of another type or width they would not fit into a batch."""
    names = views.names(epoch)
    for name, width in zip_longest(names, views.widths):
        kind = schema.field(name).type
        if not pa.types.is_fixed_size_binary(kind) or width not in (None, kind.byte_width):
            raise TypeError(f"column {name} is {kind}, not of {width} bytes")
    return names


def _cache_row(pick: Callable[[], Row], columns: Columns, views: list[str]) -> Row:
    row = pick()
    if row["problem"]:
        return {"key": row["key"], "problem": clean_text(row["problem"])}
    fields, detail = _json_fields(row.get("json"))
    seen = [row[name] for name in views]
    if None in seen:
        raise ValueError(f"no {views[seen.index(None)]}")
    draws, *embeddings = seen or (None,)
    return {
        "key": row["key"],
        "image": row["image"],
        "caption": _first_text(row.get("caption")),
        "texts": texts_of([row.get("caption"), *(fields.get(name) for name in columns.more_texts)]),
        "label": _label(fields, columns),
        "fields": json.dumps(fields) if columns.everything else None,
        "draws": draws,
        "embeddings": embeddings,
        "detail": detail,
    }


def problem_of(row: Row, columns: Columns) -> str | None:
    """Why a sample cannot be used; None where it can.

    Raises:
        TypeError: the image is none.
    """
    image = row["image"]
    if not image:
        return MISSING_IMAGE
    if not isinstance(image, bytes):
        raise TypeError(f"a {type(image).__name__} where an image is expected")
    if len(image) > MOST_IMAGE_BYTES or len(row.get("fields") or "") > MOST_FIELDS_BYTES:
        return TOO_LARGE
    if columns.caption and not row["texts"]:
        return MISSING_CAPTION
    if columns.label and row["label"] is None:
        return MISSING_LABEL
    return None
