"""The order of a run over several sources: which sample of which source is its i-th, by arithmetic alone.

1. The run's lanes (see order.py) are divided among the sources in proportion to their weights.
2. Each source has an order of its own over its lanes: samples 0, 1, 2, ... without end, epoch after epoch.
3. A round has as many samples as the run has lanes, one a lane, and the slots of a source are spread evenly
   over it. With 2 lanes for a and 1 for b, each round is a b a: a0 b0 a1 | a2 b1 a3 | a4 b2 a5 | ...

So every batch has the sources in their shares, to within a sample or two. Step t is made of the same samples
for any number of workers, and an epoch of a source has each of its rows once: where a run stands is still the
number of samples before it, from which the number of each source's samples follows.

Without weights, sources are one: their shards are laid end to end and share an order. Then an epoch has each
row of all sources once, and batches have the shares of the sources on average.

Samples of equal keys in two sources are augmented alike in the same epoch, since draws come from seed, epoch
and key. They are different images, so nothing is learned twice by it.

Free of torch: the processes that read shards import this module.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from heapq import merge
from itertools import groupby
from math import ceil, gcd
from operator import attrgetter

import numpy as np

from beamclip.data.order import PIECE, Ints, Order, Window, lanes_in, order_over, shares, windows_from
from beamclip.data.shards import Shard
from beamclip.errors import InputError


@dataclass(frozen=True, eq=False)
class Mixture:
    """What the order of a run follows from."""

    orders: tuple[Order, ...]
    """The order of each source."""

    @property
    def rows(self) -> int:
        """Number of rows in all sources."""
        return sum(order.rows for order in self.orders)

    @cached_property
    def lanes(self) -> int:
        """Lanes of all sources, and samples of a round."""
        return sum(order.lanes for order in self.orders)

    @cached_property
    def slots(self) -> list[Ints]:
        """For each source [lanes], its places in a round, ascending."""
        lanes = [order.lanes for order in self.orders]
        heights = np.concatenate([(np.arange(each) + 0.5) / each for each in lanes])
        source = np.repeat(np.arange(len(lanes)), lanes)[np.argsort(heights, kind="stable")]
        return [np.flatnonzero(source == each) for each in range(len(lanes))]

    def before(self, sample: int) -> list[int]:
        """How many samples of each source come before a sample of the run."""
        rounds, slot = divmod(sample, self.lanes)
        return [rounds * len(own) + int(np.searchsorted(own, slot)) for own in self.slots]

    def numbers(self, source: int, samples: Ints) -> Ints:
        """The numbers in the run of samples of a source."""
        own = self.slots[source]
        return samples // len(own) * self.lanes + own[samples % len(own)]

    def together(self, batch_size: int, world_size: int) -> int:
        """Neighbouring lanes that a worker serves at a time: all that leave equal shares of each step, or 1.

        Where a shard is no whole number of pieces, the pieces behind lie across two lanes. Two workers would
        read them, unless one serves both lanes.
        """
        # Rounds and steps are multiples of `part` samples. Turns that divide what each source has in every
        # stretch of that length end where rounds and steps end.
        part = gcd(self.lanes, batch_size)
        turns = gcd(*(int(held) for own in self.slots for held in np.bincount(own // part)))
        return turns // world_size if turns % world_size == 0 else 1

    def windows_from(self, sample: int, rank: int, world_size: int, together: int = 1) -> Iterator[Window]:
        """The windows of one worker from a sample of the run on, without end, by their first samples.

        Windows of different sources overlap. Their samples have the numbers of the run, and their shards
        places in the list of all sources' shards.
        """
        of_sources = []
        for source, own in enumerate(self.before(sample)):
            windows = windows_from(self.orders[source], own, rank, world_size, together)
            of_sources.append(map(partial(self._in_run, source), windows))
        return merge(*of_sources, key=attrgetter("first"))

    def _in_run(self, source: int, window: Window) -> Window:
        shards_before = sum(len(order.counts) for order in self.orders[:source])
        return replace(
            window,
            first=int(self.numbers(source, np.array(window.first))),
            shard=window.shard + shards_before,
            number=self.numbers(source, window.number),
        )

    def shares(self, first: int, stop: int, world_size: int, together: int = 1) -> Ints:
        """int64 [world_size], how many of the samples [first, stop) of a run each worker serves.

        They are the sums of its shares of each source; see order.shares.
        """
        spans = zip(self.orders, self.before(first), self.before(stop), strict=True)
        own = [shares(order, begin, end, world_size, together) for order, begin, end in spans]
        return np.sum(own, axis=0)


def mixture_of(
    counts: Sequence[Ints], weights: Sequence[float], window: int, seed: int, num_workers: int
) -> Mixture:
    """The order of a run.

    Args:
        counts: of each source [shards], rows of each shard.
        weights: of each source, > 0; none takes all sources as one.
        window: rows that are shuffled among each other, `--shuffle-window`.
        num_workers: workers that share the lanes.

    Raises:
        InputError: the window has too few lanes for the workers, or for a source of little weight.
    """
    lanes = lanes_in(window, num_workers)
    if not weights:
        return Mixture((order_over(np.concatenate(counts), lanes, seed),))
    of_sources = divided(lanes, weights)
    if min(of_sources) == 0:
        least = min(weights)
        raise InputError(
            f"--data-weights {least:g}: is less than one of the {lanes} lanes of --shuffle-window {window}. "
            f"Give more weight, or a window of {PIECE * ceil(sum(weights) / least)}."
        )
    seeds = [seed, *np.random.SeedSequence(seed).generate_state(len(counts) - 1, np.uint64).tolist()]
    return Mixture(tuple(map(order_over, counts, of_sources, seeds)))


def divided(lanes: int, weights: Sequence[float]) -> list[int]:
    """Divide lanes in proportion to weights, by their largest remainders."""
    quotas = lanes * np.array(weights) / sum(weights)
    whole = np.floor(quotas).astype(np.int64)
    whole[np.argsort(whole - quotas, kind="stable")[: lanes - whole.sum()]] += 1
    return [int(each) for each in whole]


def source_counts(shards: Sequence[Shard]) -> list[Ints]:
    """For each source [shards], rows of its shards, which follow each other in the list."""
    of_sources = groupby(shards, key=attrgetter("source"))
    return [np.array([shard.samples for shard in own], np.int64) for _, own in of_sources]
