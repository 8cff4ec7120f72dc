"""The judge of interrupted runs: it must see every kind of mistake that a restart could make."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.listing import list_shards
from beamclip.data.order import Order, windows_from
from beamclip.data.position import DataPosition, to_plain
from beamclip.data.shards import Columns, iterate_rows
from beamclip.data.transforms import load_training_image
from beamclip.training.checkpoint import write_checkpoint
from beamclip.training.trace import Trace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = [30, 40, 25]
LANES, PIECE, SEED = 4, 5, 7
Sample = tuple[int, str]
"""Epoch and key."""


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """The folder of a program is on its path when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from support.restarts import draw_shards

    return draw_shards(tmp_path_factory.mktemp("data"), SIZES, seed=3)


def usable(data: Any, epoch: int) -> list[Sample]:
    return [(epoch, key) for keys in data.keys for key in keys if key]


def finished_run(data: Any, out: Path, samples: int, *steps: list[Sample]) -> Any:
    """A run of steps that saw these samples and ended after so many."""
    from support.restarts import Run

    position = DataPosition(samples, (LANES,), (PIECE,), SEED)
    state = {"step": len(steps), "position": to_plain(position), "method": {}}
    write_checkpoint(str(out / "checkpoints"), state, loss=1.0, world_size=1, data="")
    trace = Trace(out / "trace", started=1, first_step=0, rank=0, world_size=1)
    for step, seen in enumerate(steps, start=1):
        trace.record(step, [batch_of(seen, list(range(len(seen))))])
    trace.close()
    (out / "summary.json").write_text(json.dumps({"counts": {"skipped": data.damage}}))
    return Run(data, out, steps=len(steps))


def batch_of(seen: list[Sample], places: list[int]) -> Batch:
    """Samples at places of a step's global batch."""
    return Batch(
        pixels=torch.empty(0),
        draws=torch.empty(0),
        captions=[],
        weights=torch.ones(len(seen)),
        numbers=torch.tensor(places),
        global_size=len(seen),
        good=len(seen),
        keys=[key for _, key in seen],
        epochs=[epoch for epoch, _ in seen],
    )


def test_the_damage_that_is_drawn_is_the_damage_that_readers_meet(data: Any) -> None:
    found: Counter[str] = Counter()
    for shard, keys in zip(list_shards(str(data.folder)), data.keys, strict=True):
        for row, key in zip(
            iterate_rows(shard, Columns(caption=True), range(shard.samples)), keys, strict=True
        ):
            problem = row["problem"]
            if problem is None:
                try:
                    load_training_image(row["image"], np.full(16, 0.5, np.float32), 8, Augmentation())
                except ValueError:
                    problem = "corrupt image"
            found.update([problem] if problem else [])
            assert key == ("" if problem else row["key"])
    assert found == data.damage
    assert set(data.damage) == {"broken shard", "corrupt image", "missing caption"}


def test_a_run_that_saw_everything_once_is_cleared(data: Any, tmp_path: Path) -> None:
    from support.restarts import accounts

    seen = usable(data, 0) + usable(data, 1)
    found = accounts(finished_run(data, tmp_path, 2 * sum(SIZES), seen))
    assert (found.seen, found.skipped, found.doubled, found.foreign) == (len(seen), 0, 0, 0)
    assert found.lost == data.damage


def test_each_mistake_is_seen_for_what_it_is(data: Any, tmp_path: Path) -> None:
    from support.restarts import accounts

    seen = usable(data, 0)
    wrong = [*seen[3:], *seen[5:7], (1, seen[0][1])]
    found = accounts(finished_run(data, tmp_path, sum(SIZES), wrong))
    assert (found.skipped, found.doubled, found.foreign) == (3, 2, 1)


def test_what_is_yet_to_come_is_neither_seen_nor_skipped(data: Any, tmp_path: Path) -> None:
    from support.restarts import accounts

    order = Order(np.array(SIZES), LANES, PIECE, SEED)
    come = []
    for window in takewhile(lambda window: window.epoch == 1, windows_from(order, order.rows, 0, 1)):
        come += zip(window.shard.tolist(), window.row.tolist(), strict=True)
    keys = [data.keys[shard][row] for shard, row in come[:33]]
    seen = usable(data, 0) + [(1, key) for key in keys if key]
    found = accounts(finished_run(data, tmp_path, sum(SIZES) + 33, seen))
    assert (found.skipped, found.doubled, found.foreign) == (0, 0, 0)
    early = accounts(finished_run(data, tmp_path / "early", sum(SIZES) + 20, seen))
    assert (early.skipped, early.doubled) == (0, 0)
    assert early.foreign == sum(bool(key) for key in keys[20:]) > 0


def test_a_step_with_other_samples_or_another_order_is_named(data: Any, tmp_path: Path) -> None:
    from support.restarts import changed_steps

    first, second, third = ([(0, key) for key in keys if key] for keys in data.keys)
    run = finished_run(data, tmp_path / "run", 95, first, second, third)
    again = finished_run(data, tmp_path / "again", 95, first, second, third)
    assert changed_steps(run, again) == []
    swapped = finished_run(data, tmp_path / "swapped", 95, first, second[::-1], third)
    assert changed_steps(run, swapped) == [2]
    other_epoch = [(1, key) for _, key in third]
    moved = finished_run(data, tmp_path / "moved", 95, [*first, second[0]], second[1:], other_epoch)
    assert changed_steps(run, moved) == [1, 2, 3]
    assert changed_steps(run, finished_run(data, tmp_path / "short", 95, first, second)) == [3]


def test_who_serves_a_sample_does_not_matter_to_its_step(data: Any, tmp_path: Path) -> None:
    from support.restarts import changed_steps

    seen = usable(data, 0)[:10]
    alone = finished_run(data, tmp_path / "alone", 95, seen)
    together = finished_run(data, tmp_path / "together", 95, [])
    for rank in range(2):
        trace = Trace(together.out / "trace", started=2, first_step=0, rank=rank, world_size=2)
        trace.record(1, [batch_of(seen[rank::2], list(range(rank, 10, 2)))])
        trace.close()
    assert changed_steps(alone, together) == []


def test_a_perfect_shuffle_mixes_as_expected() -> None:
    from restart import Sorted, different, expected_different

    data = Sorted("twelve", shards=12, rows=50, group=50)
    random = np.random.default_rng(0)
    batches = np.array([random.permutation(600)[:16] // 50 for _ in range(4000)])
    assert different(batches) == pytest.approx(expected_different(data, 16), rel=0.01)
    assert different(np.array([[3, 1, 3], [2, 2, 2]])) == 1.5


def test_one_of_many_workers_has_its_part_of_each_batch() -> None:
    from restart import Sorted, different, pairs_against_chance

    data = Sorted("forty", shards=40, rows=1000, group=1000)
    alone, shared = data.drawn(workers=1), data.drawn(workers=8)
    assert (alone.shape, shared.shape) == ((40_000 // 256, 256), (40_000 // 256, 32))
    assert (shared == alone[:, :32]).all()
    assert different(shared) < different(alone) <= 40
    assert pairs_against_chance(data) == pytest.approx(1, abs=0.05)
