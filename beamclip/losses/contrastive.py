"""CLIP's symmetric InfoNCE (https://arxiv.org/abs/2103.00020) over the batch of all workers.

Convention for every loss that gathers: each rank returns the mean over its own rows, and gradients pass
through the gather. DistributedDataParallel's average over ranks is then exactly the gradient of the mean over
the global batch. All ranks must hold equally many rows; unequal batches are not detected, because that would
cost one more collective a step.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from beamclip.losses.similarity import similarities


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Cross-entropy of finding each image's caption and each caption's image in the global batch.

    Local rows are compared with gathered columns: B x (world_size * B) logits a rank and direction, float32
    whatever autocast says, and no TF32.

    Args:
        image: [B, D] image embeddings of this rank, unit length.
        text: [B, D] embeddings of their captions, in the same order, unit length.
        logit_scale: scalar factor of the similarities itself, not its logarithm.

    Returns:
        Scalar, nats, mean over this rank's rows and both directions. With one process it equals open_clip's
        ClipLoss.

    Raises:
        ValueError: image and text are not the same [B, D].
    """
    check_pairs(image, text)
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    labels = own_rows(len(image), image.device)
    with torch.autocast(image.device.type, enabled=False):
        image_to_text = similarities(logit_scale * image, gather_with_grad(text))
        text_to_image = similarities(logit_scale * text, gather_with_grad(image))
        return (F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels)) / 2


def check_pairs(image: Tensor, text: Tensor) -> None:
    """Raise ValueError unless image and text have the same shape [B, D]."""
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image is {list(image.shape)} and text is {list(text.shape)}: both must be the same [B, D]."
        )


def gather_with_grad(x: Tensor) -> Tensor:
    """Gather the rows of all ranks in rank order, [world_size * B, D]; with one process, return x itself.

    The gradient of a row is summed over all ranks and goes to the rank that owns the row. A collective: all
    ranks call it equally often, with the same shape [B, D], on a device that their backend serves (gloo: CPU,
    nccl: GPU).
    """
    if _world_size() == 1:
        return x
    gathered: Tensor = _AllGather.apply(x)
    return gathered


def gather_values(x: Tensor) -> Tensor:
    """Gather values of all ranks in rank order, [world_size * B], without gradient; also a collective."""
    if _world_size() == 1:
        return x.detach()
    gathered = x.new_empty(_world_size() * len(x))
    dist.all_gather(list(gathered.chunk(_world_size())), x.detach().contiguous())
    return gathered


def own_rows(count: int, device: torch.device) -> Tensor:
    """Return the indices of this rank's `count` rows in the global batch, int64 [count]."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return rank * count + torch.arange(count, device=device)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllGather(torch.autograd.Function):
    """All-gather of rows whose backward is the matching reduce-scatter."""

    # Collectives on lists: torch 2.14 deprecates those on one tensor, earlier versions lack the successors.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty((_world_size() * len(x), x.shape[1]))
        dist.all_gather(list(gathered.chunk(_world_size())), x.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gathered: Tensor) -> Tensor:
        parts = list(grad_gathered.contiguous().chunk(_world_size()))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own
