"""Lines of JSON whose writer may have been killed."""

from pathlib import Path

import pytest

from beamclip.errors import InputError
from beamclip.json_lines import mend_json_lines, read_json_lines

WHOLE = '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("half", ["", "{", '{"a": 3', '{"a": 3}'])
def test_half_a_line_is_left_out_and_cut_off(tmp_path: Path, half: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(WHOLE + half)
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    mend_json_lines(path)
    assert path.read_text() == WHOLE


def test_a_file_of_half_a_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a"')
    mend_json_lines(path)
    assert (path.read_text(), read_json_lines(path)) == ("", [])


def test_a_missing_file_holds_nothing_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    mend_json_lines(path)
    assert (read_json_lines(path), path.exists()) == ([], False)


@pytest.mark.parametrize("line", ["{", "\0\0", "[]", "[" * 100_000, "\xff"])
def test_a_whole_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(f"{WHOLE}{line}\n{WHOLE}".encode("latin-1"))
    with pytest.raises(InputError, match=r"lines\.jsonl: line 3: not (a )?JSON"):
        read_json_lines(path)
