"""Batch norms that average over the images of all workers."""

from timm.layers import convert_sync_batchnorm
from torch import nn


def synchronised(method: nn.Module) -> nn.Module:
    """Have the batch norms of a method's networks exchange their statistics between GPUs while they train.

    Each forward pass waits for that of every other worker. There are equally many: the micro-batches of a
    step follow from the largest share of all workers (data.worker_stream), and workers pass over a step
    together or not at all (Training.advance).

    Returns:
        The method. Its tensors are the same, under the same names, so that its weights load into a network
        with ordinary batch norms; in eval mode it computes as such a network does.
    """
    # Not torch's own conversion, which would drop the activation inside timm's BatchNormAct2d.
    converted: nn.Module = convert_sync_batchnorm(method)
    return converted
