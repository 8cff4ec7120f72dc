"""Effective robustness: accuracy on shifted images beyond what accuracy on ordinary ones predicts.

Taori et al., Measuring robustness to natural distribution shifts in image classification (arXiv 2007.00644):
models that were trained in ordinary ways lie on a line, once both accuracies are transformed by the logit. A
model above the line is more robust than its accuracy alone explains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beamclip.evaluation.statistic import Floats

LEAST_MODELS = 3
"""Models behind a line: two always lie on one."""
CLIPPED = 1e-4
"""Accuracies are kept this far from 0 and 1, whose logits are infinite."""


@dataclass(frozen=True)
class Baseline:
    """A line through the logits of accuracies: of shifted images over those of ordinary ones."""

    slope: float
    intercept: float
    models: int
    """Number of models that it was fitted to."""

    def predict(self, ordinary: Floats) -> Floats:
        """Return the accuracies on shifted images that the line predicts."""
        return 1 / (1 + np.exp(-(self.slope * logit(ordinary) + self.intercept)))


def fit_baseline(ordinary: Sequence[float], shifted: Sequence[float]) -> Baseline:
    """Fit a line by least squares to the logits of the accuracies of some models.

    Args:
        ordinary: accuracy of each model on the first data set, 0..1.
        shifted: accuracy of each model on the shifted one.

    Raises:
        ValueError: there are fewer than three models, or all have one accuracy on the first data set.
    """
    if len(ordinary) != len(shifted) or len(ordinary) < LEAST_MODELS:
        raise ValueError(
            f"a line needs {LEAST_MODELS} models or more; there are {len(ordinary)} and {len(shifted)}"
        )
    x, y = logit(np.array(ordinary)), logit(np.array(shifted))
    if np.ptp(x) < 1e-9:
        raise ValueError("all models have the same accuracy on the first data set, so no line is defined")
    slope, intercept = np.polyfit(x, y, 1)
    return Baseline(float(slope), float(intercept), len(x))


def logit(accuracy: Floats) -> Floats:
    """Return log(a / (1 - a))."""
    kept = np.clip(accuracy, CLIPPED, 1 - CLIPPED)
    return np.log(kept / (1 - kept))
