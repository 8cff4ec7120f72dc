"""The metadata file of a folder of images: a row for each image, with its caption and other fields.

It lies as the `imagefolder` of Hugging Face datasets expects it: `metadata.csv`, `metadata.jsonl` or
`metadata.parquet` in the folder that it describes. The column `file_name` holds the path of the image below
that folder; a single column of another name that ends in `_file_name` will do. All other columns are fields
of the sample. A CSV holds texts only, so that a label 007 stays 007, and an empty text counts as none.
"""

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from beamclip.data.lost_samples import in_words
from beamclip.errors import InputError

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

NAME_COLUMN = "file_name"

Described = tuple[str, bytes]
"""The path of an image, below the folder, and the JSON of its fields."""


def read_metadata(fs: Any, path: str) -> list[Described]:
    """Read a metadata file.

    Returns:
        Its rows, in order; an image may have several.

    Raises:
        InputError: a row cannot be read, or names no image; the message has the file and the line.
    """
    content = fs.cat_file(path)
    where = fs.unstrip_protocol(path).removeprefix("file://")
    if path.endswith(".parquet"):
        rows = _parquet_rows(content, where)
    else:
        rows = (_csv_rows if path.endswith(".csv") else _json_rows)(content, where)
    return [(_name(row, place), json.dumps(row, default=str).encode()) for place, row in rows]


def _csv_rows(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(_lines(content, where), strict=True)
    header: list[str] | None = None
    try:
        for values in reader:
            place = f"{where}, line {reader.line_num}"
            if header is None:
                header = values
            elif values and len(values) != len(header):
                raise InputError(f"{place}: {len(values)} values, but {len(header)} columns in the header.")
            elif values:
                yield place, {name: value for name, value in zip(header, values, strict=True) if value}
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: no CSV ({error}). Quote this value.") from error


def _json_rows(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(content, where), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}, line {number}: no JSON ({error}). Give an object a line.") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}, line {number}: JSON, but no object. Give an object a line.")
        yield f"{where}, line {number}", row


def _parquet_rows(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = pq.read_table(io.BytesIO(content)).to_pylist()
    except Exception as error:  # of pyarrow, or text that is not UTF-8
        raise InputError(f"{where}: no readable parquet file ({in_words(error)}). Write it anew.") from error
    for number, row in enumerate(rows):
        yield f"{where}, row {number}", row


def _lines(content: bytes, where: str) -> Iterator[str]:
    for number, line in enumerate(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}, line {number}: not UTF-8. Save the file as UTF-8.") from error


def _name(row: dict[str, Any], place: str) -> str:
    names = [NAME_COLUMN] if NAME_COLUMN in row else [name for name in row if name.endswith("_file_name")]
    value = row[names[0]] if len(names) == 1 else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{place}: no {NAME_COLUMN} among {', '.join(row) or 'no values'}. "
            f"Give the image's path below this folder in a column {NAME_COLUMN}."
        )
    # Half a surrogate pair, which JSON may hold, is in no file's name.
    return posixpath.normpath(value.strip().encode("utf-8", "replace").decode())
