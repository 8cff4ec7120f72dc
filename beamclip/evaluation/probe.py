"""Linear probe: what a linear classifier reads out of frozen backbone features.

The protocol is CLIP's (arXiv 2103.00020, appendix A.3): logistic regression with an L2 penalty, fitted by
L-BFGS in at most 1,000 iterations. Its strength is searched on held-out training images: of 97 values from
1e-6 to 1e6, eight a decade, every sixteenth is tried first, then the interval around the best one is halved
until the neighbours of the best have been tried. Past a clear peak no larger value is tried. The classifier
is fitted again on all training images.

It departs in one point. Every feature is standardised with the training images' mean and deviation, as the
batch norm before the linear layer of MAE (arXiv 2111.06377) does, so that the penalty, and the convergence of
L-BFGS, do not depend on the scale of a backbone's features.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.evaluation.zeroshot import CHUNK_ELEMENTS, label_ranks

GRID = np.logspace(-6, 6, 97)
"""Values of C, for standardised features: a larger one fits the training images closer."""
FIRST_SPACING = 16
"""Steps of the grid between the values that are tried first, two decades."""
HELD_OUT_SHARE = 0.2
"""Share of each class's training images on which C is chosen, at least one image."""
SWEEP_CLASSES = 500
"""Most classes used to choose C, drawn at random: the cost grows with the square of their number."""
SERIAL_BELOW = 10**10
"""Images x features x classes below which a fit on the CPU uses one thread. On cores that others use too,
threads wait for one another: for 500 images of 500 classes, two took 13 times as long as one.
"""
DEFAULT_C = 0.1
"""Where no C can be chosen, since too few classes have two images."""

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of standardised features, and how it came about."""

    weights: Tensor
    """float32 [F + 1, K], the last row the biases."""
    mean: Tensor
    """float32 [F], of the training features."""
    deviation: Tensor
    """float32 [F], 1 for a constant feature."""
    classes: Integers
    """[K], the labels that had a training image, ascending."""
    inverse_regularisation: float
    """The C that was used: scikit-learn's, a weight on the sum of the losses."""
    iterations: int
    """Iterations of L-BFGS in the final fit."""
    train_images: int
    """Images that the final fit saw, the held-out ones included."""
    notes: tuple[str, ...]
    """What a reader of the figures should know; empty when all is as usual."""

    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Count the classes ahead of each test image's own.

        Args:
            features: [M, F] outputs of the same backbone.
            labels: [M] class numbers.

        Returns:
            int64 [M], on the CPU; the largest int64 for a class that had no training image.

        Raises:
            ValueError: an input is empty, of the wrong shape or not finite.
        """
        _check_rows("test", features, labels)
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"probe: train features have width {len(self.mean)}, test features {features.shape[1]}; both "
                "must come from one backbone"
            )
        scaled = (features.to(self.weights.device, torch.float32) - self.mean) / self.deviation
        return _test_ranks(self.weights, scaled, _integers(labels), self.classes)


def fit_probe(
    features: Tensor,
    labels: Tensor,
    *,
    inverse_regularisation: float | None = None,
    max_iterations: int = 1000,
    probe_seed: int = 0,
    device: str = "cpu",
) -> Probe:
    """Fit a linear classifier on the features of training images.

    Without a C, it is searched on held-out images of at most 500 classes. Only classes with two training
    images or more have one to hold out; with fewer than two such classes it is 0.1, with a note.
    Meant for up to some 10^5 images in memory: an iteration costs images x features x classes.

    Args:
        features: [N, F] outputs of a frozen backbone, before any projection head; any floating type.
        labels: [N] class numbers; any integers.
        inverse_regularisation: C, > 0; None: searched.
        max_iterations: most iterations of L-BFGS in each fit.
        probe_seed: decides which images are held out; the fits themselves are deterministic.
        device: of the fits.

    Raises:
        ValueError: an input is empty, of the wrong shape or not finite, there are fewer than two classes, or
            C or `max_iterations` is not positive.
    """
    _check_rows("train", features, labels)
    if max_iterations < 1 or not (inverse_regularisation is None or inverse_regularisation > 0):
        raise ValueError(
            f"probe: inverse_regularisation is {inverse_regularisation}, max_iterations {max_iterations}; "
            "both must be above 0"
        )
    classes, index = np.unique(_integers(labels), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"probe: every train label is {classes[0]}; a classifier needs two classes")
    train = features.detach().to(device, torch.float32)
    chosen, notes = inverse_regularisation, list[str]()
    if chosen is None:
        chosen, notes = _choose(train, index, max_iterations, probe_seed)
    mean, deviation = _scale(train)
    weights, iterations = fit((train - mean) / deviation, index, chosen, max_iterations)
    if iterations >= max_iterations:
        notes.append(f"the fit stopped at {max_iterations:,} iterations, before it converged")
    return Probe(weights, mean, deviation, classes, chosen, iterations, len(train), tuple(notes))


def fit(
    features: Tensor,
    index: Integers,
    inverse_regularisation: float,
    max_iterations: int,
    start: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Fit a logistic regression: the mean cross entropy plus |weights|^2 / (2 C N), biases free.

    Args:
        features: float32 [N, F].
        index: [N], classes 0..K-1.
        inverse_regularisation: C.
        max_iterations: of L-BFGS, which ends once no entry of the gradient exceeds 1e-3 / K: entries start
            near a class's mean feature / K, so that 1e-4 would end a probe of thousands of classes at once.
        start: weights to begin with; by default 0.

    Returns:
        float32 [F + 1, K], the last row the biases; and the number of iterations.
    """
    number, classes = int(index.max()) + 1, torch.from_numpy(index).to(features.device)
    weights = features.new_zeros(features.shape[1] + 1, number) if start is None else start.clone()
    weights.requires_grad_()
    penalty = 1 / (2 * inverse_regularisation * len(features))
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        max_eval=4 * max_iterations,
        tolerance_grad=1e-3 / number,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(weights[-1], features, weights[:-1])
        loss = F.cross_entropy(logits, classes) + penalty * weights[:-1].square().sum()
        loss.backward()
        return loss

    is_small = features.numel() * number < SERIAL_BELOW and features.device.type == "cpu"
    with _threads(1 if is_small else torch.get_num_threads()):
        optimizer.step(closure)
    return weights.detach(), int(optimizer.state[weights]["n_iter"])


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Inside, torch uses so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def search(accuracy_of: Callable[[int], float], images: int) -> int:
    """Search the grid of C for the best accuracy, as if it had one peak; of equal ones, the smallest C.

    Args:
        accuracy_of: the accuracy with the value at a place in GRID; called at most once for each place.
        images: number of images behind an accuracy. A large C takes L-BFGS many iterations; once two values
            in a row are more than two standard errors below the best, larger ones are not tried.
    """
    found: dict[int, float] = {}
    for place in range(0, len(GRID), FIRST_SPACING):
        found[place] = accuracy_of(place)
        top = max(found.values())
        clearly_below = top - 2 * math.sqrt(top * (1 - top) / images)
        if len(found) > 2 and max([*found.values()][-2:]) < clearly_below:
            break

    def best() -> int:
        return min(found, key=lambda place: (-found[place], place))

    spacing = FIRST_SPACING // 2
    while spacing:
        peak = best()
        for place in (peak - spacing, peak + spacing):
            if 0 <= place < len(GRID):
                found[place] = accuracy_of(place)
        spacing //= 2
    return best()


def _choose(
    features: Tensor, index: Integers, max_iterations: int, probe_seed: int
) -> tuple[float, list[str]]:
    """The C to use, and a note where it could not be chosen on held-out images."""
    random = np.random.default_rng(probe_seed)
    divisible = random.permutation(np.flatnonzero(np.bincount(index) >= 2))
    if len(divisible) < 2:
        return DEFAULT_C, [f"C={DEFAULT_C:g} is a default: too few classes have two images to hold one out"]
    rows = np.flatnonzero(np.isin(index, divisible[:SWEEP_CLASSES]))
    _, index = np.unique(index[rows], return_inverse=True)
    held_out = _held_out(index, random)
    features = features[torch.from_numpy(rows).to(features.device)]
    mask = torch.from_numpy(held_out).to(features.device)
    mean, deviation = _scale(features[~mask])
    fitted, tested = (features[~mask] - mean) / deviation, (features[mask] - mean) / deviation
    own = torch.from_numpy(index[held_out]).to(features.device)
    solutions: dict[int, Tensor] = {}

    def accuracy_of(place: int) -> float:
        # The solution of the next smaller C is a good start.
        below = max((each for each in solutions if each < place), default=None)
        start = None if below is None else solutions[below]
        weights, _ = fit(fitted, index[~held_out], float(GRID[place]), max_iterations, start)
        solutions[place] = weights
        return float((torch.addmm(weights[-1], tested, weights[:-1]).argmax(dim=1) == own).float().mean())

    return float(GRID[search(accuracy_of, len(own))]), []


def _scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; a constant one gets the deviation 1."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))


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


def _test_ranks(weights: Tensor, features: Tensor, labels: Integers, classes: Integers) -> Tensor:
    """Return [M], the number of classes ahead of the true one; beyond any k if it had no training image."""
    known = np.isin(labels, classes)
    ranks = torch.full((len(labels),), torch.iinfo(torch.long).max)
    index = torch.from_numpy(np.searchsorted(classes, labels[known]))
    parts = [torch.zeros(0, dtype=torch.long)]
    rows = torch.from_numpy(np.flatnonzero(known)).to(features.device)
    for part, own in zip(
        *(each.split(max(1, CHUNK_ELEMENTS // len(classes))) for each in (rows, index)), strict=True
    ):
        parts.append(label_ranks(torch.addmm(weights[-1], features[part], weights[:-1]), own).cpu())
    ranks[torch.from_numpy(known)] = torch.cat(parts)
    return ranks


def unseen_note(labels: Tensor, train_labels: Tensor) -> list[str]:
    """Return a note if some test images, [M] class numbers, are of classes without training images, [N]."""
    unseen = ~torch.isin(labels, train_labels)
    if not unseen.any():
        return []
    number = len(labels[unseen].unique())
    return [
        f"{number} test {'class' if number == 1 else 'classes'} ({int(unseen.sum()):,} of {len(labels):,} "
        "images) had no training image; these images count as misses"
    ]


def _check_rows(split: str, features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or features.numel() == 0 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"probe: {split} features are {list(features.shape)}, labels {list(labels.shape)}; "
            "they must be [N, F] and [N] with at least one row"
        )
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(f"probe: {bad} of {len(features)} rows of {split} features are not finite")


def _integers(labels: Tensor) -> Integers:
    return labels.detach().to("cpu", torch.int64).numpy()
