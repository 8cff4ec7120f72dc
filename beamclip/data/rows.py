"""Which rows of which shards are read together, and Ray Data's tasks that read them.

Free of torch: every process that runs a read task imports this module, and torch alone takes it seconds.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.index import entry_of
from beamclip.data.order import Window
from beamclip.data.shard_file import MissingShardError, Rows, UnansweredShardError
from beamclip.data.shards import ROW_SCHEMA, ROWS_PER_BLOCK, Columns, Row, Shard, iterate_rows
from beamclip.data.tar_samples import BEGINNING, ReadStart

ROWS_PER_TASK = 256
"""Rows that a read task aims at: a task costs Ray some milliseconds, whatever it reads."""

SEGMENTS_TOGETHER = 8
"""Segments of a bundle that are read at a time from a store."""

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
    """Rows of one shard that are read together."""

    shard: Shard
    rows: Rows
    entry: ReadStart = BEGINNING
    """Where reading a tar begins."""


@dataclass(frozen=True)
class Bundle:
    """Segments that are read together, in one epoch."""

    segments: tuple[Segment, ...]
    epoch: int = 0
    turns: NDArray[np.int64] | None = None
    """[rows], places of the rows in the segments laid end to end, in the order in which they are handed over;
    by default as they lie."""

    @property
    def rows(self) -> int:
        """Number of rows in the bundle."""
        return sum(len(segment.rows) for segment in self.segments)


def bundles_of(window: Window, shards: list[Shard], starts: list[NDArray[np.int64]]) -> list[Bundle]:
    """Divide the rows of a worker's window into bundles of neighbouring lanes, about ROWS_PER_TASK rows each.

    A lane's rows lie in one or two pieces, so no piece is read for more than two bundles.

    Args:
        starts: of the shards, from index.read_starts.

    Returns:
        Bundles whose turns follow the window's order.
    """
    number = bundle_numbers(window)
    bundles = []
    for each in range(int(number.max(initial=-1)) + 1):
        mine = np.flatnonzero(number == each)
        shard, row = window.shard[mine], window.row[mine]
        lying = np.lexsort((row, shard))
        shard, row = shard[lying], row[lying]
        cuts = np.flatnonzero((np.diff(shard) != 0) | (np.diff(row) != 1)) + 1
        edges = np.concatenate([[0], cuts, [len(row)]]).tolist()
        segments = tuple(
            Segment(
                shards[shard[first]],
                range(int(row[first]), int(row[last - 1]) + 1),
                entry_of(starts[shard[first]], int(row[first])),
            )
            for first, last in pairwise(edges)
        )
        bundles.append(Bundle(segments, window.epoch, np.argsort(lying)))
    return bundles


def bundle_numbers(window: Window) -> NDArray[np.int64]:
    """int64 [rows], the bundle that each row of a worker's window is read in."""
    lanes, lane = np.unique(window.lane, return_inverse=True)
    bundles = max(1, round(len(lane) / ROWS_PER_TASK))
    return lane * bundles // max(1, len(lanes))


def read_bundle(bundle: Bundle, columns: Columns) -> Iterator[pa.Table]:
    """The rows of a bundle, as tables of ROW_SCHEMA of ROWS_PER_BLOCK rows or BLOCK_BYTES each."""
    rows, size = list[Row](), 0
    for row in _in_turns(bundle, columns):
        rows.append(row)
        size += len(row.get("image") or b"")
        if len(rows) == ROWS_PER_BLOCK or size >= BLOCK_BYTES:
            yield pa.Table.from_pylist(rows, ROW_SCHEMA)
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, ROW_SCHEMA)


def _in_turns(bundle: Bundle, columns: Columns) -> Iterable[Row]:
    segments = [
        partial(iterate_rows, each.shard, columns, each.rows, bundle.epoch, entry=each.entry)
        for each in bundle.segments
    ]
    if bundle.turns is None:
        return chain.from_iterable(read() for read in segments)
    if all(each.shard.path.startswith("file://") for each in bundle.segments):
        lying = list(chain.from_iterable(read() for read in segments))
    else:
        # Each segment is a request to a store; for files, threads would take longer than the reading.
        with ThreadPoolExecutor(SEGMENTS_TOGETHER) as pool:
            lying = list(chain.from_iterable(pool.map(lambda read: list(read()), segments)))
    return [lying[place] for place in bundle.turns.tolist()]


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
        """Do nothing: a callback of Ray Data that is not needed."""

    def on_execution_step(self, executor: Any) -> None:
        """Rest; in one step it takes over all blocks that are there, and starts all tasks that may."""
        if _waiting.wait(LONGEST_REST):
            time.sleep(0.01)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing: a callback of Ray Data that is not needed."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing: a callback of Ray Data that is not needed."""


def tasks_of(bundles: Iterable[Bundle]) -> Iterator[list[Bundle]]:
    """Neighbours together, one list a read task."""
    task: list[Bundle] = []
    rows = 0
    for bundle in bundles:
        task.append(bundle)
        rows += bundle.rows
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
