"""Write models in the formats of open_clip and timm, for use without beamclip."""

import json
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from beamclip.addresses import without_secrets
from beamclip.errors import InputError
from beamclip.files import write_whole
from beamclip.models.clip import CONFIG_FILE, LoadedClip
from beamclip.models.msclip import split_msclip
from beamclip.openclip import HFTokenizer, TimmModel
from beamclip.prompts.fitting import write_fitting

WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "README.md"


def write_open_clip_dir(clip: LoadedClip, out: Path, card: Mapping[str, Any]) -> Path:
    """Write an open_clip local directory: config, weights as safetensors, model card, fitting templates.

    The directory appears whole or not at all, and replaces one that was written before.

    Args:
        card: what the README says about the model: teacher, student, data, licence (texts), metrics (name to
            number). Every key is optional; others are listed as they are. Without a teacher, the README says
            that the model was trained from captions.

    Returns:
        out.

    Raises:
        InputError: out is a file, or a directory that holds something other than a model.
    """

    def write(directory: Path) -> None:
        model_cfg, beside = split_msclip(clip.model_cfg)
        config = {"model_cfg": model_cfg, "preprocess_cfg": clip.preprocess_cfg, **beside}
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save_weights(clip.model, directory / WEIGHTS_FILE)
        # open_clip looks for such a tokenizer in the directory itself; CLIP's own is part of its package.
        if isinstance(clip.tokenizer, HFTokenizer):
            clip.tokenizer.save_pretrained(directory)
        if clip.fitting is not None:
            write_fitting(clip.fitting, directory)
        (directory / CARD_FILE).write_text(_card_text(clip, card), encoding="utf-8")

    return _write_whole(out, CONFIG_FILE, write)


def write_card(clip: LoadedClip, directory: Path, card: Mapping[str, Any]) -> None:
    """Replace the README of an exported model, in one step; `card` is that of write_open_clip_dir."""
    write_whole(directory / CARD_FILE, _card_text(clip, card))


def write_timm_backbone(clip: LoadedClip, out: Path) -> Path:
    """Write the image tower's backbone, without projection, for `timm.create_model("local-dir:OUT")`.

    Raises:
        InputError: the image tower is not a timm network, or out holds something other than a model.
    """
    tower = clip.model.visual
    if not isinstance(tower, TimmModel):
        raise InputError(
            f"{clip.address}: its image tower is open_clip's own {type(tower).__name__}, not a timm network. "
            "Export it in open_clip's format."
        )
    trunk = deepcopy(tower.trunk)
    trunk.reset_classifier(0)
    size = clip.image_size
    config = {
        "architecture": trunk.pretrained_cfg["architecture"],
        "num_classes": 0,
        "num_features": trunk.num_features,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": clip.preprocess_cfg["interpolation"],
            "mean": clip.preprocess_cfg["mean"],
            "std": clip.preprocess_cfg["std"],
            "num_classes": 0,
            "classifier": trunk.pretrained_cfg["classifier"],
        },
    }

    def write(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save_weights(trunk, directory / "model.safetensors")

    return _write_whole(out, "config.json", write)


def _write_whole(out: Path, marker: str, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a directory beside `out`, then move it to `out`."""
    # Replacing deletes: only a former export, known by its marker, or an empty directory may go.
    replaceable = not out.exists() or (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir())))
    if not replaceable:
        raise InputError(
            f"{out}: exists and is not an exported model (it has no {marker}). Name another directory."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        staged = Path(scratch) / "new"
        staged.mkdir()
        write(staged)
        old = Path(scratch) / "old"
        if out.exists():
            out.rename(old)
        try:
            staged.rename(out)
        except OSError:
            # With the scratch folder, the former export would go too.
            if old.exists():
                old.rename(out)
            raise
    return out


def _save_weights(model: nn.Module, file: Path) -> None:
    # safetensors takes neither other memory formats nor views, nor one tensor under two names.
    state: dict[str, Tensor] = {}
    written: set[int] = set()
    for key, value in model.state_dict().items():
        whole = value.detach().cpu().contiguous()
        state[key] = whole.clone() if whole.data_ptr() in written else whole
        written.add(whole.data_ptr())
    write_whole(file, lambda draft: save_file(state, draft, metadata={"format": "pt"}))


def _card_text(clip: LoadedClip, card: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in card.items() if key not in ("metrics", "licence")}
    facts["image size"] = f"{clip.image_size} x {clip.image_size} pixels"
    facts["embedding"] = f"{clip.embed_dim} numbers"
    metrics: Mapping[str, float] = card.get("metrics", {})
    origin = _DISTILLED if "teacher" in card else _TRAINED
    text = _CARD.format(
        **origin,
        facts="\n".join(f"- {key}: {value}" for key, value in facts.items()),
        metrics=_metrics_table(metrics) if metrics else "None were measured.",
        licence=card.get("licence", _NO_LICENCE.format(**origin)),
    )
    return without_secrets(text)


def _metrics_table(metrics: Mapping[str, float]) -> str:
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows])


_NO_LICENCE = "None is stated. {rights} Read both before you pass this model on."
_DISTILLED = {
    "title": "A small CLIP model, distilled with beamclip",
    "tags": "clip, distillation, zero-shot-image-classification",
    "rights": "The text tower is the teacher's and the student learned from it: the licences of the "
    "teacher's weights and of the training images apply.",
}
_TRAINED = {
    "title": "A CLIP model, trained with beamclip",
    "tags": "clip, zero-shot-image-classification",
    "rights": "Both towers learned from images and their captions: the licences of both apply.",
}

_CARD = """\
---
library_name: open_clip
tags: [{tags}]
---

# {title}

{facts}

## Load it

```python
import open_clip

directory = "local-dir:/path/to/this/directory"
model, _, preprocess = open_clip.create_model_and_transforms(directory)
tokenizer = open_clip.get_tokenizer(directory)
```

## Metrics

Fractions between 0 and 1, unless the name says otherwise.

{metrics}

## Licence

{licence}
"""
