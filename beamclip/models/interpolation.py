"""Models between two others: averages of their weights (WiSE-FT, https://arxiv.org/abs/2109.01903)."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip, assemble
from beamclip.models.model_config import config_difference


def interpolated(first: LoadedClip, second: LoadedClip, alpha: float) -> LoadedClip:
    """Return the model with the weights (1 - alpha) * first + alpha * second, on the CPU, in eval mode.

    The logit scale and the statistics of batch norms are averaged as all floating tensors are; of others,
    such as counters, those of the second model are taken. Tensors that are equal in both stay bit for bit.
    Tokenizer, pixels and fitting templates are the second's.

    Args:
        alpha: share of the second model, 0..1.

    Raises:
        InputError: the models differ in config, mean, std, or the names or shapes of tensors.
    """
    check_alike(first, second)
    model = deepcopy(second.model).eval()
    # New tensors, loaded by name: one that two towers share is averaged once.
    model.load_state_dict(_average(first.model.state_dict(), second.model.state_dict(), alpha))
    address = f"{first.address} -> {second.address}, {alpha:g}"
    between = assemble(model, second.tokenizer, second.model_cfg, second.preprocess_cfg, address=address)
    return replace(between, fitting=second.fitting or first.fitting)


def check_alike(first: LoadedClip, second: LoadedClip) -> None:
    """Refuse two models between which no average is a model.

    Raises:
        InputError: names the first value or tensor in which they differ, other than by its numbers.
    """
    difference = (
        config_difference(first.model_cfg, second.model_cfg)
        or _pixel_difference(first, second)
        or _tensor_difference(first.model.state_dict(), second.model.state_dict())
    )
    if difference:
        raise InputError(
            f"{first.address} and {second.address}: {difference}, in this order. Only models of "
            "one config that see the same pixels have an average: give a model and its fine-tuning, or two "
            "students of one teacher."
        )


def _average(first: dict[str, Tensor], second: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    return {
        name: torch.lerp(first[name], own, alpha) if own.is_floating_point() else own
        for name, own in second.items()
    }


def _pixel_difference(first: LoadedClip, second: LoadedClip) -> str:
    for name in ("mean", "std"):
        one, other = first.preprocess_cfg[name], second.preprocess_cfg[name]
        if one != other:
            return f"the {name} of pixels is {one} and {other}"
    return ""


def _tensor_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    for name in dict.fromkeys((*first, *second)):
        one, other = (list(state[name].shape) if name in state else "missing" for state in (first, second))
        if one != other:
            return f"the tensor {name} is {one} and {other}"
    return ""
