"""Shards -> Ray Data -> shuffled uint8 batches: step t is made of the same samples for any number of workers.

Each worker reads its lanes of a window (see order.py) of each source (see mixture.py), holds the encoded
samples, and decodes them in threads, batch by batch, since decoded pixels are many times the bytes to move. A
sample that cannot be used keeps its place, at weight 0; rows of weight 0 also fill a batch up where another
worker has more samples of the step. So all workers have batches of one shape, and no sample moves to another
step.
"""

import contextlib
import queue
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.captions import choose_caption
from beamclip.data.decoding import Decoding, crop_of, row_draws
from beamclip.data.lost_samples import FirstLost, LostSample, lost_sample
from beamclip.data.mixture import Mixture
from beamclip.data.order import Window
from beamclip.data.rows import RowReader, bundle_numbers, bundles_of, read_rows
from beamclip.data.sample_rows import CROP
from beamclip.data.shards import Columns, Row, Shard
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, DRAWS
from beamclip.errors import InputError

LEAST_HOPELESS = 64
"""Samples in a row without a usable image after which a worker may give up, at least."""

Numbered = tuple[int, Row]
"""A sample's number in the run, and its row."""


@dataclass(frozen=True)
class Batch:
    """Images of one worker; a plain container, so that nothing moves it to a device unasked."""

    pixels: Tensor
    """uint8 [B, 3, H, W], channels last in memory."""
    draws: Tensor
    """float32 [B, AUGMENT_DRAWS], the random numbers of the augmentation."""
    captions: list[str]
    """B texts, each "" where none is read."""
    weights: Tensor
    """float32 [B]: 1; 0 for a row that stands for a sample without a usable image, or for none."""
    numbers: Tensor
    """int64 [B], places of the rows in the step's global batch; `global_size` for a row without a sample."""
    global_size: int
    """Samples in the step, over all workers and micro-batches."""
    good: int
    """Rows of weight 1, for the host: `weights` may be on a device, for which it would have to wait."""
    keys: list[str] = field(default_factory=list)
    """Of the usable samples, as they stand."""
    epochs: list[int] = field(default_factory=list)
    """The pass over the data that each of them belongs to."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples that the worker has lost so far in the first pass over the data, by reason."""
    embeddings: tuple[Tensor, ...] = ()
    """From a teacher cache: float16 [B, D] for each teacher, of the image as `draws` augments it."""
    ends_step: bool = True
    """Whether this is the last micro-batch of a step, on all workers alike."""
    lost: tuple[LostSample, ...] = ()
    """Samples that were lost on the way to this batch: the first few of the stream for each reason."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors of the batch."""
        return (self.pixels, self.draws, self.weights, self.numbers, *self.embeddings)

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `change` applied to all its tensors."""
        pixels, draws, weights, numbers, *embeddings = map(change, self.tensors())
        return replace(
            self,
            pixels=pixels,
            draws=draws,
            weights=weights,
            numbers=numbers,
            embeddings=tuple(embeddings),
        )


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

    def of_step(self, step: int) -> tuple[int, int, int]:
        """A worker's samples of a step, counted from 0; the step's micro-batches, and the rows of each.

        The last two follow from the largest share of all workers, so that they agree on them.
        """
        first = step * self.batch_size
        every = self.mixture.shares(first, first + self.batch_size, self.world_size)
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
    starts: list[NDArray[np.int64]],
    columns: Columns,
    share: WorkerShare,
    sample: int,
    read: RowReader = read_rows,
    decoding: Decoding | None = None,
) -> Generator[Numbered, None, None]:
    """A worker's samples from one of the run on, without end, in the order of the run.

    Args:
        starts: of the shards, from index.read_starts.
        decoding: how the reader makes crops of the images; None: it hands them over as they are encoded.
    """
    # The reader plans windows ahead of those that are taken from, in another thread: each has its own.
    planned, taken = (share.mixture.windows_from(sample, share.rank, share.world_size) for _ in range(2))
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


def _filled(window: Window, rows: Iterator[Row], left: threading.Event) -> list[Numbered]:
    """The samples of a window, read in the order of its bundles; incomplete once nobody wants them."""
    held: list[Row] = [{}] * len(window.row)
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
                    raise InputError(
                        f"{in_a_row} samples in a row without a usable image; skipped so far: "
                        f"{dict(lost)}. The last: {lost_sample(bad[-1])[1]}"
                    )
                numbers += [share.batch_size] * (size - len(numbers))
                yield replace(
                    batch,
                    numbers=torch.tensor(numbers),
                    global_size=share.batch_size,
                    skipped=dict(lost),
                    ends_step=index == passes - 1,
                    lost=tuple(first_lost.new(map(lost_sample, bad))),
                )


def load_batch(
    rows: list[Row], decoding: Decoding, pool: ThreadPoolExecutor, *, size: int
) -> tuple[Batch, list[Row]]:
    """Make rows a batch of `size` rows, filled up at weight 0, numbered as they stand.

    Args:
        pool: decodes the rows that are not decoded yet.

    Returns:
        The batch, and the rows without a usable image.
    """
    draws = row_draws(rows, decoding.seed)
    if rows and CROP in rows[0]:
        images = [row[CROP] for row in rows]
    else:
        images = list(pool.map(partial(crop_of, decoding=decoding), rows, draws))
    bad = [row for row, image in zip(rows, images, strict=True) if image is None]
    good = [place for place, image in enumerate(images) if image is not None]
    if not good:
        return _blank(size, decoding), bad
    # What has weight 0 repeats a good row, since batch norms see it too.
    shown = [place if images[place] is not None else good[0] for place in range(len(rows))]
    shown += [good[0]] * (size - len(rows))
    pixels = [image for place in shown if (image := images[place]) is not None]
    batch = _collate([rows[place] for place in shown], [draws[place] for place in shown], pixels, decoding)
    weights = torch.zeros(size)
    weights[good] = 1.0
    keys, epochs = [rows[place]["key"] for place in good], [rows[place]["epoch"] for place in good]
    return replace(batch, weights=weights, good=len(good), keys=keys, epochs=epochs), bad


def _collate(
    rows: list[Row],
    draws: list[NDArray[np.float32]],
    images: list[NDArray[np.uint8]],
    decoding: Decoding,
) -> Batch:
    texts = [
        choose_caption(row["texts"], float(draw[-1]), decoding.captions) if row["texts"] else ""
        for row, draw in zip(rows, draws, strict=True)
    ]
    pixels = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=decoding.pinned)
    # No operation of torch on so much data in this thread: it would start threads of its own, and where there
    # are more of them than processors, those of training no longer spin for each other but sleep.
    np.stack(images, out=pixels.numpy())
    return Batch(
        pixels=pixels.permute(0, 3, 1, 2),
        draws=_augment_draws(np.stack(draws)),
        captions=texts,
        weights=torch.ones(len(rows)),
        numbers=torch.arange(len(rows)),
        global_size=len(rows),
        good=len(rows),
        embeddings=_cached_embeddings(rows),
    )


def _blank(size: int, decoding: Decoding) -> Batch:
    pixels = np.zeros((size, decoding.image_size, decoding.image_size, 3), np.uint8)
    return Batch(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        draws=_augment_draws(np.zeros((size, DRAWS), np.float32)),
        captions=[""] * size,
        weights=torch.zeros(size),
        numbers=torch.arange(size),
        global_size=size,
        good=0,
        embeddings=tuple(torch.zeros(size, width // 2).half() for width in decoding.embedding_bytes),
    )


def _augment_draws(draws: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(draws)[:, CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS].contiguous()


def _cached_embeddings(rows: Sequence[Row]) -> tuple[Tensor, ...]:
    of_teachers = zip(*(row.get("embeddings") or () for row in rows), strict=True)
    # One copy for all rows; torch needs memory that it may write to.
    return tuple(
        torch.from_numpy(np.frombuffer(bytearray(b"".join(column)), "<f2").reshape(len(rows), -1))
        for column in of_teachers
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
