"""Weights: reading them from a file into a model, and naming them by a hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from beamclip.errors import InputError

StateDict = Mapping[str, Tensor]
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_SHOWN = 3


def load_weights(model: nn.Module, file: Path, config: str) -> None:
    """Load a whole open_clip model from one file; OpenAI's and DDP's (`module.`) layouts are understood.

    Args:
        config: where the model's shape comes from, for messages.

    Raises:
        InputError: the file cannot be read as tensors, or its tensors do not fit the model.
    """
    try:
        open_clip.load_checkpoint(model, str(file))
    except Exception as error:
        # open_clip raises a dozen kinds here; only the two files can say which mistake it was.
        raise InputError(_why_unfit(model, file, config, error)) from error


def load_backbone(trunk: nn.Module, file: Path, name: str) -> None:
    """Load a timm backbone from a checkpoint of the backbone alone or of a model that contains it.

    The backbone may sit under any prefix (`module.`, `visual.trunk.`, `encoder.`); a classifier in the file
    is ignored.

    Raises:
        InputError: the file cannot be read, holds no such backbone, or holds several.
    """
    state = read_state_dict(file)
    classifier = _classifier(trunk)
    wanted = {key: value for key, value in trunk.state_dict().items() if not key.startswith(classifier)}
    prefix = _backbone_prefix(state, wanted, file)
    found = {key: state[prefix + key] for key in wanted if prefix + key in state}
    problem = _mismatch(found, wanted)
    if problem:
        raise InputError(f"{file}: is not a checkpoint of {name}: {problem} Give a checkpoint of {name}.")
    trunk.load_state_dict(found, strict=False)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, by name; nothing but tensors is unpickled.

    Raises:
        InputError: the file is missing, is no such file, or holds other Python objects.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file.")
    try:
        state = load_state_dict(str(file), weights_only=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:
        # Foreign bytes make torch and safetensors raise anything from EOFError to StopIteration.
        raise InputError(
            f"{file}: cannot be read as a file of weights ({first_line(error)}). "
            "It must be .safetensors, or a torch file that holds a state dict and nothing but tensors."
        ) from error


def weights_sha256(model: nn.Module, *configs: Mapping[str, Any]) -> str:
    """Hex digest over configs and weights; the same however and wherever the weights are stored."""
    digest = hashlib.sha256()
    for config in configs:
        digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _backbone_prefix(state: StateDict, wanted: StateDict, file: Path) -> str:
    """The prefix under which the file holds most of the wanted tensors."""
    first = next(iter(wanted))
    prefixes = [key.removesuffix(first) for key in state if key == first or key.endswith("." + first)]
    hits = {prefix: sum(prefix + key in state for key in wanted) for prefix in prefixes}
    best = [prefix for prefix in prefixes if hits[prefix] == max(hits.values())]
    if len(best) > 1:
        raise InputError(
            f"{file}: holds {len(best)} backbones, under {_some([repr(prefix) for prefix in best], ', ')}. "
            "Save the one you mean to a file of its own."
        )
    return best[0] if best else ""


def first_line(error: Exception) -> str:
    """The start of an error's message, for use inside another."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _classifier(trunk: nn.Module) -> tuple[str, ...]:
    """Prefixes of the keys that belong to the network's classifier."""
    names = cast("dict[str, Any]", trunk.default_cfg).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _why_unfit(model: nn.Module, file: Path, config: str, error: Exception) -> str:
    state: dict[str, Tensor] = read_state_dict(file)
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    problem = _mismatch(state, model.state_dict()) or first_line(error)
    return (
        f"{file}: does not fit the model that {config} describes: {problem} "
        "Give the config that this checkpoint was trained with, or a checkpoint of this config's model."
    )


def _mismatch(state: StateDict, expected: StateDict) -> str:
    """What keeps the state from fitting, in words; empty if it fits."""
    shapes = [
        f"{name} is {list(state[name].shape)} in the file, {list(value.shape)} in the model"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    # Checkpoints older than the counter lack it, and it decides nothing at a fixed momentum.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    parts = []
    if shapes:
        parts.append(f"{len(shapes)} of {len(expected)} tensors differ in shape ({_some(shapes, '; ')}).")
    if missing:
        parts.append(f"{len(missing)} of {len(expected)} are not in the file ({_some(missing, ', ')}).")
    if unknown:
        parts.append(f"Unknown to the model: {len(unknown)} ({_some(unknown, ', ')}).")
    return " ".join(parts)


def _some(items: list[str], separator: str) -> str:
    return separator.join([*items[:_SHOWN], *(["..."] if len(items) > _SHOWN else [])])
