"""Effective robustness against a line through known points."""

import numpy as np
import pytest
from scipy.special import expit, logit

from beamclip.evaluation.robustness import fit_baseline


def test_a_line_through_logits_is_found_again() -> None:
    ordinary = np.array([0.2, 0.5, 0.7, 0.9])
    line = fit_baseline(ordinary, expit(0.8 * logit(ordinary) - 0.5))
    assert (line.slope, line.intercept, line.models) == pytest.approx((0.8, -0.5, 4))
    assert line.predict(np.array([0.6])) == pytest.approx(expit(0.8 * logit(0.6) - 0.5))


def test_accuracies_of_0_and_1_stay_finite() -> None:
    line = fit_baseline([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    assert line.predict(np.array([0.5])) == pytest.approx(0.5)


def test_too_few_or_equal_models_define_no_line() -> None:
    with pytest.raises(ValueError, match="3 models or more"):
        fit_baseline([0.1, 0.2], [0.1, 0.2])
    with pytest.raises(ValueError, match="same accuracy"):
        fit_baseline([0.5, 0.5, 0.5], [0.1, 0.2, 0.3])
