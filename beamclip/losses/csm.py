"""Cross-modal similarity matching (BeamCLIP, https://arxiv.org/abs/2301.02903), streamed over the anchors.

From the paper's abstract: the student matches the teacher's relative similarity distribution across text
prompt embeddings. This project's choice: KL divergence, two temperatures and their values, unit embeddings.

Anchors that do not fit into one chunk are read in several, and the [B, K] similarities are never stored:
student and teacher each keep a running softmax (row maximum, normaliser, weighted sum of anchors) that is
rescaled whenever a larger logit arrives. One such sweep yields the loss and its gradient, so the backward
pass is a multiplication.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from beamclip.losses.similarity import full_float32, similarities
from beamclip.losses.weighted import check_weights, weighted_sum


def csm_loss(
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    *,
    tau_student: float,
    tau_teacher: float,
    chunk_size: int | None = 4096,
    weights: Tensor | None = None,
) -> Tensor:
    """KL divergence between the teacher's and the student's similarity distributions over text anchors.

    With p = softmax(embedding @ anchors.T / tau) this is the weighted sum over the batch of
    KL(p_teacher || p_student); the gradient with respect to a student's row of weight w is
    w (p_student - p_teacher) @ anchors / tau_student.
    Computed in float32 (float64 for float64 students) whatever autocast says, and no TF32. Extra memory is of
    the order B x chunk_size + B x D. First derivatives only.

    Args:
        student: [B, D] embeddings of the images by the student, unit length; gradients flow here only.
        teacher: [B, D] embeddings of the same pixels by the teacher, unit length.
        anchors: [K, D] text-prompt embeddings by the teacher's text tower, unit length.
        tau_student, tau_teacher: softmax temperatures, > 0; smaller is sharper.
        chunk_size: anchors compared at a time; None takes all K at once.
        weights: [B], factors of the rows' divergences; None for their mean, 1/B each.

    Returns:
        Scalar, nats; 0 when both distributions agree.

    Raises:
        ValueError: a temperature or the chunk size is not positive, or the shapes do not fit together.
    """
    _check(student, teacher, anchors, tau_student, tau_teacher, chunk_size)
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        scaled_student = student.to(dtype) / tau_student
        scaled_teacher = teacher.detach().to(dtype) / tau_teacher
        # One chunk needs no running softmax: the plain formula saves a matrix product and is 1.3 x faster.
        if chunk_size is None or len(anchors) <= chunk_size:
            return _plain_kl(scaled_student, scaled_teacher, anchors.detach().to(dtype), weights)
        if weights is None:
            weights = scaled_student.new_full((len(student),), 1.0 / len(student))
        check_weights(weights, len(student))
        loss: Tensor = _StreamedKl.apply(
            scaled_student, scaled_teacher, anchors.detach(), weights.to(dtype), chunk_size
        )
        return loss


def csm_ensemble_loss(
    student: Tensor,
    anchors: Tensor,
    teachers: Sequence[tuple[Tensor, Tensor]],
    *,
    tau_student: float,
    tau_teachers: Sequence[float],
    weights: Tensor | None = None,
) -> Tensor:
    """KL divergence between the mean of several teachers' similarity distributions and the student's.

    Each teacher compares its own embeddings with its own anchors, so their widths may differ; so may their
    temperatures, since models differ in how far their cosines spread. The target is the mean of their
    distributions over the K anchors, mean_i softmax(teacher_i @ anchors_i.T / tau_teachers_i). The gradient
    is that of the mean of the divergences from each teacher, from which MobileCLIP learns
    (https://arxiv.org/abs/2311.17049). Memory is of the order B x K.

    Args:
        student: [B, D] unit embeddings; gradients flow here only.
        anchors: [K, D] unit embeddings that the student is compared with.
        teachers: for each teacher, its embeddings [B, D_i] of the same pixels and its anchors [K, D_i] of the
            same texts, unit length.
        tau_student: softmax temperature of the student, > 0; smaller is sharper.
        tau_teachers: softmax temperature of each teacher, > 0.
        weights: [B], factors of the rows' divergences; None for their mean, 1/B each.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: there is no teacher, there is not one temperature for each, a temperature is not positive,
            or the shapes do not fit together.
    """
    if not teachers:
        raise ValueError("no teachers: give at least one pair of embeddings and anchors.")
    if len(tau_teachers) != len(teachers):
        raise ValueError(f"{len(tau_teachers)} temperatures for {len(teachers)} teachers: give one for each.")
    for (embeddings, of_teacher), tau_teacher in zip(teachers, tau_teachers, strict=True):
        _check(embeddings, embeddings, of_teacher, tau_student, tau_teacher, None)
        if len(embeddings) != len(student) or len(of_teacher) != len(anchors):
            raise ValueError(
                f"a teacher has {len(embeddings)} embeddings and {len(of_teacher)} anchors, the student "
                f"{len(student)} and {len(anchors)}: both must be of the same images and texts."
            )
    _check(student, student, anchors, tau_student, tau_teachers[0], None)
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        log_p_student = F.log_softmax(similarities(student.to(dtype), anchors.to(dtype)) / tau_student, dim=1)
        log_p_teachers = torch.stack(
            [
                F.log_softmax(
                    similarities(embeddings.detach().to(dtype), of_teacher.to(dtype)) / tau_teacher, dim=1
                )
                for (embeddings, of_teacher), tau_teacher in zip(teachers, tau_teachers, strict=True)
            ]
        )
        log_p_mean = torch.logsumexp(log_p_teachers, dim=0) - math.log(len(teachers))
        return weighted_sum(_kl(log_p_student, log_p_mean), weights)


def _plain_kl(student: Tensor, teacher: Tensor, anchors: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted sum of the rows' KL; embeddings are already divided by their temperatures."""
    log_p_student = F.log_softmax(similarities(student, anchors), dim=1)
    log_p_teacher = F.log_softmax(similarities(teacher, anchors), dim=1)
    return weighted_sum(_kl(log_p_student, log_p_teacher), weights)


def _kl(log_p_student: Tensor, log_p_teacher: Tensor) -> Tensor:
    """KL of each row, [B], of log-probabilities [B, K]."""
    return F.kl_div(log_p_student, log_p_teacher, log_target=True, reduction="none").sum(dim=1)


def _check(
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    tau_student: float,
    tau_teacher: float,
    chunk_size: int | None,
) -> None:
    for name, tau in (("tau_student", tau_student), ("tau_teacher", tau_teacher)):
        if not tau > 0:
            raise ValueError(f"{name} is {tau}; a softmax temperature must be greater than 0.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; compare at least 1 anchor at a time.")
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student is {list(student.shape)} and teacher is {list(teacher.shape)}: both must be the same "
            "[B, D]. Project the student to the teacher's embedding width."
        )
    if anchors.ndim != 2 or len(anchors) == 0 or anchors.shape[1] != student.shape[1]:
        raise ValueError(
            f"anchors are {list(anchors.shape)}; embeddings of width {student.shape[1]} need "
            f"[K, {student.shape[1]}] with K >= 1. Encode the anchors with the teacher's own text tower."
        )


@dataclass
class _RunningSoftmax:
    """Unnormalised softmax over the anchors seen so far, relative to the largest logit of each row."""

    peak: Tensor  # [B, 1]
    mass: Tensor  # [B, 1]
    anchor_sum: Tensor | None  # [B, D], only where a gradient is wanted

    @classmethod
    def before_any_anchor(cls, like: Tensor, with_gradient: bool) -> _RunningSoftmax:
        # A finite floor in place of -inf: differences of two floors must be 0, not nan.
        peak = like.new_full((len(like), 1), torch.finfo(like.dtype).min / 2)
        return cls(peak, torch.zeros_like(peak), torch.zeros_like(like) if with_gradient else None)

    def shift(self, logits: Tensor) -> Tensor:
        """Make `logits` [B, C] relative to the peak in place; return old minus new peak, [B, 1], <= 0."""
        peak = torch.maximum(self.peak, logits.amax(dim=1, keepdim=True))
        drop = self.peak - peak
        self.peak = peak
        logits -= peak
        return drop

    def add(self, weights: Tensor, anchors: Tensor, decay: Tensor) -> None:
        """Scale what is held by `decay` [B, 1], then add anchors [C, D] with their weights [B, C]."""
        self.mass = self.mass * decay + weights.sum(dim=1, keepdim=True)
        if self.anchor_sum is not None:
            self.anchor_sum.mul_(decay).addmm_(weights, anchors)


def _sweep(
    student: Tensor, teacher: Tensor, anchors: Tensor, chunk_size: int, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Each row's KL [B] and its gradient [B, D]; embeddings are already divided by temperatures."""
    p_student = _RunningSoftmax.before_any_anchor(student, with_gradient)
    p_teacher = _RunningSoftmax.before_any_anchor(teacher, with_gradient)
    # Teacher-weighted difference of peak-relative logits. Summing these small terms keeps the loss accurate
    # near agreement; the algebraically equal product with the mean anchor loses five digits at tau 0.005.
    gap = torch.zeros_like(p_teacher.mass)
    for part in anchors.split(chunk_size):
        chunk = part.to(student.dtype)
        logits_student, logits_teacher = student @ chunk.T, teacher @ chunk.T
        drop_student, drop_teacher = p_student.shift(logits_student), p_teacher.shift(logits_teacher)
        decay_teacher = drop_teacher.exp()
        gap = decay_teacher * (gap + p_teacher.mass * (drop_teacher - drop_student))
        log_ratio = logits_teacher - logits_student
        weights_teacher = logits_teacher.exp_()
        gap += log_ratio.mul_(weights_teacher).sum(dim=1, keepdim=True)
        p_teacher.add(weights_teacher, chunk, decay_teacher)
        p_student.add(logits_student.exp_(), chunk, drop_student.exp())
    kl = (gap / p_teacher.mass - p_teacher.mass.log() + p_student.mass.log())[:, 0]
    if p_student.anchor_sum is None or p_teacher.anchor_sum is None:
        return kl, None
    return kl, p_student.anchor_sum / p_student.mass - p_teacher.anchor_sum / p_teacher.mass


class _StreamedKl(torch.autograd.Function):
    """`_plain_kl` in chunks; forward also computes the gradient, so that no [B, K] tensor is kept."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, anchors: Tensor, weights: Tensor, chunk_size: int
    ) -> Tensor:
        """Return the weighted sum of the rows' divergences, in nats, and keep its gradient, [B, D]."""
        with full_float32():
            kl, gradient = _sweep(student, teacher, anchors, chunk_size, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient * weights[:, None])
        return weighted_sum(kl, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None, None
