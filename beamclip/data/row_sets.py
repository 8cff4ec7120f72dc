"""Sets of rows of a sharded data set, small enough for every checkpoint: bits for shards, runs for parts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = range | NDArray[np.int64]
"""Row numbers within one shard, ascending."""


@dataclass(frozen=True)
class RowSet:
    """Which rows of which shards; a shard is named by its place in the list of shards."""

    whole: NDArray[np.bool_]
    """[shards], whether all rows of a shard are in the set."""
    runs: NDArray[np.int32]
    """[runs, 3], (shard, start, stop): rows [start, stop) of shards that are not whole; sorted, and apart."""

    @classmethod
    def everything(cls, samples: NDArray[np.int64]) -> "RowSet":
        """All rows of shards that hold so many samples."""
        return cls(np.ones(len(samples), np.bool_), np.empty((0, 3), np.int32))

    @classmethod
    def of_runs(cls, runs: NDArray[np.integer[Any]], samples: NDArray[np.int64]) -> "RowSet":
        """The rows of runs (shard, start, stop) in any order, which do not overlap."""
        runs = runs[runs[:, 1] < runs[:, 2]]
        runs = runs[np.lexsort((runs[:, 1], runs[:, 0]))]
        touching = (runs[1:, 0] == runs[:-1, 0]) & (runs[1:, 1] == runs[:-1, 2])
        first, last = _groups(touching, len(runs))
        merged = np.column_stack([runs[first, 0], runs[first, 1], runs[last, 2]])
        is_whole = merged[:, 2] - merged[:, 1] == samples[merged[:, 0]]
        whole = np.zeros(len(samples), np.bool_)
        whole[merged[is_whole, 0]] = True
        return cls(whole, merged[~is_whole].astype(np.int32))

    def counts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [shards], how many rows of each shard are in the set."""
        counts = np.where(self.whole, samples, 0)
        np.add.at(counts, self.runs[:, 0], self.runs[:, 2] - self.runs[:, 1])
        return counts

    def rows(self, shard: int, start: int, stop: int) -> Rows:
        """Numbers of those rows of a shard that are the set's [start, stop) of that shard, counted from 0."""
        if self.whole[shard]:
            return range(start, stop)
        first, last = np.searchsorted(self.runs[:, 0], [shard, shard + 1])
        rows = [np.arange(begin, end) for _, begin, end in self.runs[first:last].tolist()]
        return np.concatenate(rows)[start:stop] if rows else range(0)


def runs_of(shard: int, rows: Rows) -> NDArray[np.int64]:
    """int64 [runs, 3], (shard, start, stop) of ascending row numbers."""
    if isinstance(rows, range):
        return np.array([[shard, rows.start, rows.stop]], np.int64)[: len(rows)]
    first, last = _groups(np.diff(rows) == 1, len(rows))
    return np.column_stack([np.full(len(first), shard), rows[first], rows[last] + 1]).astype(np.int64)


def _groups(joined: NDArray[np.bool_], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last of each group of `count` things; joined[i] where thing i + 1 belongs to that of i."""
    first = np.flatnonzero(np.append(True, ~joined)[:count])
    return first, np.append(first[1:], count)[: len(first)] - 1
