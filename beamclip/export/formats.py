"""Write a model in one of the formats, and compare what was written with PyTorch before it takes its place.

Each `write_*` returns the comparisons by the name of the part that was compared. If a part differs too much,
or anything fails, no folder is left behind.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from beamclip.errors import InputError
from beamclip.export import onnx_model, timm_backbone, torch_program
from beamclip.export.card import Card
from beamclip.export.config import Format, Precision
from beamclip.export.folder import write_folder
from beamclip.export.int8 import to_int8
from beamclip.export.mlflow_model import MARKER, png_bytes, predictor, register_model, save_mlflow_model
from beamclip.export.networks import ClassHead, Classifier, ImageEncoder, TextEncoder, logit_scale
from beamclip.export.open_clip_dir import fill_open_clip_dir
from beamclip.export.parity import Parity, check_close, check_similar, compare
from beamclip.export.resize import check_resizable, with_resize
from beamclip.models.clip import CONFIG_FILE, LoadedClip, load_clip, normalise_pixels
from beamclip.models.teacher import copied_image_teacher
from beamclip.openclip import open_clip

Parities = dict[str, Parity]
MARKERS: dict[Format, str] = {
    "open_clip": CONFIG_FILE,
    "timm": timm_backbone.CONFIG_FILE,
    "onnx": onnx_model.IMAGE_ENCODER,
    "torch": torch_program.IMAGE_ENCODER,
    "mlflow": MARKER,
}
"""A file by which a former export of each format is known."""
_BATCH = 64


@dataclass(frozen=True)
class Classes:
    """The classes of a classifier."""

    labels: list[dict[str, str]]
    """{"id", "name"} of each class, in the order of the probabilities."""
    head: ClassHead
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """A model to export, and what it is compared on."""

    clip: LoadedClip
    pixels: Tensor
    """uint8 [N, 3, S, S], N >= 2: images on which the export is compared with PyTorch."""
    classes: Classes | None = None
    """Classes of the classifiers; None writes the encoder alone."""
    card: Card = field(default_factory=Card)
    calibration: Callable[[], Tensor | None] = lambda: None
    """Returns the images to calibrate int8 on, uint8 [M, 3, S, S], if there are any."""

    @cached_property
    def embeddings(self) -> Tensor:
        """float32 [N, D]: PyTorch's embeddings of `pixels`."""
        teacher = copied_image_teacher(self.clip)
        return torch.cat([teacher.encode_image(part) for part in self.pixels.split(_BATCH)])

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 [N, K]: PyTorch's class probabilities of `pixels`."""
        assert self.classes is not None, "asked for where a classifier is written"
        with torch.no_grad():
            probabilities: Tensor = self.classes.head(self.embeddings)
        return probabilities


def write_open_clip(model: Exported, out: Path) -> Parities:
    """Write an open_clip directory; open_clip itself loads it for the comparison, where it can.

    Raises:
        InputError: out holds something else.
        FailedRunError: embeddings differ from PyTorch's.
    """
    parities: Parities = {}

    def write(directory: Path) -> None:
        fill_open_clip_dir(model.clip, directory, model.card)
        parities["model"] = check_close(compare("embeddings", _reloaded(model, directory), model.embeddings))

    write_folder(out, MARKERS["open_clip"], write)
    return parities


def write_timm(model: Exported, out: Path) -> Parities:
    """Write the backbone for timm, which loads it for the comparison, as a directory and as a checkpoint.

    Raises:
        InputError: the image tower is not timm's, or out holds something else.
        FailedRunError: features differ from PyTorch's.
    """
    parities: Parities = {}
    trunk = timm_backbone.timm_trunk(model.clip)

    def write(directory: Path) -> None:
        timm_backbone.fill_timm_backbone(model.clip, trunk, directory)
        images = normalise_pixels(model.pixels[:_BATCH], model.clip.preprocessing)
        with torch.no_grad():
            expected = trunk(images)
            name = timm_backbone.architecture(trunk)
            loaded = timm_backbone.load_both_ways(directory, name, images)
        for way, features in zip(("directory", "checkpoint"), loaded, strict=True):
            parities[way] = check_close(compare("features", features, expected))

    write_folder(out, MARKERS["timm"], write)
    return parities


def write_torch(model: Exported, out: Path) -> Parities:
    """Write torch.export programs of the image encoder and, with classes, of the classifier.

    Raises:
        InputError: out holds something else.
        FailedRunError: a program's output differs from PyTorch's.
    """
    parities: Parities = {}
    encoder = ImageEncoder(model.clip)

    def write(directory: Path) -> None:
        file = directory / torch_program.IMAGE_ENCODER
        torch_program.write_program(encoder, model.pixels[:2], file)
        found = torch_program.run_program(file, model.pixels)
        parities["image_encoder"] = check_close(compare("embeddings", found, model.embeddings))
        if model.classes is not None:
            file = directory / torch_program.CLASSIFIER
            torch_program.write_program(Classifier(encoder, model.classes.head), model.pixels[:2], file)
            found = torch_program.run_program(file, model.pixels)
            parities["classifier"] = check_close(compare("probabilities", found, model.probabilities))
            onnx_model.write_labels(model.classes.labels, directory)

    write_folder(out, MARKERS["torch"], write)
    return parities


def write_onnx(
    model: Exported,
    out: Path,
    *,
    precision: Precision = "fp32",
    opset: int,
    any_size: bool = False,
    text_encoder: bool = False,
) -> Parities:
    """Write ONNX files of the image encoder and, with classes, of the classifier.

    Args:
        precision: int8 is for images; the text encoder stays in float32.
        opset: 18 to 23.
        any_size: whether the input is a picture of any size; else it is cut and resized already.
        text_encoder: whether to write the text encoder too.

    Raises:
        InputError: out holds something else, a package is missing, or int8 has no images to calibrate on.
        FailedRunError: an output differs from PyTorch's.
    """
    onnx_model.require_onnx()
    if any_size:
        check_resizable(model.clip)
    parities: Parities = {}

    def write(directory: Path) -> None:
        parities.update(_fill_onnx(model, directory, precision, opset, any_size=any_size))
        if text_encoder:
            parities["text_encoder"] = _fill_text_encoder(model.clip, directory, opset)

    write_folder(out, MARKERS["onnx"], write)
    return parities


@dataclass(frozen=True)
class Registration:
    """Where in MLflow a model is registered."""

    uri: str
    name: str
    alias: str
    run_id: str | None


def write_mlflow(
    model: Exported,
    out: Path,
    *,
    precision: Precision = "fp32",
    opset: int,
    registration: Registration | None = None,
) -> tuple[Parities, int | None]:
    """Write an MLflow model of the classifier, which answers pictures with labels.

    Returns:
        The comparisons; the version in the registry, if the model is to be registered.

    Raises:
        InputError: there are no classes, out holds something else, a package is missing, int8 has no images
            to calibrate on, or MLflow refuses the registration.
        FailedRunError: an output differs from PyTorch's.
    """
    onnx_model.require_onnx()
    if model.classes is None:
        raise InputError("--format mlflow: a classifier needs classes. Give --classes FILE.")
    parities: Parities = {}
    versions: list[int] = []

    def write(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as source:
            parities.update(_fill_onnx(model, Path(source), precision, opset))
            save_mlflow_model(Path(source), model.pixels[0], directory)
            served = _served_parity(model, directory, parities["classifier"])
            parities["served"] = check_close(served) if precision == "fp32" else served
            if registration is not None:
                r = registration
                versions.append(
                    register_model(Path(source), model.pixels[0], r.uri, r.name, r.alias, r.run_id)
                )

    write_folder(out, MARKERS["mlflow"], write)
    return parities, versions[0] if versions else None


def _reloaded(model: Exported, directory: Path) -> Tensor:
    """Embeddings of the images by the written directory, through open_clip's own preprocessing."""
    if "msclip" in model.clip.model_cfg:  # its config needs beamclip, where the tower is MS-CLIP-S's
        teacher = copied_image_teacher(load_clip(str(directory)))
        return torch.cat([teacher.encode_image(part) for part in model.pixels.split(_BATCH)])
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    loaded.eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in model.pixels]
    images = torch.stack([preprocess(picture) for picture in pictures])
    with torch.no_grad():
        parts = [loaded.encode_image(part, normalize=True) for part in images.split(_BATCH)]
    return torch.cat(parts)


def _fill_onnx(
    model: Exported, directory: Path, precision: Precision, opset: int, *, any_size: bool = False
) -> Parities:
    check = check_similar if precision == "int8" else check_close
    names = (onnx_model.PIXELS, onnx_model.EMBEDDINGS)
    encoder = onnx_model.to_onnx(ImageEncoder(model.clip), model.pixels[:2], names, opset)
    if precision == "int8":
        encoder = to_int8(encoder, model.calibration())
    if any_size:
        encoder = with_resize(encoder, model.clip, opset)
    facts = _facts(model.clip, precision, any_size=any_size)
    file = directory / onnx_model.IMAGE_ENCODER
    onnx_model.write_model(encoder, file, facts)
    found = onnx_model.run_onnx(file, model.pixels)
    parities = {"image_encoder": check(compare("embeddings", found, model.embeddings))}
    if model.classes is not None:
        names = (onnx_model.EMBEDDINGS, onnx_model.PROBABILITIES)
        head = onnx_model.to_onnx(model.classes.head, model.embeddings[:2], names, opset)
        file = directory / onnx_model.CLASSIFIER
        told = {"classes": model.classes.labels, "templates": list(model.classes.templates)}
        onnx_model.write_model(onnx_model.with_head(encoder, head), file, {**facts, **told})
        found = onnx_model.run_onnx(file, model.pixels)
        parities["classifier"] = check(compare("probabilities", found, model.probabilities))
        onnx_model.write_labels(model.classes.labels, directory)
    return parities


def _facts(clip: LoadedClip, precision: Precision, *, any_size: bool) -> dict[str, Any]:
    """What the metadata of an ONNX file say about its model."""
    keys = ("size", "resize_mode", "interpolation", "fill_color")
    preprocessing = {**clip.preprocess_cfg, "size": clip.image_size}
    sides = "height, width" if any_size else f"{clip.image_size}, {clip.image_size}"
    inside = "resizing, cropping and normalisation are" if any_size else "normalisation is"
    return {
        "input": f"uint8 [batch, 3, {sides}], RGB; {inside} inside",
        "preprocessing": {key: preprocessing[key] for key in keys},
        "precision": precision,
        "logit_scale": logit_scale(clip),
        "temperature": 1.0 / logit_scale(clip),
        "fingerprint": clip.fingerprint,
    }


def _fill_text_encoder(clip: LoadedClip, directory: Path, opset: int) -> Parity:
    tokens = clip.tokenizer(["a photo of a cat", "a drawing of a whale", "two red umbrellas"])
    network = TextEncoder(clip)
    names = (onnx_model.TOKENS, onnx_model.EMBEDDINGS)
    file = directory / onnx_model.TEXT_ENCODER
    facts = {"input": f"int64 [batch, {tokens.shape[1]}], tokens of open_clip.get_tokenizer"}
    onnx_model.write_model(onnx_model.to_onnx(network, tokens[:2], names, opset), file, facts)
    with torch.no_grad():
        expected = network(tokens)
    return check_close(compare("embeddings", onnx_model.run_onnx(file, tokens), expected))


def _served_parity(model: Exported, folder: Path, classifier: Parity) -> Parity:
    """Compare what the MLflow model answers to pictures of the images with PyTorch's probabilities."""
    some = slice(0, 16)
    predict = predictor(folder)
    rows = predict([png_bytes(image) for image in model.pixels[some]])
    expected = model.probabilities[some].max(dim=1)
    assert model.classes is not None
    ids = [model.classes.labels[place]["id"] for place in expected.indices]
    same = sum(row["id"] == wanted for row, wanted in zip(rows, ids, strict=True)) / len(rows)
    found = torch.tensor([row["probability"] for row in rows])
    largest = float((found - expected.values).abs().max())
    return Parity("probabilities", len(rows), largest, classifier.distance, same)
