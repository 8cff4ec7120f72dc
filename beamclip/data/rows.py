"""Which rows of which shards are read together, and Ray Data's tasks that read them.

Free of torch: every process that runs a read task imports this module, and torch alone takes it seconds.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.order import Part, Unread, interleaved, partly_read
from beamclip.data.row_sets import Rows, RowSet
from beamclip.data.shard_file import MissingShardError, UnansweredShardError
from beamclip.data.shards import ROW_SCHEMA, ROWS_PER_BLOCK, Columns, Row, Shard, iterate_rows

ROWS_PER_TASK = 256
"""Small bundles share a read task up to here: a task costs Ray some milliseconds, whatever it reads."""

BLOCK_BYTES = 8 << 20
"""Of encoded samples that a read task hands over at a time."""

READ_AHEAD_BYTES = 128 << 20
"""What read tasks may have in the object store that a rank has not taken yet; about twice this is met."""

LONGEST_REST = 0.5
"""Seconds between two steps of Ray Data's executor while a rank has rows to draw from."""

TASKS_PER_EXECUTION = 200
"""Read tasks in one execution of Ray Data. Each start costs about 0.3 s, and each task some memory."""


@dataclass(frozen=True)
class Segment:
    """Rows of one shard."""

    shard: Shard
    rows: Rows


@dataclass(frozen=True)
class Bundle:
    """Segments whose rows are read in turn (see order.interleaved), in one epoch."""

    segments: tuple[Segment, ...]
    epoch: int = 0
    keep: NDArray[np.bool_] | None = None
    """[rows], in reading order: which of them are wanted; by default all."""

    @property
    def wanted(self) -> int:
        """How many rows are read."""
        if self.keep is None:
            return sum(len(segment.rows) for segment in self.segments)
        return int(self.keep.sum())

    def turns(self) -> NDArray[np.int64]:
        """int64 [rows], the segment of each row in reading order, unwanted ones included."""
        return interleaved(np.array([len(segment.rows) for segment in self.segments]))

    def wanted_of(self, index: int) -> Rows:
        """Those rows of a segment that are wanted."""
        rows = self.segments[index].rows
        return rows if self.keep is None else np.asarray(rows)[self.keep[self.turns() == index]]


def bundles_left(shards: list[Shard], rows: RowSet, part: Part, epoch: int, left: Unread) -> Iterator[Bundle]:
    """The bundles of a part, less what was drawn of them.

    Args:
        rows: what the epoch is made of.
        left: of the part.
    """
    opened, untouched = partly_read(part, left)
    for index in [*opened, *range(untouched, len(part.bundles) - 1)]:
        segments = tuple(
            Segment(shards[shard], rows.rows(shard, start, stop)) for shard, start, stop in part.pieces(index)
        )
        keep = opened.get(index)
        # The mask would travel with the task.
        yield Bundle(segments, epoch, None if keep is None or keep.all() else keep)


def read_bundle(bundle: Bundle, columns: Columns) -> Iterator[pa.Table]:
    """The wanted rows of a bundle, as tables of ROW_SCHEMA: ROWS_PER_BLOCK rows or BLOCK_BYTES each."""
    turns = bundle.turns()
    turns = turns if bundle.keep is None else turns[bundle.keep]
    sources = [
        iterate_rows(segment.shard, columns, bundle.wanted_of(index), bundle.epoch)
        for index, segment in enumerate(bundle.segments)
    ]
    rows, size = list[Row](), 0
    for index in turns.tolist():
        rows.append(next(sources[index]))
        size += len(rows[-1].get("image") or b"")
        if len(rows) == ROWS_PER_BLOCK or size >= BLOCK_BYTES:
            yield pa.Table.from_pylist(rows, ROW_SCHEMA)
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, ROW_SCHEMA)


RowReader = Callable[[Iterable[Bundle], Columns], Generator[Row, None, None]]
"""Streams the rows of any number of bundles, in the order given."""


def read_rows_here(bundles: Iterable[Bundle], columns: Columns) -> Generator[Row, None, None]:
    """The rows of bundles, read in the calling thread; see RowReader."""
    for bundle in bundles:
        for table in read_bundle(bundle, columns):
            yield from table.to_pylist()


def read_batches_here(tasks: Iterable[list[Bundle]], columns: Columns, batch_size: int) -> Iterator[pa.Table]:
    """The rows of read tasks, read in the calling thread, in tables of so many; the last may be shorter."""
    held = ROW_SCHEMA.empty_table()
    for table in chain.from_iterable(read_bundle(bundle, columns) for task in tasks for bundle in task):
        held = pa.concat_tables([held, table])
        while len(held) >= batch_size:
            yield held.slice(0, batch_size)
            held = held.slice(batch_size)
    if len(held):
        yield held


def read_rows(bundles: Iterable[Bundle], columns: Columns) -> Generator[Row, None, None]:
    """The rows of bundles through Ray Data, whose tasks read them on any node; see RowReader."""
    import ray.data

    for tasks in executions(tasks_of(bundles)):
        dataset = read_dataset(tasks, columns)
        # Ray would read ahead until half of its store is full, and join what a task yields to 128 MiB.
        limits = ray.data.ExecutionResources(object_store_memory=READ_AHEAD_BYTES)
        dataset.context.execution_options.resource_limits = limits
        dataset.context.target_max_block_size = BLOCK_BYTES
        dataset.context.custom_execution_callback_classes = [IdleThrottle]
        tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        while (table := _awaited(tables)) is not None:
            yield from table.to_pylist()


_waiting = threading.Event()
"""Whether somebody in this process waits for rows."""


def _awaited(tables: Iterator[pa.Table]) -> pa.Table | None:
    _waiting.set()
    try:
        with own_errors():
            return next(tables, None)
    finally:
        _waiting.clear()


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Inside, a task of Ray Data that could not read a shard raises its own error: a line, not a page."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and type(cause) not in (MissingShardError, UnansweredShardError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None


class IdleThrottle:
    """Lets Ray Data's executor rest while nobody waits for it; the names are those of its callbacks.

    It runs in a thread of the process that trains. While its limits hold tasks back it would look at them
    again and again: a core's worth of looking, and with Python's lock in its hands.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Rest; in one step it takes over all blocks that are there, and starts all tasks that may."""
        if _waiting.wait(LONGEST_REST):
            time.sleep(0.01)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing."""


def tasks_of(bundles: Iterable[Bundle]) -> Iterator[list[Bundle]]:
    """Neighbours together, one list a read task."""
    task: list[Bundle] = []
    rows = 0
    for bundle in bundles:
        task.append(bundle)
        rows += bundle.wanted
        if rows >= ROWS_PER_TASK:
            yield task
            task, rows = [], 0
    if task:
        yield task


def executions(tasks: Iterable[list[Bundle]]) -> Iterator[list[list[Bundle]]]:
    """TASKS_PER_EXECUTION at a time."""
    execution: list[list[Bundle]] = []
    for task in tasks:
        execution.append(task)
        if len(execution) == TASKS_PER_EXECUTION:
            yield execution
            execution = []
    if execution:
        yield execution


def read_dataset(tasks: list[list[Bundle]], columns: Columns) -> Any:
    """A ray.data.Dataset of the rows of read tasks, in the order given."""
    import ray.data

    dataset = ray.data.read_datasource(_datasource(tasks, columns), override_num_blocks=len(tasks))
    dataset.context.execution_options.preserve_order = True
    return prepared_dataset(dataset)


def prepared_dataset(dataset: Any) -> Any:
    """Set what all executions of this project share in the context of a ray.data.Dataset; return it.

    Ray Data ends an execution in which no block has moved for 300 s. A slow student takes longer for the rows
    of a block, and a teacher on CPUs for a shard of 10,000 images. So there is no such limit here.
    """
    # The executor logs every start and end at INFO to the terminal.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = -1
    return dataset


def read_batches(dataset: Any, **options: Any) -> Iterator[Any]:
    """The dataset's iter_batches.

    Raises:
        MissingShardError, UnansweredShardError: see `iterate_rows`.
    """
    with own_errors():
        yield from dataset.iter_batches(**options)


def _datasource(tasks: list[list[Bundle]], columns: Columns) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Bundles(Datasource):
        """Ray Data's view of the plan: it reads exactly these rows and decides nothing."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(_reader(task, columns), BlockMetadata(None, None, None, None)) for task in tasks]

    return Bundles()


def _reader(task: list[Bundle], columns: Columns) -> Callable[[], Iterable[pa.Table]]:
    return lambda: chain.from_iterable(read_bundle(bundle, columns) for bundle in task)
