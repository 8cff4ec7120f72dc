"""Model files from the Hugging Face hub, cached or downloaded; failures are reported within seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from beamclip.errors import InputError
from beamclip.openclip import open_clip, timm
from beamclip.spelling import or_list

_TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME)


def hub_file(repository: str, names: Sequence[str], address: str) -> Path:
    """Return the path of the first of these files that repository ORG/NAME has, cached or downloaded.

    Args:
        address: as the user wrote it, for messages.

    Raises:
        InputError: the repository has none of them, or cannot be reached and none is in the cache.
    """
    try:
        cached = [name for name in names if isinstance(try_to_load_from_cache(repository, name), str)]
    except ValueError as error:
        raise InputError(f"{address}: {repository!r} is not an ORG/NAME of the hub.") from error
    for name in cached or names:
        try:
            if not cached:
                # One request, where a download would first retry for half a minute.
                get_hf_file_metadata(hf_hub_url(repository, name))
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
        except Exception as error:
            # Errors of the network, the hub and the cache share no base class.
            raise InputError(_unreachable(address, error)) from error
    raise InputError(f"{address}: {repository} on the hub has no {or_list(names)}: not an open_clip model.")


def registered_weights(pretrained: dict[str, Any], address: str) -> Path:
    """Return the path of the weights of an entry in open_clip's registry, cached or downloaded.

    Raises:
        InputError: they are not in the local cache and cannot be downloaded.
    """
    repository, _, name = str(pretrained.get("hf_hub", "")).rpartition("/")
    if repository and "file" not in pretrained:
        safe = Path(name).with_suffix(".safetensors").name if name.endswith((".bin", ".pth")) else name
        return hub_file(repository, (safe, name) if name else WEIGHTS, address)
    try:
        return Path(open_clip.download_pretrained(pretrained))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(_unreachable(address, error)) from error


def pretrained_backbone(name: str) -> nn.Module:
    """Build a backbone of timm, without a classifier, with the weights of the tag in its name.

    Raises:
        Exception: of any type, if there are none or they are neither in the cache nor to be had.
    """
    registered = timm.get_pretrained_cfg(name)
    if registered is not None and registered.hf_hub_id:
        # timm itself would retry for most of a minute.
        hub_file(registered.hf_hub_id, _TIMM_WEIGHTS, name)
    backbone: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    return backbone


def _unreachable(address: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"{address}: is not in the local cache and could not be downloaded ({reason}). "
        "Check its name and the network, or give the path of a local open_clip directory."
    )
