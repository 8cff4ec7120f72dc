"""Shards that img2dataset wrote: which there are, how many samples they hold, how to read their rows.

A shard counts as finished when its `<name>_stats.json` lies beside it; the file also holds the exact
number of samples (`successes`). Every claimed sample leaves the reader exactly once: as a row that can be
used, or as one that names the problem. Nothing is lost silently, and row numbers mean the same each time.
"""

import contextlib
import hashlib
import json
import posixpath
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beamclip.data.cache import CACHE_FILE, CachedViews
from beamclip.data.captions import texts_of
from beamclip.data.class_folders import OUTSIDE, class_folders, folder_entries, read_entry
from beamclip.data.image_limits import CORRUPT_IMAGE as CORRUPT_IMAGE  # one of a row's problems
from beamclip.data.row_sets import Rows
from beamclip.errors import InputError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
STATS_SUFFIX = "_stats.json"
ROWS_PER_BLOCK = 256

MISSING_IMAGE = "missing image"
MISSING_CAPTION = "missing caption"
MISSING_LABEL = "missing label"
BROKEN_SHARD = "broken shard"

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
    ]
)
"""A row is a sample; where `problem` is set, one that cannot be used, and why.

Columns that nobody asked for are null. `fields` is JSON; `draws` and `embeddings` are of a teacher cache.
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """One file of samples, or one folder of a folder-per-class data set."""

    path: str
    """fsspec address of the file (or folder)."""
    samples: int
    """Samples it holds, from its statistics file (or the number of image files)."""
    format: Literal["tar", "parquet", "folder", "loose", "cache"]
    """`folder`: one class of a folder of class folders; `loose`: the files beside those."""


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


def list_shards(address: str) -> list[Shard]:
    """Finished shards below an address, sorted by name.

    Args:
        address: folder of img2dataset output; a local path or any fsspec address (s3://, gs://, memory://).

    Raises:
        InputError: the folder is missing or holds no finished shard.
    """
    fs, root = _open_folder(address, "Give the folder that `pipelines/ingest.py --out` wrote.")
    files = {posixpath.basename(path): path for path in fs.ls(root, detail=False)}
    stats = sorted(name for name in files if name.endswith(STATS_SUFFIX))
    if not stats:
        raise InputError(
            f"{address}: no finished shard (no *{STATS_SUFFIX} among {len(files)} files). "
            "Run pipelines/ingest.py, or give the folder that holds its shards."
        )
    with ThreadPoolExecutor(32) as pool:
        contents = pool.map(fs.cat_file, [files[name] for name in stats])
        found = [_shard(fs, files, name, text) for name, text in zip(stats, contents, strict=True)]
    shards = [shard for shard in found if shard.samples > 0]
    if not shards:
        raise InputError(
            f"{address}: all {len(stats)} shards are empty. See the summary of the ingest for the reasons."
        )
    return shards


def fingerprint(shards: list[Shard]) -> str:
    """Names a data set by what positions in it depend on: the names of its shards and their counts."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{posixpath.basename(shard.path)} {shard.samples}\n".encode())
    samples = sum(shard.samples for shard in shards)
    return f"{len(shards)} shards, {samples} samples, {digest.hexdigest()[:16]}"


def check_texts(shards: list[Shard], columns: Columns, address: str) -> None:
    """Refuse data whose first samples, up to a block of rows, all lack a text, or one of the fields for more.

    Raises:
        InputError: with the field that was looked for.
    """
    first, count = shards[0], min(shards[0].samples, ROWS_PER_BLOCK)

    def all_lack(asked: Columns) -> bool:
        rows = iterate_rows(first, asked, range(count))
        # A broken shard says nothing of the others: its loss is counted when it is read.
        whole = [row for row in rows if row["problem"] in (None, MISSING_CAPTION)]
        return bool(whole) and not any(row.get("texts") for row in whole)

    where = f"{address}: none of the first {count} samples in {first.path} has"
    for name in columns.more_texts:
        if all_lack(Columns(more_texts=(name,))):
            raise InputError(f"{where} a text in {name}. Ingest with --keep-columns {name}, or leave it out.")
    if all_lack(columns):
        raise InputError(f"{where} a caption. Ingest with --caption-column, from a column that is not empty.")


def _open_folder(address: str, advice: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(str(address))
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is missing
        raise InputError(f"{address}: cannot be opened: {error}. {advice}") from error
    if not fs.isdir(root):
        raise InputError(f"{address}: no such folder. {advice}")
    return fs, root


def _shard(fs: Any, files: dict[str, str], stats: str, text: bytes) -> Shard:
    try:
        samples = int(json.loads(text)["successes"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{files[stats]}: no count of `successes` in it ({error!r}). Ingest this shard again."
        ) from error
    stem = stats.removesuffix(STATS_SUFFIX)
    is_tar = f"{stem}.tar" in files or f"{stem}.parquet" not in files
    name = f"{stem}.tar" if is_tar else f"{stem}.parquet"
    path = files.get(name) or posixpath.join(posixpath.dirname(files[stats]), name)
    table_format: Literal["parquet", "cache"] = "cache" if CACHE_FILE in files else "parquet"
    return Shard(fs.unstrip_protocol(path), samples, "tar" if is_tar else table_format)


def list_labelled(address: str) -> list[Shard]:
    """Shards of a labelled data set: finished shards, or a folder with one folder of images per class.

    Raises:
        InputError: it is neither.
    """
    fs, root = _open_folder(address, "Give shards with a label column, or a folder of class folders.")
    if any(path.endswith(STATS_SUFFIX) for path in fs.ls(root, detail=False)):
        return list_shards(address)
    folders, files = class_folders(fs, root)
    entries = {folder: folder_entries(fs, folder) for folder in folders}
    if not any(problem is None for found in entries.values() for _, problem in found):
        raise InputError(f"{address}: neither finished shards nor class folders with images in it.")
    shards = [
        Shard(fs.unstrip_protocol(folder), len(found), "folder") for folder, found in entries.items() if found
    ]
    return [*shards, Shard(fs.unstrip_protocol(root), len(files), "loose")] if files else shards


def iterate_rows(shard: Shard, columns: Columns, rows: Rows, epoch: int = 0) -> Iterator[Row]:
    """The rows of a shard with these numbers, one each (see ROW_SCHEMA), whatever became of the shard.

    A shard that breaks off gives all rows before the break, and for each one after it a row with `problem`.
    """
    given = 0
    try:
        for row in _rows_of(shard, columns, rows, epoch):
            given += 1
            yield _checked(row, columns, epoch)
    except (OSError, EOFError, tarfile.TarError, pa.ArrowException, KeyError) as error:
        # An address that cannot be reached at all is an outage, not a broken file: let it stop the run.
        if isinstance(error, (ConnectionError, TimeoutError, PermissionError)):
            raise
    for _ in range(len(rows) - given):
        yield _problem(shard.path, epoch, BROKEN_SHARD)


def _rows_of(shard: Shard, columns: Columns, rows: Rows, epoch: int) -> Iterator[Row]:
    if shard.format == "cache":
        return _read_cache(shard, columns, rows, columns.views.names(epoch) if columns.views else [])
    return _READERS[shard.format](shard, columns, rows)


def _checked(row: Row, columns: Columns, epoch: int) -> Row:
    # Names of members need not be UTF-8; what a table cannot hold would end the whole run.
    row["key"] = row["key"].encode("utf-8", "backslashreplace").decode()
    if row.get("problem"):
        return _problem(row["key"], epoch, row["problem"])
    if not row["image"]:
        return _problem(row["key"], epoch, MISSING_IMAGE)
    if columns.caption and not row["texts"]:
        return _problem(row["key"], epoch, MISSING_CAPTION)
    if columns.label and row["label"] is None:
        return _problem(row["key"], epoch, MISSING_LABEL)
    return {**row, "epoch": epoch, "problem": None}


def _problem(key: str, epoch: int, problem: str) -> Row:
    return {"key": key, "epoch": epoch, "problem": problem}


def _read_tar(shard: Shard, columns: Columns, rows: Rows) -> Iterator[Row]:
    txt = columns.caption or columns.everything
    fields = columns.label or columns.more_texts or columns.everything
    wanted = (*IMAGE_SUFFIXES, *(["txt"] if txt else []), *(["json"] if fields else []))
    with fsspec.open(shard.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for key, contents in _samples(tar, wanted, rows):
            yield _tar_row(key, contents, columns)


def _samples(
    tar: tarfile.TarFile, wanted: tuple[str, ...], rows: Rows
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Group neighbouring members by key, reading forwards only.

    Yields:
        Key and wanted contents of each sample that is asked for; the others stay unread.
    """
    asked = iter(np.asarray(rows).tolist())
    index, key, contents, number = 0, "", dict[str, bytes](), next(asked, None)
    for member in _members(tar):
        folder_end = member.name.rfind("/") + 1
        name, _, suffix = member.name[folder_end:].partition(".")
        stem, suffix = member.name[:folder_end] + name, suffix.lower()
        if key and stem != key:
            if index == number:
                yield key, contents
                contents, number = {}, next(asked, None)
            if number is None:
                return
            index += 1
        key = stem
        if index == number and suffix in wanted:
            contents[suffix] = _content(tar, member)
    if key and index == number and (_is_whole(contents, wanted) or _has_end_mark(tar)):
        yield key, contents


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files up to the end of the tar, or to where it breaks off."""
    with contextlib.suppress(tarfile.TarError):
        for member in tar:
            # tarfile remembers every header; a shard of 10,000 samples has 30,000
            tar.members = []  # type: ignore[attr-defined]
            if member.isfile():
                yield member


def _is_whole(contents: dict[str, bytes], wanted: tuple[str, ...]) -> bool:
    """Whether a sample at a break has all that was asked for: an image, and each of the other members."""
    others = [suffix for suffix in wanted if suffix not in IMAGE_SUFFIXES]
    has_image = any(suffix in contents for suffix in IMAGE_SUFFIXES)
    return has_image and all(suffix in contents for suffix in others)


def _has_end_mark(tar: tarfile.TarFile) -> bool:
    """Whether the members ended as a tar does; tarfile takes a header that is cut off for the end as well."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    return tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise EOFError(f"{member.name} is cut off")
    return data


def _tar_row(key: str, contents: dict[str, bytes], columns: Columns) -> Row:
    caption = contents["txt"].decode("utf-8", "replace") if "txt" in contents else None
    fields = _json_fields(contents.get("json", b""))
    return {
        "key": key,
        "image": next((contents[suffix] for suffix in IMAGE_SUFFIXES if suffix in contents), None),
        "caption": caption,
        "texts": texts_of([caption, *(fields.get(name) for name in columns.more_texts)]),
        "label": _label(fields, columns),
        "fields": json.dumps(fields) if columns.everything else None,
    }


def _json_fields(text: bytes | str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _label(fields: dict[str, Any], columns: Columns) -> str | None:
    value = fields.get(columns.label) if columns.label else None
    return None if value is None else str(value)


def _read_parquet(shard: Shard, columns: Columns, rows: Rows) -> Iterator[Row]:
    with fsspec.open(shard.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        image = next((name for name in IMAGE_SUFFIXES if name in names), None)
        if image is None:
            raise KeyError(f"{shard.path}: no image column")
        fields = [*columns.more_texts, *([columns.label] if columns.label else [])]
        wanted = [image, "key", "caption", *fields]
        others = [name for name in names if name not in IMAGE_SUFFIXES]
        taken = [image, *others] if columns.everything else [name for name in wanted if name in names]
        asked = np.asarray(rows)
        numbers = iter(asked.tolist())
        # img2dataset keeps a row for every URL; only the successful ones count as samples.
        if "status" in names:
            status = parquet.read(columns=["status"])["status"]
            samples = np.flatnonzero(pc.equal(status, "success").to_numpy())
            asked = samples[asked[asked < len(samples)]]
        for row in _picked_rows(parquet, taken, asked):
            yield _parquet_row(row, next(numbers), image, columns)


def _picked_rows(parquet: pq.ParquetFile, names: list[str], asked: NDArray[np.int64]) -> Iterator[Row]:
    """The rows with these numbers, as far as there are such, without reading row groups that have none."""
    sizes = np.array(
        [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)], np.int64
    )
    ends = np.cumsum(sizes)
    asked = asked[asked < sizes.sum()]
    of_group = np.searchsorted(ends, asked, "right")
    groups = np.unique(of_group)
    # Where each group begins in the file, and where in what is read of it.
    begins = (ends - sizes)[groups]
    read_before = np.cumsum(sizes[groups]) - sizes[groups]
    places = asked + (read_before - begins)[np.searchsorted(groups, of_group)]
    read = 0
    for batch in parquet.iter_batches(ROWS_PER_BLOCK, row_groups=groups.tolist(), columns=names):
        here = places[slice(*np.searchsorted(places, [read, read + batch.num_rows]))]
        yield from batch.take(here - read).to_pylist()
        read += batch.num_rows


def _parquet_row(row: Row, number: int, image: str, columns: Columns) -> Row:
    caption = row.get("caption") if columns.caption or columns.everything else None
    others = {name: value for name, value in row.items() if name != image}
    return {
        "key": str(row.get("key", number)),
        "image": row[image],
        "caption": caption,
        "texts": texts_of([caption, *(row.get(name) for name in columns.more_texts)]),
        "label": _label(row, columns),
        "fields": json.dumps(others, default=str) if columns.everything else None,
    }


def _read_cache(shard: Shard, columns: Columns, rows: Rows, views: list[str]) -> Iterator[Row]:
    """Args:
    views: columns of the view to take: its random numbers, then embeddings.
    """
    from_fields = bool(columns.label or columns.more_texts or columns.everything)
    has_caption = columns.caption or columns.everything
    names = [
        "key",
        "image",
        "problem",
        *(["caption"] if has_caption else []),
        *(["json"] if from_fields else []),
    ]
    with fsspec.open(shard.path, "rb") as file:
        for row in _picked_rows(pq.ParquetFile(file), [*names, *views], np.asarray(rows)):
            fields = _json_fields(row.get("json") or b"")
            draws, *embeddings = (row[name] for name in views) if views else (None,)
            yield {
                "key": row["key"],
                "image": row["image"],
                "caption": row.get("caption"),
                "texts": texts_of([row.get("caption"), *(fields.get(name) for name in columns.more_texts)]),
                "label": _label(fields, columns),
                "fields": row.get("json") if columns.everything else None,
                "draws": draws,
                "embeddings": embeddings,
                "problem": row["problem"],
            }


def _read_folder(shard: Shard, columns: Columns, rows: Rows) -> Iterator[Row]:
    fs, root = fsspec.core.url_to_fs(shard.path)
    label = posixpath.basename(root.rstrip("/")).encode("utf-8", "backslashreplace").decode()
    entries = folder_entries(fs, root)
    # Files that are gone since they were counted are counted as lost.
    for path, problem in (entries[number] for number in rows if number < len(entries)):
        content, problem = (None, problem) if problem else read_entry(fs, path)
        key = f"{label}/{posixpath.relpath(path, root)}"
        yield {"key": key, "image": content, "caption": None, "texts": [], "label": label, "problem": problem}


def _read_loose(shard: Shard, columns: Columns, rows: Rows) -> Iterator[Row]:
    fs, root = fsspec.core.url_to_fs(shard.path)
    _, files = class_folders(fs, root)
    for path in (files[number] for number in rows if number < len(files)):
        yield {"key": posixpath.basename(path), "problem": OUTSIDE}


_READERS = {"tar": _read_tar, "parquet": _read_parquet, "folder": _read_folder, "loose": _read_loose}
