"""What predictions say about images, against what is known by arithmetic."""

import math

import pytest
import torch
import torch.nn.functional as F

from beamclip.evaluation.template_fit import information


def test_images_that_each_point_at_their_own_class_say_the_logarithm_of_the_classes() -> None:
    assert information(torch.eye(8), torch.eye(8), 1000.0) == pytest.approx(math.log(8))


def test_images_that_all_point_at_one_class_say_nothing_however_sure_they_are() -> None:
    images = torch.eye(8)[[3]].expand(20, 8)
    assert information(images, torch.eye(8), 1000.0) == pytest.approx(0.0, abs=1e-6)


def test_it_is_the_mean_divergence_of_the_predictions_from_their_mean() -> None:
    images, anchors = (F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (12, 9))
    predicted = [F.softmax(7.0 * anchors @ image, dim=0) for image in images]
    mean = sum(predicted, torch.zeros(9)) / 12
    divergences = [float((p * (p / mean).log()).sum()) for p in predicted]
    assert information(images, anchors, 7.0) == pytest.approx(sum(divergences) / 12, rel=1e-4)
