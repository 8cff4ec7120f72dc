"""Rows of CSV and TSV: each arrives with the text that stood in the file, or the file is refused.

CSV follows RFC 4180. A field that begins with a quote is quoted: it may hold commas, line breaks and doubled
quotes, and ends with a quote before the next comma. A quote inside a field that does not begin with one is
text (`a 5" pipe`). `"hello world` and `"the end" she said` are neither, and are refused with their line: a
lenient reader runs on to the next quote, rows further down.

In TSV, quotes are text, as in Conceptual Captions, where captions begin with a quote that nothing closes.
Some programs quote TSV as if it were CSV. It is read so where that is certain: its header is quoted; or it
has rows with too many or too few fields that come out right when read so; or all of its fields that begin
with a quote are quoted fields that need their quotes, as minimal quoting writes them.

pyarrow splits and converts. The quotes are checked on the bytes that it is about to get.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from beamclip.data.list_lines import (
    BLOCK_BYTES,
    LONGEST_LINE,
    Opener,
    UnreadableListError,
    numbered_lines,
    shown,
    without_mark,
)

# A whole value that begins and ends with a quote, and holds doubled quotes and no others.
_NEEDS_QUOTES = r'^"(?s:[^"]*""[^"]*)+"$'


class Dialect:
    """How fields are told apart."""

    def __init__(self, delimiter: str, *, quoted: bool) -> None:
        self.delimiter = delimiter
        self.quoted = quoted

    @cached_property
    def quoted_field(self) -> "re.Pattern[bytes]":
        """A well-formed quoted field, between two delimiters or line breaks."""
        ends = re.escape(self.delimiter.encode()) + rb"\r\n"
        return re.compile(rb'"(?<=[%s]")[^"]*(?:""[^"]*)*"(?=[%s])' % (ends, ends))

    @cached_property
    def opening(self) -> "re.Pattern[bytes]":
        """The beginning of a quoted field."""
        return re.compile(rb'[%s\r\n]"' % re.escape(self.delimiter.encode()))


def read_delimited(open_file: Opener, wanted: Sequence[str], *, delimiter: str) -> tuple[list[str], pa.Table]:
    """Names of all columns, and a table of the wanted ones that stand there once, as text.

    Raises:
        UnreadableListError: a row has too many or too few fields, a quoted field is not well formed, a text
            is not UTF-8, or a line is too long.
    """
    header = _header(open_file)
    read = partial(_read, open_file, header, wanted)
    if delimiter == "," or header.startswith(b'"'):
        return read(Dialect(delimiter, quoted=True))
    try:
        names, table = read(Dialect(delimiter, quoted=False))
    except UnreadableListError as error:
        try:
            return read(Dialect(delimiter, quoted=True))
        except UnreadableListError:
            raise error from None
    if _is_minimally_quoted(table):
        return read(Dialect(delimiter, quoted=True))
    return names, table


def _header(open_file: Opener) -> bytes:
    with open_file() as file:
        for _, line in numbered_lines(file):
            if line.strip(b"\r"):
                return re.split(rb"\r", line)[0]
    return b""


def _is_minimally_quoted(table: pa.Table) -> bool:
    found = False
    for column in table.columns:
        begins = column.filter(pc.starts_with(column, '"'))
        if not pc.all(pc.match_substring_regex(begins, _NEEDS_QUOTES), min_count=0).as_py():
            return False
        found = found or len(begins) > 0
    return found


def _read(
    open_file: Opener, header: bytes, wanted: Sequence[str], dialect: Dialect
) -> tuple[list[str], pa.Table]:
    names = _column_names(header, dialect)
    there = [name for name in dict.fromkeys(wanted) if names.count(name) == 1]
    if not there:
        return names, pa.table({})
    try:
        with open_file() as file:
            table = pa_csv.read_csv(
                QuoteCheck(file, dialect) if dialect.quoted else file,
                read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(
                    delimiter=dialect.delimiter,
                    quote_char='"' if dialect.quoted else False,
                    newlines_in_values=dialect.quoted,
                ),
                # All text: type inference would turn the id 007 into 7 and the caption "null" into nothing.
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(there, pa.string()), include_columns=there
                ),
            )
    except pa.ArrowException as error:
        with open_file() as file:
            fault = _first_fault(file, dialect, len(names))
        raise UnreadableListError(fault or f"cannot be read: {error}") from error
    return names, table


def _column_names(header: bytes, dialect: Dialect) -> list[str]:
    try:
        text = header.decode()
    except UnicodeDecodeError:
        raise UnreadableListError(f"line 1 is not UTF-8: {shown(header)}. Save the list as UTF-8.") from None
    if not dialect.quoted:
        return text.split(dialect.delimiter) if text else []
    return next(csv.reader([text], delimiter=dialect.delimiter), [])


class QuoteCheck:
    """A file that is read through, while its quoted fields are checked.

    Raises (on reading):
        UnreadableListError: one is not well formed.
    """

    closed = False

    def __init__(self, file: IO[bytes], dialect: Dialect) -> None:
        self._file = file
        self._dialect = dialect
        self._lines = 0
        # Bytes that may belong to a quoted field whose end has not been read; a first field follows a line.
        self._pending = b"\n"
        self._started = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the file."""
        data = self._file.read(size)
        if not self._started:
            data, self._started = without_mark(data), True
        self._check(self._pending + (data or b"\n"), ended=not data)
        return data

    def _check(self, text: bytes, *, ended: bool) -> None:
        keep = len(text) - 1
        if b'"' in text:
            rest = self._dialect.quoted_field.sub(b"", text)
            if self._dialect.opening.search(rest):
                keep = self._first_open(text, ended=ended)
        self._lines += text.count(b"\n", 0, keep)
        self._pending = text[keep:]

    def _first_open(self, text: bytes, *, ended: bool) -> int:
        """Where the first quoted field begins whose end is not in `text`, with the byte before it."""
        masked = self._dialect.quoted_field.sub(lambda field: b" " * len(field[0]), text)
        found = self._dialect.opening.search(masked)
        assert found is not None, "the caller found one"
        start = found.start()
        closed = re.compile(rb'"[^"]*(?:""[^"]*)*').match(text, start + 1)
        is_open = closed is not None and closed.end() >= len(text) - 1
        if is_open and not ended and len(text) - start <= LONGEST_LINE:
            return start
        line = self._lines + text.count(b"\n", 0, start + 1)
        raise UnreadableListError(
            f"line {line}: a field begins with a quote, and no quote ends it: {shown(text[start + 1 :])}. "
            "Put the whole field in quotes and double those inside, or write a .tsv, where quotes are text."
        )


def _first_fault(file: IO[bytes], dialect: Dialect, columns: int) -> str | None:
    """The first line that pyarrow cannot have read, and why."""
    for number, record, fields in _records(file, dialect):
        try:
            record.decode()
        except UnicodeDecodeError as error:
            at = shown(record[max(0, error.start - 20) :])
            return f"line {number} is not UTF-8, at {at}. Save the list as UTF-8."
        if len(record) > BLOCK_BYTES:
            return f"line {number} is longer than {BLOCK_BYTES >> 20} MiB."
        if fields != columns:
            return f"line {number} has {fields} fields and the header {columns}: {shown(record)}."
        if b"\r" in record and not dialect.quoted:
            return f"line {number} has a carriage return inside: {shown(record)}."
    return None


def _records(file: IO[bytes], dialect: Dialect) -> Iterator[tuple[int, bytes, int]]:
    """Rows that are not empty: the number of their first line, their bytes, and their number of fields."""
    record, first = b"", 0
    for number, line in numbered_lines(file):
        first = first if record else number
        record += line
        bare: Any = b"\n" + record.removesuffix(b"\r") + b"\n"
        if dialect.quoted:
            bare = dialect.quoted_field.sub(b"", bare)
            if dialect.opening.search(bare):
                record += b"\n"
                continue
        if record.strip(b"\r"):
            yield first, record.removesuffix(b"\r"), bare.count(dialect.delimiter.encode()) + 1
        record = b""
