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
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.crops import Decoded, decoded_rows, is_decoded
from beamclip.data.index import entry_of
from beamclip.data.order import Window
from beamclip.data.shard_file import MissingShardError, Rows, UnansweredShardError
from beamclip.data.shards import ROW_SCHEMA, ROWS_PER_BLOCK, Columns, Row, Shard, iterate_rows
from beamclip.data.tar_samples import BEGINNING, ReadStart

if TYPE_CHECKING:
    from beamclip.data.decoding import Decoding

ROWS_PER_TASK = 256
"""Rows that a read task aims at: a task costs Ray some milliseconds, whatever it reads."""

SEGMENTS_TOGETHER = 8
"""Segments of a bundle that are read at a time from a store."""

BLOCK_BYTES = 8 << 20
"""Of encoded samples that a read task hands over at a time."""

READ_AHEAD_BYTES = 128 << 20
"""Encoded samples that read tasks may have in the object store and a rank has not taken yet; about twice this
is met."""

CROPS_AHEAD_BYTES = 2 << 30
"""The same of crops. A task makes 256 of them, 38 MB at 224 px; Ray counts the output of a task that runs
twice."""

LONGEST_REST = 0.5
"""Seconds between two steps of Ray Data's executor while a rank has rows to draw from."""

LONGEST_WAIT = 300.0
"""Seconds without a row, while a rank waits for one, after which reading fails."""

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


def read_bundle(bundle: Bundle, columns: Columns, decoding: "Decoding | None" = None) -> Iterator[pa.Table]:
    """The rows of a bundle, as tables of ROWS_PER_BLOCK rows or BLOCK_BYTES of encoded images each.

    Args:
        decoding: how the images are decoded here; None: not at all.

    Returns:
        Tables of ROW_SCHEMA, or as decoding.crop_table makes them.
    """
    made = partial(pa.Table.from_pylist, schema=ROW_SCHEMA)
    if decoding is not None:
        # Imports torch, which a process that only reads does without.
        from beamclip.data.decoding import crop_table

        made = partial(crop_table, decoding=decoding)
    rows, size = list[Row](), 0
    for row in _in_turns(bundle, columns):
        rows.append(row)
        size += len(row.get("image") or b"")
        if len(rows) == ROWS_PER_BLOCK or size >= BLOCK_BYTES:
            yield made(rows)
            rows, size = [], 0
    if rows:
        yield made(rows)


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


RowReader = Callable[[Iterable[Bundle], Columns, "Decoding | None"], Generator[Row | Decoded, None, None]]
"""Streams the rows of any number of bundles, in the order given, decoded or not."""


def read_rows_here(
    bundles: Iterable[Bundle], columns: Columns, decoding: "Decoding | None" = None
) -> Generator[Row | Decoded, None, None]:
    """The rows of bundles, read and decoded in the calling thread; see RowReader."""
    for bundle in bundles:
        for table in read_bundle(bundle, columns, decoding):
            yield from rows_of(table)


def rows_of(table: pa.Table) -> list[Row] | list[Decoded]:
    """The rows of a table, as they are encoded or decoded."""
    return decoded_rows(table) if is_decoded(table) else table.to_pylist()


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


def read_rows(
    bundles: Iterable[Bundle], columns: Columns, decoding: "Decoding | None" = None
) -> Generator[Row | Decoded, None, None]:
    """The rows of bundles through Ray Data, whose tasks read and decode them on any node; see RowReader."""
    import ray.data

    ahead, block = READ_AHEAD_BYTES, BLOCK_BYTES
    if decoding is not None:
        ahead, block = CROPS_AHEAD_BYTES, BLOCK_BYTES + ROWS_PER_BLOCK * decoding.crop_bytes
    for tasks in executions(tasks_of(bundles)):
        dataset = read_dataset(tasks, columns, decoding)
        # Ray would read ahead until half of its store is full, and join what a task yields to 128 MiB.
        limits = ray.data.ExecutionResources(object_store_memory=ahead)
        dataset.context.execution_options.resource_limits = limits
        dataset.context.target_max_block_size = block
        dataset.context.custom_execution_callback_classes = [IdleThrottle]
        yield from _delivered(dataset, tasks)


def _delivered(dataset: Any, tasks: list[list[Bundle]]) -> Iterator[Row | Decoded]:
    tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    rows = 0
    try:
        while (table := _awaited(tables)) is not None:
            yield from rows_of(table)
            rows += len(table)
    except _StalledError as error:
        raise UnansweredShardError(
            f"{_next_segment(tasks, rows)}, or what is read after it: no row came in {LONGEST_WAIT:.0f} s. "
            "The store does not answer, or no node has a CPU left to read with."
        ) from error


def _next_segment(tasks: list[list[Bundle]], rows: int) -> str:
    """Name the segment with which the first bundle begins that was not handed over as a whole."""
    bundles = list(chain.from_iterable(tasks))
    ends = np.cumsum([bundle.rows for bundle in bundles])
    segment = bundles[min(int(np.searchsorted(ends, rows, "right")), len(bundles) - 1)].segments[0]
    return f"{segment.shard.path}, rows {segment.rows[0]} to {segment.rows[-1]}"


class _StalledError(Exception):
    """Somebody has waited for rows for too long."""


class _Wait:
    """Whether somebody in this process waits for rows, and since when."""

    def __init__(self) -> None:
        self.on = threading.Event()
        self.since = 0.0


_wait = _Wait()


def _awaited(tables: Iterator[pa.Table]) -> pa.Table | None:
    _wait.since = time.monotonic()
    _wait.on.set()
    try:
        with own_errors():
            return next(tables, None)
    finally:
        _wait.on.clear()


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
    """Lets Ray Data's executor rest while nobody waits for it, and ends it where the wait has been too long.

    It runs in a thread of the process that trains. While its limits hold tasks back it would look at them
    again and again: a core's worth of looking, and with Python's lock in its hands. The names are those of
    Ray Data's callbacks.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing: a callback of Ray Data that is not needed."""

    def on_execution_step(self, executor: Any) -> None:
        """Rest; in one step it takes over all blocks that are there, and starts all tasks that may.

        Raises:
            _StalledError: rows have been waited for too long. `iter_batches` raises it.
        """
        if _wait.on.wait(LONGEST_REST):
            time.sleep(0.01)
            if time.monotonic() - _wait.since > LONGEST_WAIT:
                raise _StalledError

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


def read_dataset(tasks: list[list[Bundle]], columns: Columns, decoding: "Decoding | None" = None) -> Any:
    """A ray.data.Dataset of the rows of read tasks, in the order given."""
    import ray.data

    dataset = ray.data.read_datasource(_datasource(tasks, columns, decoding), override_num_blocks=len(tasks))
    dataset.context.execution_options.preserve_order = True
    return prepared_dataset(dataset)


def prepared_dataset(dataset: Any) -> Any:
    """Set what all executions of this project share in the context of a ray.data.Dataset; return it.

    Ray Data ends an execution in which no block has moved for 300 s. A slow student takes longer for the rows
    of a block, and a teacher on CPUs for a shard of 10,000 images. So there is no such limit: it is waiting
    for rows that must not take too long (IdleThrottle).
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


def _datasource(tasks: list[list[Bundle]], columns: Columns, decoding: "Decoding | None") -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Bundles(Datasource):
        """Ray Data's view of the plan: it reads exactly these rows and decides nothing."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(None, None, None, None)
            return [ReadTask(_reader(task, columns, decoding), unknown) for task in tasks]

    return Bundles()


def _reader(
    task: list[Bundle], columns: Columns, decoding: "Decoding | None"
) -> Callable[[], Iterable[pa.Table]]:
    return lambda: chain.from_iterable(read_bundle(bundle, columns, decoding) for bundle in task)
