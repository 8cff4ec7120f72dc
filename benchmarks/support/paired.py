"""Differences between two arms of a study, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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
