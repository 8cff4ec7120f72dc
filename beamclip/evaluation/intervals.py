"""Bootstrap intervals of figures, and of the difference of two models on the same images.

Efron, Bootstrap methods: another look at the jackknife, 1979. Images are drawn with replacement, as many as
there are; captions come with their image. An interval says how far a figure would move with other images of
the same kind: not with other seeds of the training, nor with images of another kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from beamclip.evaluation.statistic import CalibrationError, Floats, Ratio, Statistic

RESAMPLES = 1000
LEVEL = 0.95
WEIGHTS_AT_ONCE = 2**23
"""Weights held at a time, 64 MiB."""

Verdict = Literal["better", "worse", "cannot tell"]
Interval = tuple[float, float]
"""The lower and the upper end."""


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> Interval:
        """Both ends of the interval."""
        return self.low, self.high


@dataclass(frozen=True)
class Difference:
    """How much a model's figure exceeds another's on the same images."""

    value: float
    low: float
    high: float
    verdict: Verdict
    """`cannot tell` if the interval holds 0, or is none because a figure is not finite."""


def figures(
    statistics: Mapping[str, Statistic], images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Figure]:
    """Compute figures with 95 % intervals, all from the same resamples.

    Args:
        statistics: of the same images.
        images: their number.
        resamples: draws of so many images.
        seed: of the draws.
    """
    values = {name: float(each(np.ones((1, images)))[0]) for name, each in statistics.items()}
    drawn = resampled(statistics, images, resamples=resamples, seed=seed)
    return {
        name: Figure(values[name], *_interval(each, values[name], drawn[name]))
        for name, each in statistics.items()
    }


def ends(intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Return the ends of intervals as figures `NAME_low` and `NAME_high`, for MLflow."""
    found: dict[str, float] = {}
    for name, (low, high) in intervals.items():
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def differences(
    ours: Mapping[str, Statistic],
    theirs: Mapping[str, Statistic],
    images: int,
    *,
    lower_is_better: frozenset[str] = frozenset(),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two models on the same images, by the figures that both have.

    Both models see the same resamples: images that are hard for both do not widen the interval (Efron and
    Tibshirani, An introduction to the bootstrap, 1993, chapter 8).

    Args:
        ours, theirs: statistics of the two models; image i is the same in both.
        lower_is_better: names of figures that a better model has lower.
    """
    pairs = {name: _Minus(ours[name], theirs[name]) for name in ours if name in theirs}
    found = figures(pairs, images, resamples=resamples, seed=seed)
    return {
        name: Difference(each.value, each.low, each.high, _verdict(each, lower=name in lower_is_better))
        for name, each in found.items()
    }


def resampled(
    statistics: Mapping[str, Statistic], images: int, *, resamples: int, seed: int
) -> dict[str, Floats]:
    """Return [resamples] values of each statistic, in each of which the images are drawn anew."""
    random = np.random.default_rng(seed)
    rows = max(1, WEIGHTS_AT_ONCE // images)
    found: dict[str, list[Floats]] = {name: [] for name in statistics}
    for first in range(0, resamples, rows):
        number = min(rows, resamples - first)
        weights = np.stack(
            [np.bincount(random.integers(images, size=images), minlength=images) for _ in range(number)]
        ).astype(np.float64)
        for name, statistic in statistics.items():
            found[name].append(statistic(weights))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@dataclass(frozen=True, eq=False)
class _Minus:
    ours: Statistic
    theirs: Statistic
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def __call__(self, weights: Floats) -> Floats:
        return self.ours(weights) - self.theirs(weights)


def _verdict(difference: Figure, *, lower: bool) -> Verdict:
    if not (difference.low > 0 or difference.high < 0):
        return "cannot tell"
    return "better" if (difference.value > 0) != lower else "worse"


def _interval(statistic: Statistic, value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if isinstance(statistic, CalibrationError):
        # Its bias is as large again in a resample as it is in the sample: the mirrored interval takes it off.
        low, high = 2 * value - high, 2 * value - low
    if isinstance(statistic, Ratio) and value in statistic.bounds == (0.0, 1.0):
        low, high = _without_spread(value, _effective_number(statistic.denominator))
    least, most = statistic.bounds
    return float(np.clip(low, least, most)), float(np.clip(high, least, most))


def _effective_number(weights: Floats) -> float:
    """Equal images that tell as much as these weighted ones (Kish, Survey sampling, 1965, section 11.7)."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _without_spread(share: float, number: float) -> Interval:
    """The interval of Clopper and Pearson (1934) where all trials ended alike, which resamples do, too."""
    far = ((1 - LEVEL) / 2) ** (1 / max(number, 1.0))
    return (far, 1.0) if share == 1.0 else (0.0, 1.0 - far)
