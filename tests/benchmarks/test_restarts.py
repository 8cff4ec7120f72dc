"""The judge of interrupted runs: it must see every kind of mistake that a restart could make."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import all_good

from beamclip.data.config import AugmentConfig
from beamclip.data.listing import list_shards
from beamclip.data.order import Order
from beamclip.data.position import DataPosition, Position, continued, to_plain
from beamclip.data.shards import Columns, iterate_rows
from beamclip.data.stream import Batch
from beamclip.data.transforms import load_training_image
from beamclip.training.checkpoint import write_checkpoint
from beamclip.training.trace import Trace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = [30, 40, 25]
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


def finished_run(data: Any, out: Path, position: DataPosition, seen: list[Sample]) -> Any:
    """A run of one step that saw these samples."""
    from support.restarts import Run

    state = {"step": 1, "position": to_plain(position), "method": {}}
    write_checkpoint(str(out / "checkpoints"), state, loss=1.0, world_size=1, data="")
    trace = Trace(out / "trace", started=1, first_step=0, rank=0, world_size=1)
    empty = np.empty(0)
    keys, epochs = [key for _, key in seen], [epoch for epoch, _ in seen]
    trace.record(1, [Batch(empty, empty, [], keys, epochs, Position(), **all_good(0))])  # type: ignore[arg-type]
    trace.close()
    (out / "summary.json").write_text(json.dumps({"counts": {"skipped": data.damage}}))
    return Run(data, out, steps=1)


def at_the_end_of(epoch: int) -> DataPosition:
    return DataPosition(Order(0, 1, 10, 2), (Position(epoch, sum(SIZES)),))


def test_the_damage_that_is_drawn_is_the_damage_that_readers_meet(data: Any) -> None:
    found: Counter[str] = Counter()
    for shard, keys in zip(list_shards(str(data.folder)), data.keys, strict=True):
        for row, key in zip(
            iterate_rows(shard, Columns(caption=True), range(shard.samples)), keys, strict=True
        ):
            problem = row["problem"]
            if problem is None:
                try:
                    load_training_image(row["image"], np.full(16, 0.5, np.float32), 8, AugmentConfig())
                except ValueError:
                    problem = "corrupt image"
            found.update([problem] if problem else [])
            assert key == ("" if problem else row["key"])
    assert found == data.damage
    assert set(data.damage) == {"broken shard", "corrupt image"}


def test_a_run_that_saw_everything_once_is_cleared(data: Any, tmp_path: Path) -> None:
    from support.restarts import accounts

    seen = usable(data, 0) + usable(data, 1)
    found = accounts(finished_run(data, tmp_path, at_the_end_of(1), seen))
    assert (found.seen, found.skipped, found.doubled, found.foreign) == (len(seen), 0, 0, 0)
    assert found.lost == data.damage


def test_each_mistake_is_seen_for_what_it_is(data: Any, tmp_path: Path) -> None:
    from support.restarts import accounts

    seen = usable(data, 0)
    wrong = [*seen[3:], *seen[5:7], (1, seen[0][1])]
    found = accounts(finished_run(data, tmp_path, at_the_end_of(0), wrong))
    assert (found.skipped, found.doubled, found.foreign) == (3, 2, 1)


def test_what_is_left_for_other_workers_is_neither_seen_nor_skipped(data: Any, tmp_path: Path) -> None:
    from support.restarts import accounts

    samples = np.array(SIZES)
    begun = DataPosition(Order(0, 1, 10, 2), (Position(1, 33),))
    divided = continued(begun, Order(0, 2, 10, 2), samples)
    left = divided.leftovers[1]
    left_keys = {
        data.keys[shard][row]
        for shard in range(len(SIZES))
        for row in np.asarray(left.rows(shard, 0, int(left.counts(samples)[shard]))).tolist()
    }
    seen = usable(data, 0) + [sample for sample in usable(data, 1) if sample[1] not in left_keys]
    assert 0 < len(left_keys) < sum(SIZES)
    for place in (begun, divided):
        found = accounts(finished_run(data, tmp_path / str(place.order.world_size), place, seen))
        assert (found.skipped, found.doubled, found.foreign) == (0, 0, 0)
