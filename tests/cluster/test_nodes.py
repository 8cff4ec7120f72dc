"""What nodes are asked before a command loads anything."""

from dataclasses import replace
from pathlib import Path

import pytest

from beamclip.cluster import nodes
from beamclip.cluster.nodes import SharedPlaces, ask_nodes, problem_here, some_files
from beamclip.errors import InputError


def question(*, sizes: tuple = (), notes: tuple = ()) -> nodes._Question:
    return nodes._Question(sizes, notes, nodes._versions())


def test_three_files_of_a_data_set_are_looked_at() -> None:
    paths = [f"s3://b/{number}.tar" for number in range(9)]
    assert [path for _, path in some_files("--data", paths)] == [paths[0], paths[4], paths[8]]
    assert some_files("--data", ["file:///data/0.tar"]) == (("--data", "/data/0.tar"),)
    assert some_files("--data", []) == ()


def test_a_node_that_sees_the_same_has_no_problem(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(b"12345")
    asked = (("--data", str(shard), 5), ("--data", str(tmp_path), -1))
    with nodes._notes([("--out", str(tmp_path / "out"))]) as notes:
        assert problem_here(question(sizes=asked, notes=notes)) is None
        assert len(list((tmp_path / "out").iterdir())) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    asked = question(sizes=(("--data", f"{tmp_path}/0.tar", 5),))
    said = problem_here(asked)
    assert said is not None
    assert said.startswith(f"--data: {tmp_path}/0.tar is not there. Give --data an address")


def test_a_file_of_another_size_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"123")
    said = problem_here(question(sizes=(("--data", f"{tmp_path}/0.tar", 5),)))
    assert said is not None
    assert "has 3 bytes there and 5 here" in said


def test_a_folder_without_the_note_is_another_folder(tmp_path: Path) -> None:
    said = problem_here(question(notes=(("--checkpoints", str(tmp_path), ".note-1"),)))
    assert said is not None
    assert said.startswith(f"--checkpoints: {tmp_path} is another folder there.")


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".note-1").write_text(".note-1")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.pipe_file", refuse)
    said = problem_here(question(notes=(("--out", str(tmp_path), ".note-1"),)))
    assert said is not None
    assert said.startswith(f"--out: {tmp_path} cannot be written to there (Permission denied).")


def test_a_place_in_a_bucket_needs_rights_and_a_package() -> None:
    said = problem_here(question(sizes=(("--data", "nosuchstore://bucket/0.tar", 5),)))
    assert said is not None
    assert "Nodes need the right to it, and the package of its store" in said


@pytest.mark.parametrize("name", ["Python", "beamclip", "torch", "ray"])
def test_another_version_is_named(name: str) -> None:
    asked = question()
    said = problem_here(replace(asked, versions={**asked.versions, name: "0.0.1"}))
    assert said is not None
    assert said.startswith(f"has {name} ")
    assert "this machine has 0.0.1" in said


def test_a_ray_of_the_commands_own_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ask_nodes(SharedPlaces(written=(("--out", str(tmp_path / "out")),)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_from_here_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"^--out: .*file/x cannot be written to"),
        nodes._notes([("--out", str(tmp_path / "file" / "x"))]),
    ):
        pass
