"""The figures of an evaluation, from the scores of its images, and the comparison of two evaluations."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from beamclip.errors import InputError
from beamclip.evaluation.intervals import Difference, differences
from beamclip.evaluation.results import BESIDE_COLUMNS, NO_RANK, BesideTeacher, Captions, Ints, Scores
from beamclip.evaluation.statistic import (
    CalibrationError,
    Floats,
    Quotient,
    Ratio,
    Statistic,
    class_mean,
    mean,
)

KS = {"zeroshot": (1, 5), "probe": (1, 5), "knn10": (1,), "knn20": (1,)}
"""The k of the accuracies of each task."""
RECALL_KS = (1, 5, 10)
LOWER_IS_BETTER = frozenset(("agreement_kl",))


def statistics_of(scores: Scores) -> dict[str, Statistic]:
    """Return the figures of an evaluation by the names that they have in summary.json."""
    found: dict[str, Statistic] = {}
    for task, ks in KS.items():
        if task in scores.ranks:
            found |= {f"{task}_top{k}": mean(scores.ranks[task] < k) for k in ks}
    if "zeroshot" in scores.ranks:
        found |= _of_zeroshot(scores)
    if "i2t" in scores.ranks and scores.captions is not None:
        found |= _of_retrieval(scores.ranks["i2t"], scores.captions)
    if scores.beside is not None:
        found |= _of_agreement(scores.ranks["zeroshot"], scores.beside)
    return found


def _of_zeroshot(scores: Scores) -> dict[str, Statistic]:
    hits = (scores.ranks["zeroshot"] < 1).astype(np.float64)
    assert scores.labels is not None, "a zero-shot rank is that of a label"
    found: dict[str, Statistic] = {
        "zeroshot_mean_class_top1": class_mean(hits, scores.labels.astype(np.int64))
    }
    for name, confidence in (
        ("calibration_error", scores.probability),
        ("calibration_error_own_scale", scores.own_probability),
    ):
        if confidence is not None:
            found[name] = CalibrationError(hits, confidence.astype(np.float64))
    return found


def _of_retrieval(ranks: Ints, captions: Captions) -> dict[str, Statistic]:
    """Recalls, as ratios over images, so that a resample draws an image together with its captions."""
    has_caption = (ranks != NO_RANK).astype(np.float64)
    number = np.bincount(captions.image, minlength=len(ranks)).astype(np.float64)
    found: dict[str, Statistic] = {}
    for k in RECALL_KS:
        found[f"retrieval_i2t_r{k}"] = Ratio(
            ((ranks < k) & (ranks != NO_RANK)).astype(np.float64), has_caption
        )
    for k in RECALL_KS:
        hits = np.bincount(captions.image, captions.ranks < k, minlength=len(ranks)).astype(np.float64)
        found[f"retrieval_t2i_r{k}"] = Ratio(hits, number)
    return found


def _of_agreement(ranks: Ints, beside: BesideTeacher) -> dict[str, Statistic]:
    """How far predictions agree with a teacher's, and the teacher's own accuracy."""
    teacher_top1 = mean(beside.ranks < 1)
    found: dict[str, Statistic] = {
        "teacher_zeroshot_top1": teacher_top1,
        "teacher_zeroshot_top5": mean(beside.ranks < 5),
        "agreement_top1": mean(beside.same_class),
        "agreement_kl": mean(beside.kl, (0.0, float("inf"))),
    }
    if teacher_top1.numerator.any():
        found["retained_top1"] = Quotient(mean(ranks < 1), teacher_top1)
    if beside.cosine is not None:
        found["agreement_cosine"] = mean(beside.cosine, (-1.0, 1.0))
    return found


def class_accuracies(scores: Scores) -> Floats:
    """Return the zero-shot accuracy of each class that has images, [K] or fewer, in their order."""
    assert scores.labels is not None, "zero-shot predictions need labels"
    images = np.bincount(scores.labels)
    hits = np.bincount(scores.labels, scores.ranks["zeroshot"] < 1)
    return hits[images > 0] / images[images > 0]


def worst_classes(scores: Scores, most: int = 20) -> list[dict[str, Any]]:
    """Return the classes with the lowest zero-shot accuracy, worst first.

    Of equal ones, the class with more images is first, then the one with more classes ahead of it.

    Returns:
        For each its id, name, images, accuracy, and what its images are taken for: id and number of up to
        three wrong classes, the most frequent first. Classes without an image are left out.
    """
    labels, predicted = scores.labels, scores.predicted
    assert labels is not None, "zero-shot predictions need labels"
    assert predicted is not None, "zero-shot ran"
    hits = (scores.ranks["zeroshot"] < 1).astype(np.float64)
    ids, names = scores.facts.class_ids, scores.facts.class_names
    images = np.bincount(labels, minlength=len(ids))
    accuracy = np.bincount(labels, hits, minlength=len(ids)) / np.maximum(images, 1)
    ahead = np.bincount(labels, scores.ranks["zeroshot"], minlength=len(ids)) / np.maximum(images, 1)
    order = np.lexsort((-ahead, -images, accuracy))
    found = []
    for index in order[images[order] > 0][:most].tolist():
        taken = Counter(predicted[labels == index, 0].tolist())
        wrong = [(ids[other], number) for other, number in taken.most_common() if other != index]
        found.append(
            {
                "id": ids[index],
                "name": names[index],
                "images": int(images[index]),
                "accuracy": float(accuracy[index]),
                "taken_for": wrong[:3],
            }
        )
    return found


def compared(ours: Scores, theirs: Scores, other: str) -> dict[str, Difference]:
    """Compare two evaluations image by image, in the figures that both have.

    Calibration errors are left out: they are biased upwards, by an amount that differs between models. So are
    a teacher's own scores, and agreement with another teacher.

    Args:
        other: what the second evaluation is called in messages.

    Raises:
        InputError: they are not of the same images, or these have other labels or captions.
    """
    theirs = _paired(ours, theirs, other)
    if ours.facts.teacher != theirs.facts.teacher:
        ours, theirs = replace(ours, beside=None), replace(theirs, beside=None)
    return differences(_judged(ours), _judged(theirs), len(ours), lower_is_better=LOWER_IS_BETTER)


def _judged(scores: Scores) -> dict[str, Statistic]:
    return {
        name: each
        for name, each in statistics_of(scores).items()
        if not isinstance(each, CalibrationError) and not name.startswith("teacher_")
    }


def _paired(ours: Scores, theirs: Scores, other: str) -> Scores:
    place = {key: row for row, key in enumerate(theirs.keys)}
    common = sum(key in place for key in ours.keys)
    if not common == len(ours) == len(theirs):
        raise InputError(
            f"--against {other}: scored other images: {common:,} of its {len(theirs):,} are among the "
            f"{len(ours):,} here (its data: {theirs.facts.data}). Evaluate both on the same data."
        )
    order = np.array([place[key] for key in ours.keys], np.int64)
    paired = _in_order(theirs, order)
    if _names(ours) is not None and _names(paired) is not None and _names(ours) != _names(paired):
        raise InputError(
            f"--against {other}: gives the same images other classes. Evaluate both with the same --classes."
        )
    both_choose = "zeroshot" in ours.ranks and "zeroshot" in paired.ranks
    if both_choose and sorted(ours.facts.class_ids) != sorted(paired.facts.class_ids):
        raise InputError(
            f"--against {other}: chose among {len(paired.facts.class_ids):,} classes, here there are "
            f"{len(ours.facts.class_ids):,}. Evaluate both with the same --classes."
        )
    if ours.captions and paired.captions and _texts(ours) != _texts(paired):
        raise InputError(
            f"--against {other}: gives the same images other captions. Evaluate both with the same "
            "--caption-columns."
        )
    return paired


def _in_order(scores: Scores, order: Any) -> Scores:
    """The scores with image `order[i]` as the i-th one."""

    def taken(values: Any) -> Any:
        return None if values is None else values[order]

    captions = scores.captions
    if captions is not None:
        new_row = np.empty(len(order), np.int32)
        new_row[order] = np.arange(len(order), dtype=np.int32)
        captions = replace(captions, image=new_row[captions.image])
    beside = scores.beside
    if beside is not None:
        beside = BesideTeacher(*(taken(getattr(beside, part)) for part in BESIDE_COLUMNS))
    return replace(
        scores,
        keys=[scores.keys[row] for row in order],
        labels=taken(scores.labels),
        predicted=taken(scores.predicted),
        probability=taken(scores.probability),
        own_probability=taken(scores.own_probability),
        ranks={task: taken(ranks) for task, ranks in scores.ranks.items()},
        captions=captions,
        beside=beside,
    )


def _names(scores: Scores) -> list[str] | None:
    """The id of each image's class; None without labels."""
    if scores.labels is None:
        return None
    return [scores.facts.class_ids[label] for label in scores.labels]


def _texts(scores: Scores) -> list[tuple[int, str]]:
    """The captions, each with its image, in a fixed order."""
    assert scores.captions is not None, "retrieval ran"
    return sorted(zip(scores.captions.image.tolist(), scores.captions.texts, strict=True))
