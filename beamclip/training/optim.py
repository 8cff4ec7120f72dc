"""Optimisers for a method: learning rates, parameter groups, and precision."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.optim import Lars
from torch import Tensor, nn

from beamclip.training.config import WEIGHT_DECAY, OptimConfig
from beamclip.training.layers import layers_above

LR_FACTOR = "lr_factor"
"""Key of a parameter group: factor of the step's learning rate."""


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the learning rate of a step, counted from 0: warm-up, schedule, cooldown.

    Args:
        config: must have a learning rate; see training.recipe.
    """
    assert config.lr is not None
    rising = max(1, round(config.warmup * total))
    if step < rising:
        return config.lr * (step + 1) / rising
    falling = round(config.cooldown * total)
    scheduled = total - rising - falling
    if step < total - falling or not falling:
        return config.lr * _scheduled((step - rising) / max(1, scheduled), config)
    # The schedule of the step at which the cooldown begins, from there to the floor in a straight line.
    begun = _scheduled(1.0, config) if scheduled else 1.0
    progress = (step - (total - falling)) / falling
    return config.lr * (begun + (config.lr_floor - begun) * progress)


def _scheduled(progress: float, config: OptimConfig) -> float:
    """Factor of the peak learning rate, of a share of the schedule."""
    if config.schedule == "constant":
        return 1.0
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr_floor + (1.0 - config.lr_floor) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step, for each group of parameters by its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[LR_FACTOR]


def build_optimizer(method: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser; weight decay applies to matrices, not to vectors and embeddings.

    A matrix that several modules share is one parameter, which decays by `shared_weight_decay`.
    """
    assert config.lr is not None
    groups = _groups(method, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
    return Lars(groups, lr=config.lr, momentum=config.momentum)


def _groups(method: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the parameter groups: those of one weight decay and one factor of the learning rate each."""
    factors = _lr_factors(method, config)
    decays = _weight_decays(method, config)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((decays[name], factors.get(name, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, LR_FACTOR: factor}
        for (decay, factor), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def _lr_factors(method: nn.Module, config: OptimConfig) -> Mapping[str, float]:
    if config.layer_decay == 1.0:
        return {}
    return {name: config.layer_decay**above for name, above in layers_above(method).items()}


def _weight_decays(method: nn.Module, config: OptimConfig) -> dict[str, float]:
    decay = WEIGHT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    shared = shared_parameters(method)
    embeddings = {id(m.weight) for m in method.modules() if isinstance(m, nn.Embedding)}
    decays = {}
    for name, parameter in method.named_parameters():
        positional = name.endswith(("positional_embedding", "class_embedding", "pos_embed", "_token"))
        plain = parameter.ndim >= 2 and id(parameter) not in embeddings and not positional
        own = config.shared_weight_decay if id(parameter) in shared else decay
        decays[name] = own if plain else 0.0
    return decays


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
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
