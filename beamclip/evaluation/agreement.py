"""Agreement: how closely a student's predictions and embeddings follow its teacher's, right or wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor

from beamclip.evaluation.zeroshot import CHUNK_ELEMENTS, class_scores, label_ranks
from beamclip.prompts.anchors import Anchors


@dataclass(frozen=True)
class Agreement:
    """How a student agrees with its teacher on each of N images."""

    same_class: Tensor
    """bool [N], whether both find the same class likeliest."""
    kl: Tensor
    """float32 [N], KL(teacher || student) of the probabilities of the classes, nats."""
    cosine: Tensor | None
    """float32 [N], of the two embeddings; None where they have different widths."""
    teacher_ranks: Tensor
    """int64 [N], classes that the teacher puts ahead of the true one."""


def agreement(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    student_anchors: Anchors,
    teacher_anchors: Anchors,
    num_classes: int,
    *,
    temperature: float,
) -> Agreement:
    """Compare the zero-shot predictions of two models on the same images.

    Args:
        student: [N, D] embeddings, unit length.
        teacher: [N, E] embeddings of the same images by the teacher, unit length.
        labels: [N] class indices in 0..K-1.
        student_anchors, teacher_anchors: of the same classes, each by the model's own text tower.
        num_classes: K.
        temperature: > 0, of both softmaxes over the classes.

    Raises:
        ValueError: the numbers of images differ; or as `class_scores`.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"agreement: {len(student)} embeddings by the student, {len(teacher)} by the teacher"
        )
    same, kl, ranks = [], [], []
    rows = max(1, CHUNK_ELEMENTS // (2 * num_classes))
    for start in range(0, len(student), rows):
        part = slice(start, start + rows)
        ours = class_scores(student[part], student_anchors, num_classes, temperature=temperature)
        theirs = class_scores(teacher[part], teacher_anchors, num_classes, temperature=temperature)
        same.append((ours.argmax(dim=1) == theirs.argmax(dim=1)).cpu())
        ranks.append(label_ranks(theirs, labels[part]).cpu())
        log_p, log_q = (theirs / temperature).log_softmax(dim=1), (ours / temperature).log_softmax(dim=1)
        kl.append((log_p.exp() * (log_p - log_q)).sum(dim=1).cpu())
    cosine = None
    if student.shape[1] == teacher.shape[1]:
        cosine = (student.float() * teacher.float()).sum(dim=1).cpu()
    return Agreement(torch.cat(same), torch.cat(kl), cosine, torch.cat(ranks))
