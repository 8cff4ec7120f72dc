"""Bundles of rows, and Ray Data's reading of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data

from beamclip.data import bundles as data_bundles
from beamclip.data import rows as data_rows
from beamclip.data import shards as data_shards
from beamclip.data.bundles import (
    ROWS_PER_TASK,
    Bundle,
    Segment,
    bundle_numbers,
    bundles_of,
    read_bundle,
    tasks_of,
)
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.order import PIECE, Order, windows_from
from beamclip.data.rows import executions, prepared_dataset, read_dataset, read_rows
from beamclip.data.shard_file import UnansweredShardError, read_part
from beamclip.data.shards import BROKEN_SHARD, Columns, Shard
from beamclip.data.starts import read_starts

CAPTIONED = Columns(caption=True)


def made_bundles(folder: Path, epochs: int = 1) -> list[Bundle]:
    """Two bundles an epoch: 9 and 4 rows in turns, then 5 of the 10 rows of a third shard as they lie."""
    first, second, third = list_shards(str(folder))
    both = (Segment(first, range(9)), Segment(second, range(4)))
    some = (Segment(third, np.array([0, 3, 4, 8, 9])),)
    return [b for epoch in range(epochs) for b in (Bundle(both, epoch, TURNS), Bundle(some, epoch))]


TURNS = np.random.default_rng(0).permutation(13)
LYING = [*((0, row) for row in range(9)), *((1, row) for row in range(4))]
IN_TURNS = [LYING[turn] for turn in TURNS]
SOME = [(2, 0), (2, 3), (2, 4), (2, 8), (2, 9)]


def keys(places: list[tuple[int, int]]) -> list[str]:
    return [f"{shard:05d}{row:04d}" for shard, row in places]


def test_the_rows_of_a_bundle_are_read_in_their_turns(folder: Path) -> None:
    tables = [list(read_bundle(bundle, CAPTIONED)) for bundle in made_bundles(folder)]
    assert [table["key"].to_pylist() for (table,) in tables] == [keys(IN_TURNS), keys(SOME)]


def test_a_broken_shard_of_a_bundle_costs_its_own_rows_only(folder: Path) -> None:
    (folder / "00001.tar").write_bytes(b"")
    (table,) = read_bundle(made_bundles(folder)[0], CAPTIONED)
    problems = table["problem"].to_pylist()
    assert [problem == BROKEN_SHARD for problem in problems] == [shard == 1 for shard, _ in IN_TURNS]
    good = [key for key, problem in zip(table["key"].to_pylist(), problems, strict=True) if problem is None]
    assert good == keys([place for place in IN_TURNS if place[0] == 0])


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_bundles_of_a_window_hold_its_rows_in_its_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setattr(data_bundles, "ROWS_PER_TASK", 4)
    shards = list_shards(str(folder))
    starts = read_starts(shards)
    order = Order(np.array([shard.samples for shard in shards]), lanes=6, piece=3, seed=1)
    for rank in range(world_size):
        window = next(windows_from(order, 0, rank, world_size))
        bundles = bundles_of(window, shards, starts)
        assert len(bundles) > 1
        read = [row for b in bundles for table in read_bundle(b, CAPTIONED) for row in table.to_pylist()]
        number = bundle_numbers(window)
        lying = [place for each in range(len(bundles)) for place in np.flatnonzero(number == each)]
        expected = keys([(int(window.shard[place]), int(window.row[place])) for place in lying])
        assert [row["key"] for row in read] == expected


@pytest.fixture(scope="module")
def shards_of_1000(tmp_path_factory: pytest.TempPathFactory, write_tar: Callable[..., Path]) -> list[Shard]:
    """Nine, each of which ends in a piece of 8 rows."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(9):
        keys = [f"{shard:05d}{row:04d}" for row in range(1000)]
        write_tar(folder, shard, [{"key": key, "png": key.encode(), "txt": b"text"} for key in keys])
    return list_shards(str(folder))


@pytest.mark.parametrize("world_size", [1, 3, 64])
def test_a_bundle_asks_for_each_piece_that_it_wants_once(
    shards_of_1000: list[Shard], monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    asked = list[tuple[str, int, int]]()
    monkeypatch.setattr(data_shards, "read_part", lambda *part: asked.append(part) or read_part(*part))
    starts = read_starts(shards_of_1000)
    mixture = mixture_of(source_counts(shards_of_1000), (), max(4096, 128 * world_size), 0, world_size)
    for rank in range(world_size):
        window = next(mixture.windows_from(0, rank, world_size))
        bundle_of_row, wanted = bundle_numbers(window), np.stack([window.shard, window.row // PIECE])
        for number, bundle in enumerate(bundles_of(window, shards_of_1000, starts)):
            asked.clear()
            rows = [row for table in read_bundle(bundle, CAPTIONED) for row in table.to_pylist()]
            assert [row["problem"] for row in rows] == [None] * len(rows)
            pieces = np.unique(wanted[:, bundle_of_row == number], axis=1)
            assert len(asked) == len(set(asked)) == pieces.shape[1]
            first = [int(starts.places[starts.ends[shard] - 64 + piece]) for shard, piece in pieces.T]
            assert sorted(part[1] for part in asked) == sorted(first)


@pytest.mark.parametrize("world_size", [1, 3])
def test_damage_after_the_index_costs_the_rest_of_its_piece_whoever_reads(
    tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path], world_size: int
) -> None:
    path = write_tar(tmp_path, 0, make_samples(0, 4 * PIECE))
    shards = list_shards(str(tmp_path))
    starts, content = read_starts(shards), path.read_bytes()
    path.write_bytes(content.replace(b"000000020.json", b"\xff" * 14, 1))
    order, lost = Order(np.array([4 * PIECE]), lanes=8, piece=8, seed=0), set[int]()
    for rank in range(world_size):
        window = next(windows_from(order, 0, rank, world_size))
        (bundle,) = bundles_of(window, shards, starts)
        rows = [row for table in read_bundle(bundle, CAPTIONED) for row in table.to_pylist()]
        assert bundle.rows == len(window.row)
        lost |= {number for number, row in zip(window.row.tolist(), rows, strict=True) if row["problem"]}
    assert lost == set(range(20, 2 * PIECE))


def test_rows_arrive_in_the_order_of_the_plan(
    ray_cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_bundles, "ROWS_PER_TASK", 20)
    monkeypatch.setattr(data_rows, "TASKS_PER_EXECUTION", 2)
    rows = [(row["epoch"], row["key"]) for row in read_rows(made_bundles(folder, 5), CAPTIONED)]
    assert rows == [(epoch, key) for epoch in range(5) for key in keys([*IN_TURNS, *SOME])]


def test_tasks_and_executions_take_in_what_there_is_once_and_in_order(folder: Path) -> None:
    bundles = made_bundles(folder, 4000)
    tasks = [*tasks_of(iter(bundles))]
    assert [id(bundle) for task in tasks for bundle in task] == [*map(id, bundles)]
    assert all(sum(bundle.rows for bundle in task) >= ROWS_PER_TASK for task in tasks[:-1])
    runs = [*executions(iter(tasks))]
    assert [id(task) for run in runs for task in run] == [*map(id, tasks)]
    assert [len(run) for run in runs[:-1]] == [data_rows.TASKS_PER_EXECUTION] * (len(runs) - 1) != []


def test_hundreds_of_small_bundles_share_a_few_read_tasks(ray_cluster: None, folder: Path) -> None:
    dataset = read_dataset([*tasks_of(made_bundles(folder, 40))], CAPTIONED).materialize()
    assert dataset.count() == 40 * len(IN_TURNS + SOME)
    assert dataset.num_blocks() <= 40 * len(IN_TURNS + SOME) / ROWS_PER_TASK + 1


def test_a_read_that_hangs_ends_with_its_shard_named(
    ray_cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list_shards(str(folder))[0]
    pipe = folder / "pipe.tar"
    os.mkfifo(pipe)  # whoever opens it for reading waits for somebody to write
    silent = Segment(replace(first, path=f"file://{pipe}"), range(3))
    monkeypatch.setattr(data_rows, "LONGEST_WAIT", 1.0)
    try:
        with pytest.raises(UnansweredShardError, match=r"pipe\.tar, rows 0 to 2.* no row came in 1 s"):
            next(read_rows([Bundle((silent,))], CAPTIONED))
    finally:
        # The task that hangs would keep its CPU from all later tests.
        os.close(os.open(pipe, os.O_RDWR))


def test_read_tasks_need_no_torch() -> None:
    """Their processes would take seconds longer to start."""
    check = "import sys, beamclip.data.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_an_execution_may_stand_still_longer_than_ray_data_allows(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a student that takes minutes for the rows of a block."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)

    def slow(row: dict[str, int]) -> dict[str, int]:
        time.sleep(2)
        return row

    with pytest.raises(ray.data.exceptions.ExecutionTimeoutError):
        ray.data.range(1).map(slow).take_all()
    assert prepared_dataset(ray.data.range(1)).map(slow).take_all() == [{"id": 0}]
