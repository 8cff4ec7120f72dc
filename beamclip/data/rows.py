"""Ray Data's part in reading: its tasks read the rows of bundles on any node, and one process takes them.

Free of torch: every process that runs a read task imports this module, and torch alone takes it seconds.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from beamclip.data.bundles import BLOCK_BYTES, Bundle, Decoder, read_bundle, rows_of, tasks_of
from beamclip.data.crops import Decoded
from beamclip.data.shard_file import MissingShardError, UnansweredShardError
from beamclip.data.shards import Columns, Row

READ_AHEAD_BYTES = 128 << 20
"""Bytes of encoded samples that read tasks may have in the object store and a rank has not taken yet; about
twice this is met."""

CROPS_AHEAD_BYTES = 2 << 30
"""Bytes of crops that read tasks may have there. A task makes 256 crops, 38 MB at 224 px; Ray counts the
output of a task that runs twice."""

LONGEST_REST = 0.5
"""Seconds between two steps of Ray Data's executor while a rank has rows to draw from."""

LONGEST_WAIT = 300.0
"""Seconds without a row, while a rank waits for one, after which reading fails."""

TASKS_PER_EXECUTION = 200
"""Read tasks in one execution of Ray Data. Each start costs about 0.3 s, and each task some memory."""


def read_rows(
    bundles: Iterable[Bundle], columns: Columns, decoder: Decoder | None = None
) -> Generator[Row | Decoded, None, None]:
    """The rows of bundles through Ray Data, whose tasks read and decode them on any node; see RowReader."""
    for table in read_tables(bundles, columns, decoder):
        yield from rows_of(table)


def read_tables(
    bundles: Iterable[Bundle], columns: Columns, decoder: Decoder | None = None
) -> Generator[pa.Table, None, None]:
    """The tables that `read_bundle` makes of bundles, by tasks of Ray Data, in the order given.

    Raises:
        UnansweredShardError: none came for LONGEST_WAIT.
        MissingShardError: see `iterate_rows`.
    """
    import ray.data

    ahead, block = READ_AHEAD_BYTES, BLOCK_BYTES
    if decoder is not None:
        ahead, block = CROPS_AHEAD_BYTES, BLOCK_BYTES + decoder.rows_per_table * decoder.row_bytes
    for tasks in executions(tasks_of(bundles)):
        dataset = read_dataset(tasks, columns, decoder)
        # Ray would read ahead until half of its store is full, and join what a task yields to 128 MiB.
        limits = ray.data.ExecutionResources(object_store_memory=ahead)
        dataset.context.execution_options.resource_limits = limits
        dataset.context.target_max_block_size = block
        dataset.context.custom_execution_callback_classes = [IdleThrottle]
        yield from _delivered(dataset, tasks)


def _delivered(dataset: Any, tasks: list[list[Bundle]]) -> Iterator[pa.Table]:
    tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    rows = 0
    try:
        while (table := _awaited(tables)) is not None:
            yield table
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


def executions(tasks: Iterable[list[Bundle]]) -> Iterator[list[list[Bundle]]]:
    """TASKS_PER_EXECUTION at a time."""
    left = iter(tasks)
    return iter(lambda: list(islice(left, TASKS_PER_EXECUTION)), [])


def read_dataset(tasks: list[list[Bundle]], columns: Columns, decoder: Decoder | None = None) -> Any:
    """A ray.data.Dataset of the rows of read tasks, in the order given."""
    import ray.data

    dataset = ray.data.read_datasource(_datasource(tasks, columns, decoder), override_num_blocks=len(tasks))
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
    # Ray's own error around it loses its cause on the way to the command.
    dataset.context.raise_original_map_exception = True
    return dataset


def read_batches(dataset: Any, **options: Any) -> Iterator[Any]:
    """The dataset's iter_batches.

    Raises:
        MissingShardError, UnansweredShardError: see `iterate_rows`.
    """
    with own_errors():
        yield from dataset.iter_batches(**options)


def _datasource(tasks: list[list[Bundle]], columns: Columns, decoder: Decoder | None) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Bundles(Datasource):
        """Ray Data's view of the plan: it reads exactly these rows and decides nothing."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(None, None, None, None)
            return [ReadTask(_reader(task, columns, decoder), unknown) for task in tasks]

    return Bundles()


def _reader(
    task: list[Bundle], columns: Columns, decoder: Decoder | None
) -> Callable[[], Iterable[pa.Table]]:
    return lambda: chain.from_iterable(read_bundle(bundle, columns, decoder) for bundle in task)
