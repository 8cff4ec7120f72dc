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

from beamclip.data.image_headers import judge
from beamclip.errors import InputError
from beamclip.export import mlflow_model, onnx_model, open_clip_dir, timm_backbone, torch_program
from beamclip.export.card import Card, opens_in_open_clip
from beamclip.export.config import Format, Precision
from beamclip.export.folder import Layout, write_folder
from beamclip.export.int8 import to_int8
from beamclip.export.mlflow_model import Registration
from beamclip.export.networks import ClassHead, Classifier, ImageEncoder, TextEncoder, logit_scale
from beamclip.export.parity import Parity, check_close, check_pixels, check_similar, compare
from beamclip.export.pictures import fitted_picture, stacked
from beamclip.export.resize import check_resizable, resize_parity, with_resize
from beamclip.models.clip import LoadedClip, load_clip, normalise_pixels
from beamclip.models.teacher import copied_image_teacher
from beamclip.openclip import open_clip

Parities = dict[str, Parity]
LAYOUTS: dict[Format, Layout] = {
    "open_clip": open_clip_dir.LAYOUT,
    "timm": timm_backbone.LAYOUT,
    "onnx": onnx_model.LAYOUT,
    "torch": torch_program.LAYOUT,
    "mlflow": mlflow_model.LAYOUT,
}
"""What a former export of each format holds, by which it is known."""
_BATCH = 64
_TEXTS = ["a photo of a cat", "a drawing of a whale", "two red umbrellas"]


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
    originals: tuple[bytes, ...] = ()
    """Some pictures as files of any size, on which an export's own resizing is compared."""

    @cached_property
    def fitted(self) -> Tensor:
        """uint8 [n, 3, S, S]: `originals` as evaluation brings them to the model's input."""
        return stacked([fitted_picture(each, self.clip) for each in self.originals], self.clip.image_size)

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
        open_clip_dir.fill_open_clip_dir(model.clip, directory, model.card)
        images, texts = _reloaded(model, directory)
        parities["model"] = check_close(compare("embeddings", images, model.embeddings))
        parities["text"] = check_close(compare("embeddings", texts, _embedded_texts(model.clip)))

    write_folder(out, LAYOUTS["open_clip"], write)
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

    write_folder(out, LAYOUTS["timm"], write)
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
        torch_program.write_program(encoder, model.clip.image_size, file)
        found = torch_program.run_program(file, model.pixels)
        parities["image_encoder"] = check_close(compare("embeddings", found, model.embeddings))
        if model.classes is not None:
            file = directory / torch_program.CLASSIFIER
            classifier = Classifier(encoder, model.classes.head)
            torch_program.write_program(classifier, model.clip.image_size, file)
            found = torch_program.run_program(file, model.pixels)
            parities["classifier"] = check_close(compare("probabilities", found, model.probabilities))
            onnx_model.write_labels(model.classes.labels, directory)

    write_folder(out, LAYOUTS["torch"], write)
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

    write_folder(out, LAYOUTS["onnx"], write)
    return parities


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
        InputError: there are no classes, out holds something else, a package is missing, or int8 has no
            images to calibrate on.
        FailedRunError: an output differs from PyTorch's; or MLflow refuses the registration, and the folder
            is kept.
    """
    onnx_model.require_onnx()
    if model.classes is None:
        raise InputError("--format mlflow: a classifier needs classes. Give --classes FILE.")
    parities: Parities = {}

    def write(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as source:
            parities.update(_fill_onnx(model, Path(source), precision, opset))
            mlflow_model.save_mlflow_model(Path(source), directory)
            parities["served"] = check_close(_served_parity(model, directory, Path(source)))

    write_folder(out, LAYOUTS["mlflow"], write)
    return parities, mlflow_model.register_model(out, registration) if registration else None


def _reloaded(model: Exported, directory: Path) -> tuple[Tensor, Tensor]:
    """Embeddings of the images and of _TEXTS by the written directory, as open_clip preprocesses them."""
    if not opens_in_open_clip(model.clip):
        own = load_clip(str(directory))
        teacher = copied_image_teacher(own)
        parts = [teacher.encode_image(part) for part in model.pixels.split(_BATCH)]
        return torch.cat(parts), _embedded_texts(own)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokens = open_clip.get_tokenizer(f"local-dir:{directory}")(_TEXTS)
    loaded.eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in model.pixels]
    images = torch.stack([preprocess(picture) for picture in pictures])
    with torch.no_grad():
        parts = [loaded.encode_image(part, normalize=True) for part in images.split(_BATCH)]
        return torch.cat(parts), loaded.encode_text(tokens, normalize=True)


def _embedded_texts(clip: LoadedClip) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = clip.model.encode_text(clip.tokenizer(_TEXTS), normalize=True)
    return embeddings


def _fill_onnx(
    model: Exported, directory: Path, precision: Precision, opset: int, *, any_size: bool = False
) -> Parities:
    check = check_similar if precision == "int8" else check_close
    names = (onnx_model.PIXELS, onnx_model.EMBEDDINGS)
    encoder = onnx_model.to_onnx(ImageEncoder(model.clip), model.pixels[:2], names, opset)
    if precision == "int8":
        encoder = to_int8(encoder, model.calibration)
    parities: Parities = {}
    if any_size:
        if model.originals:
            parities["resizing"] = check_pixels(
                resize_parity(model.clip, model.originals, model.fitted, opset)
            )
        encoder = with_resize(encoder, model.clip, opset)
    facts = _facts(model.clip, precision, any_size=any_size)
    file = directory / onnx_model.IMAGE_ENCODER
    onnx_model.write_model(encoder, file, facts)
    found = onnx_model.run_onnx(file, model.pixels)
    parities["image_encoder"] = check(compare("embeddings", found, model.embeddings))
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
    tokens = clip.tokenizer(_TEXTS)
    network = TextEncoder(clip)
    names = (onnx_model.TOKENS, onnx_model.EMBEDDINGS)
    file = directory / onnx_model.TEXT_ENCODER
    facts = {"input": f"int64 [batch, {tokens.shape[1]}], tokens of open_clip.get_tokenizer"}
    onnx_model.write_model(onnx_model.to_onnx(network, tokens[:2], names, opset), file, facts)
    with torch.no_grad():
        expected = network(tokens)
    return check_close(compare("embeddings", onnx_model.run_onnx(file, tokens), expected))


def _served_parity(model: Exported, folder: Path, source: Path) -> Parity:
    """Compare what the MLflow model answers to files of pictures with its classifier on their pixels.

    The classifier was compared with PyTorch before: what may differ is decoding, resizing and labels.

    Args:
        source: folder of the classifier.
    """
    some = model.pixels[:8]
    taken = [place for place, each in enumerate(model.originals) if _is_served(each)]
    predict = mlflow_model.predictor(folder)
    rows = predict([*map(mlflow_model.png_bytes, some), *(model.originals[place] for place in taken)])
    # One by one, as they are served: the ranges of a dynamic int8 model are those of a whole batch.
    pixels = torch.cat([some, model.fitted[taken]])
    expected = onnx_model.run_onnx(source / onnx_model.CLASSIFIER, pixels, batch_size=1).max(dim=1)
    assert model.classes is not None
    ids = [model.classes.labels[place]["id"] for place in expected.indices]
    same = sum(row["id"] == wanted for row, wanted in zip(rows, ids, strict=True)) / len(rows)
    found = torch.tensor([row["probability"] for row in rows])
    largest = float((found - expected.values).abs().max())
    return Parity("probabilities", len(rows), largest, 0.0, same)


def _is_served(content: bytes) -> bool:
    return judge(content).format in mlflow_model.SERVED_FORMATS
