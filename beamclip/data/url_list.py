"""A list of URLs, with captions and further columns, from parquet, csv, tsv or jsonl."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from beamclip.errors import InputError

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

# Fields that img2dataset writes into each sample's record, and members of a sample.
_RECORD_FIELDS = ("key", "caption", "url", "width", "height", "original_width", "original_height")
_HASHES = ("md5", "sha256", "sha512")
_MEMBERS = ("txt", "jpg", "png", "webp")
_RESERVED = frozenset([*_RECORD_FIELDS, "status", "error_message", "exif", *_HASHES, *_MEMBERS])

Reader = Callable[[IO[bytes], Sequence[str]], pa.Table]


def read_url_list(
    urls: str | Path, url_column: str, caption_column: str | None, keep_columns: Sequence[str]
) -> pa.Table:
    """Read a URL list as a table with the columns `keep_columns`, `caption` (where asked for) and `url`.

    Args:
        urls: a file or an fsspec address; the ending tells the format (.parquet, .csv, .tsv, .jsonl; the
            last three also .gz, .bz2, .xz, .zst).
        url_column, caption_column: their names in the list; `caption_column=None`: no captions.
            A missing URL becomes the empty text, so that it is tried, and counted, like any other.
        keep_columns: further columns to keep, as JSON values. In csv and tsv a column holds integers
            where each of its values reads back the same ("7" but not "007"), otherwise text.

    Raises:
        InputError: the list is missing, empty, unreadable or lacks a column.
    """
    wanted = [url_column, *([caption_column] if caption_column else []), *keep_columns]
    _check_keep_columns(keep_columns)
    table = _read(urls, wanted)
    _check_columns(urls, table, wanted)
    if table.num_rows == 0:
        raise InputError(f"{urls}: the list is empty. Give at least one URL.")
    columns = {name: _json_ready(urls, name, table.column(name)) for name in keep_columns}
    if caption_column:
        columns["caption"] = _as_text(urls, caption_column, table.column(caption_column))
    columns["url"] = pc.fill_null(_as_text(urls, url_column, table.column(url_column)), "")
    return pa.table(columns)


def hash_url_list(urls: str | Path) -> str:
    """SHA-256 of the bytes of a list, in hexadecimal.

    Raises:
        InputError: the list does not exist.
    """
    digest = hashlib.sha256()
    with _open(urls, compression=None) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open(urls: str | Path, compression: str | None) -> IO[bytes]:
    try:
        return fsspec.open(str(urls), "rb", compression=compression).open()
    except FileNotFoundError:
        raise InputError(f"{urls}: URL list not found. Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{urls}: is a folder. Give one file with a list of URLs.") from None


def _read(urls: str | Path, wanted: Sequence[str]) -> pa.Table:
    reader = _reader_of(urls)
    with _open(urls, compression="infer") as file:
        try:
            return reader(file, wanted)
        except (pa.ArrowInvalid, EOFError, OSError) as error:
            if str(error) == "Empty CSV file" or str(error) == "Empty JSON file":
                return pa.table({name: pa.array([], pa.string()) for name in wanted})
            raise InputError(f"{urls}: cannot be read as {_ending(urls)}: {error}") from error


def _ending(urls: str | Path) -> str:
    name = str(urls).rsplit("/", 1)[-1].lower()
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    return "." + name.rpartition(".")[2]


def _reader_of(urls: str | Path) -> Reader:
    readers: dict[str, Reader] = {
        ".parquet": _read_parquet,
        ".csv": partial(_read_delimited, delimiter=","),
        ".tsv": partial(_read_delimited, delimiter="\t"),
        ".jsonl": _read_jsonl,
    }
    ending = _ending(urls)
    if ending not in readers:
        known = ", ".join(readers)
        raise InputError(f"{urls}: unknown format {ending!r}. A URL list ends in one of {known}.")
    return readers[ending]


def _read_parquet(file: IO[bytes], wanted: Sequence[str]) -> pa.Table:
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    if not set(wanted) <= set(names):
        return parquet.schema_arrow.empty_table()
    return parquet.read(columns=list(dict.fromkeys(wanted)))


def _read_delimited(file: IO[bytes], wanted: Sequence[str], delimiter: str) -> pa.Table:
    # All text: type inference would turn the id 007 into 7 and the caption "null" into nothing.
    table = pa_csv.read_csv(
        file,
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string())),
    )
    columns = [_lossless_integers(column) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _read_jsonl(file: IO[bytes], wanted: Sequence[str]) -> pa.Table:
    return pa_json.read_json(file, read_options=pa_json.ReadOptions(block_size=8 << 20))


def _lossless_integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_string(column.type):
        return column
    try:
        integers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    return integers if integers.cast(pa.string()).equals(column) else column


def _check_keep_columns(keep_columns: Sequence[str]) -> None:
    reserved = sorted(_RESERVED.intersection(keep_columns))
    if reserved:
        raise InputError(
            f"keep_columns: {', '.join(reserved)}: reserved, each sample's record has this field already. "
            "Rename the column in the list."
        )
    if len(set(keep_columns)) < len(keep_columns):
        raise InputError(f"keep_columns: a name is given twice: {', '.join(keep_columns)}.")


def _check_columns(urls: str | Path, table: pa.Table, wanted: Sequence[str]) -> None:
    for name in wanted:
        count = table.column_names.count(name)
        if count == 0:
            there = ", ".join(table.column_names)
            raise InputError(f"{urls}: no column {name!r}. The list has: {there}.")
        if count > 1:
            raise InputError(f"{urls}: {count} columns are named {name!r}. Rename all but one.")


def _as_text(urls: str | Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{urls}: column {name!r} holds {column.type}, not text.") from None


def _json_ready(urls: str | Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn dates, decimals and the like into text.

    img2dataset drops a sample whose record is no JSON and counts it as a success all the same.
    """
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column if _is_json(column.type) else _as_text(urls, name, column)


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
