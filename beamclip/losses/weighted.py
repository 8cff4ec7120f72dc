"""Weighted sums of the losses of samples."""

from torch import Tensor


def weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum of losses [B] times their weights [B]; without weights, their mean.

    Raises:
        ValueError: there is not one weight for each loss.
    """
    if weights is None:
        return losses.mean()
    check_weights(weights, len(losses))
    return (weights.to(losses.dtype) * losses).sum()


def check_weights(weights: Tensor, count: int) -> None:
    """Raise ValueError unless there are `count` weights: others might broadcast unnoticed."""
    if list(weights.shape) != [count]:
        raise ValueError(f"weights are {list(weights.shape)}; they must be [{count}], one for each sample.")
