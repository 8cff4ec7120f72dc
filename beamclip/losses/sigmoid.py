"""The pairwise sigmoid loss of SigLIP (https://arxiv.org/abs/2303.15343) over the batch of all workers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.contrastive import check_pairs, gather_with_grad, own_rows
from beamclip.losses.similarity import similarities

INITIAL_SCALE = 10.0
INITIAL_BIAS = -10.0
"""Initial logit_scale and logit_bias: nearly every pair in a batch is negative, and is predicted so."""


def sigmoid_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Binary cross-entropy of "is this caption this image's?" for every pair of the global batch.

    Follows the convention of losses.contrastive: local images against gathered texts, gradients through the
    gather, the mean over this rank's rows.

    Args:
        image: [B, D] image embeddings of this rank, unit length.
        text: [B, D] embeddings of their captions, in the same order, unit length.
        logit_scale: scalar factor of the similarities itself, not its logarithm.
        logit_bias: scalar added to all of them.

    Returns:
        Scalar, nats, summed over the captions and averaged over this rank's images. With one process it
        equals open_clip's SigLipLoss.

    Raises:
        ValueError: image and text are not the same [B, D].
    """
    check_pairs(image, text)
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        scaled = logit_scale.to(dtype) * image.to(dtype)
        logits = similarities(scaled, gather_with_grad(text.to(dtype))) + logit_bias
        signs = torch.full_like(logits, -1.0)
        signs[torch.arange(len(image)), own_rows(len(image), image.device)] = 1.0
        return -F.logsigmoid(signs * logits).sum() / len(image)
