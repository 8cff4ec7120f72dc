"""Where the samples of a tar begin: found once, kept beside it, and read from."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamclip.data.index import INDEX_SUFFIX, count_samples, entry_of, read_starts, write_index
from beamclip.data.listing import list_shards
from beamclip.data.order import PIECE
from beamclip.data.shards import BROKEN_SHARD, Columns, Shard, iterate_rows
from beamclip.errors import InputError

ROWS = 3 * PIECE + 5
CAPTIONED = Columns(caption=True)


@pytest.fixture
def shard(tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path]) -> Shard:
    samples = make_samples(0, ROWS)
    # Names of more than 100 bytes have a header of their own before the sample's.
    samples[PIECE]["key"] = "long" * 40
    write_tar(tmp_path, 0, samples)
    return list_shards(str(tmp_path))[0]


def read(shard: Shard, rows: range, starts: np.ndarray) -> list[dict[str, Any]]:
    return list(iterate_rows(shard, CAPTIONED, rows, entry=entry_of(starts, rows[0])))


def test_rows_from_an_entry_are_those_of_the_whole_shard(shard: Shard) -> None:
    (starts,), made = read_starts([shard])
    assert (len(starts), made) == (4, 1)
    whole = list(iterate_rows(shard, CAPTIONED, range(ROWS)))
    for first in range(ROWS):
        assert read(shard, range(first, min(first + 20, ROWS)), starts) == whole[first : first + 20]


def test_an_index_is_made_once(shard: Shard, tmp_path: Path) -> None:
    first, made = read_starts([shard])
    again, made_again = read_starts([shard])
    assert (made, made_again) == (1, 0)
    np.testing.assert_array_equal(first[0], again[0])
    assert (tmp_path / f"00000{INDEX_SUFFIX}").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1", b'{"version": 1, "every": 16, "starts": "x"}', b"\xff"]
)
def test_an_index_that_says_nothing_is_made_anew(shard: Shard, tmp_path: Path, content: bytes) -> None:
    expected, _ = read_starts([shard])
    path = tmp_path / f"00000{INDEX_SUFFIX}"
    path.write_bytes(content)
    found, made = read_starts([shard])
    assert made == 1
    np.testing.assert_array_equal(found[0], expected[0])
    assert json.loads(path.read_bytes())["starts"] == expected[0].tolist()


def test_the_index_of_another_tar_is_made_anew(
    shard: Shard, tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path]
) -> None:
    write_index(shard.path)
    write_tar(tmp_path, 0, make_samples(0, 3 * ROWS))
    (starts,), made = read_starts(list_shards(str(tmp_path)))
    assert (len(starts), made) == (-(-3 * ROWS // PIECE), 1)


def test_the_index_of_another_tar_of_the_same_size_is_made_anew(
    shard: Shard, tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path]
) -> None:
    write_index(shard.path)
    before = (tmp_path / "00000.tar").stat()
    write_tar(tmp_path, 0, make_samples(1, ROWS))
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes().ljust(before.st_size, b"\0"))
    os.utime(tmp_path / "00000.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert (tmp_path / "00000.tar").stat().st_size == before.st_size
    (starts,), made = read_starts(list_shards(str(tmp_path)))
    assert (len(starts), made) == (4, 1)


def test_a_tar_of_others_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a tar cannot be read"):
        count_samples([str(tmp_path / "gone.tar")])


def test_a_cut_shard_has_entries_up_to_its_break(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (starts,), _ = read_starts([shard])
    whole = list(iterate_rows(shard, CAPTIONED, range(ROWS)))
    assert {row["problem"] for row in whole} == {None, BROKEN_SHARD}
    for first in range(0, ROWS, 7):
        assert read(shard, range(first, ROWS), starts) == whole[first:]


def test_a_missing_shard_has_no_entries_and_a_read_only_folder_no_index(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / "00000.tar").rename(tmp_path / "elsewhere.tar")
    (starts,), made = read_starts([shard])
    assert (len(starts), made) == (0, 0)


def test_other_formats_need_none(tmp_path: Path) -> None:
    starts, made = read_starts([Shard(str(tmp_path / "00000.parquet"), 5, "parquet")])
    assert (len(starts[0]), made) == (0, 0)
    assert entry_of(starts[0], 3).byte == 0
