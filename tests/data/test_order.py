"""The order of an epoch: every row once, the same each time, well mixed, and known at every point."""

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from beamclip.data.order import BLOCK, Order, Part, epoch_part, interleaved, partly_read, unread
from beamclip.data.stream import shuffled

SEED = 3


def order(world_size: int = 1, buffer: int = 6, shards: int = 3, seed: int = SEED) -> Order:
    return Order(seed, world_size, buffer, shards)


def sizes(generator: random.Random, shards: int, largest: int = 9) -> NDArray[np.int64]:
    return np.array([generator.randint(1, largest) for _ in range(shards)], np.int64)


def rows_of(part: Part) -> list[tuple[int, int]]:
    """(shard, row) of a part in reading order."""
    found = []
    for bundle in range(len(part.bundles) - 1):
        pieces = part.pieces(bundle)
        rows = [iter(range(start, stop)) for _, start, stop in pieces]
        turns = interleaved(np.array([stop - start for _, start, stop in pieces]))
        found += [(pieces[turn][0], next(rows[turn])) for turn in turns]
    return found


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 20])
def test_the_parts_of_the_ranks_are_disjoint_and_cover_every_row(world_size: int, shards: int) -> None:
    counts = sizes(random.Random(shards), shards)
    total = int(counts.sum())
    for epoch in range(4):
        parts = [epoch_part(counts, order(world_size), epoch, rank) for rank in range(world_size)]
        read = [rows_of(part) for part in parts]
        assert sorted(row for part in read for row in part) == [
            (shard, row) for shard in range(shards) for row in range(counts[shard])
        ]
        assert [len(rows) for rows in read] == [part.rows for part in parts]
        assert {len(rows) for rows in read} <= {total // world_size, -(-total // world_size)}


def test_the_order_of_the_shards_depends_on_seed_and_epoch() -> None:
    counts = np.full(20, 3)

    def shards(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(epoch_part(counts, order(seed=seed), epoch, 0).shard.tolist())

    assert shards(1, 1) == shards(1, 1)
    assert len({shards(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


@pytest.mark.parametrize(
    ("pieces", "bundles"), [(1, [1]), (3, [3]), (4, [2, 2]), (7, [2, 2, 3]), (9, [3] * 3)]
)
def test_bundles_hold_as_many_pieces_as_asked_at_most_and_none_is_left_alone(
    pieces: int, bundles: list[int]
) -> None:
    part = epoch_part(np.full(pieces, 5), order(shards=3), 0, 0)
    assert np.diff(part.bundles).tolist() == bundles


def test_the_pieces_of_a_bundle_come_to_their_end_together() -> None:
    lengths = np.array([4, 12, 8, 1])
    turns = interleaved(lengths)
    assert np.bincount(turns).tolist() == lengths.tolist()
    for piece, length in enumerate(lengths):
        places = (np.flatnonzero(turns == piece) + 0.5) / len(turns)
        np.testing.assert_allclose(places, (np.arange(length) + 0.5) / length, atol=4 / len(turns))


def drawn_rows(part: Part, ordered: Order, epoch: int = 0, rank: int = 0, drawn: int = 0) -> list[int]:
    """Numbers in reading order of the rows that are drawn after `drawn` others."""
    left = unread(ordered, epoch, rank, part.rows, drawn)
    reading = [*sorted(left.held[left.held >= 0].tolist()), *range(left.onwards, part.rows)]
    return list(shuffled(iter(reading), ordered, epoch, rank, part.rows, drawn))


@pytest.mark.parametrize(("rows", "buffer"), [(1, 1), (5, 6), (6, 6), (7, 6), (90, 6), (90, 1), (90, 64)])
def test_every_row_is_drawn_once_and_no_earlier_than_the_buffer_allows(rows: int, buffer: int) -> None:
    ordered = order(buffer=buffer)
    drawn = drawn_rows(epoch_part(np.array([rows]), ordered, 0, 0), ordered)
    assert sorted(drawn) == list(range(rows))
    assert all(row < draw + buffer for draw, row in enumerate(drawn))


@pytest.mark.parametrize(("rows", "buffer"), [(5, 6), (40, 6), (BLOCK + 700, 64)])
def test_what_is_left_after_any_number_of_draws_comes_as_if_nothing_had_happened(
    rows: int, buffer: int
) -> None:
    ordered = order(buffer=buffer)
    part = epoch_part(np.array([rows]), ordered, 2, 0)
    whole = drawn_rows(part, ordered, epoch=2)
    points = (
        range(rows + 1) if rows < 50 else [0, 1, 700, BLOCK - 1, BLOCK, BLOCK + 1, rows - 64, rows - 1, rows]
    )
    for drawn in points:
        assert drawn_rows(part, ordered, epoch=2, drawn=drawn) == whole[drawn:]
        left = unread(ordered, 2, 0, rows, drawn)
        assert len(left.held[left.held >= 0]) + rows - left.onwards == rows - drawn


def test_ranks_epochs_and_seeds_have_draws_of_their_own() -> None:
    part = epoch_part(np.array([50]), order(), 0, 0)
    keys = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]
    drawn = {tuple(drawn_rows(part, order(seed=seed), epoch, rank)) for epoch, rank, seed in keys}
    assert len(drawn) == len(keys)


@pytest.mark.parametrize("drawn", range(0, 41, 4))
def test_the_bundles_with_unread_rows_are_known(drawn: int) -> None:
    ordered = order(buffer=7, shards=2)
    part = epoch_part(np.array([9, 4, 10, 8, 9]), ordered, 1, 0)
    expected = sorted(drawn_rows(part, ordered, epoch=1)[drawn:])
    opened, untouched = partly_read(part, unread(ordered, 1, 0, part.rows, drawn))
    ends = part.bundle_ends()
    found = [row for bundle, keep in opened.items() for row in (ends[bundle] + np.flatnonzero(keep)).tolist()]
    assert sorted([*found, *range(ends[untouched], part.rows)]) == expected
    assert all(keep.any() and bundle < untouched for bundle, keep in opened.items())


def together(shards: int, rows: int, buffer: int, batch: int = 256) -> float:
    """How often two images of a batch are of one shard, against the same in a perfect shuffle."""
    ordered = Order(SEED, 1, buffer, shards=8)
    part = epoch_part(np.full(shards, rows), ordered, 0, 0)
    shard = np.array([shard for shard, _ in rows_of(part)])[drawn_rows(part, ordered)]
    batches = shard[: len(shard) // batch * batch].reshape(-1, batch)
    pairs = [np.bincount(each, minlength=shards) for each in batches]
    same = np.mean([(count * (count - 1)).sum() / (batch * (batch - 1)) for count in pairs])
    return float(same / ((rows - 1) / (shards * rows - 1)))


def test_a_few_large_shards_do_not_clump() -> None:
    assert together(shards=8, rows=2000, buffer=512) < 1.05
    assert together(shards=16, rows=2000, buffer=512) < 2.1
