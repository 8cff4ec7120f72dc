"""Weighted statistics against the plain figure of images that are repeated as often as their weight says."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from beamclip.evaluation.statistic import CalibrationError, Quotient, Ratio, class_mean, mean, reliability

N = 60


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def one(images: int) -> np.ndarray:
    return np.ones((1, images))


def equal_mass_error(hits: np.ndarray, confidence: np.ndarray, bins: int) -> float:
    """By cutting the sorted images into bins of one size; their number must divide that of the images."""
    order = np.argsort(confidence, kind="stable")
    parts = np.split(order, bins)
    return sum(abs(hits[p].mean() - confidence[p].mean()) for p in parts) / bins


def test_weights_count_images_as_often_as_they_say(random) -> None:
    hits = random.integers(2, size=N).astype(float)
    weights = random.integers(3, size=N)
    repeated = np.repeat(np.arange(N), weights)
    captions = random.integers(1, 6, size=N).astype(float)
    found = np.minimum(captions, random.integers(4, size=N))
    row = weights[None].astype(float)
    assert mean(hits)(row)[0] == pytest.approx(hits[repeated].mean())
    assert Ratio(found, captions)(row)[0] == pytest.approx(found[repeated].sum() / captions[repeated].sum())


def test_the_class_mean_is_scikit_learns_balanced_accuracy(random) -> None:
    labels, predicted = random.integers(5, size=N), random.integers(5, size=N)
    found = class_mean((labels == predicted).astype(float), labels)(one(N))[0]
    assert found == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_with_an_image_a_class_the_class_mean_is_the_mean_in_every_resample(random) -> None:
    hits, weights = random.integers(2, size=N).astype(float), random.integers(3, size=(4, N)).astype(float)
    np.testing.assert_allclose(class_mean(hits, np.arange(N))(weights), mean(hits)(weights))


def test_the_calibration_error_is_that_of_bins_of_equally_many_images(random) -> None:
    confidence = random.random(N)
    hits = (random.random(N) < confidence**2).astype(float)
    statistic = CalibrationError(hits, confidence)
    assert statistic(one(N))[0] == pytest.approx(equal_mass_error(hits, confidence, 15))
    # Four copies of every image fill the same bins.
    assert statistic(4 * one(N))[0] == pytest.approx(equal_mass_error(hits, confidence, 15))
    bins = reliability(statistic)
    wanted = np.abs(bins.accuracy - bins.confidence) @ bins.images / N
    assert statistic(one(N))[0] == pytest.approx(wanted)


def test_fewer_images_than_bins_lie_in_a_bin_each() -> None:
    statistic = CalibrationError(np.array([1.0, 0.0, 1.0]), np.array([0.9, 0.2, 0.5]))
    assert statistic(one(3))[0] == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert reliability(statistic).images.tolist() == [1, 1, 1]


def test_each_row_of_weights_is_computed_on_its_own(random) -> None:
    confidence, hits = random.random(N), random.integers(2, size=N).astype(float)
    weights = random.integers(1, 4, size=(5, N)).astype(float)
    for statistic in (
        CalibrationError(hits, confidence),
        class_mean(hits, random.integers(3, size=N)),
        Quotient(mean(hits), mean(confidence)),
    ):
        together = statistic(weights)
        assert together.tolist() == pytest.approx([statistic(row[None])[0] for row in weights])


def test_nothing_to_divide_by_gives_zero() -> None:
    nobody = Ratio(np.zeros(2), np.zeros(2))
    assert nobody(one(2)).tolist() == Quotient(mean([1, 1]), nobody)(one(2)).tolist() == [0.0]
