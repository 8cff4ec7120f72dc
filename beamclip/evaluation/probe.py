"""Linear probe: what a linear classifier reads out of frozen backbone features.

The protocol is CLIP's (arXiv 2103.00020, appendix A.3): logistic regression with an L2 penalty, fitted by
L-BFGS, its strength chosen on a held-out part of the training images, then fitted again on all of them.
It departs in two points. Every feature is standardised with the training images' mean and deviation, as the
batch norm before the linear layer of MAE (arXiv 2111.06377) does, so that one sweep suits backbones of any
scale. And of all strengths within one standard error of the best, the strongest is taken (Breiman et al.,
Classification and Regression Trees, 1984): with few images held out, chance decides which one is best.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from beamclip.evaluation.zeroshot import label_ranks

INVERSE_REGULARISATIONS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C, for standardised features: a larger one fits the training images closer."""
HELD_OUT_SHARE = 0.2
"""Share of each class's training images on which C is chosen, at least one image."""
SWEEP_CLASSES = 500
"""Most classes used to choose C, drawn at random: the cost grows with the square of their number."""
SERIAL_BELOW = 10**10
"""Images x features x classes below which a fit uses one thread. On cores that others use too, the threads of
BLAS wait for one another: for 500 images of 500 classes, two took 13 times as long as one.
"""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of a linear probe, and how it came about."""

    top1: float
    """Fraction of the test images, 0..1, whose class scores highest."""
    top5: float
    """Fraction whose class is among the five highest scores."""
    inverse_regularisation: float
    """The C that was used: scikit-learn's, a weight on the sum of the losses."""
    train_images: int
    """Images that the final fit saw, the held-out ones included."""
    test_images: int
    """Images in the accuracies; those of unseen classes count as misses."""
    classes: int
    """Classes with at least one training image."""
    notes: tuple[str, ...]
    """What a reader of the figures should know; empty when all is as usual."""


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    inverse_regularisations: Sequence[float] = INVERSE_REGULARISATIONS,
    max_iterations: int = 50,
    probe_seed: int = 0,
) -> ProbeResult:
    """Fit a linear classifier on the training features and score it on the test features.

    C is the smallest of `inverse_regularisations` that comes within one standard error of the best on the
    held-out images of at most 500 classes. Only classes with two training images or more have one to hold
    out; with fewer than two such classes, the middle value is taken, with a note. A single value is taken as
    it is.
    Meant for up to some 10^5 images in memory: an iteration costs images x features x classes.

    Args:
        train_features: [N, F] outputs of a frozen backbone, before any projection head; any floating type.
        train_labels: [N] class numbers; any integers.
        test_features: [M, F] outputs of the same backbone.
        test_labels: [M] class numbers; a class without training images counts as a miss and gives a note.
        inverse_regularisations: values of C, each > 0.
        max_iterations: most iterations of L-BFGS in each fit.
        probe_seed: decides which images are held out; the fits themselves are deterministic.

    Returns:
        The accuracies and how C was found.

    Raises:
        ValueError: an input is empty, of the wrong shape or not finite, training shows fewer than two
            classes, or a C or `max_iterations` is not positive.
    """
    _check_rows("train", train_features, train_labels)
    _check_rows("test", test_features, test_labels)
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"linear_probe: train features have width {train_features.shape[1]}, test features "
            f"{test_features.shape[1]}; both must come from one backbone"
        )
    candidates = _candidates(inverse_regularisations, max_iterations)
    classes, train_index = np.unique(_integers(train_labels), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"linear_probe: every train label is {classes[0]}; a classifier needs two classes")
    features = _floats(train_features)
    chosen, notes = _choose(features, train_index, candidates, max_iterations, probe_seed)
    scaler, model = StandardScaler(), _classifier(len(classes), max_iterations)
    if not _fit(model, scaler.fit_transform(features), train_index, chosen):
        notes.append(f"the fit stopped at max_iterations={max_iterations}, before it converged")
    ranks = _test_ranks(model, scaler.transform(_floats(test_features)), _integers(test_labels), classes)
    notes += _unseen_note(_integers(test_labels), classes)
    return ProbeResult(
        top1=float(np.mean(ranks < 1)),
        top5=float(np.mean(ranks < 5)),
        inverse_regularisation=chosen,
        train_images=len(train_features),
        test_images=len(test_features),
        classes=len(classes),
        notes=tuple(notes),
    )


def _choose(
    features: Floats, index: Integers, candidates: list[float], max_iterations: int, probe_seed: int
) -> tuple[float, list[str]]:
    """The C to use, and a note where it could not be chosen on held-out images."""
    if len(candidates) == 1:
        return candidates[0], []
    random = np.random.default_rng(probe_seed)
    divisible = random.permutation(np.flatnonzero(np.bincount(index) >= 2))
    if len(divisible) < 2:
        middle = candidates[len(candidates) // 2]
        return middle, [f"C={middle:g} is a default: too few classes have two images to hold one out"]
    rows = np.flatnonzero(np.isin(index, divisible[:SWEEP_CLASSES]))
    _, sweep_index = np.unique(index[rows], return_inverse=True)
    held_out = _held_out(sweep_index, random)
    accuracies = _sweep(features[rows], sweep_index, held_out, candidates, max_iterations)
    return candidates[_within_one_error(accuracies, int(held_out.sum()))], []


def _sweep(
    features: Floats, index: Integers, held_out: Mask, candidates: list[float], max_iterations: int
) -> list[float]:
    """Return top-1 accuracy on the held-out images for each C; each fit starts from the one before."""
    scaler = StandardScaler()
    fitted, tested = scaler.fit_transform(features[~held_out]), scaler.transform(features[held_out])
    model = _classifier(int(index.max()) + 1, max_iterations)
    accuracies = []
    for candidate in candidates:
        _fit(model, fitted, index[~held_out], candidate)
        accuracies.append(float(np.mean(model.predict(tested) == index[held_out])))
    return accuracies


def _within_one_error(accuracies: list[float], images: int) -> int:
    """Index of the first accuracy that is no more than one standard error of the best below it."""
    best = max(accuracies)
    error = math.sqrt(best * (1 - best) / images)
    return next(i for i, accuracy in enumerate(accuracies) if accuracy >= best - error)


def _held_out(index: Integers, random: np.random.Generator) -> Mask:
    """Return [N], a mask of a random part of every class, never all of it; each has two images or more."""
    counts = np.bincount(index)
    quota = np.maximum(1, np.floor(counts * HELD_OUT_SHARE))
    shuffled = random.permutation(len(index))
    by_class = shuffled[np.argsort(index[shuffled], kind="stable")]
    first_of_class = np.cumsum(counts) - counts
    place = np.arange(len(index)) - first_of_class[index[by_class]]
    mask = np.zeros(len(index), dtype=bool)
    mask[by_class] = place < quota[index[by_class]]
    return mask


def _classifier(num_classes: int, max_iterations: int) -> LogisticRegression:
    # scikit-learn stops once no entry of the mean loss's gradient exceeds tol. Those entries start near a
    # class's mean feature / classes, so its default of 1e-4 can end a probe of thousands of classes at once.
    # Warm starts: along a rising C each solution is a good start for the next.
    tol = 1e-3 / num_classes
    return LogisticRegression(solver="lbfgs", tol=tol, max_iter=max_iterations, warm_start=True)


def _fit(model: LogisticRegression, features: Floats, index: Integers, inverse_regularisation: float) -> bool:
    """Fit in place; whether it converged within the iterations allowed."""
    work = features.size * (int(index.max()) + 1)
    with warnings.catch_warnings(), threadpool_limits(1 if work < SERIAL_BELOW else None):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        model.set_params(C=inverse_regularisation).fit(features, index)
    return int(model.n_iter_.max()) < model.max_iter


def _test_ranks(model: LogisticRegression, features: Floats, labels: Integers, classes: Integers) -> Integers:
    """Return [M], the number of classes ahead of the true one; beyond any k if it had no training image."""
    scores = model.decision_function(features)
    if scores.ndim == 1:  # two classes share one margin
        scores = np.stack([-scores, scores], axis=1)
    known = np.isin(labels, classes)
    ranks = np.full(len(labels), np.iinfo(np.int64).max)
    index = np.searchsorted(classes, labels[known])
    ranks[known] = label_ranks(torch.from_numpy(scores[known]), torch.from_numpy(index)).numpy()
    return ranks


def _unseen_note(labels: Integers, classes: Integers) -> list[str]:
    unseen = ~np.isin(labels, classes)
    if not unseen.any():
        return []
    number = len(np.unique(labels[unseen]))
    return [
        f"{number} test {'class' if number == 1 else 'classes'} ({unseen.sum():,} of {len(labels):,} images) "
        "had no training image; these images count as misses"
    ]


def _candidates(inverse_regularisations: Sequence[float], max_iterations: int) -> list[float]:
    """Check that the values of C and the iterations are positive; return the values, ascending."""
    candidates = sorted(set(inverse_regularisations))
    if not candidates or not candidates[0] > 0 or max_iterations < 1:
        raise ValueError(
            f"linear_probe: inverse_regularisations is {tuple(inverse_regularisations)}, max_iterations "
            f"{max_iterations}; give at least one value of C, all of them and max_iterations above 0"
        )
    return candidates


def _check_rows(split: str, features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or features.numel() == 0 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"linear_probe: {split} features are {list(features.shape)}, labels {list(labels.shape)}; "
            "they must be [N, F] and [N] with at least one row"
        )
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(f"linear_probe: {bad} of {len(features)} rows of {split} features are not finite")


def _floats(features: Tensor) -> Floats:
    return features.detach().to("cpu", torch.float32).numpy()


def _integers(labels: Tensor) -> Integers:
    return labels.detach().to("cpu", torch.int64).numpy()
