"""Read rows of JSON lines: texts and numbers arrive as they are in the file, or the file is refused.

pyarrow's own reader rewrites texts that look like dates, makes a double of an integer above 2^63, and ends
the process on a line that is nested some 100,000 levels deep.
"""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from beamclip.ingest.list_lines import Opener, UnreadableListError, numbered_lines, shown

ROWS_PER_CHUNK = 1 << 16
_EXACT_INTEGERS = 2**53
"""Up to here a double holds every integer."""


def read_json_rows(open_file: Opener, wanted: Sequence[str]) -> tuple[list[str], pa.Table]:
    """Read the names of all columns, and a table of the wanted ones; one that no line has is all null.

    A column holds integers, doubles, booleans or texts, whichever fits all of its values; a column of several
    kinds holds texts. Lists and objects become their JSON text. A number that a double would change becomes a
    text.

    Raises:
        UnreadableListError: a line is not a JSON object, not UTF-8, nested too deep or too long, or holds
            half of a surrogate pair or a number of thousands of digits.
    """
    names: dict[str, None] = {}
    columns: dict[str, list[pa.Array]] = {name: [] for name in wanted}
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    numbers: list[int] = []

    def end_chunk() -> None:
        for name in columns:
            columns[name].append(_typed(values[name], numbers))
            values[name].clear()
        numbers.clear()

    with open_file() as file:
        for number, line in numbered_lines(file):
            if not line.strip():
                continue
            row = _parse(number, line)
            names.update(dict.fromkeys(row))
            for name, column in values.items():
                column.append(row.get(name))
            numbers.append(number)
            if len(numbers) == ROWS_PER_CHUNK:
                end_chunk()
    end_chunk()
    return list(names), pa.table({name: _of_one_type(chunks) for name, chunks in columns.items()})


def _number(text: str) -> float | str:
    number = float(text)
    if len(text) <= 16 and math.isfinite(number):
        return number
    return number if math.isfinite(number) and Decimal(repr(number)) == Decimal(text) else text


_decode = json.JSONDecoder(parse_float=_number, parse_constant=lambda name: name).decode


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        row = _decode(line.decode())
    except UnicodeDecodeError:
        raise UnreadableListError(f"line {number} is not UTF-8. Save the list as UTF-8.") from None
    except RecursionError:
        raise UnreadableListError(f"line {number} is nested too deep.") from None
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.colno}"
        raise UnreadableListError(f"line {number} is not valid JSON ({what}): {shown(line)}.") from None
    except ValueError:  # more digits than Python converts
        raise UnreadableListError(f"line {number} holds a number of thousands of digits.") from None
    if not isinstance(row, dict):
        raise UnreadableListError(f"line {number} is not a JSON object: {shown(line)}.")
    return row


def _typed(values: list[Any], numbers: list[int]) -> pa.Array:
    """Build a chunk of a column from its values; `numbers` are their lines."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds <= {int, float} and _fit(values, float in kinds):
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    texts = values if kinds == {str} else [_as_text(value) for value in values]
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        bad = next(i for i, text in enumerate(texts) if text and not _is_encodable(text))
        raise UnreadableListError(f"line {numbers[bad]} holds half of a surrogate pair, not text.") from None


def _fit(values: list[Any], as_doubles: bool) -> bool:
    integers = [value for value in values if type(value) is int]
    most = _EXACT_INTEGERS if as_doubles else 2**63 - 1
    return not integers or (max(integers) <= most and min(integers) >= -most)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _of_one_type(chunks: list[pa.Array]) -> pa.ChunkedArray:
    types = {chunk.type for chunk in chunks} - {pa.null()}
    if not types:
        return pa.chunked_array(chunks, pa.null())
    if len(types) == 1:
        kind = types.pop()
        return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
    if types == {pa.int64(), pa.float64()}:
        try:
            return pa.chunked_array([chunk.cast(pa.float64()) for chunk in chunks])
        except pa.ArrowInvalid:  # an integer that a double would change
            pass
    texts = [chunk if chunk.type == pa.string() else _texts_of(chunk) for chunk in chunks]
    return pa.chunked_array(texts, pa.string())


def _texts_of(chunk: pa.Array) -> pa.Array:
    return pa.array([_as_text(value) for value in chunk.to_pylist()], pa.string())
