"""Bundles of rows, and Ray Data's reading of them."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray.data

from beamclip.data import rows as data_rows
from beamclip.data.rows import (
    ROWS_PER_TASK,
    Bundle,
    Segment,
    executions,
    prepared_dataset,
    read_bundle,
    read_dataset,
    read_rows,
    tasks_of,
)
from beamclip.data.shards import BROKEN_SHARD, Columns, list_shards

CAPTIONED = Columns(caption=True)


def bundles_of(folder: Path, epochs: int = 1, keep: list[bool] | None = None) -> list[Bundle]:
    """Two bundles an epoch: 9 and 4 rows in turn, then 10 of which 5 are read."""
    first, second, third = list_shards(str(folder))
    both = (Segment(first, range(9)), Segment(second, range(4)))
    some = (Segment(third, np.array([0, 3, 4, 8, 9])),)
    kept = None if keep is None else np.array(keep)
    return [b for epoch in range(epochs) for b in (Bundle(both, epoch, kept), Bundle(some, epoch))]


PIECES = (0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0)
IN_TURN = [(piece, PIECES[:i].count(piece)) for i, piece in enumerate(PIECES)]
SOME = [(2, 0), (2, 3), (2, 4), (2, 8), (2, 9)]


def keys(places: list[tuple[int, int]]) -> list[str]:
    return [f"{shard:05d}{row:04d}" for shard, row in places]


def test_the_rows_of_a_bundle_are_read_in_turn(folder: Path) -> None:
    tables = [list(read_bundle(bundle, CAPTIONED)) for bundle in bundles_of(folder)]
    assert [table["key"].to_pylist() for (table,) in tables] == [keys(IN_TURN), keys(SOME)]


@pytest.mark.parametrize("seed", range(4))
def test_unwanted_rows_of_a_bundle_are_left_out_and_the_others_keep_their_order(
    folder: Path, seed: int
) -> None:
    keep = (np.random.default_rng(seed).random(len(IN_TURN)) < 0.4).tolist()
    bundle = bundles_of(folder, keep=keep)[0]
    wanted = [place for place, kept in zip(IN_TURN, keep, strict=True) if kept]
    assert [key for table in read_bundle(bundle, CAPTIONED) for key in table["key"].to_pylist()] == keys(
        wanted
    )
    assert bundle.wanted == len(wanted)


def test_a_broken_shard_of_a_bundle_costs_its_own_rows_only(folder: Path) -> None:
    (folder / "00001.tar").write_bytes(b"")
    (table,) = read_bundle(bundles_of(folder)[0], CAPTIONED)
    problems = table["problem"].to_pylist()
    assert [problem == BROKEN_SHARD for problem in problems] == [shard == 1 for shard, _ in IN_TURN]
    good = [key for key, problem in zip(table["key"].to_pylist(), problems, strict=True) if problem is None]
    assert good == keys([(0, row) for row in range(9)])


def test_rows_arrive_in_the_order_of_the_plan(
    ray_cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_rows, "ROWS_PER_TASK", 20)
    monkeypatch.setattr(data_rows, "TASKS_PER_EXECUTION", 2)
    rows = [(row["epoch"], row["key"]) for row in read_rows(bundles_of(folder, 5), CAPTIONED)]
    assert rows == [(epoch, key) for epoch in range(5) for key in keys([*IN_TURN, *SOME])]


def test_tasks_and_executions_take_in_what_there_is_once_and_in_order(folder: Path) -> None:
    bundles = bundles_of(folder, 4000)
    tasks = [*tasks_of(iter(bundles))]
    assert [bundle for task in tasks for bundle in task] == bundles
    assert all(sum(bundle.wanted for bundle in task) >= ROWS_PER_TASK for task in tasks[:-1])
    runs = [*executions(iter(tasks))]
    assert [task for run in runs for task in run] == tasks
    assert [len(run) for run in runs[:-1]] == [data_rows.TASKS_PER_EXECUTION] * (len(runs) - 1) != []


def test_hundreds_of_small_bundles_share_a_few_read_tasks(ray_cluster: None, folder: Path) -> None:
    dataset = read_dataset([*tasks_of(bundles_of(folder, 40))], CAPTIONED).materialize()
    assert dataset.count() == 40 * len(IN_TURN + SOME)
    assert dataset.num_blocks() <= 40 * len(IN_TURN + SOME) / ROWS_PER_TASK + 1


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
