"""Several sources in one run: the order of each is kept, and every stretch of the run has its shares."""

from collections import Counter
from itertools import takewhile

import numpy as np
import pytest

from beamclip.data.mixture import Mixture, divided, mixture_of
from beamclip.data.order import Order, lanes_in, order_over, windows_from
from beamclip.errors import InputError

Sample = tuple[int, int, int]
"""Epoch, shard (of all sources), row."""


def random_mixture(seed: int) -> Mixture:
    random = np.random.default_rng(seed)
    orders = []
    for source in range(int(random.integers(2, 5))):
        counts = random.integers(1, 40, random.integers(1, 9))
        lanes, piece = random.integers(1, 20, 2).tolist()
        orders.append(Order(counts, lanes, piece, seed + source))
    return Mixture(tuple(orders))


def samples(mixture: Mixture, first: int, stop: int, rank: int = 0, world_size: int = 1) -> dict[int, Sample]:
    """The samples [first, stop) that a worker serves, by number."""
    found = {}
    for window in takewhile(lambda each: each.first < stop, mixture.windows_from(first, rank, world_size)):
        places = zip(window.shard.tolist(), window.row.tolist(), strict=True)
        for number, place in zip(window.number.tolist(), places, strict=True):
            assert window.first <= number
            if number < stop:
                assert number not in found
                found[number] = (window.epoch, *place)
    return found


def source_of(mixture: Mixture, shard: int) -> int:
    return int(np.searchsorted(np.cumsum([len(order.counts) for order in mixture.orders]), shard, "right"))


@pytest.mark.parametrize("seed", range(12))
def test_every_epoch_of_every_source_has_each_row_once(seed: int) -> None:
    mixture = random_mixture(seed)
    # Long enough for two epochs of each source.
    stop = max(-(-2 * order.rows // order.lanes) for order in mixture.orders) * mixture.lanes
    found = samples(mixture, 0, stop)
    assert sorted(found) == list(range(stop))
    shards_before = 0
    for order in mixture.orders:
        rows = [(shards_before + shard, row) for shard, n in enumerate(order.counts) for row in range(n)]
        own = [
            sample
            for _, sample in sorted(found.items())
            if 0 <= sample[1] - shards_before < len(order.counts)
        ]
        assert [epoch for epoch, _, _ in own] == sorted(epoch for epoch, _, _ in own)
        for epoch in range(2):
            assert sorted((shard, row) for number, shard, row in own if number == epoch) == rows
        shards_before += len(order.counts)


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("seed", range(6))
def test_workers_divide_the_samples_and_change_none_of_them(seed: int, world_size: int) -> None:
    mixture = random_mixture(seed)
    first, stop = 37, 37 + 2 * mixture.rows
    alone = samples(mixture, first, stop)
    parts = [samples(mixture, first, stop, rank, world_size) for rank in range(world_size)]
    assert sum(map(len, parts)) == len(alone) == 2 * mixture.rows
    assert {number: sample for part in parts for number, sample in part.items()} == alone
    assert mixture.shares(first, stop, world_size).tolist() == list(map(len, parts))


@pytest.mark.parametrize("world_size", [1, 3])
def test_shares_of_any_stretch_sum_to_it_and_match_what_workers_get(world_size: int) -> None:
    mixture = random_mixture(3)
    parts = [samples(mixture, 0, 500, rank, world_size) for rank in range(world_size)]
    for first, stop in ((0, 1), (5, 5), (3, 40), (40, 300), (499, 500)):
        own = [sum(first <= number < stop for number in part) for part in parts]
        assert mixture.shares(first, stop, world_size).tolist() == own


@pytest.mark.parametrize(
    ("weights", "batch_size", "world_size", "together"),
    [
        # 256 lanes: as many as are a worker's of a round, or of a step.
        ((), 1024, 8, 32),
        ((), 64, 8, 8),
        ((), 96, 8, 4),
        # Turns of two and more would leave shares unequal.
        ((), 24, 8, 1),
        ((), 1000, 3, 1),
        ((), 1024, 3, 1),
        ((), 1, 2, 1),
        # Of 192 and 64 lanes, and of 86, 85 and 85.
        ((3.0, 1.0), 512, 8, 8),
        ((3.0, 1.0), 64, 8, 2),
        ((1.0, 1.0, 1.0), 1024, 8, 1),
    ],
)
def test_workers_take_as_many_lanes_at_a_time_as_leave_equal_shares(
    weights: tuple[float, ...], batch_size: int, world_size: int, together: int
) -> None:
    mixture = mixture_of([np.array([700, 330])] * max(1, len(weights)), weights, 4096, 0, world_size)
    assert mixture.together(batch_size, world_size) == together
    for first in range(0, 12 * batch_size, batch_size):
        shares = mixture.shares(first, first + batch_size, world_size, together)
        assert together == 1 or set(shares.tolist()) == {batch_size // world_size}


@pytest.mark.parametrize("seed", range(6))
def test_a_run_goes_on_from_any_sample_as_if_nothing_had_happened(seed: int) -> None:
    mixture = random_mixture(seed)
    stop = 2 * mixture.rows
    whole = samples(mixture, 0, stop)
    for first in np.random.default_rng(seed).integers(0, stop, 8).tolist():
        assert samples(mixture, first, stop) == {n: s for n, s in whole.items() if n >= first}


@pytest.mark.parametrize("seed", range(6))
def test_windows_come_by_their_first_samples(seed: int) -> None:
    mixture = random_mixture(seed)
    windows = takewhile(lambda each: each.first < 1000, mixture.windows_from(11, 0, 2))
    firsts = [window.first for window in windows]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("weights", [(2.0, 1.0, 1.0), (1.0, 1.0), (0.7, 0.2, 0.1), (98.0, 1.0, 1.0)])
def test_every_batch_has_the_sources_in_their_shares(weights: tuple[float, ...]) -> None:
    counts = [np.array([500 * (3 + place)]) for place in range(len(weights))]
    mixture = mixture_of(counts, weights, 4096, 0, 1)
    batch = 64
    found = samples(mixture, 0, 50 * batch)
    shares = np.array(weights) / sum(weights)
    for first in range(0, 50 * batch, batch):
        drawn = Counter(source_of(mixture, found[number][1]) for number in range(first, first + batch))
        for source, share in enumerate(shares):
            # A lane more or less where the weights do not divide the lanes, and a sample at either end.
            assert abs(drawn[source] - share * batch) < 2 + batch / mixture.lanes


def test_a_source_has_the_order_that_it_has_alone_whatever_it_is_mixed_with() -> None:
    counts = [np.array([70, 33]), np.array([90]), np.array([45, 1])]
    mixed = [samples(mixture_of(counts[:n], (1.0,) * n, 16 * 12 * n, 5, 1), 0, 600 * n) for n in (2, 3)]
    of_first = [[s for _, s in sorted(found.items()) if s[1] < 2][:300] for found in mixed]
    assert of_first[0] == of_first[1]
    alone = samples(mixture_of(counts[:1], (), 16 * 12, 5, 1), 0, 300)
    assert list(alone.values()) == of_first[0]


def test_one_source_has_the_order_of_that_source() -> None:
    counts = np.array([700, 33, 1500])
    order = order_over(counts, lanes_in(4096, 2), 3)
    for weights in ((), (5.0,)):
        mixture = mixture_of([counts], weights, 4096, 3, 2)
        pairs = zip(mixture.windows_from(100, 1, 2), windows_from(order, 100, 1, 2), strict=False)
        for (mine, theirs), _ in zip(pairs, range(5), strict=False):
            assert (mine.first, mine.epoch) == (theirs.first, theirs.epoch)
            for name in ("lane", "shard", "row", "number"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_without_weights_an_epoch_has_each_sample_of_all_sources_once() -> None:
    counts = [np.array([20, 7]), np.array([3]), np.array([400])]
    found = samples(mixture_of(counts, (), 4096, 0, 1), 0, 430)
    assert {epoch for epoch, _, _ in found.values()} == {0}
    assert len(set(found.values())) == 430


def test_sources_of_equal_counts_have_orders_of_their_own() -> None:
    counts = [np.array([300])] * 3
    found = samples(mixture_of(counts, (1.0, 1.0, 1.0), 48 * 16, 0, 1), 0, 900)
    rows = [tuple(row for _, shard, row in found.values() if shard == source) for source in range(3)]
    assert len(set(rows)) == 3


@pytest.mark.parametrize(
    ("lanes", "weights", "expected"),
    [
        (256, (2, 1, 1), [128, 64, 64]),
        (256, (1, 1, 1), [86, 85, 85]),
        (187, (100, 87), [100, 87]),
        (10, (1e-3, 1), [0, 10]),
        (7, (0.5,), [7]),
    ],
)
def test_lanes_are_divided_by_largest_remainders(
    lanes: int, weights: tuple[float, ...], expected: list[int]
) -> None:
    assert divided(lanes, weights) == expected


def test_a_weight_that_is_no_lane_is_refused_with_the_window_that_it_needs() -> None:
    counts = [np.array([4000]), np.array([40])]
    with pytest.raises(InputError, match=r"--data-weights 1: is less than one of the 256 lanes .* of 16016"):
        mixture_of(counts, (1000.0, 1.0), 4096, 0, 1)
    assert min(order.lanes for order in mixture_of(counts, (1000.0, 1.0), 16016, 0, 1).orders) == 1


def test_more_workers_than_the_window_has_lanes_for_are_refused() -> None:
    with pytest.raises(InputError, match=r"--shuffle-window 256: has 16 lanes .* too few for 3 workers"):
        mixture_of([np.array([400]), np.array([40])], (1.0, 1.0), 256, 0, 3)


def test_a_place_is_found_without_looking_at_what_comes_before_it() -> None:
    """Two sources of half a million shards each, 4e8 samples in all."""
    random = np.random.default_rng(0)
    counts = [random.integers(350, 451, 500_000) for _ in range(2)]
    mixture = mixture_of(counts, (3.0, 1.0), 65_536, 0, 64)
    window = next(mixture.windows_from(2 * mixture.rows + 123_456_789, 17, 64))
    assert window.first >= 2 * mixture.rows + 123_456_789
