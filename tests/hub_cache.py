"""The cache of the hub's client, filled with random weights: no test asks the hub itself."""

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file


def fill_hub_cache(root: Path, name: str, seed: int) -> dict[str, torch.Tensor]:
    """Lay random weights where the hub's client keeps timm's download of this model."""
    torch.manual_seed(seed)
    state = timm.create_model(name).state_dict()
    folder = root / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, folder / "snapshots" / ("0" * 40) / "model.safetensors")
    return state


def go_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Have the hub's client find nothing but what is in this cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
