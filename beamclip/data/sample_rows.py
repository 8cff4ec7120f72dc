"""Read samples from shards of any format, as rows of one schema."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa

from beamclip.data.cache import CachedViews
from beamclip.data.captions import (
    CAPTION_CHARACTERS,
    CAPTION_FIELDS,
    MOST_TEXTS,
    caption_of,
    clean_text,
    is_missing,
    texts_of,
)
from beamclip.data.image_limits import MAX_BYTES
from beamclip.data.lost_samples import in_words
from beamclip.data.parquet_rows import (
    IMAGE_SUFFIXES,
    ImageColumn,
    image_column,
    open_parquet,
    picked_rows,
    successful_rows,
)
from beamclip.data.shard_file import Rows, ShardFile, StoreError
from beamclip.data.tar_samples import CLASS_SUFFIX, Contents, Span, tar_samples

MISSING_IMAGE = "missing image"
MISSING_CAPTION = "missing caption"
MISSING_LABEL = "missing label"
TOO_LARGE = "too large"
UNREADABLE = "unreadable sample"

MOST_FIELDS_BYTES = 4 << 20
"""Largest JSON of a sample's fields."""
MOST_KEY_CHARACTERS = 4096
MOST_CLASS_BYTES = 256
"""Longest label in a `.cls`."""

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
"""A row is a sample. If it cannot be used, `problem` says why, and `detail` may say more.

Columns that were not requested are null. `fields` is JSON; `draws` and `embeddings` come from a teacher
cache; `shard` is the name of the sample's file.
"""

Row = dict[str, Any]

Pending = tuple[str, Callable[[], Row]]
"""A sample's name, for messages if its row cannot be made, and the function that makes the row."""


@dataclass(frozen=True)
class Columns:
    """What a reader takes from a sample besides the pixels."""

    caption: bool = False
    """Whether a text is required; a sample without one is counted as skipped."""
    more_texts: tuple[str, ...] = ()
    """Fields of the sample's JSON (or parquet columns) with more texts; they join the caption in `texts`."""
    label: str | None = None
    """Field of the sample's JSON (or parquet column) that holds the label."""
    everything: bool = False
    """Whether to read the caption and all other fields; a sample without a caption is still used."""


def read_tar(
    file: ShardFile, columns: Columns, rows: Rows, span: Span, *, caption_lines: bool = False
) -> Iterator[Pending]:
    """Yield the samples of a tar with these row numbers, none of them outside the span.

    The label is the field of that name in the sample's JSON, else its `.cls`, which webdataset writes.

    Args:
        caption_lines: whether each line of a sample's text is a caption of its own.

    Raises:
        Exception: whatever `tar_samples` raises.
    """
    limits = dict.fromkeys(IMAGE_SUFFIXES, MAX_BYTES)
    if columns.caption or columns.everything:
        # In UTF-8 a character takes up to four bytes.
        limits["txt"] = 4 * CAPTION_CHARACTERS * (MOST_TEXTS if caption_lines else 1)
    if columns.label or columns.more_texts or columns.everything:
        limits["json"] = MOST_FIELDS_BYTES
    if columns.label:
        limits[CLASS_SUFFIX] = MOST_CLASS_BYTES
    for key, contents in tar_samples(file, limits, rows, IMAGE_SUFFIXES, span):
        yield key, partial(_tar_row, key, contents, columns, caption_lines)


def _tar_row(key: str, contents: Contents, columns: Columns, caption_lines: bool) -> Row:
    large = [suffix for suffix, content in contents.items() if content is None]
    if large:
        return {"key": key, "problem": TOO_LARGE, "detail": f"its {large[0]}"}
    text = contents.get("txt") or b""
    captions = texts_of(text.decode("utf-8", "replace").splitlines() if caption_lines else [text])
    fields, detail = json_fields(contents.get("json"))
    label = label_of(fields, columns)
    return {
        "key": key,
        "image": next((contents[suffix] for suffix in IMAGE_SUFFIXES if suffix in contents), None),
        "caption": captions[0] if captions else None,
        "texts": texts_of([*captions, *(fields.get(name) for name in columns.more_texts)]),
        "label": _class_of(contents.get(CLASS_SUFFIX)) if label is None and columns.label else label,
        "fields": json.dumps(fields) if columns.everything else None,
        "detail": detail,
    }


def _class_of(content: bytes | None) -> str | None:
    """The label in a `.cls`: a number without leading zeros, or another text; None if there is none."""
    text = clean_text(content or b"")
    return (str(int(text)) if text.isdecimal() else text) or None


def json_fields(text: bytes | str | None) -> tuple[dict[str, Any], str | None]:
    """Return the fields and None; if the text is not a JSON object, no fields and why."""
    if not text:
        return {}, None
    if len(text) > MOST_FIELDS_BYTES:
        return {}, "its JSON is too large"
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"its JSON: {in_words(error)}"
    return (fields, None) if isinstance(fields, dict) else ({}, "its JSON is not an object")


def label_of(fields: dict[str, Any], columns: Columns) -> str | None:
    """Return the label among the fields of a sample as a text; None if it is not asked for or missing."""
    value = fields.get(columns.label) if columns.label else None
    return None if is_missing(value) else clean_text(value)


def read_parquet(file: ShardFile, columns: Columns, rows: Rows, name: str) -> Iterator[Pending]:
    """Yield the samples of a parquet file with these row numbers, which count successful downloads only.

    Args:
        name: of the file, with which the keys of samples begin that have none of their own.

    Raises:
        StoreError: the file has no images: img2dataset writes such a file beside a tar.
        Exception: of pyarrow.
    """
    parquet = open_parquet(file)
    schema = parquet.file.schema_arrow
    image = image_column(schema)
    if image is None:
        raise StoreError(FileNotFoundError("it has no images, and no tar lies beside it"))
    caption = [each for each in CAPTION_FIELDS if each in schema.names] if columns.caption else []
    fields = [*columns.more_texts, *([columns.label] if columns.label else [])]
    wanted = ["key", *caption, *fields] if not columns.everything else _without_images(schema)
    taken = [image.part, *(each for each in dict.fromkeys(wanted) if each in schema.names)]
    asked = np.asarray(rows)
    numbers = iter(asked.tolist())
    samples = successful_rows(parquet.file, image)
    if samples is not None:
        asked = samples[asked[asked < len(samples)]]
    for pick in picked_rows(parquet, taken, asked):
        number = next(numbers)
        key = f"{name.removesuffix('.parquet')}/{number}"
        yield key, partial(_parquet_row, pick, key, image, columns)


def _without_images(schema: pa.Schema) -> list[str]:
    """Names of the columns whose values JSON can hold: those with bytes nowhere inside."""
    return [field.name for field in schema if "binary" not in str(field.type)]


def _parquet_row(pick: Callable[[], Row], key: str, image: ImageColumn, columns: Columns) -> Row:
    row = pick()
    own_key = row.get("key") if image.by_img2dataset else None
    content = row.pop(image.name)
    caption = caption_of(row) if columns.caption or columns.everything else None
    fields = row
    if columns.everything:
        fields = {**row, "caption": _first_text(caption)}
    return {
        "key": str(key if own_key is None else own_key),
        "image": content["bytes"] if content and image.part != image.name else content,
        "caption": _first_text(caption),
        "texts": texts_of([caption, *(row.get(name) for name in columns.more_texts)]),
        "label": label_of(row, columns),
        "fields": json.dumps(fields, default=str) if columns.everything else None,
    }


def _first_text(value: Any) -> str | None:
    """Return the caption in a field, which may be a list of captions."""
    return next(iter(texts_of([value])), None)


def read_cache(
    file: ShardFile, columns: Columns, rows: Rows, views: CachedViews | None, epoch: int
) -> Iterator[Pending]:
    """Yield the samples of a teacher cache with these row numbers, each with its view for the epoch, if any.

    Raises:
        KeyError: the cache lacks a column of the view.
        TypeError: a column of the view has another type or width than a batch needs.
        Exception: of pyarrow.
    """
    parquet = open_parquet(file)
    seen = _checked_views(parquet.file.schema_arrow, views, epoch) if views else []
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
    for number, pick in zip(asked.tolist(), picked_rows(parquet, [*names, *seen], asked), strict=False):
        yield f"row {number}", partial(_cache_row, pick, columns, seen, views)


def _checked_views(schema: pa.Schema, views: CachedViews, epoch: int) -> list[str]:
    """Return the columns of an epoch's view, whose type and width must fit into a batch."""
    names = views.names(epoch)
    for name, width in zip_longest(names, views.widths):
        kind = schema.field(name).type
        if not pa.types.is_fixed_size_binary(kind) or width not in (None, kind.byte_width):
            raise TypeError(f"column {name} is {kind}, not of {width} bytes")
    return names


def _cache_row(pick: Callable[[], Row], columns: Columns, names: list[str], views: CachedViews | None) -> Row:
    row = pick()
    if row["problem"]:
        return {"key": row["key"], "problem": clean_text(row["problem"])}
    fields, detail = json_fields(row.get("json"))
    seen = [row[name] for name in names]
    if views and views.captions and seen[-1] is None:
        seen[-1] = bytes(views.widths[-1])  # an image without a caption
    if None in seen:
        raise ValueError(f"no {names[seen.index(None)]}")
    draws, *embeddings = seen or (None,)
    return {
        "key": row["key"],
        "image": row["image"],
        "caption": _first_text(row.get("caption")),
        "texts": texts_of([row.get("caption"), *(fields.get(name) for name in columns.more_texts)]),
        "label": label_of(fields, columns),
        "fields": json.dumps(fields) if columns.everything else None,
        "draws": draws,
        "embeddings": embeddings,
        "detail": detail,
    }


def problem_of(row: Row, columns: Columns) -> str | None:
    """Return why a sample cannot be used; None if it can.

    Raises:
        TypeError: the image is not bytes.
    """
    image = row["image"]
    if not image:
        return MISSING_IMAGE
    if not isinstance(image, bytes):
        raise TypeError(f"a {type(image).__name__} where an image is expected")
    if len(image) > MAX_BYTES or len(row.get("fields") or "") > MOST_FIELDS_BYTES:
        return TOO_LARGE
    if columns.caption and not row["texts"]:
        return MISSING_CAPTION
    if columns.label and row["label"] is None:
        return MISSING_LABEL
    return None
