"""Weights of samples in the losses that need no other sample."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.csm import csm_ensemble_loss, csm_loss
from beamclip.losses.feature import feature_loss

B, WIDTH, ANCHORS = 9, 12, 40
TAU = {"tau_student": 0.05, "tau_teacher": 0.02}
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1)


def csm_in_chunks_of(chunk_size: int | None) -> Loss:
    anchors = unit(ANCHORS, WIDTH, seed=2)
    return lambda student, teacher, weights: csm_loss(
        student, teacher, anchors, **TAU, chunk_size=chunk_size, weights=weights
    )


def ensemble(student: Tensor, teacher: Tensor, weights: Tensor | None) -> Tensor:
    """Two teachers, of which the second is half as wide."""
    teachers = [
        (teacher, unit(ANCHORS, WIDTH, seed=2)),
        (F.normalize(teacher[:, ::2], dim=1), unit(ANCHORS, WIDTH // 2, seed=3)),
    ]
    taus = {"tau_student": 0.05, "tau_teachers": (0.02,) * len(teachers)}
    return csm_ensemble_loss(student, unit(ANCHORS, WIDTH, seed=2), teachers, **taus, weights=weights)


LOSSES: dict[str, Loss] = {
    "csm": csm_in_chunks_of(None),
    "csm in chunks": csm_in_chunks_of(7),
    "ensemble": ensemble,
    "cosine": lambda student, teacher, weights: feature_loss(student, teacher, "cosine", weights),
    "mse": lambda student, teacher, weights: feature_loss(student, teacher, "mse", weights),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def value_and_gradient(name: str, student: Tensor, teacher: Tensor, weights: Tensor | None) -> list[Tensor]:
    student = student.clone().requires_grad_()
    loss = LOSSES[name](student, teacher, weights)
    return [loss.detach(), *torch.autograd.grad(loss, student)]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@every_loss
def test_without_weights_a_loss_is_the_mean_over_its_rows(name: str) -> None:
    student, teacher = unit(B, WIDTH, seed=0), unit(B, WIDTH, seed=1)
    singles = [value_and_gradient(name, student[i, None], teacher[i, None], None) for i in range(B)]
    values, gradients = zip(*singles, strict=True)
    want = [torch.stack(values).mean(), torch.cat(gradients) / B]
    assert_same(value_and_gradient(name, student, teacher, None), want)
    assert_same(
        value_and_gradient(name, student, teacher, torch.full((B,), 1 / B, dtype=torch.float64)), want
    )


@every_loss
def test_a_loss_is_the_sum_of_its_rows_times_their_weights(name: str) -> None:
    student, teacher = unit(B, WIDTH, seed=0), unit(B, WIDTH, seed=1)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    singles = [value_and_gradient(name, student[i, None], teacher[i, None], None) for i in range(B)]
    values, gradients = zip(*singles, strict=True)
    want = [weights @ torch.stack(values), weights[:, None] * torch.cat(gradients)]
    assert_same(value_and_gradient(name, student, teacher, weights), want)


@every_loss
def test_rows_of_weight_zero_count_for_nothing(name: str) -> None:
    student, teacher = unit(B, WIDTH, seed=0), unit(B, WIDTH, seed=1)
    good = torch.tensor([True, False, True, True, False, True, True, True, False])
    value, gradient = value_and_gradient(name, student[good], teacher[good], None)
    want = torch.zeros_like(student)
    want[good] = gradient
    student[~good] *= 1e6
    teacher[~good] *= -1e3
    assert_same(value_and_gradient(name, student, teacher, good.double() / good.sum()), [value, want])


@every_loss
def test_without_any_good_row_a_loss_and_its_gradient_are_zero(name: str) -> None:
    student, teacher = unit(B, WIDTH, seed=0), unit(B, WIDTH, seed=1)
    value, gradient = value_and_gradient(name, student, teacher, torch.zeros(B))
    assert value == 0
    assert gradient.count_nonzero() == 0


@every_loss
@pytest.mark.parametrize("shape", [(1,), (B, 1)])
def test_weights_that_would_be_broadcast_are_refused(name: str, shape: tuple[int, ...]) -> None:
    student, teacher = unit(B, WIDTH, seed=0), unit(B, WIDTH, seed=1)
    with pytest.raises(ValueError, match=r"weights are .*must be \[9\]"):
        LOSSES[name](student, teacher, torch.ones(shape))
