"""A trained model as an object: images and texts to embeddings, images to class names."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from beamclip.api.images import Image, Images, each_image, model_input
from beamclip.commands.command_line import bring_model
from beamclip.commands.contexts import refuse_alike
from beamclip.commands.templates import own_templates
from beamclip.errors import InputError
from beamclip.evaluation.zeroshot import class_scores
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.models.teacher import Precision, Teacher
from beamclip.prompts.anchors import Anchors, encode_anchors
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import ClassEntry, load_classes, named_classes
from beamclip.prompts.config import PromptConfig
from beamclip.training.optim import teacher_precision

Classes = str | os.PathLike[str] | Sequence[str] | Sequence[ClassEntry]
"""Names, a class list's file, or its entries."""

_ANCHORS_KEPT = 8
"""Sets of class anchors that a model keeps; 1,000 classes of 512 numbers are 2 MB."""


class Prediction(NamedTuple):
    """A class that an image may show."""

    label: str
    """Id of the class in its list; where names were given, the name."""
    name: str
    """Name of the class, as its prompts call it."""
    probability: float
    """0..1; over all classes they sum to 1."""


class Model:
    """A CLIP model that is ready to use; `load` makes one.

    Images are decoded and resized as `beamclip evaluate` does it, and classes have the same prompts, so that
    scores computed from here agree with its scores.
    """

    def __init__(
        self,
        clip: LoadedClip,
        *,
        device: str | torch.device = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "fp32",
        batch_size: int = 256,
    ) -> None:
        """Take over a model: its modules are moved to the device and frozen (with bf16, a copy of them).

        Args:
            device: as torch names it; auto: a GPU if there is one.
            precision: arithmetic of the image tower; auto is bf16 where the device computes it natively.
            batch_size: images, or texts, encoded at a time.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more.")
        self.clip = clip
        self.device = _device(device)
        self.batch_size = batch_size
        arithmetic = _precision(precision, self.device)
        # bf16 casts a transformer's weights, and `save` writes those that were given.
        self._encoder = Teacher(clip, arithmetic, copied=arithmetic == "bf16").to(self.device)
        self._anchors: dict[tuple[tuple[ClassEntry, ...], tuple[str, ...]], Anchors] = {}

    def __repr__(self) -> str:
        size = self.image_size
        return f"Model({self.clip.address!r}, {size} x {size} pixels -> {self.embed_dim}, {self.device})"

    @property
    def image_size(self) -> int:
        """Side of the square that images are brought to, pixels."""
        return self.clip.image_size

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return self.clip.embed_dim

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt templates that fit the model's text tower: names of sets, or texts with {}."""
        return own_templates(self.clip)

    @property
    def temperature(self) -> float:
        """The softmax temperature that the model has learned: 1 / exp(logit_scale)."""
        return 1.0 / float(self.clip.model.logit_scale.detach().exp())

    def embed(self, images: Images | None = None, *, texts: str | Iterable[str] | None = None) -> Tensor:
        """Embed images, or texts with `texts=`: a plain text in place of images is a path.

        Args:
            images: one or several of: path or address, bytes of a file, Pillow image, uint8 array [H, W, 3],
                uint8 tensor [3, H, W]; or an array [N, H, W, 3] or a tensor [N, 3, H, W]. An iterator is read
                batch by batch.
            texts: one or several.

        Returns:
            float32 [N, D] of unit length, on the CPU; N is 1 for a single image or text. The dot product of
            two is their cosine similarity.

        Raises:
            InputError: an image cannot be read or decoded (its index is named), or not exactly one of
                `images` and `texts` was given.
        """
        if (images is None) == (texts is None):
            raise InputError("embed: give either images or texts=..., not both and not neither.")
        if texts is not None:
            return self._of_texts([texts] if isinstance(texts, str) else list(texts))
        assert images is not None
        return self._of_images(images)

    def anchors(self, classes: Classes, *, templates: str | Sequence[str] | None = None) -> Tensor:
        """Return the text anchors of classes: for each the unit mean of its prompts' embeddings.

        Args:
            classes, templates: as for `classify`.

        Returns:
            float32 [K, D] of unit length, on the CPU, in the order of the classes.

        Raises:
            InputError: the class list or a template cannot be used, or there is only one class.
        """
        return self._class_anchors(_entries(classes), templates).embeddings

    def classify(
        self,
        images: Images,
        classes: Classes,
        *,
        templates: str | Sequence[str] | None = None,
        top: int = 5,
        temperature: float | None = None,
    ) -> list[list[Prediction]]:
        """Find the likeliest classes of images: zero-shot classification (CLIP, arXiv 2103.00020).

        Args:
            images: as for `embed`.
            classes: names, the path of a class list (text, YAML or JSON), or its entries. The prompts of a
                list are encoded once.
            templates: names of template sets or texts with {}; by default those that fit the model.
            top: how many classes to return of each image.
            temperature: of the softmax over the classes; by default the model's own.

        Returns:
            For each image its likeliest classes, best first.

        Raises:
            InputError: an image, a class list or a template cannot be used, or there is only one class.
        """
        if top < 1:
            raise InputError(f"top is {top}: give 1 or more.")
        if temperature is not None and not temperature > 0:
            raise InputError(f"temperature is {temperature}: give a number above 0.")
        entries = _entries(classes)
        anchors = self._class_anchors(entries, templates)
        tau = temperature or self.temperature
        scores = class_scores(self.embed(images), anchors, len(entries), temperature=tau)
        best = (scores / tau).softmax(dim=1).topk(min(top, len(entries)), dim=1)
        return [
            [Prediction(entries[k].id, entries[k].name, p) for k, p in zip(places, shares, strict=True)]
            for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write the model as a local open_clip directory, which `load` and open_clip itself read.

        Raises:
            InputError: there is something other than a model.
        """
        write_open_clip_dir(self.clip, Path(out))

    def _of_images(self, images: Images) -> Tensor:
        parts = [torch.zeros(0, self.embed_dim)]
        numbered = zip(each_image(images), count(), strict=False)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while batch := list(islice(numbered, self.batch_size)):
                parts.append(self._encode(list(pool.map(self._fit, batch))))
        return torch.cat(parts)

    def _fit(self, numbered: tuple[Image, int]) -> np.ndarray:
        return model_input(*numbered, clip=self.clip)

    @torch.inference_mode()
    def _encode(self, inputs: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2).to(self.device)
        return self._encoder.encode_image(pixels).cpu()

    def _of_texts(self, texts: list[str]) -> Tensor:
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"texts: holds a {type(wrong).__name__}. Give one text or a list of texts.")
        if not texts:
            return torch.zeros(0, self.embed_dim)
        return self._encoder.encode_text(texts, self.batch_size).cpu()

    def _class_anchors(self, entries: list[ClassEntry], templates: str | Sequence[str] | None) -> Anchors:
        given = (templates,) if isinstance(templates, str) else templates
        key = (tuple(entries), self.templates if given is None else tuple(given))
        anchors = self._anchors.pop(key, None)
        if anchors is None:
            prompts = class_prompts(entries, PromptConfig(templates=key[1]))
            refuse_alike(prompts)
            encode = partial(self._encoder.encode_text, batch_size=self.batch_size)
            anchors = encode_anchors(
                prompts, encode, "mean", cache_dir=None, encoder_fingerprint=self.clip.fingerprint
            )
        # The last is the newest; the first goes.
        self._anchors[key] = anchors
        if len(self._anchors) > _ANCHORS_KEPT:
            del self._anchors[next(iter(self._anchors))]
        return anchors


def load(
    address: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "fp32",
    batch_size: int = 256,
) -> Model:
    """Load a model to use it.

    Args:
        address: the folder of a run (of distill or pretrain), an exported open_clip directory, a checkpoint
            beside its config, open_clip:NAME/TAG, or hf-hub:ORG/NAME.
        device: as torch names it; auto: a GPU if there is one.
        precision: arithmetic of the image tower; auto is bf16 where the device computes it natively.
        batch_size: images, or texts, encoded at a time.

    Raises:
        InputError: there is no such model, its files are broken, or there is no such device.
    """
    name = os.fspath(address)
    bring_model(name)
    return Model(load_clip(name), device=device, precision=precision, batch_size=batch_size)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=device).device
    except Exception as error:  # torch raises several types, from AssertionError to RuntimeError
        said = str(error).splitlines()[0]
        raise InputError(f"device {device}: cannot be used here ({said}). Give auto, cpu or cuda.") from error


def _precision(asked: str, device: torch.device) -> Precision:
    if asked not in ("auto", "fp32", "bf16"):
        raise InputError(f"precision is {asked!r}: give auto, fp32 or bf16.")
    return teacher_precision(asked, device)


@lru_cache(maxsize=_ANCHORS_KEPT)
def _read_classes(path: Path, changed: int) -> list[ClassEntry]:
    """Read a class list once for each time that it was changed: a large one takes a second."""
    return load_classes(path)


def _entries(classes: Classes) -> list[ClassEntry]:
    if isinstance(classes, str | os.PathLike):
        path = Path(classes)
        entries = _read_classes(path, path.stat().st_mtime_ns if path.is_file() else 0)
    else:
        entries = named_classes(classes)
    if len(entries) < 2:
        raise InputError("classes: holds one class, which every image would be. Give two or more.")
    return entries
