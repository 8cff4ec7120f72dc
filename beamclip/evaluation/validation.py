"""Score a model while it trains: zero-shot, nearest neighbours and loss on a few held-out images.

The images are read and decoded once, by the command. Each worker encodes its share of them, all gather the
embeddings, and each computes the scores: every image counts once, whatever the number of workers.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.batch import Batch
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.evaluation.zeroshot import CHUNK_ELEMENTS, class_scores, topk_accuracy
from beamclip.losses.contrastive import gather_values, gather_with_grad
from beamclip.losses.similarity import similarities
from beamclip.prompts.anchors import Anchors, encode_anchors
from beamclip.prompts.config import AnchorReduce

NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 10, 0.07
"""Neighbours of an image that vote, and the temperature of their votes (arXiv 1805.01978)."""
ANCHOR_TEMPERATURE = 0.01
"""Temperature of the soft maximum over the anchors of a class that has several."""


@dataclass(frozen=True)
class ClassTexts:
    """Prompts of classes, which a text tower in training encodes anew each time."""

    prompts: list[list[str]]
    """Prompts of each class."""
    reduce: AnchorReduce


@dataclass(frozen=True)
class ValidationSet:
    """Held-out images, and what they are compared with."""

    images: NDArray[np.uint8]
    """[N, S, S, 3], as the model takes them."""
    labels: NDArray[np.int64]
    """[N], indices into the class list."""
    classes: Anchors | ClassTexts
    """The anchors of the classes, or the prompts to make them of."""
    num_classes: int
    captions: tuple[str, ...] = ()
    """Of each image, "" where it has none; empty if the loss compares none."""
    embeddings: tuple[Tensor, ...] = ()
    """float32 [N, D], each teacher's, of each image as the teacher takes it."""

    def has_loss(self, place: int) -> bool:
        """Whether an image takes part in the loss: with its caption, or the teachers' embeddings."""
        return bool(self.captions[place]) if self.captions else bool(self.embeddings)


class Validated(Protocol):
    """A method that can be scored while it trains."""

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed uint8 [B, 3, S, S] as float32 [B, D] of unit length, without augmentation."""

    def loss_of(self, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of embedded images, a sum over the samples of a batch times their weights."""


class TextEncoding(Protocol):
    """A method that trains a text tower."""

    tokenizer: Any

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, context_length] as float32 [B, D] of unit length."""


class Scorer:
    """Scores a method on one validation set; all workers of a training call theirs together."""

    def __init__(
        self,
        held_out: ValidationSet,
        device: torch.device,
        *,
        batch_size: int,
        chunk_size: int = 256,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Keep the images on the CPU, and everything else on the device.

        Args:
            batch_size: samples that a contrastive loss compares with each other, at most.
            chunk_size: images or texts encoded at a time.
        """
        self.held_out = held_out
        self.device = device
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.rank = rank
        self.world_size = world_size
        self._tokens: dict[str, Tensor] = {}

    def __call__(self, method: Validated) -> dict[str, float]:
        """Return `val_zeroshot_top1`, and `val_knn_top1` and `val_loss` where they can be had.

        The neighbours of an image are the others of the set, so only images whose class has another image
        there are scored by them, and none if these are less than half. The loss is the method's own: the mean
        over equal batches of `batch_size` at most.
        """
        embeddings, losses, counted = [], [], 0
        for places in self._batches():
            batch = self._share(places)
            own = torch.cat([method.embed_images(chunk) for chunk in batch.pixels.split(self.chunk_size)])
            embeddings.append(_in_order(own, len(places), self.world_size))
            count = sum(map(self.held_out.has_loss, places))
            if count:
                losses.append(method.loss_of(own, batch) * count)
                counted += count
        anchors = self._anchors(method)
        with torch.autocast(self.device.type, enabled=False):
            result = self._accuracies(torch.cat(embeddings), anchors)
        if losses:
            own_sum = torch.stack(losses).sum()[None]
            result["val_loss"] = float(gather_values(own_sum).sum()) / (self.world_size * counted)
        return result

    def _accuracies(self, embeddings: Tensor, anchors: Anchors) -> dict[str, float]:
        # A copy: what comes from Ray's store cannot be written to, of which torch warns.
        labels, classes = torch.tensor(self.held_out.labels, device=self.device), self.held_out.num_classes
        scores = class_scores(embeddings, anchors, classes, temperature=ANCHOR_TEMPERATURE)
        zeroshot = {"val_zeroshot_top1": topk_accuracy(scores, labels, ks=(1,))[1]}
        neighbours = neighbour_accuracy(embeddings, labels, classes)
        return zeroshot if neighbours is None else {**zeroshot, "val_knn_top1": neighbours}

    def _batches(self) -> list[range]:
        """The places of each batch in the set."""
        total = len(self.held_out.labels)
        number = -(-total // self.batch_size)
        bounds = [total * part // number for part in range(number + 1)]
        return [range(*bound) for bound in pairwise(bounds)]

    def _share(self, places: range) -> Batch:
        """This worker's share of a batch; all workers have equally many rows, some of them padding."""
        held_out = self.held_out
        own = list(places[self.rank :: self.world_size])
        padding = -(-len(places) // self.world_size) - len(own)
        numbers = [place - places.start for place in own] + [len(places)] * padding
        rows = own + [places.start] * padding
        counts = torch.tensor([*map(held_out.has_loss, own)] + [False] * padding)
        # So that the mean over the workers of sums with these weights is the mean over the batch.
        weights = counts * (self.world_size / max(1, sum(map(held_out.has_loss, places))))
        return Batch(
            pixels=torch.from_numpy(held_out.images[rows]).permute(0, 3, 1, 2),
            draws=torch.zeros(len(rows), AUGMENT_DRAWS),
            captions=[held_out.captions[row] for row in rows] if held_out.captions else [""] * len(rows),
            weights=weights,
            numbers=torch.tensor(numbers),
            global_size=len(places),
            good=len(own),
            embeddings=tuple(each[rows] for each in held_out.embeddings),
        ).with_tensors(lambda tensor: tensor.to(self.device))

    def _anchors(self, method: Validated) -> Anchors:
        classes = self.held_out.classes
        if isinstance(classes, Anchors):
            return classes
        text_tower = cast(TextEncoding, method)
        return encode_anchors(
            classes.prompts,
            lambda texts: self._encoded_texts(text_tower, texts),
            classes.reduce,
            cache_dir=None,
            encoder_fingerprint="",
            batch_size=self.chunk_size * self.world_size,
        )

    def _encoded_texts(self, method: TextEncoding, texts: list[str]) -> Tensor:
        new = [text for text in texts if text not in self._tokens]
        # Next to a small text tower, tokenizing takes long.
        self._tokens.update(zip(new, method.tokenizer(new), strict=True) if new else ())
        own = texts[self.rank :: self.world_size]
        padding = -(-len(texts) // self.world_size) - len(own)
        tokens = torch.stack([self._tokens[text] for text in own + texts[:1] * padding])
        return _in_order(method.embed_tokens(tokens.to(self.device)), len(texts), self.world_size)


def neighbour_accuracy(embeddings: Tensor, labels: Tensor, num_classes: int) -> float | None:
    """Classify each image by its nearest neighbours among the others.

    The votes of the NEIGHBOURS nearest have the weight exp(cosine / NEIGHBOUR_TEMPERATURE); arXiv 1805.01978.

    Args:
        embeddings: [N, D], unit length.
        labels: [N] integers in 0..num_classes - 1.

    Returns:
        Fraction of right answers, among the images whose class has another image; None if these are fewer
        than half of all.
    """
    can_be_right = torch.bincount(labels, minlength=num_classes)[labels] > 1
    if 2 * int(can_be_right.sum()) < len(labels) or len(labels) < 2:
        return None
    rows = max(1, CHUNK_ELEMENTS // max(len(labels), num_classes))
    voted = [
        _voted(embeddings.float(), labels, num_classes, places)
        for places in torch.arange(len(labels), device=labels.device).split(rows)
    ]
    right = torch.cat(voted) == labels
    return float(right[can_be_right].float().mean())


def _voted(embeddings: Tensor, labels: Tensor, num_classes: int, places: Tensor) -> Tensor:
    """[n] classes that the neighbours of the images at these places vote for; -1 where these are NaN."""
    cosines = similarities(embeddings[places], embeddings)
    # NaN counts as the nearest of all.
    cosines = cosines.masked_fill(cosines.isnan(), -torch.inf)
    cosines[torch.arange(len(places), device=places.device), places] = -torch.inf
    nearest = cosines.topk(min(NEIGHBOURS, len(labels) - 1), dim=1)
    votes = (nearest.values / NEIGHBOUR_TEMPERATURE).softmax(dim=1)
    totals = votes.new_zeros(len(places), num_classes).scatter_add_(1, labels[nearest.indices], votes)
    return totals.argmax(dim=1).masked_fill(totals.isnan().any(dim=1), -1)


def _in_order(own: Tensor, count: int, world_size: int) -> Tensor:
    """Gather rows of all workers, of which each has every `world_size`-th: [count, D], in order."""
    if world_size == 1:
        return own
    gathered = gather_with_grad(own)
    places = torch.arange(count, device=own.device)
    return gathered[places % world_size * len(own) + places // world_size]
