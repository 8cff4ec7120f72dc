"""Shards -> Ray Data -> shuffled uint8 batches, the same for the same (seed, rank, world size).

Each rank streams its own part of every epoch (see order.py). The parts cover an epoch exactly, a rank that
loses samples to a damaged file simply moves on to its next epoch, and no rank ever waits for another: short
or unequal batches cannot arise, and neither can a deadlock between the data barrier and the gradient's.

Ray Data reads (tasks on any node with a free CPU); the rank shuffles encoded samples in a buffer and
decodes them in threads, since decoded pixels are many times the bytes to move.
"""

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, count, groupby, islice, tee
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.captions import choose_caption
from beamclip.data.config import AugmentConfig, CaptionConfig
from beamclip.data.image_limits import refusal_reason
from beamclip.data.lost_samples import FirstLost, LostSample, in_words, lost_sample
from beamclip.data.order import BLOCK, Order, Part, Unread, epoch_part, last_draws, slots_drawn, unread
from beamclip.data.position import DataPosition, Position
from beamclip.data.row_sets import RowSet
from beamclip.data.rows import RowReader, bundles_left, read_rows
from beamclip.data.shards import Columns, Row, Shard
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, DRAWS, load_training_image, sample_uniforms
from beamclip.errors import InputError

T = TypeVar("T")

HOPELESS_EPOCHS = 10
"""Epochs without a usable image after which a rank gives up. One is not enough: where a shard is missing,
its rows are now and then all that a rank has in an epoch."""


@dataclass(frozen=True)
class Batch:
    """Images of one rank; a plain container, so that nothing moves it to a device unasked."""

    pixels: Tensor
    """uint8 [B, 3, H, W], channels last in memory."""
    draws: Tensor
    """float32 [B, AUGMENT_DRAWS], the random numbers of the augmentation."""
    captions: list[str]
    keys: list[str]
    epochs: list[int]
    """The pass over the data that each image belongs to."""
    position: Position
    """Of the stream after this batch."""
    weights: Tensor
    """float32 [B]: 1 for a sample, 0 for padding and for a sample whose image cannot be used."""
    numbers: Tensor
    """int64 [B]: each row's number in the global batch of the step, 0..global_size-1; for padding,
    global_size."""
    global_size: int
    """Samples in the global batch of the step: of all ranks and micro-batches."""
    good: int
    """Rows of weight 1, for the host: `weights` may be on a device, for which it would have to wait."""
    embeddings: tuple[Tensor, ...] = ()
    """From a teacher cache: float16 [B, D] for each teacher, of the image as `draws` augments it."""
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


def shuffled_rows(
    shards: list[Shard], columns: Columns, position: DataPosition, rank: int, read: RowReader = read_rows
) -> Generator[Row, None, None]:
    """Endless rows of one rank from a position on, epoch after epoch; every epoch's buffer is drained first.

    Rows that were drawn before are not read again.

    Raises:
        InputError: there are fewer samples than ranks, so that one would wait for its first row for ever.
    """
    samples = np.array([shard.samples for shard in shards], np.int64)
    if samples.sum() < position.order.world_size:
        raise InputError(
            f"the data hold {samples.sum()} samples, too few for {position.order.world_size} workers. "
            "Lower --num-workers."
        )
    # The reader plans epochs ahead of the one that is drawn from.
    planned, drawn_from = tee(_epochs(samples, position, rank))
    bundles = chain.from_iterable(
        bundles_left(shards, each.rows, each.part, each.epoch, each.left) for each in planned
    )
    with contextlib.closing(read(bundles, columns)) as rows:
        for each in drawn_from:
            yield from shuffled(rows, position.order, each.epoch, rank, each.part.rows, each.drawn)


@dataclass(frozen=True)
class _Epoch:
    """One rank's share of an epoch."""

    epoch: int
    rows: RowSet
    part: Part
    drawn: int
    left: Unread


def _epochs(samples: NDArray[np.int64], position: DataPosition, rank: int) -> Iterator[_Epoch]:
    start, everything = position.ranks[rank], RowSet.everything(samples)
    for epoch in count(start.epoch):
        rows = position.leftovers.get(epoch, everything)
        part = epoch_part(rows.counts(samples), position.order, epoch, rank)
        drawn = start.drawn if epoch == start.epoch else 0
        yield _Epoch(epoch, rows, part, drawn, unread(position.order, epoch, rank, part.rows, drawn))


def shuffled(rows: Iterator[T], order: Order, epoch: int, rank: int, total: int, drawn: int) -> Iterator[T]:
    """Draw a rank's rows of an epoch from a buffer.

    Args:
        rows: those of the part's `total` rows that are unread after `drawn` draws, in reading order.
    """
    left = unread(order, epoch, rank, total, drawn)
    held: list[Any] = [None] * len(left.held)
    for slot in np.argsort(left.held).tolist():
        if left.held[slot] >= 0:
            held[slot] = next(rows)
    refills = total - len(held)
    for block in range(drawn // BLOCK, -(-refills // BLOCK)):
        begin = block * BLOCK
        for slot in slots_drawn(order, epoch, rank, block)[max(0, drawn - begin) : refills - begin].tolist():
            yield held[slot]
            held[slot] = next(rows)
    for slot in last_draws(order, epoch, rank, len(held))[max(0, drawn - refills) :].tolist():
        yield held[slot]


def training_batches(
    rows: Generator[Row, None, None],
    *,
    batch_size: int,
    image_size: int,
    augment: AugmentConfig,
    captions: CaptionConfig,
    seed: int,
    start: Position,
    threads: int,
) -> Generator[Batch, None, None]:
    """Decode rows into full batches; damaged samples are counted and the next rows take their place.

    Each is numbered as if it were the global batch; see `numbered`.

    Args:
        batch_size: images in a batch of this rank.
        image_size: height and width of the pixels.

    Raises:
        InputError: HOPELESS_EPOCHS in a row hold no usable image.
    """
    position = start
    good: list[tuple[Row, NDArray[np.float32], NDArray[np.uint8]]] = []
    last_good_epoch, first_lost, lost = start.epoch, FirstLost(), list[LostSample]()
    # Closing the rows ends the execution of Ray Data behind them.
    with contextlib.closing(rows), ThreadPoolExecutor(threads) as pool:
        while True:
            taken = list(islice(rows, batch_size - len(good)))
            draws = _uniforms(taken, seed)
            images = pool.map(lambda row, u: _load(row, u, image_size, augment), taken, draws)
            for row, draw, image in zip(taken, draws, images, strict=True):
                position = advanced(position, row, lost=image is None)
                if image is None:
                    lost += first_lost.new([lost_sample(row)])
                else:
                    good.append((row, draw, image))
                    last_good_epoch = row["epoch"]
            if position.epoch > last_good_epoch + HOPELESS_EPOCHS:
                raise InputError(
                    f"no usable image in {HOPELESS_EPOCHS} passes over the data; "
                    f"skipped in the first: {position.skipped}. The last: {lost_sample(row)[1]}"
                )
            if len(good) == batch_size:
                yield replace(_collate(good, position, captions), lost=tuple(lost))
                good, lost = [], []


def _uniforms(rows: list[Row], seed: int) -> list[NDArray[np.float32]]:
    """The random numbers of each row: those that a cache replays, else drawn at once for an epoch's rows."""
    kept = [row.get("draws") for row in rows]
    if any(kept):
        # A row that was lost has none, and needs none.
        return [np.frombuffer(each or bytes(4 * DRAWS), "<f4") for each in kept]
    epochs = groupby(rows, key=itemgetter("epoch"))
    return [u for epoch, part in epochs for u in sample_uniforms(seed, epoch, [row["key"] for row in part])]


def _load(
    row: Row, draws: NDArray[np.float32], size: int, augment: AugmentConfig
) -> NDArray[np.uint8] | None:
    if row["problem"]:
        return None
    try:
        return load_training_image(row["image"], draws, size, augment)
    except Exception as error:  # whatever a decoder met, a lack of memory too, is this sample's problem
        row.update(problem=refusal_reason(error), detail=in_words(error))
        return None


def advanced(position: Position, row: Row, *, lost: bool) -> Position:
    """The position after one more row."""
    drawn = position.drawn + 1 if row["epoch"] == position.epoch else 1
    skipped = position.skipped
    # Every epoch meets the same damage; the first pass counts it once.
    if lost and row["epoch"] == 0:
        skipped = dict(Counter(skipped) + Counter({row["problem"]: 1}))
    return Position(row["epoch"], drawn, skipped)


def _collate(
    good: list[tuple[Row, NDArray[np.float32], NDArray[np.uint8]]],
    position: Position,
    captions: CaptionConfig,
) -> Batch:
    rows, draws, images = zip(*good, strict=True)
    numbers = torch.from_numpy(np.stack(draws))
    chosen = [
        choose_caption(row["texts"], float(draw[-1]), captions) if row["texts"] else ""
        for row, draw in zip(rows, draws, strict=True)
    ]
    return Batch(
        # No operation of torch on so much data in this thread: it would start threads of its own, and where
        # there are more of them than processors, those of training no longer spin for each other but sleep.
        pixels=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        draws=numbers[:, CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS].contiguous(),
        captions=chosen,
        keys=[row["key"] for row in rows],
        epochs=[row["epoch"] for row in rows],
        position=position,
        weights=torch.ones(len(rows)),
        numbers=torch.arange(len(rows)),
        global_size=len(rows),
        good=len(rows),
        embeddings=_cached_embeddings(rows),
    )


def _cached_embeddings(rows: Sequence[Row]) -> tuple[Tensor, ...]:
    of_teachers = zip(*(row.get("embeddings") or () for row in rows), strict=True)
    # One copy for all rows; torch needs memory that it may write to.
    return tuple(
        torch.from_numpy(np.frombuffer(bytearray(b"".join(column)), "<f2").reshape(len(rows), -1))
        for column in of_teachers
    )


def numbered(
    batches: Generator[Batch, None, None], *, rank: int, world_size: int, accumulation: int
) -> Generator[Batch, None, None]:
    """Number the rows of each step over all ranks and micro-batches, rank by rank.

    Args:
        batches: this rank's micro-batches, of equal size, from the beginning of a step on.
        accumulation: micro-batches in a step of a rank.
    """
    with contextlib.closing(batches):
        for index, batch in enumerate(batches):
            before = (rank * accumulation + index % accumulation) * len(batch.numbers)
            yield replace(
                batch,
                numbers=before + torch.arange(len(batch.numbers)),
                global_size=world_size * accumulation * len(batch.numbers),
            )


def pinned(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The batches in page-locked memory, from which a GPU copies beside its other work."""
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
