"""Zero-shot classification: an image gets the class whose anchors lie nearest (CLIP, arXiv 2103.00020)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beamclip.losses.similarity import similarities
from beamclip.prompts.anchors import Anchors

CHUNK_ELEMENTS = 2**24
"""Similarities held at a time, 64 MiB in float32; the number of anchors decides how many rows that is."""


def class_scores(embeddings: Tensor, anchors: Anchors, num_classes: int, *, temperature: float) -> Tensor:
    """Score every class for every image.

    With one anchor per class (`reduce=mean`), a score is the cosine similarity; the temperature has no role.
    With several (`reduce=separate`) it is `temperature * logsumexp(similarity / temperature)` over a class's
    anchors: a soft maximum. Either way `scores / temperature` are logits.

    Args:
        embeddings: [N, D] image embeddings, unit length, any floating type; N may be 0.
        anchors: M anchors of width D; every class of `range(num_classes)` owns at least one.
        num_classes: K.
        temperature: > 0; the smaller, the closer to a maximum.

    Returns:
        [N, K] float32 on the embeddings' device; larger is a better match.

    Raises:
        ValueError: the widths differ, a class has no anchor, an index is outside 0..K-1, or the temperature
            is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"class_scores: temperature is {temperature}, it must be above 0")
    counts = _anchors_per_class(embeddings, anchors, num_classes)
    texts = anchors.embeddings.to(embeddings.device, torch.float32)
    owners = anchors.class_index.to(embeddings.device)
    rows = max(1, CHUNK_ELEMENTS // len(texts))
    scores = embeddings.new_empty((len(embeddings), num_classes), dtype=torch.float32)
    for start in range(0, len(embeddings), rows):
        similarity = similarities(embeddings[start : start + rows].float(), texts)
        chunk = scores[start : start + rows]
        if int(counts.max()) == 1:
            chunk[:, owners] = similarity
        else:
            chunk.copy_(_soft_maximum(similarity, owners, num_classes, temperature))
    return scores


def topk_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Return the fraction of rows whose label is among the k highest scores, for each k.

    The counts are exact: ties are settled as in `argmax`, and a row that holds a NaN is a miss. With k >= K,
    every other row is a hit.

    Args:
        scores: [N, K], N >= 1.
        labels: [N] integers in 0..K-1.
        ks: the k values, each >= 1.

    Returns:
        {k: accuracy in 0..1}.

    Raises:
        ValueError: there are no rows, the lengths differ, a label is outside 0..K-1, or a k is below 1.
    """
    _check_labels(scores, labels)
    if min(ks, default=1) < 1:
        raise ValueError(f"topk_accuracy: ks is {tuple(ks)}, every k must be at least 1")
    ranks = label_ranks(scores, labels)
    return {k: int((ranks < k).sum()) / len(labels) for k in ks}


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Count the classes that are ahead of each row's own: 0 if the label scores highest.

    Of equal scores, the lower class index is ahead, as in `argmax`.

    Args:
        scores: [N, K].
        labels: [N] integers in 0..K-1.

    Returns:
        [N] int64; the largest int64 for a row that holds a NaN, which is no hit at any k.
    """
    labels = labels.to(scores.device, torch.long)[:, None]
    own = scores.gather(1, labels)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels
    ahead = (scores > own) | ((scores == own) & earlier)
    return ahead.sum(dim=1).masked_fill(scores.isnan().any(dim=1), torch.iinfo(torch.long).max)


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot predictions for each of N images."""

    ranks: Tensor
    """int64 [N], classes ahead of the true one; see `label_ranks`."""
    predicted: Tensor
    """int32 [N, min(5, K)], the best classes, best first."""
    probability: Tensor
    """float32 [N], of the best class, at the temperature that was given."""
    own_probability: Tensor
    """float32 [N], of the best class, at the model's own scale."""


def zeroshot_predictions(
    embeddings: Tensor,
    labels: Tensor,
    anchors: Anchors,
    num_classes: int,
    *,
    temperature: float,
    logit_scale: float,
) -> ZeroShot:
    """Predict classes, 2**24 scores at a time.

    Args:
        embeddings: [N, D] image embeddings, unit length, N >= 1.
        labels: [N] class indices in 0..K-1.
        anchors: the classes' text anchors.
        num_classes: K.
        temperature: see `class_scores`; also of the softmax for `probability`.
        logit_scale: the model's own factor of the similarities, the inverse of a temperature.

    Raises:
        ValueError: as `class_scores`.
    """
    several = len(anchors.embeddings) > num_classes
    rows = max(1, CHUNK_ELEMENTS // max(num_classes, len(anchors.embeddings)))
    parts = []
    for start in range(0, len(embeddings), rows):
        chunk, own = embeddings[start : start + rows], labels[start : start + rows]
        scores = class_scores(chunk, anchors, num_classes, temperature=temperature)
        at_own = scores
        if several:
            at_own = class_scores(chunk, anchors, num_classes, temperature=1 / logit_scale)
        parts.append(
            ZeroShot(
                label_ranks(scores, own).cpu(),
                _best_classes(scores, 5).to(torch.int32).cpu(),
                (scores / temperature).softmax(dim=1).amax(dim=1).cpu(),
                (logit_scale * at_own).softmax(dim=1).amax(dim=1).cpu(),
            )
        )
    names = ("ranks", "predicted", "probability", "own_probability")
    return ZeroShot(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _best_classes(scores: Tensor, most: int) -> Tensor:
    """[N, min(most, K)] classes, best first; of equal scores, the lower class, as in `label_ranks`."""
    number = min(most, scores.shape[1])
    values, best = scores.topk(number, dim=1)
    tied = ((scores >= values[:, -1:]).sum(dim=1) > number) | (values.diff(dim=1) == 0).any(dim=1)
    best[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :number]
    return best


def zeroshot_metrics(
    embeddings: Tensor, labels: Tensor, anchors: Anchors, num_classes: int, *, temperature: float
) -> dict[str, float]:
    """Compute top-1 and top-5 accuracy of zero-shot classification.

    Args:
        embeddings: [N, D] image embeddings, unit length, N >= 1.
        labels: [N] class indices in 0..K-1.
        anchors: the classes' text anchors.
        num_classes: K; with K <= 5, top-5 is 1.
        temperature: see `class_scores`.

    Returns:
        `zeroshot_top1` and `zeroshot_top5`, fractions in 0..1.

    Raises:
        ValueError: as `class_scores` and `topk_accuracy`.
    """
    scores = class_scores(embeddings, anchors, num_classes, temperature=temperature)
    accuracy = topk_accuracy(scores, labels, ks=(1, 5))
    return {"zeroshot_top1": accuracy[1], "zeroshot_top5": accuracy[5]}


def _soft_maximum(similarity: Tensor, owners: Tensor, num_classes: int, temperature: float) -> Tensor:
    """[n, M] similarities to [n, K]: logsumexp over each class's anchors, in units of similarity."""
    index = owners.expand_as(similarity)
    empty = similarity.new_full((len(similarity), num_classes), -torch.inf)
    largest = empty.scatter_reduce(1, index, similarity, "amax")
    # The class's own maximum is taken out first: at a temperature of 0.01 exp(1 / 0.01) overflows float32.
    terms = ((similarity - largest.gather(1, index)) / temperature).exp()
    total = torch.zeros_like(largest).scatter_add(1, index, terms)
    return largest + temperature * total.log()


def _anchors_per_class(embeddings: Tensor, anchors: Anchors, num_classes: int) -> Tensor:
    """Check that the shapes fit; return [K], the number of anchors of each class."""
    if embeddings.ndim != 2 or embeddings.shape[1] != anchors.embeddings.shape[1]:
        raise ValueError(
            f"class_scores: embeddings are {list(embeddings.shape)}, anchors "
            f"{list(anchors.embeddings.shape)}; both must be rows of one width, from one model"
        )
    index = anchors.class_index
    if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= num_classes:
        raise ValueError(f"class_scores: the anchors' class_index does not lie in 0..{num_classes - 1}")
    counts = torch.bincount(index, minlength=num_classes)
    if int(counts.min()) == 0:
        raise ValueError(
            f"class_scores: class {int(counts.argmin())} of {num_classes} has no anchor; "
            "build the anchors from the same class list"
        )
    return counts


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or scores.shape[0] == 0 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"topk_accuracy: scores are {list(scores.shape)}, labels {list(labels.shape)}; "
            "they must be [N, K] and [N] with at least one row"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        raise ValueError(
            f"topk_accuracy: labels run from {int(labels.min())} to {int(labels.max())}, "
            f"but there are {scores.shape[1]} classes; labels must index the same class list as the scores"
        )
