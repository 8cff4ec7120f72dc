"""The order of an epoch: which rows a rank reads, in which order, and which leave its buffer when.

Arithmetic on row numbers; no data are touched. The shards are permuted anew in each epoch, and cut into
equal runs of rows, one a rank. A rank reads its shards in bundles, the rows of a bundle interleaved, and
draws at random from a buffer of rows. All of it follows from (seed, epoch, rank, world size): where a rank
stands is one number, however large the data are, and what it has not drawn yet can be computed from it.

Free of torch: the processes that read shards import this module.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096
"""Draws from the buffer that share a random generator."""


@dataclass(frozen=True)
class Order:
    """What an order follows from, beside the shards, the epoch and the rank."""

    seed: int
    world_size: int
    buffer: int
    """Rows that a rank holds to draw from."""
    shards: int
    """Shards that are read together, row by row in turn."""


@dataclass(frozen=True)
class Part:
    """The rows that a rank reads in an epoch: pieces of shards, bundled, in reading order."""

    shard: NDArray[np.int64]
    """[pieces], places in the list of shards."""
    start: NDArray[np.int64]
    """[pieces], first row of a piece among those rows of its shard that the epoch is made of."""
    stop: NDArray[np.int64]
    """[pieces], the row after its last."""
    bundles: NDArray[np.int64]
    """[bundles + 1], first piece of each bundle, and the number of pieces."""

    @property
    def rows(self) -> int:
        """How many."""
        return int((self.stop - self.start).sum())

    def pieces(self, bundle: int) -> list[tuple[int, int, int]]:
        """(shard, start, stop) of the pieces of a bundle."""
        mine = slice(self.bundles[bundle], self.bundles[bundle + 1])
        columns = (self.shard[mine].tolist(), self.start[mine].tolist(), self.stop[mine].tolist())
        return list(zip(*columns, strict=True))

    def bundle_ends(self) -> NDArray[np.int64]:
        """[bundles + 1], rows read before each bundle, and after the last."""
        read = np.concatenate([[0], np.cumsum(self.stop - self.start)])
        ends: NDArray[np.int64] = read[self.bundles]
        return ends


def epoch_part(counts: NDArray[np.int64], order: Order, epoch: int, rank: int) -> Part:
    """What one rank reads in an epoch; ranks are disjoint, cover every row and differ by one row at most.

    Args:
        counts: int64 [shards], rows of each shard that the epoch is made of.
    """
    shuffled = np.random.default_rng((order.seed, epoch)).permutation(len(counts))
    ends = np.cumsum(counts[shuffled])
    begins = ends - counts[shuffled]
    total = int(ends[-1])
    first, last = rank * total // order.world_size, (rank + 1) * total // order.world_size
    start, stop = np.maximum(first, begins) - begins, np.minimum(last, ends) - begins
    mine = start < stop
    pieces = int(mine.sum())
    # Evenly: a last bundle of one shard alone would be a run of rows of that shard.
    bundles = -(-pieces // order.shards)
    cuts = np.arange(bundles + 1) * pieces // max(1, bundles)
    return Part(shuffled[mine], start[mine], stop[mine], cuts)


def interleaved(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [sum of lengths], which piece each next row of a bundle is taken from.

    All pieces come to their end together, whatever their lengths.
    """
    piece = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(piece)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    progress = (within + 0.5) / lengths[piece]
    taken: NDArray[np.int64] = piece[np.argsort(progress, kind="stable")]
    return taken


def slots_drawn(order: Order, epoch: int, rank: int, block: int) -> NDArray[np.int64]:
    """int64 [BLOCK], the slots of the buffer that the draws [BLOCK * block, BLOCK * (block + 1)) empty."""
    return _generator(order, epoch, rank, block).integers(order.buffer, size=BLOCK)


def last_draws(order: Order, epoch: int, rank: int, held: int) -> NDArray[np.int64]:
    """int64 [held], the order in which the slots are emptied once there is nothing left to read."""
    return _generator(order, epoch, rank).permutation(held)


def _generator(order: Order, epoch: int, rank: int, *more: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(order.seed, spawn_key=(epoch, rank, *more)))


@dataclass(frozen=True)
class Unread:
    """The rows that a rank has not drawn, by their numbers in its reading order."""

    held: NDArray[np.int64]
    """[slots of the buffer], the row in each slot; -1 where it was drawn and none took its place."""
    onwards: int
    """From here on, all rows up to the end."""


def unread(order: Order, epoch: int, rank: int, rows: int, drawn: int) -> Unread:
    """What is left of a part of so many rows after so many draws.

    A slot holds the row that came in at its last draw. Looking for those from the end backwards takes some
    ten draws for each slot, not one for each row.
    """
    slots = min(order.buffer, rows)
    refilled = min(drawn, rows - slots)
    held = np.arange(slots)
    found = np.zeros(slots, np.bool_)
    for block in range((refilled - 1) // BLOCK, -1, -1):
        draws = slots_drawn(order, epoch, rank, block)[: refilled - block * BLOCK]
        last = np.full(slots, -1)
        # Where a slot was drawn more than once, NumPy keeps the last assignment.
        last[draws] = block * BLOCK + np.arange(len(draws))
        newly = ~found & (last >= 0)
        held[newly] = slots + last[newly]
        found |= newly
        if found.all():
            break
    held[last_draws(order, epoch, rank, slots)[: drawn - refilled]] = -1
    return Unread(held, slots + refilled)


def partly_read(part: Part, left: Unread) -> tuple[dict[int, NDArray[np.bool_]], int]:
    """Where the unread rows of a part lie.

    Returns:
        Of each bundle that was read in part, bool [rows] in reading order, which rows are left (bundles of
        which none is left are missing); and the first bundle of which nothing was read.
    """
    ends = part.bundle_ends()
    untouched = int(np.searchsorted(ends, left.onwards, "left"))
    held = np.sort(left.held[left.held >= 0])
    opened: dict[int, NDArray[np.bool_]] = {}
    touched = np.append(np.searchsorted(ends, held, "right") - 1, untouched - 1)
    for bundle in np.unique(touched[(touched >= 0) & (touched < untouched)]).tolist():
        begin, end = ends[bundle], ends[bundle + 1]
        keep = np.arange(begin, end) >= left.onwards
        keep[held[slice(*np.searchsorted(held, [begin, end]))] - begin] = True
        if keep.any():
            opened[bundle] = keep
    return opened, untouched
