"""Augmented views and their teacher's embeddings, made once for all trainings of a study.

A training then computes nothing but its student. One epoch sees one view of each image, as it would in a run
that augments afresh; the order of an image's views, and of the images, is by the seed of the training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from support.emoji_pairs import Pairs, endless_batches
from torch import Tensor

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.transforms import AUGMENT_DRAWS, augment
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import Teacher

BATCH = 128


@dataclass(frozen=True)
class ViewPool:
    """V views of each of N images, and what their teacher says of them."""

    pixels: Tensor
    """uint8 [V, N, 3, H, W], augmented."""
    images: Tensor
    """float32 [V, N, D], unit embeddings of the views."""
    captions: Tensor
    """float32 [N, D], unit embeddings of the captions."""


def make_pool(clip: LoadedClip, pairs: Pairs, views: int, seed: int) -> ViewPool:
    """Decode, augment and embed `views` views of every image, with the augmentation of a run by default."""
    teacher, augmentation = Teacher(clip), Augmentation()
    decoding = Decoding(clip.image_size, augmentation, CaptionConfig(), seed)
    size, number = clip.image_size, len(pairs.keys)
    place = {key: index for index, key in enumerate(pairs.keys)}
    pixels = torch.empty(views, number, 3, size, size, dtype=torch.uint8)
    images = torch.empty(views, number, clip.embed_dim)
    left = views * number
    for batch in endless_batches(pairs, BATCH, decoding):
        seen = augment(batch.pixels, batch.draws, augmentation)
        embedded = teacher.encode_image(seen)
        for row, (key, epoch) in enumerate(zip(batch.keys, batch.epochs, strict=True)):
            if epoch < views:
                pixels[epoch, place[key]], images[epoch, place[key]] = seen[row], embedded[row]
                left -= 1
        if not left:
            break
    return ViewPool(pixels, images, teacher.encode_text(pairs.captions))


def save_pool(pool: ViewPool, file: Path) -> None:
    """Write a pool whole."""
    draft = file.with_suffix(".draft")
    torch.save(vars(pool), draft)
    draft.replace(file)


def load_pool(file: Path) -> ViewPool:
    """Map a pool into memory, which trainings at a time share."""
    return ViewPool(**torch.load(file, mmap=True, weights_only=True))


def pool_batches(pool: ViewPool, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end, which carry the embeddings of images and captions; a last part is dropped
    into the next epoch."""
    views, number = pool.images.shape[:2]
    of_image = np.stack([np.random.default_rng((seed, 1, i)).permutation(views) for i in range(number)])
    waiting = np.empty((0, 2), np.int64)
    for epoch in count():
        order = np.random.default_rng((seed, 0, epoch)).permutation(number)
        fresh = np.stack([of_image[order, epoch % views], order], axis=1)
        waiting = np.concatenate([waiting, fresh])
        while len(waiting) >= batch_size:
            taken, waiting = waiting[:batch_size], waiting[batch_size:]
            yield _batch(pool, torch.from_numpy(taken[:, 0]), torch.from_numpy(taken[:, 1]))


def _batch(pool: ViewPool, views: Tensor, rows: Tensor) -> Batch:
    size = len(rows)
    return Batch(
        pixels=pool.pixels[views, rows].contiguous(memory_format=torch.channels_last),
        draws=torch.zeros(size, AUGMENT_DRAWS),
        captions=[""] * size,
        weights=torch.ones(size),
        numbers=torch.arange(size),
        global_size=size,
        good=size,
        embeddings=(pool.images[views, rows], pool.captions[rows]),
    )
