"""Feature distillation against torch's own distances."""

import pytest
import torch
import torch.nn.functional as F

from beamclip.losses.config import FeatureKind
from beamclip.losses.feature import feature_loss


def embeddings(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_cosine_matches_torch_cosine_similarity() -> None:
    student, teacher = embeddings(0), embeddings(1)
    want = (1 - F.cosine_similarity(student, teacher)).mean()
    torch.testing.assert_close(feature_loss(student, teacher, "cosine"), want)


def test_mse_averages_the_squared_difference_of_unit_vectors_over_batch_and_width() -> None:
    student, teacher = embeddings(0), embeddings(1)
    difference = student / student.norm(dim=1, keepdim=True) - teacher / teacher.norm(dim=1, keepdim=True)
    torch.testing.assert_close(feature_loss(student, teacher, "mse"), difference.square().sum() / (6 * 16))


def test_mse_is_cosine_times_two_over_the_width() -> None:
    student, teacher = embeddings(0), embeddings(1)
    mse, cosine = feature_loss(student, teacher, "mse"), feature_loss(student, teacher, "cosine")
    torch.testing.assert_close(mse, cosine * 2 / 16)


@pytest.mark.parametrize(("kind", "opposite"), [("cosine", 2.0), ("mse", 4 / 16)])
def test_the_loss_is_zero_for_one_direction_and_largest_for_opposite_ones(
    kind: FeatureKind, opposite: float
) -> None:
    teacher = embeddings(0)
    torch.testing.assert_close(feature_loss(3 * teacher, teacher, kind), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(feature_loss(-teacher, teacher, kind), torch.tensor(opposite))


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_gradient_is_the_derivative_and_reaches_the_student_only(kind: FeatureKind) -> None:
    student, teacher = (embeddings(seed, torch.float64).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda s: feature_loss(s, teacher.detach(), kind), (student,))
    feature_loss(student, teacher, kind).backward()
    assert teacher.grad is None


def test_bf16_embeddings_are_compared_in_float32() -> None:
    student, teacher = embeddings(0).bfloat16(), embeddings(1).bfloat16()
    loss = feature_loss(student, teacher, "cosine")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, feature_loss(student.float(), teacher.float(), "cosine"))


def test_widths_that_differ_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student is \[6, 8\] and teacher is \[6, 16\]"):
        feature_loss(embeddings(0)[:, :8], embeddings(1), "mse")
    with pytest.raises(ValueError, match="'l1'"):
        feature_loss(embeddings(0), embeddings(1), "l1")  # type: ignore[arg-type]
