"""Products of embeddings in full float32 precision, for results that are divided by a temperature.

Under `torch.set_float32_matmul_precision("high")`, which training sets for the networks, an NVIDIA GPU
rounds the factors of a float32 product to 10 bits (TF32). Cosines then err by some 1e-4: harmless inside a
network, a few hundredths of a nat once divided by a temperature of 0.01.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in full precision inside the block.

    The setting is process-wide, and restored afterwards.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def similarities(rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `rows @ columns.T` and its gradients in full precision; first derivatives only.

    Args:
        rows: [B, D].
        columns: [N, D], of the same floating type, float32 or float64.

    Returns:
        [B, N].
    """
    product: Tensor = _Product.apply(rows, columns)
    return product


class _Product(torch.autograd.Function):
    """The product; backward runs later, on a GPU in another thread, and so sets the precision itself."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        with full_float32():
            return rows @ columns.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, columns = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        with full_float32():
            return grad @ columns if wanted[0] else None, (rows.T @ grad).T if wanted[1] else None
