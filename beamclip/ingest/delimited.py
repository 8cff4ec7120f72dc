"""Read rows of CSV and TSV: each arrives with the very text of the file, or the file is refused.

CSV follows RFC 4180. A field that begins with a quote is quoted: it may hold commas, line breaks and doubled
quotes, and ends with a quote before the next comma. A quote inside a field that does not begin with one is
text (`a 5" pipe`). `"hello world` and `"the end" she said` are neither, and are refused by a message that
names the line: a lenient reader would read on to the next quote, rows further down.

In TSV, quotes are text, as in Conceptual Captions, where captions begin with a quote that nothing closes.
Some programs quote TSV like CSV. A TSV is read like CSV where that is certain: its header begins with a
quote; or rows have the wrong number of fields as TSV and the right number as CSV; or every field that begins
with a quote is a quoted field that needs its quotes, as minimal quoting writes them.

pyarrow splits and converts. The quotes are checked on the bytes before it gets them.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from beamclip.ingest.list_lines import (
    BLOCK_BYTES,
    LONGEST_LINE,
    Opener,
    UnreadableListError,
    numbered_lines,
    shown,
    without_mark,
)

_UP_TO_ITS_END = re.compile(rb'"[^"]*(?:""[^"]*)*')

# A whole value that begins and ends with a quote, and holds doubled quotes and no others.
_NEEDS_QUOTES = r'^"(?s:[^"]*""[^"]*)+"$'


class Dialect:
    """How fields are separated: the delimiter, and whether quotes enclose fields or are text."""

    def __init__(self, delimiter: str, *, quoted: bool) -> None:
        self.delimiter = delimiter
        self.quoted = quoted

    @cached_property
    def quoted_field(self) -> "re.Pattern[bytes]":
        """Pattern of a well-formed quoted field, between two delimiters or line breaks."""
        ends = re.escape(self.delimiter.encode()) + rb"\r\n"
        return re.compile(rb'"(?<=[%s]")[^"]*(?:""[^"]*)*"(?=[%s])' % (ends, ends))

    @cached_property
    def opening(self) -> "re.Pattern[bytes]":
        """Pattern of the beginning of a quoted field: a delimiter or line break, and a quote."""
        return re.compile(rb'[%s\r\n]"' % re.escape(self.delimiter.encode()))


def read_delimited(open_file: Opener, wanted: Sequence[str], *, delimiter: str) -> tuple[list[str], pa.Table]:
    """Read the names of all columns, and, as text, a table of the wanted columns whose name occurs once.

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
    with open_file() as file:
        tables = [_parse(rows, names, there, dialect) for rows in whole_rows(file, dialect)]
    first = next(i for i, table in enumerate(tables) if table.num_rows > 0)
    tables[first] = tables[first].slice(1)  # the header
    return names, pa.concat_tables(tables)


def _parse(rows: "Rows", names: list[str], there: list[str], dialect: Dialect) -> pa.Table:
    # By position: a name may occur twice.
    fields = {str(i): name for i, name in enumerate(names) if name in there}
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(rows.text),
            read_options=pa_csv.ReadOptions(
                block_size=len(rows.text) + 1, column_names=[str(i) for i in range(len(names))]
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=dialect.quoted,
            ),
            # All text: type inference would turn the id 007 into 7 and the caption "null" into nothing.
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(fields, pa.string()), include_columns=list(fields)
            ),
        )
    except pa.ArrowException as error:
        fault = _first_fault(rows, dialect, len(names))
        raise UnreadableListError(fault or f"cannot be read: {error}") from error
    return table.rename_columns([fields[column] for column in table.column_names])


def _column_names(header: bytes, dialect: Dialect) -> list[str]:
    try:
        text = header.decode()
    except UnicodeDecodeError:
        raise UnreadableListError(f"line 1 is not UTF-8: {shown(header)}. Save the list as UTF-8.") from None
    if not dialect.quoted:
        return text.split(dialect.delimiter) if text else []
    return next(csv.reader([text], delimiter=dialect.delimiter), [])


@dataclass(frozen=True)
class Rows:
    """Complete rows of a file, and the number of their first line."""

    text: bytes
    first_line: int


def whole_rows(file: IO[bytes], dialect: Dialect) -> Iterator[Rows]:
    """Yield the rows of a file in pieces of about `BLOCK_BYTES`.

    pyarrow could read the file itself, but in threads that may outlive the call: when Python ends before
    them, they abort the process.

    Raises:
        UnreadableListError: a quoted field is not well formed, a line is too long, or the file is UTF-16.
    """
    line, text = 1, without_mark(file.read(BLOCK_BYTES))
    while text:
        more = file.read(BLOCK_BYTES)
        if not more and not text.endswith(b"\n"):
            text += b"\n"
        end = _end_of_rows(text, dialect, line, ended=not more)
        if end > 0:
            if text[:end].strip(b"\r\n"):
                yield Rows(text[:end], line)
            line += text.count(b"\n", 0, end)
        elif len(text) > LONGEST_LINE:
            raise UnreadableListError(f"line {line} is longer than {LONGEST_LINE >> 20} MiB.")
        text = text[end:] + more


def _end_of_rows(text: bytes, dialect: Dialect, line: int, *, ended: bool) -> int:
    """Return where the last complete row ends; 0 if no row is complete."""
    end = text.rfind(b"\n") + 1
    while dialect.quoted and end > 0 and (start := _first_open(text[:end], dialect)) is not None:
        if _is_ill_formed(text, start, dialect, ended=ended):
            number = line + text.count(b"\n", 0, start)
            raise UnreadableListError(
                f"line {number}: a field begins with a quote, and no quote ends it: {shown(text[start:])}. "
                "Put the whole field in quotes and double those inside, or write a .tsv, where quotes are "
                "text."
            )
        end = text.rfind(b"\n", 0, start) + 1
    return end


def _first_open(text: bytes, dialect: Dialect) -> int | None:
    """Return where the first quoted field without an end in these lines begins; None if each has one."""
    if b'"' not in text:
        return None
    lines = b"\n" + text
    if not dialect.opening.search(dialect.quoted_field.sub(b"", lines)):
        return None
    masked = dialect.quoted_field.sub(lambda field: b" " * len(field[0]), lines)
    found = dialect.opening.search(masked)
    return None if found is None else found.start()


def _is_ill_formed(text: bytes, start: int, dialect: Dialect, *, ended: bool) -> bool:
    """Whether a field has text after its closing quote, or has no closing quote and never will."""
    if dialect.quoted_field.match(b"\n" + text, start + 1):
        return False  # it ends further down
    found = _UP_TO_ITS_END.match(text, start)
    end = len(text) if found is None else found.end()
    return end < len(text) - 1 or ended or len(text) - start > LONGEST_LINE


def _first_fault(rows: Rows, dialect: Dialect, columns: int) -> str | None:
    """Return the first line that pyarrow cannot have read, and why; None if none is found."""
    for number, record, fields in _records(rows, dialect):
        try:
            record.decode()
        except UnicodeDecodeError as error:
            at = shown(record[max(0, error.start - 20) :])
            return f"line {number} is not UTF-8, at {at}. Save the list as UTF-8."
        if fields != columns:
            return f"line {number} has {fields} fields and the header {columns}: {shown(record)}."
        if b"\r" in record and not dialect.quoted:
            return f"line {number} has a carriage return inside: {shown(record)}."
    return None


def _records(rows: Rows, dialect: Dialect) -> Iterator[tuple[int, bytes, int]]:
    """Yield rows that are not empty: number of the first line, bytes, and number of fields."""
    record, first = b"", 0
    for number, line in enumerate(rows.text.split(b"\n"), rows.first_line):
        first = first if record else number
        record += line
        bare = b"\n" + record.removesuffix(b"\r") + b"\n"
        if dialect.quoted:
            bare = dialect.quoted_field.sub(b"", bare)
            if dialect.opening.search(bare):
                record += b"\n"
                continue
        if record.strip(b"\r"):
            yield first, record.removesuffix(b"\r"), bare.count(dialect.delimiter.encode()) + 1
        record = b""
