"""CLIP's symmetric InfoNCE (https://arxiv.org/abs/2103.00020) over the batch of all workers.

Convention for every loss that gathers: each rank returns the sum of its rows' losses times their weights, and
gradients pass through the gather. The caller has scaled the weights by world_size / (number of good samples
in the global batch). DistributedDataParallel's average over ranks is then exactly the gradient of the mean
over these samples.

Each row has a number in the global batch. Columns stand in the order of these numbers, and those of weight 0
take no part, so neither loss nor gradient depends on how the samples are spread over ranks. All ranks must
hold equally many rows, of which some may be padding; unequal batches are not detected, because that would
cost one more collective a step.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from beamclip.losses.similarity import similarities
from beamclip.losses.weighted import check_weights, weighted_sum

MASKED_LOGIT = -1e30
"""Logit of a column that takes no part: finite, so that no difference of two is NaN, and of probability 0."""


@dataclass(frozen=True)
class GlobalRows:
    """The places of a rank's rows in the global batch, and how much each row counts."""

    weights: Tensor
    """float [B], factor of each row's loss. A row of weight 0 is compared with no other: it is padding, or
    its sample could not be used."""
    numbers: Tensor
    """int64 [B], each row's number in the global batch, 0..size-1 without repetition over all ranks; `size`
    for padding."""
    size: int
    """Numbers in the global batch."""


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, rows: GlobalRows | None = None) -> Tensor:
    """Cross-entropy of finding each image's caption and each caption's image in the global batch.

    Local rows are compared with gathered columns: B x N logits a rank and direction, N samples in the global
    batch, float32 whatever autocast says, and no TF32.

    Args:
        image: [B, D] image embeddings of this rank, unit length.
        text: [B, D] embeddings of their captions, in the same order, unit length.
        logit_scale: scalar factor of the similarities itself, not its logarithm.
        rows: places and weights of this rank's rows; None where all rows of all ranks count 1/B each, in the
            order of the ranks.

    Returns:
        Scalar, nats, weighted sum over this rank's rows of the mean of both directions. With one process and
        without `rows` it equals open_clip's ClipLoss.

    Raises:
        ValueError: image and text are not the same [B, D], or `rows` are not [B].
    """
    check_pairs(image, text)
    columns = global_columns(rows, image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    with torch.autocast(image.device.type, enabled=False):
        image_to_text = columns.masked(similarities(logit_scale * image, columns.embeddings(text)))
        text_to_image = columns.masked(similarities(logit_scale * text, columns.embeddings(image)))
        losses = [F.cross_entropy(x, columns.own, reduction="none") for x in (image_to_text, text_to_image)]
        return weighted_sum(losses[0] + losses[1], columns.weights) / 2


def check_pairs(image: Tensor, text: Tensor) -> None:
    """Raise ValueError unless image and text have the same shape [B, D]."""
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image is {list(image.shape)} and text is {list(text.shape)}: both must be the same [B, D]."
        )


@dataclass(frozen=True)
class GlobalColumns:
    """The N columns that a rank's rows are compared with: the global batch in the order of its numbers."""

    source: Tensor
    """int64 [N]: which of the gathered rows of all ranks each column is."""
    good: Tensor
    """bool [N]: whether the column takes part."""
    own: Tensor
    """int64 [B]: the column of each of this rank's rows; for padding, that of another row."""
    weights: Tensor
    """float [B]: the weights of this rank's rows."""

    def embeddings(self, x: Tensor) -> Tensor:
        """Gather this rank's rows [B, D] to columns [N, D], with gradient; a collective."""
        return gather_with_grad(x).index_select(0, self.source)

    def values(self, x: Tensor) -> Tensor:
        """Gather one value a row, [B], to one a column, [N], without gradient; a collective."""
        return gather_values(x).index_select(0, self.source)

    def masked(self, logits: Tensor) -> Tensor:
        """Return logits [B, N] that give the columns that take no part probability 0, and no gradient."""
        return logits.masked_fill(~self.good, MASKED_LOGIT)


def global_columns(rows: GlobalRows | None, x: Tensor) -> GlobalColumns:
    """Find the columns of the global batch, without waiting for the device; a collective.

    Args:
        rows: this rank's rows; None where all rows of all ranks count 1/B each, in the order of the ranks.
        x: this rank's embeddings [B, D].

    Raises:
        ValueError: `rows` are not [B].
    """
    count = len(x)
    if rows is None:
        weights = x.new_full((count,), 1.0 / count, dtype=torch.promote_types(x.dtype, torch.float32))
        rows = GlobalRows(weights, own_rows(count, x.device), _world_size() * count)
    check_weights(rows.weights, count)
    if rows.numbers.shape != rows.weights.shape:
        raise ValueError(f"numbers are {list(rows.numbers.shape)}; they must be [{count}].")
    numbers, weights = gather_values(rows.numbers), gather_values(rows.weights)
    # All padding falls into one more slot than there are columns. A number that no row has stays masked.
    source = numbers.new_zeros(rows.size + 1).scatter_(
        0, numbers, torch.arange(len(numbers), device=x.device)
    )
    spread = weights.new_zeros(rows.size + 1).scatter_(0, numbers, weights)
    own = rows.numbers.clamp(max=rows.size - 1)
    return GlobalColumns(source[:-1], spread[:-1] != 0, own, rows.weights)


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
    """Gather values [B] of all ranks in rank order, [world_size * B], without gradient; also a collective."""
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
