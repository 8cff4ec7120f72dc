"""Measure how far apart the text anchors of classes are: which are close, how much of the space they fill."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.prompts.anchors import Anchors

ROWS_AT_ONCE = 1024
"""Rows of a similarity matrix that are computed at a time."""


@dataclass(frozen=True)
class Spread:
    """How far apart the anchors of one set of classes are."""

    mean_cosine: float
    """Mean cosine over all pairs of two classes."""
    nearest_cosine: float
    """Cosine of a class and the one nearest to it, mean over the classes."""
    effective_rank: float
    """Number of dimensions that the anchors fill, 1 to D: see `effective_rank`."""


def class_means(anchors: Anchors, classes: int) -> Tensor:
    """Average the anchors of each of so many classes, and scale the means to unit length.

    Returns:
        float32 [classes, D].
    """
    sums = anchors.embeddings.new_zeros(classes, anchors.embeddings.shape[1])
    return F.normalize(sums.index_add_(0, anchors.class_index, anchors.embeddings), dim=1)


def spread(means: Tensor) -> Spread:
    """Measure the spread of unit vectors [K, D], K of 2 or more."""
    total = means.double().sum(dim=0).square().sum().item()
    count = len(means)
    return Spread(
        mean_cosine=(total - count) / (count * (count - 1)),
        nearest_cosine=nearest(means).mean().item(),
        effective_rank=effective_rank(means),
    )


def effective_rank(vectors: Tensor) -> float:
    """Return the exponential of the entropy of the singular values, which are taken as shares of their sum.

    Roy and Vetterli, The effective rank, EUSIPCO 2007.

    Args:
        vectors: [K, D], not all zero.
    """
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum()
    return torch.exp(torch.special.entr(shares).sum()).item()


def nearest(means: Tensor) -> Tensor:
    """Return [K], the cosine of each of the unit vectors [K, D] and the nearest other one."""
    found = []
    for start in range(0, len(means), ROWS_AT_ONCE):
        cosines = means[start : start + ROWS_AT_ONCE] @ means.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -torch.inf
        found.append(cosines.max(dim=1).values)
    return torch.cat(found)


def closest_pairs(means: Tensor, most: int) -> list[tuple[int, int]]:
    """Return the index pairs of the unit vectors [K, D] with the greatest cosines, greatest first.

    There are at most `most` pairs; the lower index comes first in each.
    """
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(means), ROWS_AT_ONCE):
        cosines = means[start : start + ROWS_AT_ONCE] @ means.T
        lower = torch.ones_like(cosines, dtype=torch.bool).tril(start)
        top = cosines.masked_fill(lower, -torch.inf).flatten().topk(min(most, cosines.numel()))
        for cosine, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            found.append((-cosine, start + place // len(means), place % len(means)))
    return [(row, column) for cosine, row, column in sorted(found)[:most] if cosine < torch.inf]
