"""Which rows of which shards a rank reads, and Ray Data's tasks that read them.

Free of torch: every process that runs a read task imports this module, and torch alone takes it seconds.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa

from beamclip.data.shards import Columns, Row, Shard, read_shard

ROWS_PER_TASK = 256
"""Small segments share a read task up to here: a task costs Ray some milliseconds, whatever it reads."""


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of one shard, in one epoch."""

    shard: Shard
    start: int
    stop: int
    epoch: int


def epoch_segments(shards: list[Shard], seed: int, epoch: int, rank: int, world_size: int) -> list[Segment]:
    """The part of an epoch that one rank reads.

    Ranks are disjoint, cover every row and differ by one row at most.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(shards))
    shuffled = [shards[i] for i in order]
    total = sum(shard.samples for shard in shuffled)
    first, last = rank * total // world_size, (rank + 1) * total // world_size
    ends = accumulate(shard.samples for shard in shuffled)
    segments = []
    for shard, end in zip(shuffled, ends, strict=True):
        begin = end - shard.samples
        start, stop = max(first, begin) - begin, min(last, end) - begin
        if start < stop:
            segments.append(Segment(shard, start, stop, epoch))
    return segments


def read_rows(segments: list[Segment], columns: Columns) -> Iterator[list[Row]]:
    """Stream the rows of segments through Ray Data, in the order given.

    Yields:
        Lists of rows (see shards.ROW_SCHEMA).
    """
    for table in read_dataset(segments, columns).iter_batches(batch_size=None, batch_format="pyarrow"):
        yield table.to_pylist()


def read_dataset(segments: list[Segment], columns: Columns) -> Any:
    """A ray.data.Dataset of the rows of segments, in the order given."""
    import ray.data

    # The executor logs every start and end at INFO to the terminal of whoever runs it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    runs = _runs(segments)
    dataset = ray.data.read_datasource(_datasource(runs, columns), override_num_blocks=len(runs))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


def _runs(segments: list[Segment]) -> list[list[Segment]]:
    """Neighbours together, one run a read task."""
    runs: list[list[Segment]] = [[]]
    rows = 0
    for segment in segments:
        if rows >= ROWS_PER_TASK:
            runs.append([])
            rows = 0
        runs[-1].append(segment)
        rows += segment.stop - segment.start
    return runs


def _datasource(runs: list[list[Segment]], columns: Columns) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Segments(Datasource):
        """Ray Data's view of the plan: it reads exactly these rows and decides nothing."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(_reader(run, columns), BlockMetadata(None, None, None, None)) for run in runs]

    return Segments()


def _reader(run: list[Segment], columns: Columns) -> Callable[[], Iterable[pa.Table]]:
    return lambda: chain.from_iterable(
        read_shard(segment.shard, columns, segment.start, segment.stop, segment.epoch) for segment in run
    )
