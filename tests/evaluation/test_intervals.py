"""Bootstrap intervals against the formulas for a mean, and against the truth behind simulated data."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from beamclip.evaluation.intervals import differences, ends, figures, resampled
from beamclip.evaluation.statistic import CalibrationError, Ratio, class_mean, mean


def hits(images: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(images) < share).astype(float)


def test_the_interval_of_a_share_is_as_wide_as_the_normal_one() -> None:
    found = figures({"top1": mean(hits(2000, 0.3))}, 2000)["top1"]
    half = 1.96 * math.sqrt(found.value * (1 - found.value) / 2000)
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, trials = 0.2, 200
    held = 0
    for seed in range(trials):
        found = figures({"top1": mean(hits(300, truth, seed))}, 300, resamples=200, seed=seed)["top1"]
        held += found.low <= truth <= found.high
    # Four standard deviations below 0.95, and not always.
    assert 0.88 < held / trials < 1.0


def test_captions_are_drawn_with_their_image() -> None:
    """Five captions that are found together say no more than one: the interval is that of the images."""
    found = hits(400, 0.5)
    clustered = Ratio(5 * found, np.full(400, 5.0))
    both = figures({"images": mean(found), "captions": clustered}, 400)
    assert both["images"] == both["captions"]


@pytest.mark.parametrize(("value", "images"), [(0.0, 50), (1.0, 50), (0.0, 1)])
def test_a_share_of_none_or_all_gets_the_interval_of_clopper_and_pearson(value: float, images: int) -> None:
    found = figures({"top1": mean(np.full(images, value))}, images, resamples=20)["top1"]
    wanted = binomtest(int(value * images), images).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_a_share_of_all_counts_images_and_not_their_captions_or_classes() -> None:
    """Five captions of each of 40 images; and 2,000 images of two classes, one of which has two images."""
    captions = Ratio(np.full(40, 5.0), np.full(40, 5.0))
    images = binomtest(40, 40).proportion_ci(0.95, "exact")
    found = figures({"t2i": captions}, 40, resamples=20)["t2i"]
    assert (found.low, found.high) == pytest.approx((images.low, images.high))
    labels = np.array([0] * 1998 + [1] * 2)
    lopsided = figures({"mean": class_mean(np.ones(2000), labels)}, 2000, resamples=20)["mean"]
    even = figures({"mean": class_mean(np.ones(2000), np.arange(2000) % 2)}, 2000, resamples=20)["mean"]
    assert lopsided.low < 0.75  # the small class has two images
    assert even.low == pytest.approx(binomtest(2000, 2000).proportion_ci(0.95, "exact").low)


def test_the_bias_of_the_calibration_error_is_taken_off() -> None:
    """Of a model without any error, chance alone makes some: the interval reaches down to none."""
    random = np.random.default_rng(0)
    confidence = random.random(500)
    statistic = CalibrationError((random.random(500) < confidence).astype(float), confidence)
    found = figures({"ece": statistic}, 500)["ece"]
    drawn = resampled({"ece": statistic}, 500, resamples=200, seed=0)["ece"]
    assert found.value > 0.01
    assert found.low < 0.01 < np.quantile(drawn, 0.025)


def test_equal_seeds_give_equal_intervals_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = {"top1": mean(hits(100, 0.4))}
    whole = figures(statistics, 100)
    monkeypatch.setattr("beamclip.evaluation.intervals.WEIGHTS_AT_ONCE", 700)
    assert figures(statistics, 100) == whole
    assert figures(statistics, 100, seed=1) != whole


def test_paired_models_are_told_apart_where_their_own_intervals_overlap() -> None:
    base = hits(1000, 0.5)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:30]] = 1
    ours, theirs = {"top1": mean(better)}, {"top1": mean(base)}
    alone = [figures(each, 1000)["top1"] for each in (ours, theirs)]
    assert alone[0].low < alone[1].high
    found = differences(ours, theirs, 1000)["top1"]
    assert found.value == pytest.approx(0.03)
    assert found.verdict == "better"
    assert differences(theirs, ours, 1000)["top1"].verdict == "worse"
    assert differences(ours, theirs, 1000, lower_is_better=frozenset(["top1"]))["top1"].verdict == "worse"


def test_equal_and_unrelated_models_cannot_be_told_apart() -> None:
    same = {"top1": mean(hits(500, 0.5)), "only here": mean(hits(500, 0.1))}
    assert differences(same, same, 500)["top1"].verdict == "cannot tell"
    other = {"top1": mean(hits(500, 0.5, seed=9))}
    assert {name: each.verdict for name, each in differences(same, other, 500).items()} == {
        "top1": "cannot tell"
    }


def test_figures_that_are_not_finite_get_no_verdict() -> None:
    broken = hits(100, 0.5)
    broken[3] = np.nan
    ours, theirs = {"kl": mean(broken)}, {"kl": mean(hits(100, 0.2))}
    assert differences(ours, theirs, 100)["kl"].verdict == "cannot tell"
    assert differences(ours, theirs, 100, lower_is_better=frozenset(["kl"]))["kl"].verdict == "cannot tell"


def test_ends_are_named_after_their_figure() -> None:
    assert ends({"top1": (0.1, 0.2)}) == {"top1_low": 0.1, "top1_high": 0.2}
