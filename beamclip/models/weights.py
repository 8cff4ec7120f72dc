"""Weights: loading them from a file into a model, and hashing them."""

import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.models.msclip import SpecialisedVision
from beamclip.models.msclip_release import is_released, own_names
from beamclip.openclip import (
    convert_state_dict,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
    timm,
)

StateDict = Mapping[str, Tensor]
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 3

_STATES = ("state_dict", "model", "teacher")
"""Keys under which training programs keep weights, in the order in which they are tried."""
_AVERAGES = {"encoder_k", "momentum_encoder", "momentum_backbone"}
"""Names that MoCo (v1 and v2, v3) and solo-learn give the moving average of the encoder that they train."""
_MOCO_HEADS = 12
"""Heads of attention in MoCo v3's ViTs, of any width (vits.py of facebookresearch/moco-v3)."""
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts that torch.compile, FSDP and activation checkpointing add to the names of tensors."""


def load_weights(model: nn.Module, file: Path, config: str) -> None:
    """Load a whole open_clip model from one file, in open_clip's or OpenAI's layout.

    An MS-CLIP-S may also have the layout of its authors' release. The model may sit under any prefix
    (`module.`, `model.`); see `read_state_dict` for the rest.

    Args:
        config: where the model's shape comes from, for messages.

    Raises:
        InputError: the file cannot be read as tensors, or its tensors do not fit the model.
    """
    state = read_state_dict(file)
    prefix = _model_prefix(state, file)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if isinstance(model.visual, SpecialisedVision) and is_released(state):
        state = own_names(state)
    try:
        _fill(model, state)
    except Exception as error:
        # open_clip raises a dozen types here; only comparing the file with the model tells what is wrong.
        raise InputError(_why_unfit(model, state, file, config, error)) from error


def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict as `open_clip.load_checkpoint` loads one from a file."""
    state = convert_state_dict(model, dict(state))
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None:
        state.setdefault("logit_bias", torch.zeros_like(state["logit_scale"]))
    # transformers has not stored these since 4.31.
    state.pop("text.transformer.embeddings.position_ids", None)
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    _check_shared(model, state)
    model.load_state_dict(state)


def _check_shared(model: nn.Module, state: StateDict) -> None:
    """Raise ValueError if tensors differ in the state that are one in the model."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other not in state or name not in state:
            continue
        if not torch.allclose(state[other], state[name], rtol=0, atol=0, equal_nan=True):
            raise ValueError(f"{other} and {name} differ in the file; in the model they are one tensor.")


def load_backbone(trunk: nn.Module, file: Path, name: str) -> None:
    """Load a timm backbone from a checkpoint of the backbone alone or of a model that contains it.

    The backbone may sit under any prefix (`module.`, `visual.trunk.`, `encoder.`); a classifier in the file
    is ignored. Of an encoder and its moving average, as MoCo trains them, the encoder is taken.

    Raises:
        InputError: the file cannot be read, holds no such backbone, or holds several.
    """
    state = read_state_dict(file)
    classifier = _classifier(trunk)
    wanted = {key: value for key, value in trunk.state_dict().items() if not key.startswith(classifier)}
    prefix = _backbone_prefix(state, wanted, file)
    _check_heads(trunk, prefix, file, name)
    found = {key: state[prefix + key] for key in wanted if prefix + key in state}
    problem = _mismatch(found, wanted)
    if problem:
        raise InputError(f"{file}: is not a checkpoint of {name}: {problem} Give a checkpoint of {name}.")
    trunk.load_state_dict(found, strict=False)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or torch file, by name, without running code from the file.

    From a training checkpoint, it takes those under "state_dict", "model" or "teacher". What torch.compile,
    FSDP and DDP add to names is removed.

    Raises:
        InputError: the file is missing, cannot be read, holds no tensors, or holds other Python objects.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file.")
    try:
        content = _read(file)
    except Exception as error:
        # Foreign bytes make torch and safetensors raise anything from EOFError to StopIteration.
        raise InputError(_why_unreadable(file, error)) from error
    state = {_unwrapped(key): value for key, value in _tensors(content, file).items()}
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in state.items()}


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    # argparse's Namespace is harmless, and DINO and similar programs keep their options in one.
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _why_unreadable(file: Path, error: Exception) -> str:
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign is None:
        return (
            f"{file}: cannot be read as a file of weights ({first_line(error)}). "
            "It must be .safetensors, or a torch file that holds a state dict and nothing but tensors."
        )
    return (
        f"{file}: cannot be read as a file of weights: it holds a Python object ({foreign[1]}), which may "
        "run any code when it is read. It must hold nothing but tensors. If you trust its source, save its "
        "weights alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], OTHER)."
    )


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """Find the weights in a file's content, where training programs may nest them."""
    if isinstance(content, Mapping):
        for key in _STATES:
            if isinstance(content.get(key), Mapping):
                return _tensors(content[key], file)
        found = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if found:
            return found
    held = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        held = f"a dictionary of {_some([repr(key) for key in content], ', ') or 'nothing'}"
    raise InputError(
        f"{file}: cannot be read as a file of weights: it holds {held}. It must hold tensors by name, at its "
        f"top or under {', '.join(map(repr, _STATES))}."
    )


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def weights_sha256(model: nn.Module, *configs: Mapping[str, Any]) -> str:
    """Return a hex digest of configs and weights, independent of device, memory layout and file format."""
    digest = hashlib.sha256()
    for config in configs:
        digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _backbone_prefix(state: StateDict, wanted: StateDict, file: Path) -> str:
    """The prefix under which the file holds most of the wanted tensors, in their shapes if possible."""

    def hits(prefix: str) -> tuple[int, int]:
        there = [key for key in wanted if prefix + key in state]
        return sum(state[prefix + key].shape == wanted[key].shape for key in there), len(there)

    first = next(iter(wanted))
    return _best({prefix: hits(prefix) for prefix in _prefixes(state, first)}, "backbones", file)


def _check_heads(trunk: nn.Module, prefix: str, file: Path, name: str) -> None:
    """Refuse MoCo v3's ViT-S for a timm ViT-S: the tensors are alike, the heads of attention are not."""
    if "base_encoder" not in prefix.split(".") or not isinstance(trunk, timm.models.VisionTransformer):
        return
    heads = cast("Any", trunk.blocks[0]).attn.num_heads
    if heads != _MOCO_HEADS:
        raise InputError(
            f"{file}: a ViT of MoCo v3 has {_MOCO_HEADS} heads, and {name} has {heads}: it would compute "
            "something else with the same tensors. Take a student with as many heads, such as "
            "vit_base_patch16_224, or other weights."
        )


def _model_prefix(state: StateDict, file: Path) -> str:
    """The prefix under which the file holds a CLIP model: each has a logit_scale, beside its towers."""
    prefixes = _prefixes(state, "logit_scale")
    hits = {prefix: (sum(key.startswith(prefix) for key in state),) for prefix in prefixes}
    return _best(hits, "models", file)


def _prefixes(state: StateDict, name: str) -> list[str]:
    return [key.removesuffix(name) for key in state if key == name or key.endswith("." + name)]


def _best(hits: Mapping[str, tuple[int, ...]], what: str, file: Path) -> str:
    """The prefix with the most hits, none of a moving average if possible; empty if there is none."""
    best = [prefix for prefix in hits if hits[prefix] == max(hits.values())]
    best = [prefix for prefix in best if not _AVERAGES & {*prefix.split(".")}] or best
    if len(best) > 1:
        raise InputError(
            f"{file}: holds {len(best)} {what}, under {_some([repr(prefix) for prefix in best], ', ')}. "
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


def _why_unfit(model: nn.Module, state: StateDict, file: Path, config: str, error: Exception) -> str:
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(dict(state))
    problem = _mismatch(state, model.state_dict()) or first_line(error)
    return (
        f"{file}: does not fit the model that {config} describes: {problem} "
        "Give the config that this checkpoint was trained with, or a checkpoint of this config's model."
    )


def _mismatch(state: StateDict, expected: StateDict) -> str:
    """Describe why the state does not fit; empty if it does."""
    shapes = [
        f"{name} is {list(state[name].shape)} in the file, {list(value.shape)} in the model"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    # Old checkpoints lack this counter, which has no effect at a fixed momentum.
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
