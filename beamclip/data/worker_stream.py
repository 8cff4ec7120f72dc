"""Shards -> Ray Data -> shuffled uint8 batches: step t is made of the same samples for any number of workers.

Each worker reads its lanes of a window (see order.py) of each source (see mixture.py) and holds the samples.
Encoded ones it decodes in threads, batch by batch, since decoded pixels are many times the bytes to move;
where read tasks have decoded them, it lays crops into batches. A sample that cannot be used keeps its place,
at weight 0; rows of weight 0 also fill a batch up where another worker has more samples of the step. So all
workers have batches of one shape, and no sample moves to another step.
"""

import contextlib
import queue
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count, islice
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from beamclip.data.batch import Batch, load_batch
from beamclip.data.bundles import RowReader, bundle_numbers, bundles_of
from beamclip.data.crops import Decoded
from beamclip.data.decoding import Decoding
from beamclip.data.index import Starts
from beamclip.data.lost_samples import FirstLost, lost_sample
from beamclip.data.mixture import Mixture
from beamclip.data.order import Window
from beamclip.data.rows import read_rows
from beamclip.data.shards import Columns, Row, Shard
from beamclip.errors import InputError

LEAST_HOPELESS = 64
"""Samples in a row without a usable image after which a worker may give up, at least."""

Numbered = tuple[int, Row | Decoded]
"""A sample's number in the run, and its row."""


@dataclass(frozen=True)
class WorkerShare:
    """Which samples of each step a worker serves."""

    mixture: Mixture
    batch_size: int
    """Samples of a step, over all workers."""
    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None
    """Most rows of a micro-batch; None: a step is one micro-batch."""

    @cached_property
    def together(self) -> int:
        """Neighbouring lanes that each worker serves at a time."""
        return self.mixture.together(self.batch_size, self.world_size)

    def windows_from(self, sample: int) -> Iterator[Window]:
        """The worker's windows from a sample of the run on, without end."""
        return self.mixture.windows_from(sample, self.rank, self.world_size, self.together)

    def of_step(self, step: int) -> tuple[int, int, int]:
        """A worker's samples of a step, counted from 0; the step's micro-batches, and the rows of each.

        The last two follow from the largest share of all workers, so that they agree on them.
        """
        first = step * self.batch_size
        every = self.mixture.shares(first, first + self.batch_size, self.world_size, self.together)
        largest = int(every.max())
        passes = -(-largest // (self.micro_batch or largest))
        return int(every[self.rank]), passes, -(-largest // passes)

    @property
    def hopeless(self) -> int:
        """Samples in a row without a usable image after which it gives up: a window's, or two epochs'."""
        windows = sum(order.lanes * order.piece for order in self.mixture.orders)
        window = min(windows, 2 * self.mixture.rows)
        return max(LEAST_HOPELESS, window // self.world_size)


def worker_rows(
    shards: list[Shard],
    starts: Starts,
    columns: Columns,
    share: WorkerShare,
    sample: int,
    read: RowReader = read_rows,
    decoding: Decoding | None = None,
) -> Generator[Numbered, None, None]:
    """A worker's samples from one of the run on, without end, in the order of the run.

    Args:
        starts: of the shards, from starts.read_starts.
        decoding: how the reader makes crops of the images; None: it hands them over as they are encoded.
    """
    # The reader plans windows ahead of those that are taken from, in another thread: each has its own.
    planned, taken = (share.windows_from(sample) for _ in range(2))
    bundles = chain.from_iterable(bundles_of(window, shards, starts) for window in planned)
    left = threading.Event()
    with (
        contextlib.closing(read(bundles, columns, decoding)) as rows,
        ThreadPoolExecutor(1, "beamclip-window") as pool,
    ):

        def coming() -> tuple[int, Future[list[Numbered]]]:
            window = next(taken)
            return window.first, pool.submit(_filled, window, rows, left)

        try:
            # The next window of each source is read while the last ones are taken from.
            ahead = deque(coming() for _ in share.mixture.orders)
            held: list[Numbered] = []
            while True:
                held = sorted([*held, *ahead.popleft()[1].result()], key=itemgetter(0))
                ahead.append(coming())
                whole = bisect_left(held, ahead[0][0], key=itemgetter(0))
                yield from held[:whole]
                held = held[whole:]
        finally:
            left.set()


def _filled(window: Window, rows: Iterator[Row | Decoded], left: threading.Event) -> list[Numbered]:
    """The samples of a window, read in the order of its bundles; incomplete once nobody wants them."""
    held: list[Row | Decoded] = [{}] * len(window.row)
    for place in np.argsort(bundle_numbers(window), kind="stable").tolist():
        if left.is_set():
            break
        held[place] = next(rows)
    return list(zip(window.number.tolist(), held, strict=True))


def training_batches(
    rows: Generator[Numbered, None, None],
    share: WorkerShare,
    decoding: Decoding,
    *,
    threads: int,
    step: int = 0,
    skipped: dict[str, int] | None = None,
) -> Generator[Batch, None, None]:
    """Make a worker's samples the micro-batches of one step after the other.

    Args:
        rows: from the first sample of `step` on, decoded or not.
        threads: that decode.
        skipped: what was lost before, by reason.

    Raises:
        InputError: `share.hopeless` samples in a row have no usable image.
    """
    lost = Counter(skipped or {})
    first_lost, in_a_row = FirstLost(), 0
    # Closing the rows ends the execution of Ray Data behind them.
    with contextlib.closing(rows), ThreadPoolExecutor(threads) as pool:
        for step_number in count(step):
            own, passes, size = share.of_step(step_number)
            taken = list(islice(rows, own))
            for index in range(passes):
                part = taken[index * size : (index + 1) * size]
                numbers = [number - step_number * share.batch_size for number, _ in part]
                batch, bad = load_batch([row for _, row in part], decoding, pool, size=size)
                for row in bad:
                    # Every epoch meets the same damage; the first pass counts it once.
                    lost.update([row["problem"]] if row["epoch"] == 0 else [])
                in_a_row = 0 if len(bad) < len(part) else in_a_row + len(bad)
                if in_a_row >= share.hopeless:
                    raise _hopeless(in_a_row, lost, bad[-1])
                numbers += [share.batch_size] * (size - len(numbers))
                yield replace(
                    batch,
                    numbers=torch.tensor(numbers),
                    global_size=share.batch_size,
                    skipped=dict(lost),
                    ends_step=index == passes - 1,
                    lost=tuple(first_lost.new(map(lost_sample, bad))),
                )


def _hopeless(samples: int, skipped: Counter[str], last: Row) -> InputError:
    reasons = ", ".join(f"{reason} ({times:,})" for reason, times in skipped.most_common())
    return InputError(
        f"{samples} samples in a row cannot be used; skipped so far: {reasons}. "
        f"The last: {lost_sample(last)[1]}"
    )


def pinned(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The batches with all their tensors in page-locked memory; pixels that are there already stay."""
    with contextlib.closing(batches):
        for batch in batches:
            yield batch.with_tensors(Tensor.pin_memory)


@contextlib.contextmanager
def prefetched(batches: Generator[Batch, None, None], depth: int) -> Iterator[Iterator[Batch]]:
    """Run an iterator in a background thread, `depth` items ahead, from the moment this is entered.

    An error of the iterator is raised by the one that is handed out. Leaving closes both.
    """
    ready: queue.Queue[Batch | BaseException] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Batch | BaseException) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        except BaseException as error:  # handed over to the consuming thread, which raises it
            put(error)
        finally:
            batches.close()

    thread = threading.Thread(target=fill, name="beamclip-prefetch", daemon=True)
    thread.start()
    try:
        yield _taken(ready)
    finally:
        stopped.set()
        # A thread that outlives its Ray would start another one.
        thread.join()


def _taken(ready: "queue.Queue[Batch | BaseException]") -> Iterator[Batch]:
    while True:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        yield item
