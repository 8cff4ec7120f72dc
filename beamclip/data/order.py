"""The order of a data source: which row of which shard is its i-th sample, by arithmetic alone.

A run takes all its samples from one source, or mixes several, each of which has an order (see mixture.py).

The rows of each shard are cut into pieces of neighbours, which are read together. Each epoch permutes all
pieces, and the rows of each, and lays them end to end. This line is cut into windows of one piece a lane.
Within a window, each lane has an equal stretch of the line, and samples leave place by place: the first of
every lane, the second of every lane, and so on. So neighbours come to different batches, whether their piece
lies in one lane or across two. Step t is made of samples [t * B, (t + 1) * B), whoever trains: workers share
the lanes between them, so their number changes who reads a sample, and not when it is seen.

An epoch is made of each row once; the next one follows without a gap, in the middle of a batch if need be.
Where a run stands is the number of samples before it. It is found in time that grows with the number of
shards, not of samples: pieces are permuted by a bijection that is computed for each number on its own.

Free of torch: the processes that read shards import this module.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from beamclip.errors import InputError

Ints = NDArray[np.int64]

PIECE = 16
"""Rows of a piece, at most: about a megabyte of photographs, which an object store answers in one request."""

ORDER_VERSION = 2
"""Version of the order that this module computes: another one takes the samples of a run otherwise."""

LANES_PER_WORKER = 8
"""Fewer lanes a worker would give some workers noticeably more samples of a batch than others."""

_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class Order:
    """What the order of a source follows from."""

    counts: Ints
    """[shards], rows of each shard."""
    lanes: int
    """Lanes of a window, and pieces of each window but an epoch's last."""
    piece: int
    """Rows of a piece; the last piece of a shard may have fewer."""
    seed: int

    @cached_property
    def rows(self) -> int:
        """Number of rows in an epoch."""
        return int(self.counts.sum())

    @cached_property
    def first_pieces(self) -> Ints:
        """[shards + 1], number of the first piece of each shard, and the number of pieces."""
        return np.concatenate([[0], np.cumsum(-(-self.counts // self.piece))])

    @lru_cache(maxsize=64)  # noqa: B019 (a run has few orders, and needs two epochs of each at a time)
    def epoch(self, number: int) -> "Epoch":
        """The order of one epoch."""
        pieces = int(self.first_pieces[-1])
        keys = np.random.default_rng((self.seed, number)).integers(1 << 64, size=_ROUNDS, dtype=np.uint64)
        # Where the pieces lie that are shorter than the others, and how many rows the line lacks by them.
        short = self.counts % self.piece != 0
        places = _scattered(self.first_pieces[1:][short] - 1, pieces, keys[::-1])
        in_line = np.argsort(places)
        lacking = np.concatenate([[0], np.cumsum(self.piece - self.counts[short][in_line] % self.piece)])
        edges = np.minimum(np.arange(0, pieces + self.lanes, self.lanes), pieces)
        starts = edges * self.piece - lacking[np.searchsorted(places[in_line], edges)]
        return Epoch(self, number, keys, starts)


def order_over(counts: Ints, lanes: int, seed: int) -> Order:
    """The order of a data set over so many lanes.

    Args:
        counts: [shards], rows of each shard.
    """
    # Pieces of few rows where the data are few: whole pieces would fill few lanes, and nothing be shuffled.
    return Order(counts, lanes, min(PIECE, max(1, int(counts.sum()) // lanes)), seed)


def lanes_in(window: int, num_workers: int) -> int:
    """How many lanes a window has.

    Raises:
        InputError: they are too few for the workers.
    """
    lanes = window // PIECE
    if lanes < LANES_PER_WORKER * num_workers:
        raise InputError(
            f"--shuffle-window {window}: has {lanes} lanes of {PIECE} samples, too few for {num_workers} "
            f"workers. Give {LANES_PER_WORKER * num_workers * PIECE} or more."
        )
    return lanes


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch."""

    order: Order
    number: int
    keys: NDArray[np.uint64]
    """Keys of the bijection that permutes the pieces."""
    starts: Ints
    """[windows + 1], rows before each window, and rows of the epoch."""

    def window(self, index: int) -> tuple[Ints, Ints]:
        """Shard and row of each sample of a window, int64 [rows] each, in the order in which they leave."""
        order, pieces = self.order, int(self.order.first_pieces[-1])
        first = index * order.lanes
        piece = _scattered(np.arange(first, min(first + order.lanes, pieces)), pieces, self.keys)
        shard = np.searchsorted(order.first_pieces, piece, "right") - 1
        start = (piece - order.first_pieces[shard]) * order.piece
        sizes = np.minimum(order.piece, order.counts[shard] - start)
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        left = self._shuffled(index, sizes)[_place_by_place(len(within), order.lanes)]
        return np.repeat(shard, sizes)[left], (np.repeat(start, sizes) + within)[left]

    def _shuffled(self, index: int, sizes: Ints) -> Ints:
        """int64 [rows], the rows of a window piece by piece, each piece in an order of its own."""
        draws = np.random.default_rng((self.order.seed, self.number, index)).random(sizes.sum())
        return np.lexsort((draws, np.repeat(np.arange(len(sizes)), sizes)))


@dataclass(frozen=True)
class Window:
    """The samples of one window that one worker serves, in the order in which they leave it."""

    epoch: int
    first: int
    """Number of the window's first sample, whichever worker serves it."""
    lane: Ints
    """[rows], ascending wherever the place is the same."""
    shard: Ints
    """[rows], places in the list of shards."""
    row: Ints
    """[rows], row numbers within the shard."""
    number: Ints
    """[rows], ascending, numbers of the samples."""


def windows_from(
    order: Order, sample: int, rank: int, world_size: int, together: int = 1
) -> Iterator[Window]:
    """The windows of one worker from a sample on, without end; a window may hold no row for it.

    Args:
        together: neighbouring lanes that a worker serves before it is the next one's turn.
    """
    for epoch_number in count(sample // order.rows):
        epoch, before = order.epoch(epoch_number), epoch_number * order.rows
        first = int(np.searchsorted(epoch.starts, max(0, sample - before), "right")) - 1
        for index in range(first, len(epoch.starts) - 1):
            shard, row = epoch.window(index)
            offset = np.arange(len(shard))
            number = before + int(epoch.starts[index]) + offset
            lane = offset % order.lanes
            # Shifted, so that workers take turns without a break from window to window: where the lanes are a
            # multiple of a turn of all workers, sample i is served by worker i // together modulo world_size.
            mine = (lane + before + int(epoch.starts[index])) // together % world_size == rank
            mine &= number >= sample
            begin = max(sample, before + int(epoch.starts[index]))
            yield Window(epoch_number, begin, lane[mine], shard[mine], row[mine], number[mine])


def shares(order: Order, first: int, stop: int, world_size: int, together: int = 1) -> Ints:
    """int64 [world_size], how many of the samples [first, stop) each worker serves.

    They differ by `together` at most where the lanes are a multiple of a turn of all workers, else by a few
    more.
    """
    servers = [np.empty(0, np.int64)]
    for number in range(first // order.rows, -(-stop // order.rows)):
        before, starts = number * order.rows, order.epoch(number).starts
        sample = np.arange(max(first, before), min(stop, before + order.rows)) - before
        start = starts[np.searchsorted(starts, sample, "right") - 1]
        servers.append(((sample - start) % order.lanes + before + start) // together % world_size)
    return np.bincount(np.concatenate(servers), minlength=world_size)


def _place_by_place(rows: int, lanes: int) -> Ints:
    """int64 [rows], places in a window's line of the samples that leave it one after the other."""
    # The first lanes have one row more where not all can have equally many.
    lane = np.repeat(np.arange(lanes), rows // lanes + (np.arange(lanes) < rows % lanes).astype(np.int64))
    place = np.arange(rows) - np.searchsorted(lane, lane)
    return np.lexsort((lane, place))


def _scattered(values: Ints, size: int, keys: NDArray[np.uint64]) -> Ints:
    """The image of each value under a bijection of [0, size); the reversed keys give its inverse.

    A Feistel network permutes the numbers of an even count of bits. What lands outside [0, size) goes through
    it again, until it is inside (cycle walking: Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    found = values.astype(np.uint64)
    outside = np.ones(len(found), np.bool_)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        # Without a last exchange of the halves, which makes the network its own inverse but for the keys.
        found[outside] = (right << half) | left
        outside = found >= size
    return found.astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The last steps of SplitMix64 (Steele, Lea and Flood, 2014): each bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
