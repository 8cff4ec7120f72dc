"""The pairwise sigmoid loss of SigLIP (https://arxiv.org/abs/2303.15343) over the batch of all workers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.contrastive import GlobalRows, check_pairs, global_columns
from beamclip.losses.similarity import similarities
from beamclip.losses.weighted import weighted_sum

INITIAL_SCALE = 10.0
INITIAL_BIAS = -10.0
"""Initial logit_scale and logit_bias: nearly every pair in a batch is negative, and is predicted so."""


def sigmoid_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, rows: GlobalRows | None = None
) -> Tensor:
    """Binary cross-entropy of "is this caption this image's?" for every pair of the global batch.

    Follows the convention of losses.contrastive: local images against gathered texts, gradients through the
    gather, the weighted sum over this rank's rows.

    Args:
        image: [B, D] image embeddings of this rank, unit length.
        text: [B, D] embeddings of their captions, in the same order, unit length.
        logit_scale: scalar factor of the similarities itself, not its logarithm.
        logit_bias: scalar added to all of them.
        rows: places and weights of this rank's rows; None where all rows of all ranks count 1/B each, in the
            order of the ranks.

    Returns:
        Scalar, nats, weighted sum over this rank's images of the sum over the captions. With one process and
        without `rows` it equals open_clip's SigLipLoss.

    Raises:
        ValueError: image and text are not the same [B, D], or `rows` are not [B].
    """
    check_pairs(image, text)
    columns = global_columns(rows, image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        scaled = logit_scale.to(dtype) * image.to(dtype)
        logits = similarities(scaled, columns.embeddings(text.to(dtype))) + logit_bias
        signs = torch.full_like(logits, -1.0).scatter_(1, columns.own[:, None], 1.0)
        losses = -F.logsigmoid(signs * logits).masked_fill(~columns.good, 0.0)
        return weighted_sum(losses.sum(dim=1), columns.weights)
