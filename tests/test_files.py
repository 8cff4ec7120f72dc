"""Small files that a user gives: what is read, and what is refused in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beamclip.errors import InputError
from beamclip.files import MOST_DEPTH, parse_json, parse_yaml, read_text, read_yaml, write_whole


def test_scalars_of_yaml_stay_the_text_that_stands_in_the_file() -> None:
    text = "[no, 0012, 1e-3, 2026-02-30, 1:30, '5', null, ~]"
    assert parse_yaml(text, "x") == ["no", "0012", "1e-3", "2026-02-30", "1:30", "5", None, None]


def test_aliases_and_merges_of_yaml_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: <<"
    one = {"x": "1", "y": "2"}
    assert parse_yaml(text, "x") == {"a": one, "b": {"x": "1", "y": "3"}, "c": [one, one], "d": "<<"}


NESTED = "[" * MOST_DEPTH + "]" * MOST_DEPTH
LAUGHS = "- &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"[{NESTED}]", "line 1 is not valid YAML: nested more than 50 levels deep."),
        ("[" * 100_000, "line 1 is not valid YAML: nested more than 50 levels deep."),
        ("a: 1\nb: &x\n- *x", "line 3 is not valid YAML: *x contains itself."),
        (LAUGHS, "line 8 is not valid YAML: with its aliases expanded, more than 67,108,864 values."),
        ("a: 1\na: 2", "line 2 is not valid YAML: the key 'a' is given twice."),
        ("a: !!timestamp 2026-13-45", "this is not valid YAML: month must be in 1..12."),
        (f"a: !!int {'9' * 5000}", "this is not valid YAML: Exceeds the limit"),
        ("a: *b", "line 1 is not valid YAML: found undefined alias."),
        ("a: \0", "this is not valid YAML: "),
    ],
)
def test_yaml_that_cannot_be_built_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(f"x.yaml: {problem}")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1,\n[" * 100_000, "line 26 is nested more than 50 levels deep."),
        ('{"a": ' + "9" * 5000 + "}", "a number in it has thousands of digits."),
        ('{"a": 1,\n}', "line 2 is not valid JSON: "),
        (r'["\ud83d"]', r"\ud83d is half a character."),
    ],
)
def test_json_that_cannot_be_built_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "x.json")
    assert str(caught.value).startswith(f"x.json: {problem}")


def test_brackets_in_texts_of_json_are_no_depth() -> None:
    value = ["[" * 100 + '"\\{', {"a": "\U0001f600"}]
    assert parse_json(json.dumps(value), "x") == value
    assert parse_json(NESTED, "x") == json.loads(NESTED)


def test_only_a_regular_file_of_utf_8_that_is_not_too_large_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"\xc3\xa9\ncaf\xe9")
    (tmp_path / "large").write_bytes(b"x" * 101)
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbfa: 1")
    for name, problem in (
        ("pipe", "it is no regular file"),
        (".", "it is a folder"),
        ("gone", "No such file or directory"),
        ("latin/x", "Not a directory"),
        ("latin", "line 2: byte 6 is not UTF-8"),
        ("large", "is larger than 100 bytes"),
    ):
        with pytest.raises(InputError, match=problem):
            read_text(tmp_path / name, most_bytes=100)
    assert read_yaml(tmp_path / "mark") == {"a": "1"}


def test_a_file_is_written_whole_with_the_rights_of_any_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    before = os.umask(0o027)
    try:
        write_whole(path, "after")
        with pytest.raises(UnicodeEncodeError):
            write_whole(path, "\ud800")
        write_whole(tmp_path / "weights", lambda draft: save_file({"a": torch.ones(2)}, draft))
    finally:
        os.umask(before)
    assert path.read_text() == "after"
    assert {each.name: oct(each.stat().st_mode & 0o777) for each in tmp_path.iterdir()} == {
        "x": "0o640",
        "weights": "0o640",
    }
