"""The streamed similarity-matching loss against the textbook formula."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from beamclip.losses.csm import csm_ensemble_loss, csm_loss

TAU: dict[str, Any] = {"tau_student": 0.05, "tau_teacher": 0.02}
CHUNKED: dict[str, Any] = {**TAU, "chunk_size": 16}


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=1)


def triple(
    batch: int = 8, count: int = 50, width: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    student = unit(batch, width, seed=0, dtype=dtype)
    teacher = unit(batch, width, seed=1, dtype=dtype)
    return student, teacher, unit(count, width, seed=2, dtype=dtype)


def textbook(
    student: Tensor, teacher: Tensor, anchors: Tensor, tau_student: float, tau_teacher: float
) -> Tensor:
    log_p_student = F.log_softmax(student @ anchors.T / tau_student, dim=1)
    log_p_teacher = F.log_softmax(teacher @ anchors.T / tau_teacher, dim=1)
    return F.kl_div(log_p_student, log_p_teacher, log_target=True, reduction="batchmean")


def value_and_gradient(loss: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 4096, None])
@pytest.mark.parametrize(("tau_student", "tau_teacher"), [(0.05, 0.02), (0.02, 0.07), (1.0, 1.0)])
def test_csm_matches_torch_kl_div_whatever_the_chunk_size(
    chunk_size: int | None, tau_student: float, tau_teacher: float
) -> None:
    student, teacher, anchors = triple()
    student.requires_grad_()
    got = csm_loss(
        student, teacher, anchors, tau_student=tau_student, tau_teacher=tau_teacher, chunk_size=chunk_size
    )
    want = textbook(student, teacher, anchors, tau_student, tau_teacher)
    torch.testing.assert_close(value_and_gradient(got, student), value_and_gradient(want, student))


def test_csm_gradient_is_the_derivative_of_its_value() -> None:
    student, teacher, anchors = triple(batch=3, count=11, width=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: csm_loss(s, teacher, anchors, **TAU, chunk_size=4), (student.requires_grad_(),)
    )


def test_csm_gradient_follows_the_closed_form() -> None:
    student, teacher, anchors = triple(dtype=torch.float64)
    student.requires_grad_()
    _, gradient = value_and_gradient(csm_loss(student, teacher, anchors, **CHUNKED), student)
    difference = (student @ anchors.T / 0.05).softmax(1) - (teacher @ anchors.T / 0.02).softmax(1)
    torch.testing.assert_close(gradient, difference @ anchors / (0.05 * len(student)))


def test_csm_gradient_lies_in_the_span_of_the_anchors() -> None:
    student, teacher, anchors = triple(count=5, width=16, dtype=torch.float64)
    student.requires_grad_()
    _, gradient = value_and_gradient(csm_loss(student, teacher, anchors, **TAU, chunk_size=2), student)
    basis = torch.linalg.qr(anchors.T).Q
    torch.testing.assert_close(gradient @ basis @ basis.T, gradient)
    assert gradient.norm() > 0.1


def test_csm_is_zero_when_student_equals_teacher_at_one_temperature() -> None:
    _, teacher, anchors = triple()
    student = teacher.clone().requires_grad_()
    loss = csm_loss(student, teacher, anchors, tau_student=0.02, tau_teacher=0.02, chunk_size=7)
    value, gradient = value_and_gradient(loss, student)
    assert value == 0
    assert gradient.abs().max() == 0


def test_csm_keeps_its_digits_when_student_and_teacher_nearly_agree_at_a_tiny_temperature() -> None:
    teacher, anchors = unit(64, 256, seed=0), unit(2000, 256, seed=1)
    student = F.normalize(teacher + 0.001 * unit(64, 256, seed=2), dim=1)
    got = csm_loss(student, teacher, anchors, tau_student=0.005, tau_teacher=0.005, chunk_size=300)
    want = textbook(student.double(), teacher.double(), anchors.double(), 0.005, 0.005)
    assert 1e-6 < want < 1e-3
    assert abs(got - want) < 1e-7


def test_csm_stays_finite_at_the_smallest_temperatures() -> None:
    student, anchors = unit(4, 16, seed=0), unit(50, 16, seed=1)
    student.requires_grad_()
    loss = csm_loss(student, -student.detach(), anchors, tau_student=0.005, tau_teacher=0.005, chunk_size=8)
    value, gradient = value_and_gradient(loss, student)
    want = textbook(student.detach(), -student.detach(), anchors, 0.005, 0.005)
    assert value > 50
    torch.testing.assert_close(value, want)
    assert torch.isfinite(gradient).all()


def test_csm_is_the_mean_over_images() -> None:
    student, teacher, anchors = triple()
    whole = csm_loss(student, teacher, anchors, **CHUNKED)
    singles = [csm_loss(s[None], t[None], anchors, **CHUNKED) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(whole, torch.stack(singles).mean())


def test_csm_is_zero_where_all_anchors_are_one() -> None:
    student, teacher, anchors = triple(count=1)
    for chunk_size in (1, 2):
        loss = csm_loss(student, teacher, anchors.repeat(4, 1), **TAU, chunk_size=chunk_size)
        torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_csm_computes_in_float32_under_bf16_autocast() -> None:
    student, teacher, anchors = triple()
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradient(csm_loss(student, teacher, anchors, **CHUNKED), student)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got, value_and_gradient(textbook(student, teacher, anchors, **TAU), student))


def test_csm_takes_bf16_embeddings_and_returns_their_gradient_in_bf16() -> None:
    student, teacher, anchors = triple(dtype=torch.bfloat16)
    student.requires_grad_()
    value, gradient = value_and_gradient(csm_loss(student, teacher, anchors, **CHUNKED), student)
    as_float = student.detach().float().requires_grad_()
    want = textbook(as_float, teacher.float(), anchors.float(), **TAU)
    want_value, want_gradient = value_and_gradient(want, as_float)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, want_value)
    torch.testing.assert_close(gradient, want_gradient.bfloat16())


def test_csm_scales_its_gradient_by_what_follows_it() -> None:
    student, teacher, anchors = triple()
    student.requires_grad_()
    _, plain = value_and_gradient(csm_loss(student, teacher, anchors, **CHUNKED), student)
    _, scaled = value_and_gradient(1024.0 * csm_loss(student, teacher, anchors, **CHUNKED), student)
    torch.testing.assert_close(scaled, 1024.0 * plain)


def test_csm_sends_no_gradient_to_teacher_and_anchors() -> None:
    student, teacher, anchors = (x.requires_grad_() for x in triple())
    csm_loss(student, teacher, anchors, **CHUNKED).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert anchors.grad is None


def test_csm_keeps_no_similarity_matrix_for_the_backward_pass() -> None:
    batch, count, width = 32, 20_000, 8
    student, teacher, anchors = triple(batch, count, width)
    student.requires_grad_()
    saved: list[int] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        csm_loss(student, teacher, anchors, **TAU).backward()
    assert saved
    assert max(saved) == batch * width


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            self.numel = max(self.numel, x.numel() if isinstance(x, Tensor) else 0)
        return result


def test_csm_never_holds_more_than_one_chunk_of_similarities() -> None:
    student, teacher, anchors = triple(batch=32, count=20_000, width=8)
    student.requires_grad_()
    with LargestTensor() as textbook_largest:
        textbook(student, teacher, anchors, **TAU).backward()
    with LargestTensor() as largest:
        csm_loss(student, teacher, anchors, **TAU, chunk_size=1000).backward()
    assert textbook_largest.numel == 32 * 20_000
    assert largest.numel == anchors.numel()  # the transposed or sliced anchors: a view


@pytest.mark.parametrize(
    ("name", "tau"), [("tau_student", 0.0), ("tau_teacher", -0.1), ("tau_student", float("nan"))]
)
def test_csm_names_a_temperature_that_is_not_positive(name: str, tau: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {tau}"):
        csm_loss(*triple(), **{**TAU, name: tau})


def test_csm_refuses_widths_that_differ() -> None:
    student, teacher, anchors = triple()
    with pytest.raises(ValueError, match=r"student is \[8, 12\] and teacher is \[8, 16\]"):
        csm_loss(student[:, :12], teacher, anchors, **TAU)
    with pytest.raises(ValueError, match=r"anchors are \[50, 12\].*width 16"):
        csm_loss(student, teacher, anchors[:, :12], **TAU)


def test_csm_refuses_an_empty_anchor_set_and_an_empty_chunk() -> None:
    student, teacher, anchors = triple()
    with pytest.raises(ValueError, match=r"anchors are \[0, 16\]"):
        csm_loss(student, teacher, anchors[:0], **TAU)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        csm_loss(student, teacher, anchors, **TAU, chunk_size=0)


ENSEMBLE_TAU: dict[str, Any] = {"tau_student": 0.05, "tau_teachers": (0.02, 0.02, 0.02)}
ALONE_TAU: dict[str, Any] = {"tau_student": 0.05, "tau_teachers": (0.02,)}


def ensemble(count: int = 3) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """A student, its anchors, and teachers of widths of their own."""
    student, _, anchors = triple()
    teachers = [
        (unit(8, 4 + 3 * index, seed=10 + index), unit(50, 4 + 3 * index, seed=20 + index))
        for index in range(count)
    ]
    return student, anchors, teachers


def test_an_ensemble_of_one_is_that_teacher() -> None:
    student, teacher, anchors = triple()
    alone = csm_ensemble_loss(student, anchors, [(teacher, anchors)], **ALONE_TAU)
    torch.testing.assert_close(alone, csm_loss(student, teacher, anchors, **TAU))


def test_an_ensembles_target_is_the_mean_of_its_distributions() -> None:
    student, anchors, teachers = ensemble()
    p_mean = torch.stack([(t @ a.T / 0.02).softmax(dim=1) for t, a in teachers]).double().mean(dim=0)
    log_q = (student @ anchors.T / 0.05).double().log_softmax(dim=1)
    entropy = torch.special.xlogy(p_mean, p_mean).sum(dim=1)
    expected = (entropy - (p_mean * log_q).sum(dim=1)).mean()
    torch.testing.assert_close(
        csm_ensemble_loss(student, anchors, teachers, **ENSEMBLE_TAU).double(), expected
    )


def test_each_teacher_of_an_ensemble_has_its_own_temperature() -> None:
    """Against the cross-entropy and entropy of distributions that are written out, in float64."""
    student, anchors, teachers = ensemble()
    taus = (0.01, 0.04, 0.1)
    logits = [(t.double() @ a.double().T) / tau for (t, a), tau in zip(teachers, taus, strict=True)]
    shares = [each.exp() / each.exp().sum(dim=1, keepdim=True) for each in logits]
    p_mean = torch.stack(shares).mean(dim=0)
    q = (student.double() @ anchors.double().T / 0.05).exp()
    q = q / q.sum(dim=1, keepdim=True)
    expected = (p_mean * (p_mean / q).log()).sum(dim=1).mean()
    got = csm_ensemble_loss(student, anchors, teachers, tau_student=0.05, tau_teachers=taus)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    assert abs(got - csm_ensemble_loss(student, anchors, teachers, **ENSEMBLE_TAU)) > 0.1


def test_an_ensembles_gradient_is_the_mean_of_its_teachers_gradients() -> None:
    student, anchors, teachers = ensemble()
    student.requires_grad_()
    (together,) = torch.autograd.grad(csm_ensemble_loss(student, anchors, teachers, **ENSEMBLE_TAU), student)
    each = [
        torch.autograd.grad(csm_ensemble_loss(student, anchors, [teacher], **ALONE_TAU), student)[0]
        for teacher in teachers
    ]
    torch.testing.assert_close(together, torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_an_ensemble_refuses_what_does_not_belong_together() -> None:
    student, anchors, teachers = ensemble()
    with pytest.raises(ValueError, match="no teachers"):
        csm_ensemble_loss(student, anchors, [], **ALONE_TAU)
    embeddings, own = teachers[1]
    with pytest.raises(ValueError, match="49 anchors"):
        csm_ensemble_loss(
            student,
            anchors,
            [teachers[0], (embeddings, own[1:])],
            tau_student=0.05,
            tau_teachers=(0.02, 0.02),
        )
    with pytest.raises(ValueError, match="embeddings of width 7 need"):
        csm_ensemble_loss(student, anchors, [(embeddings, own[:, 1:])], **ALONE_TAU)
    with pytest.raises(ValueError, match="tau_teacher"):
        csm_ensemble_loss(student, anchors, teachers, tau_student=0.1, tau_teachers=(0.1, 0.1, 0.0))
    with pytest.raises(ValueError, match="2 temperatures for 3 teachers"):
        csm_ensemble_loss(student, anchors, teachers, tau_student=0.1, tau_teachers=(0.1, 0.1))
