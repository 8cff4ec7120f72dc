"""The probe of self-supervised learning, by streaming: features of new crops in each epoch, never held.

A tenth of the training images, evenly spaced, is held out and seen whole; it says which learning rate is
scored. The others are read in a new order each epoch, cropped at random, mirrored half of the time, and
encoded; the features of some 4,096 images are shuffled and trained on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.data.bundles import Bundle, bundles_of, tasks_of
from beamclip.data.config import AugmentConfig
from beamclip.data.index import Starts
from beamclip.data.listing import list_labelled
from beamclip.data.order import Order, Window, order_over
from beamclip.data.shards import Columns, Shard
from beamclip.data.starts import read_starts
from beamclip.errors import InputError
from beamclip.evaluation.config import ProbeConfig
from beamclip.evaluation.encode import EncodeSpec, encode_some, encoded_batches, evenly_spaced
from beamclip.evaluation.probe_heads import LinearHeads
from beamclip.evaluation.zeroshot import label_ranks
from beamclip.models.clip import LoadedClip

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 50_000
SHUFFLED = 4096
"""Images whose features are shuffled among each other."""
CROPS = AugmentConfig(crop_scale_min=0.08, crop_ratio=4 / 3, flip_prob=0.5)
"""Random resized crops and mirror images, as for ImageNet (Szegedy et al., arXiv 1409.4842)."""


@dataclass(frozen=True)
class StreamProbe:
    """A classifier trained by streaming, and how it came about."""

    heads: LinearHeads
    best: int
    """Place of the learning rate that is scored."""
    accuracies: list[float]
    """Top-1 accuracy of each learning rate on the held-out images, 0..1."""
    train_images: int
    """Images of an epoch, without the held-out ones."""

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
    shards = list_labelled(address, allow_missing=allow_missing)
    total = sum(shard.samples for shard in shards)
    most = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * total)))
    spec = EncodeSpec(False, True, batch_size=spec.batch_size, precision=spec.precision)
    held = encode_some(clip, shards, most, address, class_ids, label_column, spec, workers)
    place = {shard.path: number for number, shard in enumerate(shards)}
    held_out = {(place[shard.path], row) for shard, row in evenly_spaced(shards, most)}
    source = _Source(shards, read_starts(shards), held_out, config.probe_seed)
    if total - most < 2:
        raise InputError(f"{address}: has {total} images. Give three or more.")
    steps = config.probe_epochs * -(-(total - most) // config.probe_batch)
    heads = LinearHeads(
        held.features.shape[1],
        len(class_ids),
        config.probe_lrs,
        batch_size=config.probe_batch,
        steps=steps,
        seed=config.probe_seed,
    ).to(device)
    crops = EncodeSpec(
        False,
        True,
        batch_size=spec.batch_size,
        precision=spec.precision,
        augmentation=CROPS,
        seed=config.probe_seed,
    )
    index = {class_id: place for place, class_id in enumerate(class_ids)}
    for epoch in range(config.probe_epochs):
        encoded = encoded_batches(source.tasks(epoch), Columns(label=label_column), clip, crops, workers)
        for features, labels in _shuffled(_labelled(encoded, index), config, epoch):
            heads.step(features.to(device), labels.to(device))
        show(epoch + 1, config.probe_epochs)
    accuracies = heads.accuracies(held.features.to(device), held.labels.to(device))
    return StreamProbe(heads, int(np.argmax(accuracies)), accuracies, total - most)


@dataclass(frozen=True)
class _Source:
    """The rows to train on, in a new order each epoch."""

    shards: list[Shard]
    starts: Starts
    held_out: set[tuple[int, int]]
    """Place of the shard, and row."""
    seed: int

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


def _labelled(batches: Iterator[dict[str, Any]], index: dict[str, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The usable rows of encoded batches: features [B, F] and labels [B]."""
    for batch in batches:
        known = np.array([label in index for label in batch["label"]], dtype=bool) & (batch["problem"] == "")
        labels = [index[label] for label in batch["label"][known]]
        yield torch.from_numpy(batch["features"][known]), torch.tensor(labels, dtype=torch.long)


def _shuffled(
    parts: Iterator[tuple[Tensor, Tensor]], config: ProbeConfig, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled rows; a last one of a single row is left out, whose batch norm is undefined."""
    generator = torch.Generator().manual_seed(config.probe_seed * 1_000_003 + epoch)
    held: list[tuple[Tensor, Tensor]] = []

    def mixed() -> Iterator[tuple[Tensor, Tensor]]:
        features, labels = (torch.cat(each) for each in zip(*held, strict=True))
        order = torch.randperm(len(labels), generator=generator)
        for part in order.split(config.probe_batch):
            if len(part) > 1:
                yield features[part], labels[part]

    for part in parts:
        held.append(part)
        if sum(len(labels) for _, labels in held) >= max(SHUFFLED, config.probe_batch):
            yield from mixed()
            held = []
    if held:
        yield from mixed()
