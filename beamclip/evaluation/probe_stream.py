"""The probe of self-supervised learning, by streaming: features of new crops in each epoch, never held.

A tenth of the training images, evenly spaced, is held out and seen whole; it says which learning rate is
scored. The others are read in a new order each epoch, cropped at random, mirrored half of the time, and
encoded; the features of some 4,096 images are shuffled and trained on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.data.bundles import Bundle, bundles_of, tasks_of
from beamclip.data.config import Augmentation
from beamclip.data.index import Starts
from beamclip.data.listing import list_labelled
from beamclip.data.order import Order, Window, order_over
from beamclip.data.shards import Columns, Shard
from beamclip.data.starts import read_starts
from beamclip.errors import InputError
from beamclip.evaluation.config import ProbeConfig
from beamclip.evaluation.encode import UNKNOWN_LABEL, EncodeSpec, encode_some, encoded_batches
from beamclip.evaluation.probe_heads import LinearHeads
from beamclip.evaluation.spaced import evenly_spaced
from beamclip.evaluation.zeroshot import label_ranks
from beamclip.models.clip import LoadedClip

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 50_000
SHUFFLED = 4096
"""Images whose features are shuffled among each other."""
CROPS = Augmentation(crop_scale_min=0.08, crop_ratio=4 / 3, flip_prob=0.5)
"""Random resized crops and mirror images, as for ImageNet (Szegedy et al., arXiv 1409.4842)."""


@dataclass(frozen=True)
class StreamProbe:
    """A classifier trained by streaming, and how it came about."""

    heads: LinearHeads
    best: int
    """Place of the learning rate that is scored."""
    accuracies: list[float]
    """Top-1 accuracy of each learning rate on the held-out images, 0..1."""
    class_images: Tensor
    """int64 [K], images of each class in an epoch, without the held-out ones."""
    skipped: dict[str, int]
    """Training images left out, by reason, the held-out ones included."""

    @property
    def train_images(self) -> int:
        """Images of an epoch, without the held-out ones."""
        return int(self.class_images.sum())

    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Count the classes ahead of each test image's own: int64 [M]."""
        device = next(self.heads.parameters()).device
        parts = [
            label_ranks(self.heads.scores(part.to(device), self.best), own).cpu()
            for part, own in zip(features.split(4096), labels.split(4096), strict=True)
        ]
        return torch.cat(parts)


def train_by_stream(
    clip: LoadedClip,
    address: str,
    class_ids: Sequence[str],
    label_column: str,
    config: ProbeConfig,
    spec: EncodeSpec,
    workers: WorkersConfig,
    *,
    device: str,
    allow_missing: bool = False,
    show: Callable[[int, int], None],
) -> StreamProbe:
    """Train the classifiers on a labelled data set.

    Args:
        clip, address, class_ids, label_column, workers, allow_missing: see `encode_labelled`.
        config: epochs, learning rates, batch and seed.
        spec: precision of the backbone.
        device: of the classifiers.
        show: called with the number of epochs done and of all.

    Raises:
        InputError: there are no such data, or fewer than two images are left to train on.
    """
    source = _source(address, config.probe_seed, allow_missing=allow_missing)
    spec = replace(spec, embeddings=False, features=True)
    held = encode_some(
        clip, source.shards, len(source.held_out), address, class_ids, label_column, spec, workers
    )
    heads = LinearHeads(
        held.features.shape[1],
        len(class_ids),
        config.probe_lrs,
        batch_size=config.probe_batch,
        seed=config.probe_seed,
    ).to(device)
    crops, columns = replace(spec, augmentation=CROPS, seed=config.probe_seed), Columns(label=label_column)
    for number in range(config.probe_epochs):
        epoch = _Epoch(class_ids, source.rows)
        encoded = encoded_batches(source.tasks(number), columns, clip, crops, workers)
        for features, labels, done in _shuffled(epoch.parts(encoded), config, number):
            heads.step(features.to(device), labels.to(device), (number + done) / config.probe_epochs)
        epoch.check(address)
        show(number + 1, config.probe_epochs)
    accuracies = heads.accuracies(held.features.to(device), held.labels.to(device))
    skipped = dict(epoch.skipped + Counter(held.skipped))
    return StreamProbe(heads, int(np.argmax(accuracies)), accuracies, epoch.class_images, skipped)


@dataclass(frozen=True)
class _Source:
    """The rows to train on, in a new order each epoch."""

    shards: list[Shard]
    starts: Starts
    held_out: set[tuple[int, int]]
    """Place of the shard, and row."""
    seed: int

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(shard.samples for shard in self.shards) - len(self.held_out)

    def tasks(self, number: int) -> list[list[Bundle]]:
        """Read tasks of an epoch."""
        order = order_over(np.array([shard.samples for shard in self.shards]), SHUFFLED // 16, self.seed)
        return [*tasks_of(self._bundles(order, number))]

    def _bundles(self, order: Order, number: int) -> Iterator[Bundle]:
        epoch = order.epoch(number)
        for index in range(len(epoch.starts) - 1):
            shard, row = epoch.window(index)
            kept = [pair not in self.held_out for pair in zip(shard.tolist(), row.tolist(), strict=True)]
            own = np.flatnonzero(kept)
            window = Window(number, 0, own % order.lanes, shard[own], row[own], own)
            yield from bundles_of(window, self.shards, self.starts)


def _source(address: str, seed: int, *, allow_missing: bool) -> _Source:
    """List the rows, and hold some out."""
    shards = list_labelled(address, allow_missing=allow_missing)
    total = sum(shard.samples for shard in shards)
    most = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * total)))
    if total - most < 2:
        raise InputError(f"{address}: has {total} images. Give three or more.")
    held_out = {*zip(*(each.tolist() for each in evenly_spaced(shards, most)), strict=True)}
    return _Source(shards, read_starts(shards), held_out, seed)


@dataclass
class _Epoch:
    """What an epoch meets: a count of the images of each class, and of what cannot be used."""

    class_ids: Sequence[str]
    rows: int
    """Of the whole epoch."""
    class_images: Tensor = field(init=False)
    """int64 [K]."""
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.class_images = torch.zeros(len(self.class_ids), dtype=torch.long)

    def parts(self, batches: Iterable[dict[str, Any]]) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The usable rows of encoded batches: features [B, F], labels [B], the part of all rows so far."""
        index = {class_id: place for place, class_id in enumerate(self.class_ids)}
        read = 0
        for batch in batches:
            whole = batch["problem"] == ""
            known = np.array([label in index for label in batch["label"]], dtype=bool) & whole
            self.skipped.update(batch["problem"][~whole].tolist())
            self.skipped.update([UNKNOWN_LABEL] * int((whole & ~known).sum()))
            labels = torch.tensor([index[label] for label in batch["label"][known]], dtype=torch.long)
            self.class_images += torch.bincount(labels, minlength=len(index))
            read += len(whole)
            yield torch.from_numpy(batch["features"][known]), labels, read / self.rows

    def check(self, address: str) -> None:
        """Refuse data of which nothing can be learned."""
        images = int(self.class_images.sum())
        if images < 2:
            raise InputError(
                f"{address}: {images} of {self.rows} images can be learned from; skipped: "
                f"{dict(self.skipped)}. Give images of the classes."
            )


def _shuffled(
    parts: Iterable[tuple[Tensor, Tensor, float]], config: ProbeConfig, epoch: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Batches of shuffled rows, each with the part of the epoch that lies before it.

    All are whole: rows that fill none wait for the next ones. At the end of the epoch they are left out,
    unless they are all that it has.
    """
    generator = torch.Generator().manual_seed(config.probe_seed * 1_000_003 + epoch)
    held: list[tuple[Tensor, Tensor]] = []
    before = done = 0.0
    is_first = True

    def mixed(*, last: bool) -> Iterator[tuple[Tensor, Tensor, float]]:
        features, labels = (torch.cat(each) for each in zip(*held, strict=True))
        batches = torch.randperm(len(labels), generator=generator).split(config.probe_batch)
        whole = [each for each in batches if len(each) == config.probe_batch]
        if last and is_first and not whole and len(labels) > 1:
            whole = [*batches]
        for place, rows in enumerate(whole):
            yield features[rows], labels[rows], before + (done - before) * place / len(whole)
        left = [(features[rows], labels[rows]) for rows in batches[len(whole) :]]
        held[:] = left

    for features, labels, done in parts:
        held.append((features, labels))
        if sum(len(each) for _, each in held) >= max(SHUFFLED, config.probe_batch):
            yield from mixed(last=False)
            before, is_first = done, False
    if held:
        yield from mixed(last=True)
