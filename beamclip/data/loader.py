"""A stream of batches for one's own training loop, with the order and the guarantees of `beamclip distill`.

    for batch in beamclip.data.stream("shards", batch_size=256, image_size=224, epochs=10):
        loss = csm_loss(student(batch.images), teacher(batch.images), anchors, weights=batch.weights, ...)

Step t is made of the same samples for any number of workers, and an epoch has each sample once. Nothing is
skipped or repeated by going on from a `position`.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import ceil
from numbers import Integral
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch import device as Device

from beamclip.data.batch import Batch
from beamclip.data.bundles import read_rows_here
from beamclip.data.config import Augmentation, CaptionConfig, StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.listing import check_texts, fingerprint, list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.position import OtherOrderError, check_order, from_plain, position_in, to_plain
from beamclip.data.rows import read_rows
from beamclip.data.shards import MISSING_LABEL, ROWS_PER_BLOCK, Columns, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.transforms import augment
from beamclip.data.worker_stream import WorkerShare, prefetched, training_batches, worker_rows
from beamclip.errors import InputError

log = logging.getLogger(__name__)

Place = str | os.PathLike[str]

_DATA = "data"
_BATCH_SIZE = "batch_size"


@dataclass(frozen=True)
class ImageBatch:
    """This worker's rows of one step, B of them.

    A row of weight 0 stands for a sample that cannot be used, or fills the batch up where another worker has
    more samples of the step. It shows the image of another row, and its texts are empty.
    """

    images: Tensor
    """uint8 [B, 3, H, W], cropped at random and otherwise as decoded; channels last in memory."""
    captions: list[str]
    """B texts, each "" unless captions were asked for."""
    labels: list[str]
    """B labels, each "" unless they were asked for."""
    keys: list[str]
    """B keys of samples."""
    weights: Tensor
    """float32 [B], factor of each row's loss: world_size / batch_size, or 0. A sum of losses times weights,
    averaged over the workers as DistributedDataParallel does, is the mean over the step."""
    draws: Tensor
    """float32 [B, 11] in [0, 1), the random numbers of `augmented`."""
    augmentation: Augmentation

    def to(self, device: str | Device) -> "ImageBatch":
        """Return the batch with its tensors on a device."""
        images, weights, draws = (each.to(device) for each in (self.images, self.weights, self.draws))
        return replace(self, images=images, weights=weights, draws=draws)

    def augmented(self) -> Tensor:
        """Return the images turned, shifted, recoloured and so on: uint8 [B, 3, H, W] on their device.

        The same sample looks the same in the same epoch of another run with this seed, and for any number of
        workers.
        """
        return augment(self.images, self.draws, self.augmentation)


class Stream:
    """Batches of images, one a step, for one loop; see `stream`, which makes it.

    A loop that was left goes on in the next one. When all steps are done, iterating again raises InputError:
    several epochs are one loop. `len` is the number of steps that are left.
    """

    def __init__(
        self,
        shards: list[Shard],
        share: WorkerShare,
        decoding: Decoding,
        columns: Columns,
        steps: int,
        *,
        through_ray: bool,
        options: StreamConfig,
    ) -> None:
        """Read nothing yet.

        Args:
            shards: of all data sets, one after the other, as the mixture of `share` counts them.
            steps: number of steps from the beginning.
            options: threads and prefetching.
        """
        self.steps = steps
        self.step = 0
        """Steps that were handed out, those before `position` included."""
        self.skipped: dict[str, int] = {}
        """Samples that this worker could not use in the first epoch, by reason, since the stream was made."""
        self._shards = shards
        self._share = share
        self._options = options
        read = read_rows if through_ray else read_rows_here
        self._rows = partial(worker_rows, shards, read_starts(shards), columns, share, read=read)
        self._batches = partial(
            training_batches, share=share, decoding=decoding, threads=options.decode_threads
        )
        self._decoding = decoding
        self._done = self._running = False

    def __len__(self) -> int:
        return self.steps - self.step

    @property
    def position(self) -> dict[str, Any]:
        """The place in the data after the last batch, as plain values for a checkpoint.

        `stream(..., position=...)` goes on from there with the next step; any worker's will do.
        """
        samples = self.step * self._share.batch_size
        place = to_plain(position_in(self._share.mixture, samples, {}))
        return {**place, _BATCH_SIZE: self._share.batch_size, _DATA: fingerprint(self._shards)}

    def go_on_from(self, position: Mapping[str, Any]) -> None:
        """Go on from a place that `position` gave.

        Raises:
            InputError: it is one of other data, of another batch size, of another order, or beyond the end.
        """
        place = dict(position)
        data, batch_size = place.pop(_DATA, None), place.pop(_BATCH_SIZE, None)
        if data != (own := fingerprint(self._shards)):
            raise InputError(f"position: is a place in other data ({data}) than these ({own}).")
        if batch_size != self._share.batch_size:
            raise InputError(
                f"batch_size is {self._share.batch_size}, and position is one of a stream with {batch_size}. "
                "Give the same."
            )
        try:
            found = from_plain(place)
        except (OtherOrderError, TypeError, KeyError) as error:
            raise InputError(f"position: {error}") from error
        try:
            check_order(found, self._share.mixture)
        except OtherOrderError as error:
            raise InputError(
                f"position: is a place in another order, of seed {found.seed}. Give the seed, shuffle_window "
                "and data_weights of the stream that it was taken from."
            ) from error
        step = found.samples // batch_size
        if step > self.steps:
            raise InputError(
                f"position: is at step {step:,}, and this stream ends at step {self.steps:,}. Give more "
                "epochs or steps; they are counted from the beginning."
            )
        self.step = step

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield a batch for each step that is left.

        Raises:
            InputError: there is none left since the last loop, or another loop is under way.
        """
        if self._running:
            raise InputError("the stream is in a loop already. Make another stream for another loop.")
        if self._done:
            raise InputError(
                f"the stream has given its last batch, of step {self.steps:,}. For several epochs in one "
                "loop, give epochs=...; for another loop, make another stream."
            )
        self._running = True
        try:
            yield from self._steps_left()
        finally:
            self._running = False
        self._done = True

    def _steps_left(self) -> Iterator[ImageBatch]:
        # What a loop that was left has prefetched is read again, by threads of its own.
        rows = self._rows(sample=self.step * self._share.batch_size)
        batches = self._batches(rows, step=self.step)
        before = dict(self.skipped)
        with prefetched(batches, self._options.prefetch_batches) as ready:
            for batch in islice(ready, max(0, self.steps - self.step)):
                for _, text in batch.lost:
                    log.warning("%s", text)
                self.step += 1
                self.skipped = {
                    reason: before.get(reason, 0) + batch.skipped.get(reason, 0)
                    for reason in {*before, *batch.skipped}
                }
                yield self._public(batch)

    def _public(self, batch: Batch) -> ImageBatch:
        good = [weight > 0 for weight in batch.weights.tolist()]
        keys = iter(batch.keys)
        scale = self._share.world_size / self._share.batch_size
        return ImageBatch(
            images=batch.pixels,
            captions=[text if used else "" for text, used in zip(batch.captions, good, strict=True)],
            labels=[label if used else "" for label, used in zip(batch.labels, good, strict=True)],
            keys=[next(keys) if used else "" for used in good],
            weights=batch.weights * scale,
            draws=batch.draws,
            augmentation=self._decoding.augment,
        )


def stream(
    data: Place | Sequence[Place],
    *,
    batch_size: int,
    image_size: int,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    captions: bool | CaptionConfig = False,
    label_column: str | None = None,
    augmentation: Augmentation | None = None,
    position: Mapping[str, Any] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    data_weights: Sequence[float] = (),
    shuffle_window: int = 4096,
    decode_threads: int = 2,
    prefetch_batches: int = 4,
    through_ray: bool = False,
    allow_missing_shards: bool = False,
) -> Stream:
    """Stream shuffled, cropped batches from shards or folders of images.

    Within a Ray Train worker, or under torchrun, each worker gets its rows of every step: `rank` and
    `world_size` are those of torch.distributed where it is set up.

    Args:
        data: folder or address of shards (of `beamclip ingest`, or other tars or parquet files of samples) or
            of images; several are one data set, unless `data_weights` gives each a share of every batch.
        batch_size: images of a step, over all workers.
        image_size: side of the crops, pixels.
        epochs, steps: length of the stream, one of the two; by default one epoch. An epoch has each sample
            once, and the next one begins in the middle of a batch if need be.
        seed: decides order, crops and augmentation.
        captions: read captions, and pass over samples without one. A CaptionConfig says how they are chosen
            where a sample has several.
        label_column: field (or column) with the label; a sample without one is passed over.
        augmentation: sizes of the crops, and what `ImageBatch.augmented` does.
        position: where to go on; see `Stream.position`.
        rank, world_size: this worker among all, where torch.distributed does not say.
        shuffle_window: samples from all over the data that are shuffled among each other.
        decode_threads, prefetch_batches: threads that decode, and batches that are decoded ahead.
        through_ray: read by tasks of Ray Data, on any node, instead of in a thread of this process. They need
            a CPU that no worker holds.
        allow_missing_shards: count the samples of a shard that cannot be opened as lost, instead of raising.

    Raises:
        InputError: the data, a number or the position cannot be used. While iterating: so many samples in a
            row have no usable image that there is none to be expected.
        MissingShardError: while iterating, a shard cannot be opened.
    """
    options = StreamConfig(
        batch_size=batch_size,
        data_weights=tuple(data_weights),
        shuffle_window=shuffle_window,
        decode_threads=decode_threads,
        prefetch_batches=prefetch_batches,
        allow_missing_shards=allow_missing_shards,
    )
    _check_numbers(epochs, steps, image_size)
    if through_ray and not _ray_is_up():
        raise InputError("through_ray: Ray is not up in this process. Start it first, by ray.init().")
    texts = captions if isinstance(captions, CaptionConfig) else CaptionConfig()
    columns = Columns(bool(captions), texts.caption_columns, label_column)
    shards = _listed(data, options, columns)
    share = _share(shards, options, seed, *_own_place(rank, world_size))
    decoding = Decoding(image_size, augmentation or Augmentation(), texts, seed)
    rows = share.mixture.rows
    total = steps or ceil((epochs or 1) * rows / batch_size)
    made = Stream(shards, share, decoding, columns, total, through_ray=through_ray, options=options)
    if position is not None:
        made.go_on_from(position)
    return made


def _check_numbers(epochs: float | None, steps: int | None, image_size: int) -> None:
    if epochs is not None and steps is not None:
        raise InputError(f"epochs is {epochs} and steps {steps}: give one of them.")
    for name, number in (("epochs", epochs), ("steps", steps), ("image_size", image_size)):
        if number is not None and not number > 0:
            raise InputError(f"{name} is {number}: give a number above 0.")
    for name, whole in (("steps", steps), ("image_size", image_size)):
        if whole is not None and not isinstance(whole, Integral):
            raise InputError(f"{name} is {whole}: give a whole number.")


def _listed(data: Place | Sequence[Place], options: StreamConfig, columns: Columns) -> list[Shard]:
    places = [data] if isinstance(data, str | os.PathLike) else data
    addresses = [os.fspath(place) for place in places]
    if not addresses:
        raise InputError("data: no folder is given. Give one or more.")
    if options.data_weights and len(options.data_weights) != len(addresses):
        raise InputError(
            f"data_weights: {len(options.data_weights)} weights for {len(addresses)} data sets. "
            "Give one for each, or none."
        )
    shards = []
    for source, address in enumerate(addresses):
        own = list_shards(address, allow_missing=options.allow_missing_shards)
        if columns.caption:
            check_texts(own, columns, address)
        if columns.label:
            _check_labels(own[0], columns.label)
        shards += [replace(shard, source=source) for shard in own]
    return shards


def _check_labels(first: Shard, column: str) -> None:
    """Refuse data whose first samples, up to a block of rows, all lack the label."""
    count = min(first.samples, ROWS_PER_BLOCK)
    rows = list(iterate_rows(first, Columns(label=column), range(count)))
    # A broken shard says nothing of the others: its loss is counted when it is read.
    whole = [row for row in rows if row["problem"] in (None, MISSING_LABEL)]
    if not whole or any(row["problem"] is None for row in whole):
        return
    read = iterate_rows(first, Columns(everything=True), range(1))
    known = sorted(json.loads(next(read)["fields"] or "{}"))
    raise InputError(
        f"label_column: none of the first {count} samples in {first.path} has a label in {column}; their "
        f"fields are {', '.join(known) or 'none'}. Give one of those, or leave it out."
    )


def _share(shards: list[Shard], options: StreamConfig, seed: int, rank: int, world_size: int) -> WorkerShare:
    batch_size = options.batch_size
    assert batch_size is not None, "stream() takes one"
    weights, window = options.data_weights, options.shuffle_window
    mixture = mixture_of(source_counts(shards), weights, window, seed, world_size)
    if batch_size < world_size:
        raise InputError(
            f"batch_size is {batch_size}: leaves some of {world_size} workers without a sample. "
            f"Give {world_size} or more."
        )
    if batch_size > mixture.rows:
        raise InputError(
            f"batch_size is {batch_size}, and the data have {mixture.rows} samples. "
            f"Give {mixture.rows} or less."
        )
    return WorkerShare(mixture, batch_size, rank, world_size)


def _own_place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of workers: those given, else those of torch.distributed, else of one worker alone."""
    if (rank is None) != (world_size is None):
        raise InputError(f"rank is {rank} and world_size {world_size}: give both, or none.")
    if rank is None or world_size is None:
        is_set_up = dist.is_available() and dist.is_initialized()
        if is_set_up:
            return dist.get_rank(), dist.get_world_size()
        started = os.environ.get("WORLD_SIZE") or "1"
        if started != "1":
            raise InputError(
                f"WORLD_SIZE says that this is one of {started} workers, but torch.distributed is not set "
                "up, so that each would read all samples. Call init_process_group first, or give rank and "
                "world_size."
            )
        return 0, 1
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank} of world_size {world_size}. Give one from 0 to {world_size - 1}.")
    return rank, world_size


def _ray_is_up() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
