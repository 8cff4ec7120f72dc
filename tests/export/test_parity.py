"""The comparison of an export with PyTorch."""

import pytest
import torch

from beamclip.errors import FailedRunError
from beamclip.export.parity import check_close, check_pixels, check_similar, compare, warning_of


def test_the_figures_are_the_largest_difference_the_mean_distance_and_the_share_of_equal_classes() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    parity = compare("probabilities", found, expected)
    assert parity.largest == 1
    assert parity.distance == pytest.approx(0.5)  # 1 - cosine is 1 and 0
    assert parity.same_top1 == 0.5
    assert compare("embeddings", found, expected).same_top1 is None


def test_a_difference_a_nan_or_another_shape_is_refused() -> None:
    expected = torch.eye(2)
    check_close(compare("embeddings", expected + 1e-4, expected))
    for found in (expected + 0.01, expected * float("nan")):
        with pytest.raises(FailedRunError, match="nothing was written"):
            check_close(compare("embeddings", found, expected))
    check_similar(compare("probabilities", expected + 0.01, expected))
    with pytest.raises(FailedRunError, match="nothing was written"):
        check_similar(compare("probabilities", expected * float("nan"), expected))
    with pytest.raises(FailedRunError, match=r"\[2, 1\], those of PyTorch \[2, 2\]"):
        compare("embeddings", expected[:, :1], expected)


def test_other_classes_than_pytorchs_are_warned_of() -> None:
    expected = torch.eye(20)
    found = expected.clone()
    found[0] = expected[1]
    assert warning_of(compare("probabilities", found, expected)) is None
    found[1] = expected[0]
    warning = warning_of(compare("probabilities", found, expected))
    assert warning is not None
    assert warning.startswith("10 % of 20 images get another class")
    assert warning_of(compare("embeddings", found, expected)) is None


def test_resized_pixels_may_differ_by_some_levels() -> None:
    expected = torch.full((2, 12), 100, dtype=torch.uint8)
    assert check_pixels(compare("pixels", expected + 2, expected)).largest == 2
    with pytest.raises(FailedRunError, match="by up to 9 levels of 255"):
        check_pixels(compare("pixels", expected + 9, expected))


def test_int8_may_differ_by_a_mean_distance() -> None:
    expected = torch.eye(4)
    check_similar(compare("embeddings", expected + 0.05, expected))
    with pytest.raises(FailedRunError, match="Give --calibration-data like the images to come"):
        check_similar(compare("embeddings", expected + 0.5, expected))
