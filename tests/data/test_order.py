"""The order of a run: a permutation of each epoch, cut for any number of workers, found from any place."""

from itertools import takewhile

import numpy as np
import pytest

from beamclip.data.order import PIECE, Order, lanes_in, order_over, shares, windows_from
from beamclip.errors import InputError

Sample = tuple[int, int, int]
"""Epoch, shard, row."""


def random_order(seed: int) -> Order:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 60, random.integers(1, 20))
    counts[0] += 1
    return Order(counts, lanes=int(random.integers(1, 40)), piece=int(random.integers(1, 20)), seed=seed)


def samples(
    order: Order, first: int, stop: int, rank: int = 0, world_size: int = 1, together: int = 1
) -> dict[int, Sample]:
    """The samples [first, stop) that a worker serves, by number."""
    found = {}
    windows = windows_from(order, first, rank, world_size, together)
    for window in takewhile(lambda window: window.epoch * order.rows < stop, windows):
        places = zip(window.shard.tolist(), window.row.tolist(), strict=True)
        for number, place in zip(window.number.tolist(), places, strict=True):
            if number < stop:
                found[number] = (window.epoch, *place)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_every_epoch_has_each_row_once(seed: int) -> None:
    order = random_order(seed)
    found = samples(order, 0, 3 * order.rows)
    assert list(found) == list(range(3 * order.rows))
    rows = [(shard, row) for shard, count in enumerate(order.counts) for row in range(count)]
    for epoch in range(3):
        assert sorted(place for number, *place in map(list, found.values()) if number == epoch) == [
            list(row) for row in rows
        ]


@pytest.mark.parametrize(("world_size", "together"), [(2, 1), (3, 1), (3, 4), (5, 1), (7, 1), (7, 2)])
@pytest.mark.parametrize("seed", range(6))
def test_workers_divide_the_samples_and_change_none_of_them(
    seed: int, world_size: int, together: int
) -> None:
    order = random_order(seed)
    first, stop = order.rows // 3, order.rows // 3 + 2 * order.rows
    alone = samples(order, first, stop)
    parts = [samples(order, first, stop, rank, world_size, together) for rank in range(world_size)]
    assert sum(map(len, parts)) == len(alone) == 2 * order.rows
    assert {number: sample for part in parts for number, sample in part.items()} == alone
    assert shares(order, first, stop, world_size, together).tolist() == list(map(len, parts))


@pytest.mark.parametrize("seed", range(6))
def test_a_run_goes_on_from_any_sample_as_if_nothing_had_happened(seed: int) -> None:
    order = random_order(seed)
    whole = samples(order, 0, 2 * order.rows)
    for first in np.random.default_rng(seed).integers(0, 2 * order.rows, 5).tolist():
        assert samples(order, first, 2 * order.rows) == {n: s for n, s in whole.items() if n >= first}


@pytest.mark.parametrize("together", [1, 8, 64])
def test_workers_take_turns_where_they_divide_the_lanes(together: int) -> None:
    order = order_over(np.array([700, 33, 1500]), lanes_in(4096, 4), 0)
    for rank in range(4):
        own = samples(order, 0, 2 * order.rows, rank, 4, together)
        assert {number // together % 4 for number in own} == {rank}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [order_over(np.full(9, 40), lanes_in(256, 1), seed) for seed in (0, 1)]
    found = [samples(order, 0, 3 * 360) for order in orders]
    epochs = [tuple(s[1:] for s in each.values() if s[0] == epoch) for each in found for epoch in range(3)]
    assert len(set(epochs)) == 6
    assert found[0] == samples(order_over(np.full(9, 40), lanes_in(256, 1), 0), 0, 3 * 360)


def test_few_samples_are_shuffled_too() -> None:
    order = order_over(np.array([16]), lanes_in(4096, 1), 0)
    rows = [row for _, _, row in samples(order, 0, 48).values()]
    assert rows[:16] != sorted(rows[:16])
    assert len({tuple(rows[start : start + 16]) for start in (0, 16, 32)}) == 3


def test_a_window_with_too_few_lanes_is_refused() -> None:
    counts = np.full(9, 4000)
    order_over(counts, lanes_in(24 * 8 * PIECE, 24), 0)
    with pytest.raises(InputError, match=r"--shuffle-window 3000: has 187 lanes .* Give 3072 or more"):
        order_over(counts, lanes_in(3000, 24), 0)


def together(shards: int, rows: int, batch: int = 256) -> float:
    """How often two images of a batch are of one shard, against the same in a perfect shuffle."""
    order = order_over(np.full(shards, rows), lanes_in(4096, 1), 0)
    drawn = [sample[1] for sample in samples(order, 0, order.rows // batch * batch).values()]
    pairs = [np.bincount(each, minlength=shards) for each in np.reshape(drawn, (-1, batch))]
    same = np.mean([(count * (count - 1)).sum() / (batch * (batch - 1)) for count in pairs])
    return float(same / ((rows - 1) / (shards * rows - 1)))


def test_shards_do_not_clump() -> None:
    assert together(shards=8, rows=2000) < 1.02
    assert together(shards=40, rows=1000) < 1.02
    assert together(shards=100, rows=1000) < 1.05
    assert together(shards=400, rows=100) < 1.2


def test_neighbours_come_to_different_batches_in_an_order_of_their_own() -> None:
    order = order_over(np.full(100, 1000), lanes_in(4096, 1), 0)
    drawn = [sample[1:] for sample in samples(order, 0, 20 * 4096).values()]
    batches = np.reshape(drawn, (-1, 256, 2))
    pieces = batches[..., 0] * 1000 + batches[..., 1] // PIECE
    assert np.mean([len(np.unique(batch)) for batch in pieces]) > 254
    # A step takes any row of a piece: their numbers have the mean and the spread of a uniform draw.
    within = batches[..., 1] % PIECE
    assert np.abs(within.mean(axis=1) - 7.4).max() < 5 * 4.6 / 16
    assert within.std(axis=1).min() > 4


def test_a_place_is_found_without_looking_at_what_comes_before_it() -> None:
    """A million shards and 4e8 samples: this takes half a second."""
    counts = np.random.default_rng(0).integers(350, 451, 1_000_000)
    order = order_over(counts, lanes_in(65_536, 64), 0)
    window = next(windows_from(order, 2 * order.rows + 123_456_789, 17, 64))
    assert (window.epoch, len(window.row) > 0) == (2, True)
