"""k nearest neighbours: classify an image by the training images that lie closest to it.

The protocol of DINO (arXiv 2104.14294), after Wu et al. (arXiv 1805.01978): neighbours by the cosine of their
backbone features, each of which votes for its class with the weight exp(cosine / 0.07).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.evaluation.zeroshot import CHUNK_ELEMENTS, label_ranks
from beamclip.losses.similarity import similarities

TEMPERATURE = 0.07
NEIGHBOURS = (10, 20)
_TRAIN_ROWS = 2**16
"""Training images compared at a time: a million images of 2,048 features are 8 GB, so they are not copied."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of each test image, nearest first."""

    cosines: Tensor
    """float32 [M, k]."""
    labels: Tensor
    """int64 [M, k], their classes."""


def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    num_classes: int,
    *,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Score each class by the votes of an image's nearest training images.

    Args:
        train_features: [N, F], any floating type, any length but 0.
        train_labels: [N] integers in 0..K-1.
        features: [M, F] on the same device.
        num_classes: K.
        neighbours: how many vote; all training images if there are fewer.
        temperature: > 0; the smaller, the more the nearest one decides.

    Returns:
        float32 [M, K]: for each class the sum of exp((cosine - 1) / temperature) over the neighbours of that
        class; 0 without any.

    Raises:
        ValueError: the shapes do not fit, there is no training image, or a number is not positive.
    """
    if neighbours < 1 or not temperature > 0:
        raise ValueError(
            f"knn_scores: neighbours is {neighbours}, temperature {temperature}; both must be above 0"
        )
    return _votes(
        nearest_neighbours(train_features, train_labels, features, neighbours),
        num_classes,
        neighbours,
        temperature,
    )


def knn_ranks(
    found: Neighbours,
    labels: Tensor,
    num_classes: int,
    *,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Count the classes ahead of each image's own.

    Args:
        found: at least so many neighbours of each image, if there are so many training images.
        labels: [M] integers in 0..K-1.
        num_classes, neighbours, temperature: see `knn_scores`.

    Returns:
        int64 [M]; the largest int64 where no neighbour is of the image's class. Of equal scores, the lower
        class is ahead.
    """
    ranks = [torch.zeros(0, dtype=torch.long)]
    rows = max(1, CHUNK_ELEMENTS // num_classes)
    for start in range(0, len(labels), rows):
        part = Neighbours(found.cosines[start : start + rows], found.labels[start : start + rows])
        own = labels[start : start + rows].to(part.labels.device)
        scores = _votes(part, num_classes, neighbours, temperature)
        unvoted = scores.gather(1, own[:, None])[:, 0] == 0
        ranks.append(label_ranks(scores, own).masked_fill(unvoted, torch.iinfo(torch.long).max).cpu())
    return torch.cat(ranks)


def nearest_neighbours(
    train_features: Tensor, train_labels: Tensor, features: Tensor, neighbours: int
) -> Neighbours:
    """Find the training images nearest to each image by cosine; of equal cosines, any.

    At most 2**24 cosines are held at a time.

    Raises:
        ValueError: the shapes do not fit, or there is no training image.
    """
    _check(train_features, train_labels, features)
    rows = max(1, CHUNK_ELEMENTS // min(len(train_features), _TRAIN_ROWS))
    cosines, labels = [], []
    for start in range(0, len(features), rows):
        queries = F.normalize(features[start : start + rows].float(), dim=1)
        best = queries.new_zeros(len(queries), 0)
        best_labels = train_labels.new_zeros(len(queries), 0, dtype=torch.long)
        for first in range(0, len(train_features), _TRAIN_ROWS):
            bank = F.normalize(train_features[first : first + _TRAIN_ROWS].float(), dim=1)
            own_labels = train_labels[first : first + _TRAIN_ROWS].long().expand(len(queries), -1)
            both = torch.cat([best, similarities(queries, bank)], dim=1)
            best, places = both.topk(min(neighbours, both.shape[1]), dim=1)
            best_labels = torch.cat([best_labels, own_labels], dim=1).gather(1, places)
        cosines.append(best)
        labels.append(best_labels)
    return Neighbours(torch.cat(cosines), torch.cat(labels))


def _votes(found: Neighbours, num_classes: int, neighbours: int, temperature: float) -> Tensor:
    # Taken from 1, the largest cosine, so that exp() stays finite at any temperature.
    weights = ((found.cosines[:, :neighbours] - 1) / temperature).exp()
    scores = weights.new_zeros(len(weights), num_classes)
    return scores.scatter_add_(1, found.labels[:, :neighbours], weights)


def _check(train_features: Tensor, train_labels: Tensor, features: Tensor) -> None:
    fits = train_features.ndim == features.ndim == 2 and train_features.shape[1] == features.shape[1]
    if not fits or len(train_features) == 0 or train_labels.shape != train_features.shape[:1]:
        raise ValueError(
            f"knn: train features are {list(train_features.shape)}, their labels {list(train_labels.shape)}, "
            f"features {list(features.shape)}; they must be [N, F], [N] and [M, F] with at least one row in N"
        )
