"""Scores of a study's arms on test data, and the differences between two arms, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from support.reports import plus_minus
from support.trials import Result, results_of

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of pairs, its interval by Student's t, and the p-value of the paired t-test."""

    mean: float
    half: float
    """Half the width of the interval of LEVEL."""
    p: float

    @property
    def text(self) -> str:
        """Percentage points with their interval: `+1.2 (0.4 to 2.0)`."""
        low, high = 100 * (self.mean - self.half), 100 * (self.mean + self.half)
        return f"{100 * self.mean:+.1f} ({low:.1f} to {high:.1f})"


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare paired scores: first minus second, one pair a seed.

    Raises:
        ValueError: there are fewer than two pairs, or the numbers of scores differ.
    """
    of_pairs = np.subtract(first, second)
    if len(of_pairs) < 2 or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores: give two pairs or more")
    error = of_pairs.std(ddof=1) / np.sqrt(len(of_pairs))
    half = stats.t.ppf((1 + LEVEL) / 2, len(of_pairs) - 1) * error
    p = stats.ttest_rel(first, second).pvalue if error else float(of_pairs.mean() == 0)
    return Difference(float(of_pairs.mean()), float(half), float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons by Holm's method, in their order."""
    ranked = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values)[ranked] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[ranked] = np.maximum.accumulate(raised).clip(max=1.0)
    return adjusted.tolist()


@dataclass(frozen=True)
class Pair:
    """Two arms that are compared at one share of noise."""

    arm: str
    other: str
    noise: float = 0.0


def on_test(results: list[Result], arm: str, figure: str, noise: float = 0.0) -> list[float]:
    """Return a figure of an arm on test data, in the order of the seeds."""
    own = sorted(results_of(results, arm, noise), key=lambda result: result["trial"]["seed"])
    return [result["test"][figure] for result in own]


def mean_on_test(results: list[Result], arm: str, figure: str, noise: float = 0.0) -> str:
    """Return mean and standard deviation of a figure over the seeds, in per cent."""
    scores = on_test(results, arm, figure, noise)
    return plus_minus(float(np.mean(scores)), float(np.std(scores, ddof=1)))


def compared(results: list[Result], pairs: Sequence[Pair], figure: str) -> dict[Pair, str]:
    """Return the difference of each pair as text, with p-values adjusted for all pairs by Holm's method."""
    found = [
        difference(*(on_test(results, arm, figure, pair.noise) for arm in (pair.arm, pair.other)))
        for pair in pairs
    ]
    return dict(zip(pairs, as_texts(found), strict=True))


def as_texts(found: Sequence[Difference]) -> list[str]:
    """Return differences as text, with p-values adjusted for all of them by Holm's method."""
    adjusted = holm([each.p for each in found])
    return [f"{each.text}, {p_text(p)}" for each, p in zip(found, adjusted, strict=True)]


def p_text(p: float) -> str:
    """Format a p-value: `p 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.0005 else f"p {p:.3f}"
