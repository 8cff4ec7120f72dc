"""Statistics of images that can be computed for any weights of the images, as the bootstrap needs.

A weight says how often an image is drawn; with all weights 1, a statistic is the plain figure.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 15
"""Bins of the calibration error, as usual since Guo et al. (arXiv 1706.04599)."""


class Statistic(Protocol):
    """A figure of N images."""

    def __call__(self, weights: Floats) -> Floats:
        """Return [R], the figure under each row of weights [R, N]; a row's weights sum to more than 0."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that the figure can have."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """A sum over the images divided by another one, such as hits by images, or found captions by captions."""

    numerator: Floats
    """[N]."""
    denominator: Floats
    """[N], not negative; 0 for an image that does not count."""
    bounds: tuple[float, float] = (0.0, 1.0)

    def __call__(self, weights: Floats) -> Floats:
        """Return the ratio under each row of weights; 0 where no image counts."""
        below = weights @ self.denominator
        return np.divide(weights @ self.numerator, below, out=np.zeros_like(below), where=below > 0)


def mean(values: npt.ArrayLike, bounds: tuple[float, float] = (0.0, 1.0)) -> Ratio:
    """Return the mean of a value of each image, [N]: a share if the values are hits."""
    values = np.asarray(values, np.float64)
    return Ratio(values, np.ones_like(values), bounds)


def class_mean(hits: Floats, labels: Ints) -> Ratio:
    """Return the mean over the classes of each one's share of hits: small classes weigh as large ones do.

    It is a mean of hits weighted by the inverse size of their class, so that it can be resampled even where
    classes have one image each. Its interval also holds what classes differ in: it is rather too wide.

    Args:
        hits: [N], 0 or 1.
        labels: [N].
    """
    shares = 1 / np.bincount(labels)[labels]
    return Ratio(hits * shares, shares)


@dataclass(frozen=True, eq=False)
class CalibrationError:
    """Expected calibration error over bins of equally many images, sorted by confidence.

    The mean of |share of hits - mean confidence| over the bins (Nguyen and O'Connor, EMNLP 2015; with bins of
    equal width it is that of Guo et al., arXiv 1706.04599). It is biased upwards: chance alone gives each bin
    a difference.
    """

    hits: Floats
    """[N], 0 or 1: whether the likeliest class is the true one."""
    confidence: Floats
    """[N], the probability of the likeliest class."""
    bins: int = BINS
    bounds: tuple[float, float] = (0.0, 1.0)

    def __call__(self, weights: Floats) -> Floats:
        """Return the error under each row of weights; an image's copies lie in one bin."""
        order, gaps = self._sorted
        drawn = weights[:, order]
        total = drawn.sum(axis=1, keepdims=True)
        before = drawn.cumsum(axis=1) - drawn
        place = np.minimum(before * self.bins // total, self.bins - 1).astype(np.int64)
        place += self.bins * np.arange(len(weights))[:, None]
        sums = np.bincount(place.ravel(), (drawn * gaps).ravel(), minlength=self.bins * len(weights))
        return np.abs(sums.reshape(-1, self.bins)).sum(axis=1) / total[:, 0]

    @cached_property
    def _sorted(self) -> tuple[Ints, Floats]:
        order = np.argsort(self.confidence, kind="stable")
        return order, (self.hits - self.confidence)[order]


@dataclass(frozen=True, eq=False)
class Quotient:
    """One statistic divided by another of the same images, such as a student's accuracy by its teacher's."""

    upper: Statistic
    lower: Statistic
    bounds: tuple[float, float] = (0.0, np.inf)

    def __call__(self, weights: Floats) -> Floats:
        """Return the quotient under each row of weights; 0 where the divisor is 0."""
        below = self.lower(weights)
        return np.divide(self.upper(weights), below, out=np.zeros_like(below), where=below > 0)


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram shows: a row a bin of equally many images, by ascending confidence."""

    confidence: Floats
    """[bins], mean probability of the likeliest class."""
    accuracy: Floats
    """[bins], share of the images whose likeliest class is the true one."""
    images: Ints
    """[bins]."""


def reliability(statistic: CalibrationError) -> ReliabilityBins:
    """Return the bins of a calibration error; fewer than asked for where there are fewer images."""
    order = np.argsort(statistic.confidence, kind="stable")
    place = np.arange(len(order)) * statistic.bins // len(order)
    images = np.bincount(place, minlength=statistic.bins)
    kept = images > 0
    sums = [
        np.bincount(place, values[order], minlength=statistic.bins)[kept] / images[kept]
        for values in (statistic.confidence, statistic.hits)
    ]
    return ReliabilityBins(sums[0], sums[1], images[kept])
