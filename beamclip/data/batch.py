"""Batches: what reaches the training loop, and how decoded rows are laid into it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.captions import choose_caption
from beamclip.data.crops import Crops, Decoded
from beamclip.data.decoding import Decoding
from beamclip.data.lost_samples import LostSample
from beamclip.data.sample_rows import Row
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, DRAWS


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
    labels: list[str] = field(default_factory=list)
    """B labels, each "" where none is read."""
    keys: list[str] = field(default_factory=list)
    """Keys of the usable samples, in the order of their rows."""
    epochs: list[int] = field(default_factory=list)
    """The pass over the data that each usable sample belongs to."""
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


ROWS_TOGETHER = 8
"""Rows that a thread decodes before it takes others: each time, threads take turns with Python's lock."""


def load_batch(
    rows: Sequence[Row | Decoded], decoding: Decoding, pool: ThreadPoolExecutor, *, size: int
) -> tuple[Batch, list[Row]]:
    """Make rows a batch of `size` rows, filled up at weight 0, numbered as they stand.

    Args:
        pool: decodes the rows, unless they are decoded.

    Returns:
        The batch, and the rows without a usable image.
    """
    done = [row for row in rows if isinstance(row, tuple)]
    if len(done) < len(rows):
        encoded = [row for row in rows if not isinstance(row, tuple)]
        parts = [encoded[first : first + ROWS_TOGETHER] for first in range(0, len(encoded), ROWS_TOGETHER)]
        done = [
            (crops, place) for crops in pool.map(decoding.crops, parts) for place in range(len(crops.keys))
        ]
    bad = [crops.lost[place] for crops, place in done if place in crops.lost]
    good = [number for number, (crops, place) in enumerate(done) if place not in crops.lost]
    if not good:
        return _blank(size, decoding), bad
    # What has weight 0 repeats a good row, since batch norms see it too.
    filler = done[good[0]]
    shown = [row if row[1] not in row[0].lost else filler for row in done] + [filler] * (size - len(done))
    weights = torch.zeros(size)
    weights[good] = 1.0
    keys = [crops.keys[place] for crops, place in (done[number] for number in good)]
    epochs = [crops.epochs[place] for crops, place in (done[number] for number in good)]
    return replace(_laid(shown, decoding), weights=weights, good=len(good), keys=keys, epochs=epochs), bad


def _laid(rows: list[Decoded], decoding: Decoding) -> Batch:
    size, side = len(rows), decoding.image_size
    pixels = torch.empty((size, side, side, 3), dtype=torch.uint8, pin_memory=decoding.pinned)
    draws = np.empty((size, DRAWS), np.float32)
    embeddings = [np.empty((size, width // 2), np.float16) for width in decoding.embedding_bytes]
    # No operation of torch on so much data in this thread: it would start threads of its own, and where there
    # are more of them than processors, those of training no longer spin for each other but sleep.
    images = pixels.numpy()
    for here, crops, there in _runs(rows):
        images[here] = crops.pixels[there]
        draws[here] = crops.draws[there]
        for own, of_teacher in zip(embeddings, crops.embeddings, strict=True):
            own[here] = of_teacher[there]
    return Batch(
        pixels=pixels.permute(0, 3, 1, 2),
        draws=_augment_draws(draws),
        captions=[
            choose_caption(texts, float(own[-1]), decoding.captions) if (texts := crops.texts[place]) else ""
            for own, (crops, place) in zip(draws, rows, strict=True)
        ],
        weights=torch.ones(size),
        numbers=torch.arange(size),
        global_size=size,
        good=size,
        labels=[crops.labels[place] or "" for crops, place in rows],
        embeddings=tuple(map(torch.from_numpy, embeddings)),
    )


def _runs(rows: list[Decoded]) -> Iterator[tuple[slice, Crops, slice]]:
    """For each run of rows that are neighbours in their crops: places here, crops, places in them."""
    begin = 0
    for end in range(1, len(rows) + 1):
        crops, place = rows[end - 1]
        if end < len(rows) and rows[end][0] is crops and rows[end][1] == place + 1:
            continue
        yield slice(begin, end), crops, slice(place + 1 - (end - begin), place + 1)
        begin = end


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
        labels=[""] * size,
        embeddings=tuple(torch.zeros(size, width // 2).half() for width in decoding.embedding_bytes),
    )


def _augment_draws(draws: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(draws)[:, CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS].contiguous()
