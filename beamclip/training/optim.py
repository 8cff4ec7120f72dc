"""AdamW for a method: learning rate, parameter groups, and precision."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from beamclip.training.config import OptimConfig


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then a half cosine to 0.

    Args:
        config: must have a learning rate; see training.recipe.
    """
    assert config.lr is not None
    rising = max(1, round(config.warmup * total))
    if step < rising:
        return config.lr * (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(method: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build fused AdamW; weight decay applies to matrices, not to vectors and embeddings.

    A matrix that several modules share is one parameter, in a group with `shared_weight_decay`.
    """
    shared = shared_parameters(method)
    embeddings = {id(m.weight) for m in method.modules() if isinstance(m, nn.Embedding)}
    decayed, tied, free = list[Tensor](), list[Tensor](), list[Tensor]()
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        positional = name.endswith(("positional_embedding", "class_embedding", "pos_embed", "_token"))
        plain = parameter.ndim >= 2 and id(parameter) not in embeddings and not positional
        decaying = tied if id(parameter) in shared else decayed
        (decaying if plain else free).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": tied, "weight_decay": config.shared_weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    assert config.lr is not None
    return torch.optim.AdamW(filled, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def shared_parameters(module: nn.Module) -> set[int]:
    """Return the `id()` of each parameter that two or more submodules hold."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in module.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def teacher_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision of a frozen model on a device; auto is bf16 if the device computes it natively."""
    return "fp32" if autocast_dtype(precision, device) is None else "bf16"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype for autocast, or None for plain float32; auto is as in `teacher_precision`."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else None
    return torch.bfloat16 if precision == "bf16" else None
