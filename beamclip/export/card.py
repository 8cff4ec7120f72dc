"""The model card: the README of an open_clip directory, in the form that the Hugging Face hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from beamclip.addresses import without_secrets
from beamclip.models.address import HUB, OPEN_CLIP, TIMM, split_address
from beamclip.models.clip import LoadedClip
from beamclip.openclip import open_clip, timm

SHOWN_CLASSES = 20
VISION_TEACHER = "vision teacher"
"""Fact that names the teachers of vision only."""
_EXAMPLES = ("a cat", "a dog")


@dataclass(frozen=True)
class Card:
    """What a model card says beyond what the model itself shows. Everything is optional."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """What the model is and comes from, in the order shown: teacher, student, data. A `teacher` makes the
    card that of a student, `towards` that of an average of `model` and this other one, `init` that of a
    fine-tuned model; without any, the card says that the model was trained from captions."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Figures by name, as in summary.json; fractions in 0..1 unless the name says otherwise."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval of a figure, by its name."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the model was trained for, or scored on."""
    templates: tuple[str, ...] = ()
    """Templates of the prompts behind the figures."""
    license: str | None = None
    """Identifier of the license, as the hub lists them: apache-2.0, cc-by-4.0."""


def card_text(clip: LoadedClip, card: Card) -> str:
    """Return the text of a model card: YAML front matter for the hub, and Markdown for people.

    The hub's metadata (https://huggingface.co/docs/hub/model-cards) name the license, the task, the library
    and, of the models that this one comes from, those of the hub.
    """
    origin = next((_ORIGINS[name] for name in _ORIGINS if name in card.facts), _TRAINED)
    sections = [
        f"---\n{_front_matter(clip, card)}---\n\n# {origin['title']}",
        "\n".join(f"- {name}: {value}" for name, value in _facts(clip, card).items()),
        _usage(clip, card),
        f"## Metrics\n\n{_metrics(card)}",
        f"## Licence\n\n{_licence(card, origin['rights'])}",
    ]
    return without_secrets("\n\n".join(sections)) + "\n"


def opens_in_open_clip(clip: LoadedClip) -> bool:
    """Whether open_clip itself can build the model: it has no image tower for MS-CLIP-S."""
    return not clip.model_cfg.get("msclip", {}).get("specialised", False)


def _front_matter(clip: LoadedClip, card: Card) -> str:
    tags = [tag for name, tag in (("teacher", "distillation"), ("towards", "merge")) if name in card.facts]
    front: dict[str, Any] = {
        "license": card.license or "unknown",
        "pipeline_tag": "zero-shot-image-classification",
        "library_name": "open_clip" if opens_in_open_clip(clip) else "beamclip",
        "tags": ["clip", "zero-shot-image-classification", *tags],
    }
    addresses = [each for name in _PARENTS for each in card.facts.get(name, "").split(" + ")]
    bases = [_hub_repository(address) for address in addresses]
    if any(bases):
        front["base_model"] = [base for base in bases if base]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _hub_repository(address: str) -> str | None:
    """Return the hub's ORG/NAME of a model address, if it has one."""
    schema, rest = split_address(address)
    if schema == OPEN_CLIP:
        registered = open_clip.get_pretrained_cfg(*rest.split("/", 1)) if "/" in rest else {}
        return registered.get("hf_hub", "").rstrip("/") or None
    if schema == TIMM and "/" not in rest:
        registered_timm = timm.get_pretrained_cfg(rest)
        return registered_timm.hf_hub_id if registered_timm else None
    return rest if schema == HUB else None


def _facts(clip: LoadedClip, card: Card) -> dict[str, str]:
    facts = dict(card.facts)
    if card.classes:
        shown = ", ".join(card.classes[:SHOWN_CLASSES])
        more = ", ..." if len(card.classes) > SHOWN_CLASSES else ""
        facts["classes"] = f"{len(card.classes):,} ({shown}{more})"
    if card.templates:
        facts["templates"] = ", ".join(f"`{template}`" for template in card.templates)
    facts["image size"] = f"{clip.image_size} x {clip.image_size} pixels"
    facts["embedding"] = f"{clip.embed_dim} numbers"
    scale = float(clip.model.logit_scale.detach().exp())
    facts["temperature"] = f"{1 / scale:.4g} (logit scale {scale:.4g})"
    return facts


def _usage(clip: LoadedClip, card: Card) -> str:
    names = list(card.classes[:3]) if len(card.classes) > 1 else list(_EXAMPLES)
    plain = [template for template in card.templates if "a(n)" not in template]
    template = plain[0] if plain else "{}"
    usage = _USAGE if opens_in_open_clip(clip) else _OWN_USAGE
    return usage.format(names=", ".join(f"{name!r}" for name in names), template=template)


def _metrics(card: Card) -> str:
    measured = {name: value for name, value in card.metrics.items() if value is not None}
    if not measured:
        return "None were measured."
    rows = ["| metric | value | 95 % interval |", "| --- | --- | --- |"]
    for name, value in measured.items():
        interval = card.intervals.get(name)
        shown = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        rows.append(f"| {name} | {value:.4g} | {shown} |")
    return "Fractions between 0 and 1, unless the name says otherwise.\n\n" + "\n".join(rows)


def _licence(card: Card, rights: str) -> str:
    if card.license is not None:
        return f"{card.license}. {rights}"
    return (
        f"None is stated: replace `unknown` in the first lines of this file by an identifier of the hub's "
        f"list. {rights} Read both before you pass this model on."
    )


_DISTILLED = {
    "title": "A small CLIP model, distilled with beamclip",
    "rights": "The text tower is the teacher's and the student learned from it: the licences of the "
    "teacher's weights and of the training images apply.",
}
_TRAINED = {
    "title": "A CLIP model, trained with beamclip",
    "rights": "Both towers learned from images and their captions: the licences of both apply.",
}
_FINE_TUNED = {
    "title": "A CLIP model, fine-tuned with beamclip",
    "rights": "It began with the weights of another model and learned from images and their captions: the "
    "licences of all three apply.",
}
_INTERPOLATED = {
    "title": "A CLIP model between two others, averaged with beamclip",
    "rights": "Its weights are an average of those of two models: the licences of both apply.",
}
_ORIGINS = {"teacher": _DISTILLED, "towards": _INTERPOLATED, "init": _FINE_TUNED}
_PARENTS = ("teacher", VISION_TEACHER, "model", "towards", "init")
"""Facts that are addresses of models, or may be."""

_USAGE = """\
## Use it

In this directory, with `pip install open_clip_torch`:

```python
import open_clip
import torch
from PIL import Image

model_address = "local-dir:."  # or "hf-hub:ORG/NAME", from the hub
model, _, preprocess = open_clip.create_model_and_transforms(model_address)
tokenizer = open_clip.get_tokenizer(model_address)
model.eval()  # open_clip leaves batch norms in training mode

names = [{names}]
template = {template!r}
image = preprocess(Image.open("picture.png")).unsqueeze(0)
with torch.no_grad():
    images = model.encode_image(image, normalize=True)
    texts = model.encode_text(tokenizer([template.replace("{{}}", name) for name in names]), normalize=True)
    probabilities = (model.logit_scale.exp() * images @ texts.T).softmax(dim=-1)
print(dict(zip(names, probabilities[0].tolist())))
```"""

_OWN_USAGE = """\
## Use it

In this directory, with `pip install beamclip`; open_clip has no image tower of this kind:

```python
import beamclip

model = beamclip.load(".")  # or "hf-hub:ORG/NAME", from the hub
[likeliest] = model.classify("picture.png", [{names}], templates={template!r})
print({{each.name: each.probability for each in likeliest}})
```"""
