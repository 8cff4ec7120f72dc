"""Where the samples of a tar begin: found once, kept beside it and for the data set, and read from."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamclip.data import index_pass, known_shards
from beamclip.data.index import (
    INDEX_SUFFIX,
    Index,
    Starts,
    find_index,
    read_index,
    starts_of,
    version_of,
    write_index,
)
from beamclip.data.index_pass import find_indexes
from beamclip.data.known_shards import KNOWN_FILE, Known, read_known, recall
from beamclip.data.listing import list_shards
from beamclip.data.order import PIECE
from beamclip.data.shards import BROKEN_SHARD, Columns, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.tar_samples import WHOLE
from beamclip.errors import InputError

ROWS = 3 * PIECE + 5
CAPTIONED = Columns(caption=True)


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for caches."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def shard(tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path]) -> Shard:
    samples = make_samples(0, ROWS)
    # Names of more than 100 bytes have a header of their own before the sample's.
    samples[PIECE]["key"] = "long" * 40
    # A sample whose caption is missing ends a piece: nothing says that the next member is not its own.
    del samples[2 * PIECE - 1]["txt"]
    write_tar(tmp_path, 0, samples)
    return list_shards(str(tmp_path))[0]


def read(shard: Shard, rows: range, starts: Starts) -> list[dict[str, Any]]:
    return list(iterate_rows(shard, CAPTIONED, rows, span=starts.span(0, rows)))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that are read for their index, as it happens."""
    found = list[str]()

    def noted(path: str) -> Index:
        found.append(path)
        return find_index(path)

    monkeypatch.setattr(index_pass, "find_index", noted)
    return found


def test_rows_from_a_span_are_those_of_the_whole_shard(shard: Shard) -> None:
    starts = read_starts([shard])
    assert len(starts.places) == 5
    whole = list(iterate_rows(shard, CAPTIONED, range(ROWS)))
    for first in range(ROWS):
        rows = range(first, min(first + 20, ROWS))
        assert starts.span(0, rows).stop is not None
        assert read(shard, rows, starts) == whole[first : first + 20]


def test_a_span_is_a_whole_number_of_pieces() -> None:
    first, second = np.array([0, 900, 1800, 2000]), np.array([0, 700])
    starts = starts_of([first, np.zeros(1, np.int64), second])
    assert starts.span(0, range(PIECE - 1, PIECE + 1)).stop == 1800
    assert (starts.span(0, range(PIECE, 2 * PIECE)).row, starts.span(0, range(PIECE, 20)).first) == (
        PIECE,
        900,
    )
    assert starts.span(0, range(2 * PIECE, 2 * PIECE + 3)).stop == 2000
    assert starts.span(1, range(4)) == WHOLE
    assert starts.span(2, range(3)).stop == 700
    # Statistics may claim more than there is.
    assert starts.span(2, range(PIECE, 2 * PIECE)).first == 0


def test_tars_are_read_for_their_index_once(shard: Shard, passes: list[str]) -> None:
    first = read_starts([shard])
    again = read_starts([shard])
    assert passes == [shard.path]
    np.testing.assert_array_equal(first.places, again.places)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}", "a table of others"])
def test_a_file_that_is_no_list_of_shards_is_made_anew(
    shard: Shard, tmp_path: Path, passes: list[str], content: bytes | str
) -> None:
    if isinstance(content, str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"name": ["00000.tar"], "samples": [-1]}), tmp_path / KNOWN_FILE)
    else:
        (tmp_path / KNOWN_FILE).write_bytes(content)
    assert list_shards(str(tmp_path)) == [shard]
    read_starts([shard])
    read_starts([shard])
    assert passes == [shard.path]


def test_the_index_of_a_tar_that_was_written_again_is_made_anew(
    shard: Shard,
    tmp_path: Path,
    make_samples: Callable[..., Any],
    write_tar: Callable[..., Path],
    passes: list[str],
) -> None:
    read_starts([shard])
    before = (tmp_path / "00000.tar").stat()
    write_tar(tmp_path, 0, make_samples(1, ROWS))
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes().ljust(before.st_size, b"\0"))
    os.utime(tmp_path / "00000.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert (tmp_path / "00000.tar").stat().st_size == before.st_size
    (changed,) = list_shards(str(tmp_path))
    starts = read_starts([changed])
    assert passes == [shard.path] * 2
    assert read(changed, range(PIECE, PIECE + 2), starts)[0]["key"] == f"00001{PIECE:04d}"


def test_the_index_beside_a_tar_is_taken_if_it_is_of_this_version(
    shard: Shard, tmp_path: Path, passes: list[str]
) -> None:
    path = tmp_path / "00000.tar"
    index = find_index(str(path))
    write_index(str(path), index)
    version = version_of({"size": path.stat().st_size, "mtime": path.stat().st_mtime})
    np.testing.assert_array_equal(read_index(str(path), version).places, index.places)
    assert read_index(str(path), version + "1") is None
    (tmp_path / KNOWN_FILE).unlink()
    read_starts(list_shards(str(tmp_path)))
    assert passes == []


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1", b'{"version": 1, "every": 16, "places": "x"}', b"\xff"]
)
def test_an_index_that_says_nothing_is_none(shard: Shard, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"00000{INDEX_SUFFIX}"
    path.write_bytes(content)
    assert read_index(shard.path, shard.version.split(";")[0]) is None


def test_an_index_with_too_few_places_is_none(shard: Shard, tmp_path: Path) -> None:
    write_index(shard.path, find_index(shard.path))
    path = tmp_path / f"00000{INDEX_SUFFIX}"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "places": content["places"][:-1]}))
    assert read_index(shard.path, content["version"]) is None


def test_data_that_are_read_only_are_known_from_the_users_folder(
    shard: Shard, tmp_path: Path, caches: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / KNOWN_FILE).unlink()
    write = known_shards.Folder.write

    def refused(folder: known_shards.Folder, name: str, content: bytes) -> None:
        if name == KNOWN_FILE:
            raise PermissionError(name)
        write(folder, name, content)

    monkeypatch.setattr(known_shards.Folder, "write", refused)
    for _ in range(2):
        read_starts(list_shards(str(tmp_path)))
    assert passes == [shard.path]
    assert len(list((caches / "beamclip" / "shards").iterdir())) == 1


def test_what_was_learnt_before_a_failure_is_kept(tmp_path: Path) -> None:
    keys = [(f"{number}.tar", "1") for number in range(3)]

    def learn(wanted: list[tuple[str, str]]) -> Iterator[Known]:
        yield Known(wanted[0], 5, np.array([0, 7]))
        yield Known(wanted[1], None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recall(str(tmp_path), keys, learn)
    known = read_known(str(tmp_path))
    assert list(known) == keys[:2]
    assert (known[keys[0]].samples, known[keys[0]].places.tolist()) == (5, [0, 7])
    assert (known[keys[1]].samples, known[keys[1]].places) == (None, None)


def test_only_the_last_version_of_a_shard_stays_known(tmp_path: Path) -> None:
    def learn(wanted: list[tuple[str, str]]) -> Iterator[Known]:
        return (Known(key, 1) for key in wanted)

    recall(str(tmp_path), [("a.tar", "1"), ("b.tar", "1")], learn)
    recall(str(tmp_path), [("a.tar", "2")], learn)
    assert set(read_known(str(tmp_path))) == {("a.tar", "2"), ("b.tar", "1")}


@pytest.mark.ray
@pytest.mark.parametrize("here", [True, False])
def test_many_tars_are_read_by_tasks_of_ray(
    shard: Shard,
    tmp_path: Path,
    here: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not here:
        monkeypatch.setattr(index_pass, "BYTES_HERE", 0)
    caplog.set_level(logging.INFO, "beamclip.data.index_pass")
    gone = str(tmp_path / "gone.tar")
    (path, index), (missing, problem) = find_indexes([(shard.path, shard.size), (gone, 1)])
    assert (path, missing) == (shard.path, gone)
    assert index.samples == ROWS
    np.testing.assert_array_equal(index.places, find_index(shard.path).places)
    assert "FileNotFoundError" in problem
    assert "reading 2 tars, 0.0 GB, once for where their samples begin" in caplog.text


def test_a_tar_of_others_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path]
) -> None:
    path = write_tar(tmp_path, 0, make_samples(0, 3))
    path.rename(tmp_path / "target")
    path.symlink_to(tmp_path / "nowhere")
    (tmp_path / "00000_stats.json").unlink()
    with pytest.raises(InputError, match=r"00000\.tar: cannot be read as a tar"):
        list_shards(str(tmp_path))


def test_a_cut_shard_has_entries_up_to_its_break(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    whole_tar = path.read_bytes()
    for size in (len(whole_tar) // 2, find_index(shard.path).places[2] + 1536):
        path.write_bytes(whole_tar[:size])
        (cut,) = list_shards(str(tmp_path))
        starts = read_starts([cut])
        whole = list(iterate_rows(cut, CAPTIONED, range(ROWS)))
        assert BROKEN_SHARD in {row["problem"] for row in whole}
        for first in range(0, ROWS, 7):
            rows = read(cut, range(first, ROWS), starts)
            # What is met at the break depends on where reading began.
            assert [{**row, "detail": None} for row in rows] == [
                {**row, "detail": None} for row in whole[first:]
            ]


def test_a_shard_that_was_cut_since_breaks_off_where_it_ends(shard: Shard, tmp_path: Path) -> None:
    starts = read_starts([shard])
    path = tmp_path / "00000.tar"
    path.write_bytes(path.read_bytes()[: starts.places[1] + 700])
    rows = read(shard, range(PIECE, 2 * PIECE), starts)
    assert [row["problem"] for row in rows] == [BROKEN_SHARD] * PIECE


def test_a_missing_shard_and_other_formats_have_no_places(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / "00000.tar").rename(tmp_path / "elsewhere.tar")
    for each in (shard, Shard(str(tmp_path / "00000.parquet"), 5, "parquet")):
        starts = read_starts([each])
        assert starts.span(0, range(3, 5)) == WHOLE
