"""Terms that compare the images of a batch with the batch's captions, or with each other.

Text anchors are fixed points; these terms compare with what the batch holds. Images are embedded by student
and teacher, captions by the teacher alone: a distilled image tower keeps its teacher's text tower. All follow
the convention of losses.contrastive for batches that are spread over several workers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.contrastive import (
    MASKED_LOGIT,
    GlobalColumns,
    GlobalRows,
    check_pairs,
    clip_loss,
    global_columns,
)
from beamclip.losses.similarity import similarities
from beamclip.losses.weighted import weighted_sum


def icl_loss(student: Tensor, texts: Tensor, *, tau: float, rows: GlobalRows | None = None) -> Tensor:
    """InfoNCE between the student's images and the teacher's captions, both ways.

    Interactive contrastive learning of CLIP-KD (https://arxiv.org/abs/2307.12732) with the teacher's text
    tower for both; the temperature, learned there, is fixed.

    Args:
        student: [B, D] unit embeddings of this rank's images by the student; gradients flow here only.
        texts: [B, D] embeddings of their captions by the teacher, unit length.
        tau: softmax temperature, > 0.
        rows: places and weights of this rank's rows; see clip_loss.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: tau is not positive, or the shapes do not fit together.
    """
    _check_tau(tau=tau)
    return clip_loss(student, texts.detach(), student.new_tensor(1 / tau), rows)


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    texts: Tensor,
    *,
    tau_student: float,
    tau_teacher: float,
    rows: GlobalRows | None = None,
) -> Tensor:
    """KL divergence between the teacher's and the student's distributions over the batch, both ways.

    Each image has a distribution over the captions of the global batch, each caption one over its images.
    Contrastive relational distillation of CLIP-KD (https://arxiv.org/abs/2307.12732), with the teacher's text
    tower for both.

    Args:
        student: [B, D] unit embeddings of this rank's images by the student; gradients flow here only.
        teacher: [B, D] embeddings of the same pixels by the teacher, unit length.
        texts: [B, D] embeddings of their captions by the teacher, unit length.
        tau_student, tau_teacher: softmax temperatures, > 0; smaller is sharper.
        rows: places and weights of this rank's rows; see clip_loss.

    Returns:
        Scalar, nats; 0 when all distributions agree.

    Raises:
        ValueError: a temperature is not positive, or the shapes do not fit together.
    """
    log_student, log_teacher, weights = _log_affinities(
        student, teacher, texts, tau_student, tau_teacher, rows
    )
    divergences = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=-1)
    return weighted_sum(divergences.mean(dim=0), weights)


def affinity_loss(
    student: Tensor,
    teacher: Tensor,
    texts: Tensor,
    *,
    tau: float = 0.02,
    rows: GlobalRows | None = None,
) -> Tensor:
    """Cross-entropy of the student's to the teacher's affinities of the batch, both ways.

    Affinity mimicking of TinyCLIP (https://arxiv.org/abs/2309.12314), at one temperature, there 1/50, with
    the teacher's text tower for both. Its gradient is that of crd_loss at equal temperatures.

    Args:
        student, teacher, texts, rows: see crd_loss.
        tau: softmax temperature of both models, > 0.

    Returns:
        Scalar, nats; the entropy of the teacher's affinities when both agree.

    Raises:
        ValueError: tau is not positive, or the shapes do not fit together.
    """
    log_student, log_teacher, weights = _log_affinities(student, teacher, texts, tau, tau, rows)
    losses = -(log_teacher.exp() * log_student).sum(dim=-1)
    return weighted_sum(losses.mean(dim=0), weights)


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    tau_student: float,
    tau_teacher: float,
    rows: GlobalRows | None = None,
) -> Tensor:
    """KL divergence between the teacher's and the student's similarities of each image to all others.

    It needs no text, so that a teacher of images alone can give it, and the two embeddings may have different
    widths. In the batch what SEED (https://arxiv.org/abs/2101.04731) does over a queue.

    Args:
        student: [B, D] unit embeddings of this rank's images by the student; gradients flow here only.
        teacher: [B, E] embeddings of the same pixels by the teacher, unit length.
        tau_student, tau_teacher: softmax temperatures, > 0; smaller is sharper.
        rows: places and weights of this rank's rows; see clip_loss.

    Returns:
        Scalar, nats; 0 when the similarities agree.

    Raises:
        ValueError: a temperature is not positive, or the shapes do not fit together.
    """
    _check_tau(tau_student=tau_student, tau_teacher=tau_teacher)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"student is {list(student.shape)} and teacher {list(teacher.shape)}: both need a row an image."
        )
    columns = global_columns(rows, student)
    with torch.autocast(student.device.type, enabled=False):
        log_student, log_teacher = (
            F.log_softmax(_to_others(embeddings, columns) / tau, dim=1)
            for embeddings, tau in ((student, tau_student), (teacher.detach(), tau_teacher))
        )
        divergences = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1)
        return weighted_sum(divergences, columns.weights)


def _to_others(embeddings: Tensor, columns: GlobalColumns) -> Tensor:
    """[B, N] similarities of this rank's rows to the global batch, without each to itself."""
    embeddings = _full(embeddings)
    logits = columns.masked(similarities(embeddings, columns.embeddings(embeddings)))
    return logits.scatter(1, columns.own[:, None], MASKED_LOGIT)


def _log_affinities(
    student: Tensor,
    teacher: Tensor,
    texts: Tensor,
    tau_student: float,
    tau_teacher: float,
    rows: GlobalRows | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities [2, B, N] of student and teacher, and the rows' weights [B].

    First those of this rank's images over all captions, then of its captions over all images.
    """
    _check_tau(tau_student=tau_student, tau_teacher=tau_teacher)
    check_pairs(student, texts)
    check_pairs(teacher, texts)
    columns = global_columns(rows, student)
    texts = _full(texts.detach())
    with torch.autocast(student.device.type, enabled=False):
        captions = columns.embeddings(texts)
        log_student, log_teacher = (
            F.log_softmax(
                torch.stack(
                    [
                        columns.masked(similarities(images / tau, captions)),
                        columns.masked(similarities(texts / tau, columns.embeddings(images))),
                    ]
                ),
                dim=-1,
            )
            for images, tau in ((_full(student), tau_student), (_full(teacher.detach()), tau_teacher))
        )
    return log_student, log_teacher, columns.weights


def _full(embeddings: Tensor) -> Tensor:
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def _check_tau(**taus: float) -> None:
    for name, tau in taus.items():
        if not tau > 0:
            raise ValueError(f"{name} is {tau}; a softmax temperature must be greater than 0.")
