"""Any number of interruptions, by any number of workers: each sample of an epoch once, in few bytes."""

import io
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from beamclip.data.row_sets import RowSet
from numpy.typing import NDArray

from beamclip.data.order import Order, epoch_part, unread
from beamclip.data.position import (
    DataPosition,
    Position,
    beginning,
    continued,
    from_plain,
    skipped_of,
    to_plain,
)
from beamclip.data.rows import Bundle, bundles_left
from beamclip.data.shards import Shard
from beamclip.data.stream import shuffled

Sample = tuple[int, str, int]
"""Epoch, shard, row."""


def order(world_size: int, buffer: int = 5, seed: int = 3) -> Order:
    return Order(seed, world_size, buffer, shards=2)


def sizes(shards: list[Shard]) -> NDArray[np.int64]:
    return np.array([shard.samples for shard in shards], np.int64)


def make_shards(*samples: int) -> list[Shard]:
    return [Shard(f"{index:05d}.tar", count, "tar") for index, count in enumerate(samples)]


def rows_of(bundle: Bundle) -> Iterator[Sample]:
    sources = [iter(np.asarray(bundle.wanted_of(i)).tolist()) for i in range(len(bundle.segments))]
    turns = bundle.turns() if bundle.keep is None else bundle.turns()[bundle.keep]
    for turn in turns.tolist():
        yield bundle.epoch, bundle.segments[turn].shard.path, next(sources[turn])


def samples_of(shards: list[Shard], position: DataPosition, rank: int) -> Iterator[tuple[Sample, Position]]:
    """What a rank draws, endlessly, and where it stands after each; reads no file."""
    start, epoch = position.ranks[rank], position.ranks[rank].epoch
    while True:
        rows = position.leftovers.get(epoch, RowSet.everything(sizes(shards)))
        part = epoch_part(rows.counts(sizes(shards)), position.order, epoch, rank)
        drawn = start.drawn if epoch == start.epoch else 0
        left = unread(position.order, epoch, rank, part.rows, drawn)
        reading = (row for b in bundles_left(shards, rows, part, epoch, left) for row in rows_of(b))
        for sample in shuffled(reading, position.order, epoch, rank, part.rows, drawn):
            drawn += 1
            yield sample, Position(epoch, drawn)
        epoch += 1


def advance(
    shards: list[Shard], position: DataPosition, draws: list[int]
) -> tuple[list[Sample], DataPosition]:
    """Each rank draws so many; all of it, and the place after it."""
    seen, ranks = list[Sample](), list[Position]()
    for rank, number in enumerate(draws):
        taken = list(islice(samples_of(shards, position, rank), number))
        seen += [sample for sample, _ in taken]
        ranks.append(taken[-1][1] if taken else position.ranks[rank])
    return seen, DataPosition(position.order, tuple(ranks), position.leftovers)


def all_of(shards: list[Shard], epoch: int) -> list[Sample]:
    return [(epoch, shard.path, row) for shard in shards for row in range(shard.samples)]


@pytest.mark.parametrize("seed", range(12))
def test_after_random_interruptions_by_any_number_of_workers_each_sample_was_seen_once(seed: int) -> None:
    generator = random.Random(seed)
    shards = make_shards(*(generator.randint(1, 15) for _ in range(generator.randint(1, 9))))
    total = sum(shard.samples for shard in shards)
    position, seen = beginning(order(1)), Counter[Sample]()
    for _ in range(12):
        workers = generator.randint(1, min(4, total))
        new = order(workers, buffer=generator.choice([1, 5, 40]), seed=generator.choice([3, 3, 4]))
        position = continued(position, new, sizes(shards))
        # Ranks need not keep step: those that lose samples run ahead.
        draws = [generator.randint(0, 3 * total // (2 * workers)) for _ in range(workers)]
        drawn, position = advance(shards, position, draws)
        seen.update(drawn)
    position = continued(position, order(1), sizes(shards))
    last = max([position.ranks[0].epoch, *position.leftovers])
    rest = [sample for sample, _ in islice(samples_of(shards, position, 0), (last + 1) * total)]
    seen.update(sample for sample in rest if sample[0] <= last)
    assert seen == Counter(sample for epoch in range(last + 1) for sample in all_of(shards, epoch))


def test_the_same_workers_go_on_in_the_same_order() -> None:
    shards = make_shards(9, 4, 10)
    whole, _ = advance(shards, beginning(order(2)), [30, 30])
    first, position = advance(shards, beginning(order(2)), [13, 13])
    assert continued(position, order(2), sizes(shards)) is position
    second, _ = advance(shards, position, [17, 17])
    assert first[:13] + second[:17] + first[13:] + second[17:] == whole


def test_a_change_of_the_seed_or_the_buffer_repeats_nothing_either() -> None:
    shards = make_shards(9, 4, 10)
    first, position = advance(shards, beginning(order(2)), [4, 7])
    second, _ = advance(shards, continued(position, order(2, 3, seed=8), sizes(shards)), [6, 6])
    assert sorted(first + second) == all_of(shards, 0)


def test_an_epoch_that_was_drawn_to_its_end_leaves_nothing_over() -> None:
    shards = make_shards(9, 4, 10)
    _, position = advance(shards, beginning(order(1)), [23])
    position = continued(position, order(2), sizes(shards))
    seen, _ = advance(shards, position, [11, 12])
    assert sorted(seen) == all_of(shards, 1)


def test_what_was_skipped_is_neither_forgotten_nor_doubled() -> None:
    shards = make_shards(9, 4, 10)
    ranks = (Position(0, 3, {"corrupt image": 2}), Position(1, 2, {"corrupt image": 1, "broken shard": 4}))
    position = continued(DataPosition(order(2), ranks), order(3), sizes(shards))
    assert [rank.skipped for rank in position.ranks] == [{"broken shard": 4, "corrupt image": 3}, {}, {}]
    assert skipped_of(position.ranks) == skipped_of(ranks)


def test_a_position_survives_torch_save_without_pickled_objects() -> None:
    shards = make_shards(9, 4, 10)
    _, position = advance(shards, beginning(order(2)), [4, 17])
    position = continued(position, order(3), sizes(shards))
    assert set(position.leftovers) == {0, 1}
    file = io.BytesIO()
    torch.save(to_plain(position), file)
    file.seek(0)
    back = from_plain(torch.load(file, weights_only=True))
    assert (back.order, back.ranks) == (position.order, position.ranks)
    for epoch, rows in position.leftovers.items():
        np.testing.assert_array_equal(back.leftovers[epoch].whole, rows.whole)
        np.testing.assert_array_equal(back.leftovers[epoch].runs, rows.runs)


@pytest.mark.slow
def test_four_hundred_million_samples_fit_in_a_few_megabytes() -> None:
    samples = np.random.default_rng(0).integers(300, 501, 1_000_000)
    ordered = Order(seed=0, world_size=64, buffer=4096, shards=8)
    rank_rows = int(samples.sum()) // 64
    ranks = tuple(Position(0, rank_rows // 3 + rank) for rank in range(64))
    position = continued(DataPosition(ordered, ranks), Order(0, 48, 4096, 8), samples)
    file = io.BytesIO()
    torch.save(to_plain(position), file)
    assert len(file.getvalue()) < 8_000_000
    left = int(position.leftovers[0].counts(samples).sum())
    assert left == int(samples.sum()) - sum(rank.drawn for rank in ranks)
