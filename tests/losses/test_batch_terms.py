"""Terms that compare the samples of a batch, against plain formulas."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, DistillClipLoss
from torch import Tensor

from beamclip.losses.batch_terms import affinity_loss, crd_loss, icl_loss, relation_loss
from beamclip.losses.contrastive import GlobalRows


def units(seed: int, count: int = 7, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def test_icl_is_open_clips_loss_of_images_and_the_teachers_captions() -> None:
    student, texts = units(0).requires_grad_(), units(1)
    got = icl_loss(student, texts, tau=0.05)
    want = ClipLoss()(student, texts, torch.tensor(20.0, dtype=torch.float64))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(each, student)[0] for each in (got, want)))


def test_affinity_mimicking_is_open_clips_distillation_loss_with_the_teachers_captions() -> None:
    student, teacher, texts = units(0), units(1), units(2)
    scale = torch.tensor(50.0, dtype=torch.float64)
    _, want = DistillClipLoss()(student, texts, scale, teacher, texts, scale)
    torch.testing.assert_close(affinity_loss(student, teacher, texts, tau=1 / 50), want)


def test_crd_is_the_divergence_of_both_directions() -> None:
    student, teacher, texts = units(0), units(1), units(2)
    want = torch.zeros((), dtype=torch.float64)
    for turn in (lambda images: images @ texts.T, lambda images: texts @ images.T):
        p, q = (turn(teacher) / 0.1).softmax(1), (turn(student) / 0.3).softmax(1)
        want = want + (p * (p / q).log()).sum(1).mean() / 2
    torch.testing.assert_close(crd_loss(student, teacher, texts, tau_student=0.3, tau_teacher=0.1), want)


def test_crd_has_the_gradient_of_affinity_mimicking_at_equal_temperatures() -> None:
    student, teacher, texts = units(0).requires_grad_(), units(1), units(2)
    losses = (
        crd_loss(student, teacher, texts, tau_student=0.1, tau_teacher=0.1),
        affinity_loss(student, teacher, texts, tau=0.1),
    )
    torch.testing.assert_close(*(torch.autograd.grad(each, student)[0] for each in losses))


def test_a_relation_leaves_out_the_image_itself_and_takes_teachers_of_any_width() -> None:
    student, teacher = units(0), units(1, width=9)
    want = 0.0
    for row in range(7):
        others = [column for column in range(7) if column != row]
        p = (teacher[others] @ teacher[row] / 0.1).softmax(0)
        q = (student[others] @ student[row] / 0.3).softmax(0)
        want += float((p * (p / q).log()).sum()) / 7
    got = relation_loss(student, teacher, tau_student=0.3, tau_teacher=0.1)
    assert got.item() == pytest.approx(want, rel=1e-12)


def crd(student: Tensor, other: Tensor, rows: GlobalRows | None = None) -> Tensor:
    return crd_loss(student, other.flip(1), other, tau_student=0.2, tau_teacher=0.1, rows=rows)


def affinity(student: Tensor, other: Tensor, rows: GlobalRows | None = None) -> Tensor:
    return affinity_loss(student, other.flip(1), other, tau=0.2, rows=rows)


Term = Callable[[Tensor, Tensor, GlobalRows | None], Tensor]
TERMS: dict[str, Term] = {
    "icl": lambda student, other, rows=None: icl_loss(student, other, tau=0.2, rows=rows),
    "crd": crd,
    "affinity": affinity,
    "relation": lambda student, other, rows=None: relation_loss(
        student, other, tau_student=0.2, tau_teacher=0.1, rows=rows
    ),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


@every_term
def test_rows_without_a_sample_take_no_part(term: Term) -> None:
    student, other = units(0), units(1)
    good = torch.tensor([0, 2, 3, 6])
    numbers = torch.tensor([2, 7, 0, 3, 7, 5, 1])
    weights = torch.zeros(7, dtype=torch.float64)
    weights[good] = 1 / len(good)
    long = torch.where(weights[:, None] > 0, student, 30 * student).requires_grad_()
    got = term(long, other, GlobalRows(weights, numbers, 7))
    alone = student[good].requires_grad_()
    want = term(alone, other[good], None)
    torch.testing.assert_close(got, want)
    (gradient,), (of_alone,) = torch.autograd.grad(got, long), torch.autograd.grad(want, alone)
    torch.testing.assert_close(gradient[good], of_alone)
    assert not gradient[weights == 0].any()


@every_term
def test_only_the_student_learns(term: Term) -> None:
    student, other = units(0).requires_grad_(), units(1).requires_grad_()
    term(student, other, None).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3
    assert other.grad is None


@every_term
def test_terms_compute_in_float32_under_bf16_autocast(term: Term) -> None:
    student, other = units(0).float(), units(1).float()
    want = term(student, other, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(term(student, other, None), want)


@pytest.mark.parametrize(
    "call",
    [
        partial(icl_loss, units(0), units(1), tau=0.0),
        partial(crd_loss, units(0), units(1), units(2), tau_student=0.1, tau_teacher=-1.0),
        partial(affinity_loss, units(0), units(1), units(2, width=4)),
        partial(relation_loss, units(0), units(1, count=6), tau_student=0.1, tau_teacher=0.1),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must be|need a row"):
        call()
