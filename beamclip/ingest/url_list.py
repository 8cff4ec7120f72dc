"""Read a list of URLs, with captions and further columns, from parquet, csv, tsv or jsonl."""

import hashlib
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.utils import infer_compression

from beamclip.errors import InputError
from beamclip.ingest.config import AUTO, CAPTION
from beamclip.ingest.delimited import read_delimited
from beamclip.ingest.json_rows import read_json_rows
from beamclip.ingest.list_lines import Opener, UnreadableListError
from beamclip.places import absolute, one_line

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_TEXT_FORMATS = (".csv", ".tsv")

# Fields that img2dataset writes into each sample's record, and members of a sample.
_RECORD_FIELDS = ("key", "caption", "url", "width", "height", "original_width", "original_height")
_HASHES = ("md5", "sha256", "sha512")
_MEMBERS = ("txt", "jpg", "png", "webp")
_RESERVED = frozenset([*_RECORD_FIELDS, "status", "error_message", "exif", *_HASHES, *_MEMBERS])


def read_url_list(
    urls: str | Path, url_column: str, caption_column: str | None, keep_columns: Sequence[str]
) -> pa.Table:
    """Read a URL list as a table of the columns `keep_columns`, `caption` (if there are any) and `url`.

    Args:
        urls: a path or an fsspec address of a file, or of a folder of parts, which are read in the order of
            their names. The ending tells the format: .parquet, .csv, .tsv, .jsonl; the last three also .gz,
            .bz2, .xz, .zst.
        url_column: name of the column of URLs. A missing URL becomes the empty text, so that it is tried, and
            counted, like any other.
        caption_column: name of the column of captions; None: no captions; "auto": the column `caption`, if
            the list has one.
        keep_columns: further columns to keep, as JSON values. In csv and tsv, a column becomes integers if
            each value that is not missing reads back the same ("7" but not "007"), and text otherwise. Dates
            and decimals become text. Doubles of which some are missing and all others whole, as pandas writes
            integers with gaps, become integers.

    Raises:
        InputError: the list is missing, empty, unreadable (with the line) or lacks a column.
    """
    caption = CAPTION if caption_column == AUTO else caption_column
    wanted = [url_column, *([caption] if caption else []), *keep_columns]
    _check_keep_columns(keep_columns)
    parts = list_parts(urls)
    found = [_read(part, wanted) for part in parts]
    names = [there for there, _ in found]
    table = _join(parts, [table for _, table in found])
    if caption_column == AUTO and not any(CAPTION in there for there in names):
        caption = None
        wanted.remove(CAPTION)
    if table.num_rows == 0 and all(there == [] for there in names):
        raise InputError(f"{urls}: the list is empty. Give at least one URL.")
    text_format = _ending(parts[0]) in _TEXT_FORMATS
    if _ending(parts[0]) == ".jsonl":  # whose lines need not have all columns
        parts, names = [str(urls)], [list(dict.fromkeys(name for there in names for name in there))]
    for part, there in zip(parts, names, strict=True):
        _check_columns(part, there, wanted, caption_column)
    if table.num_rows == 0:
        raise InputError(f"{urls}: the list is empty. Give at least one URL.")
    columns = {name: _json_ready(urls, name, table.column(name), text_format) for name in keep_columns}
    if caption:
        columns["caption"] = _as_text(urls, caption, table.column(caption))
    columns["url"] = pc.fill_null(_as_text(urls, url_column, table.column(url_column)), "")
    return pa.table(columns)


def hash_url_list(urls: str | Path) -> str:
    """Return the SHA-256 of the bytes of a list, part after part, in hexadecimal.

    Raises:
        InputError: the list cannot be read.
    """
    digest = hashlib.sha256()
    for part in list_parts(urls):
        with _as_input_errors(part), _opener(part, unpack=False)() as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def lists_reading(urls: str | Path) -> int:
    """Return the version of our reader for such a list; an ingest resumes only shards of the same version."""
    return 1 if _ending(list_parts(urls)[0]) == ".parquet" else 2


def list_parts(urls: str | Path) -> list[str]:
    """Return the files of a list: the file itself, or the parts in its folder, ordered by name.

    Raises:
        InputError: the folder cannot be listed, or holds no parts or parts of several formats.
    """
    place = absolute(urls)
    if place.startswith(("http://", "https://")):  # no folders there, and asking for one would load the list
        return [place]
    with _as_input_errors(urls):
        fs, root = fsspec.core.url_to_fs(place)
        if not fs.isdir(root):
            return [place]
        names = sorted(posixpath.basename(path) for path in fs.ls(root, detail=False))
    # Spark leaves _SUCCESS and hidden checksums beside its parts.
    parts = [name for name in names if not name.startswith(("_", ".")) and _ending(name) in _READERS]
    endings = sorted({_ending(name) for name in parts})
    if len(endings) != 1:
        found = (
            f"holds parts of several formats: {', '.join(endings)}" if endings else "holds no part of a list"
        )
        raise InputError(
            f"{urls}: {found}. Give a file, or a folder of files of one of {', '.join(_READERS)}."
        )
    return [posixpath.join(place, name) for name in parts]


def _opener(part: str, *, unpack: bool) -> Opener:
    name = _file_name(part)
    compression = infer_compression(name) if unpack else None

    def open_file() -> IO[bytes]:
        file: IO[bytes] = fsspec.open(part, "rb", compression=compression).open()
        return file

    return open_file


@contextmanager
def _as_input_errors(urls: str | Path) -> Iterator[None]:
    """Raise one line for any error in the block: file systems and decompressors raise types of their own."""
    try:
        yield
    except InputError:
        raise
    except UnreadableListError as error:
        raise InputError(f"{urls}: {error}") from error
    except FileNotFoundError as error:
        reached = " or its server does not answer" if "://" in str(urls) else ""
        raise InputError(f"{urls}: URL list not found{reached}. Check its path or address.") from error
    except Exception as error:
        raise InputError(f"{urls}: cannot be read: {one_line(error)}.") from error


def _read(part: str, wanted: Sequence[str]) -> tuple[list[str], pa.Table]:
    ending = _ending(part)
    if ending not in _READERS:
        raise InputError(
            f"{part}: unknown format {ending!r}. A URL list ends in one of {', '.join(_READERS)}."
        )
    with _as_input_errors(part):
        return _READERS[ending](_opener(part, unpack=True), wanted)


def _file_name(part: str) -> str:
    if part.startswith(("http://", "https://")):
        part = urlsplit(part).path
    return part.rsplit("/", 1)[-1].lower()


def _ending(part: str) -> str:
    name = _file_name(part)
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    return "." + name.rpartition(".")[2]


def _read_parquet(open_file: Opener, wanted: Sequence[str]) -> tuple[list[str], pa.Table]:
    with open_file() as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        table = parquet.read(columns=[name for name in dict.fromkeys(wanted) if names.count(name) == 1])
        # Text in a parquet file may not be UTF-8, which pyarrow notices only when the value is read.
        table.validate(full=True)
        return names, table


_READERS: dict[str, Callable[[Opener, Sequence[str]], tuple[list[str], pa.Table]]] = {
    ".parquet": _read_parquet,
    ".csv": partial(read_delimited, delimiter=","),
    ".tsv": partial(read_delimited, delimiter="\t"),
    ".jsonl": read_json_rows,
}


def _join(parts: Sequence[str], tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"{parts[0]} and the {len(parts) - 1} parts beside it hold different columns: {one_line(error)}."
        ) from error


def _check_keep_columns(keep_columns: Sequence[str]) -> None:
    reserved = sorted(_RESERVED.intersection(keep_columns))
    if reserved:
        raise InputError(
            f"keep_columns: {', '.join(reserved)}: reserved, each sample's record has this field already. "
            "Rename the column in the list."
        )
    if len(set(keep_columns)) < len(keep_columns):
        raise InputError(f"keep_columns: a name is given twice: {', '.join(keep_columns)}.")


def _check_columns(
    part: str, names: Sequence[str], wanted: Sequence[str], caption_column: str | None
) -> None:
    for name in wanted:
        count = names.count(name)
        if count > 1:
            raise InputError(f"{part}: {count} columns are named {name!r}. Rename all but one.")
        if count == 1:
            continue
        there = ", ".join(names)[:200]
        hint = ""
        if any("://" in other for other in names):
            hint = " Its first line must hold the names of the columns."
        elif name == caption_column:
            hint = " For images without captions give --caption-column none."
        raise InputError(f"{part}: no column {name!r}. The list has: {there}.{hint}")


def _as_text(urls: str | Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{urls}: column {name!r} holds {column.type}, not text.") from None


def _json_ready(urls: str | Path, name: str, column: pa.ChunkedArray, text_format: bool) -> pa.ChunkedArray:
    """Turn dates, decimals and the like into text, which JSON can hold."""
    if text_format:
        return _lossless_integers(column)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_floating(column.type):
        return _whole_numbers(column)
    return column if _is_json(column.type) else _as_text(urls, name, column)


def _lossless_integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    given = pc.if_else(pc.equal(column, ""), None, column)
    if given.null_count == len(given):
        return column
    try:
        integers = given.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    return integers if integers.cast(pa.string()).equals(given) else column


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return doubles without NaN, which JSON lacks; as integers if gaps have made doubles of them."""
    given = pc.if_else(pc.is_nan(column), None, column)
    if 0 < given.null_count < len(given):
        try:
            return given.cast(pa.int64())
        except pa.ArrowInvalid:
            pass
    return given


def _is_json(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_json(field.type) for field in kind)
    plain = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string,
        pa.types.is_large_string, pa.types.is_null,
    )  # fmt: skip
    return any(check(kind) for check in plain)
