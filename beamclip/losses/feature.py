"""Feature distillation: pull each student embedding onto the teacher's embedding of the same image.

The mean squared error of unit embeddings is the strongest single term in CLIP-KD
(https://arxiv.org/abs/2307.12732), used there with weight 2000.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.config import FeatureKind
from beamclip.losses.weighted import weighted_sum


def feature_loss(
    student: Tensor, teacher: Tensor, kind: FeatureKind, weights: Tensor | None = None
) -> Tensor:
    """Distance between student and teacher embeddings, both normalised to unit length in float32.

    Args:
        student: [B, D] embeddings of the images by the student; gradients flow here only.
        teacher: [B, D] embeddings of the same pixels by the teacher.
        kind: distance of a row: `cosine` is 1 - cos, in 0..2; `mse` is the mean over D of the squared
            difference, in 0..4/D.
        weights: [B], factors of the rows' distances; None for their mean, 1/B each.

    Returns:
        Scalar; 0 when both point the same way.

    Raises:
        ValueError: the shapes do not fit together, or `kind` is neither.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student is {list(student.shape)} and teacher is {list(teacher.shape)}: both must be the same "
            "[B, D]. Project the student to the teacher's embedding width."
        )
    # Embeddings made under autocast have unit length to 3 digits only: normalise again.
    unit_student, unit_teacher = _unit(student), _unit(teacher.detach())
    if kind == "cosine":
        return weighted_sum(1 - (unit_student * unit_teacher).sum(dim=1), weights)
    if kind == "mse":
        return weighted_sum((unit_student - unit_teacher).square().mean(dim=1), weights)
    raise ValueError(f"unknown kind of feature loss {kind!r}; choose cosine or mse.")


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
