"""What an export is made from: what a run knows of its model, images, and the anchors of its classes."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.anchors import class_anchors
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.contexts import context_sources
from beamclip.commands.templates import with_templates
from beamclip.config import parse_config
from beamclip.data.cache import is_cache
from beamclip.data.listing import list_shards
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.errors import InputError
from beamclip.export.card import VISION_TEACHER, Card
from beamclip.export.formats import Classes, Parities
from beamclip.export.int8 import CALIBRATION_IMAGES
from beamclip.export.mlflow_model import png_bytes
from beamclip.export.networks import ClassHead, logit_scale
from beamclip.export.parity import warning_of
from beamclip.export.pictures import fitted_picture, stacked
from beamclip.files import read_json, read_yaml
from beamclip.models.clip import LoadedClip
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry, load_classes
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.templates import resolve_templates
from beamclip.runs.folder import CLASSES_FILE, CONFIG_FILE
from beamclip.summary import SUMMARY_FILE

CHECKED_IMAGES = 256
"""Images on which an export is compared with PyTorch."""
_SHARDS, _PASSED = 16, 4
"""Most files of samples to take images from, and rows of one to pass for each image taken."""
_IN_FILES = ("tar", "parquet", "cache")
_ORIGINALS = 8
"""Images whose files are kept, to compare an export's own resizing."""


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run tells about its model; empty for other models."""

    folder: Path | None = None
    classes: Path | None = None
    prompts: PromptConfig | None = None
    train_data: tuple[str, ...] = ()
    eval_data: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """Facts that the model card lists; see Card."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def card(self, entries: Sequence[ClassEntry], templates: Sequence[str], license: str | None) -> Card:
        """Return what the model card says, with classes and templates of the model's prompts."""
        names = tuple(entry.name for entry in entries)
        return Card(self.facts, self.metrics, self.intervals, names, tuple(templates), license)


def run_facts(model: str) -> RunFacts:
    """Read what a run knows of its model.

    Args:
        model: address of the model, which need not be a run.

    Raises:
        InputError: the run's config.yaml or summary.json cannot be read.
    """
    folder = Path(model).expanduser()
    if not (folder / CONFIG_FILE).is_file() or "://" in model:
        return RunFacts()
    config = read_yaml(folder / CONFIG_FILE)
    config = config if isinstance(config, dict) else {}
    section = config.get("prompts")
    scoring = config.get("scoring") or {}
    summary = read_json(folder / SUMMARY_FILE) if (folder / SUMMARY_FILE).is_file() else {}
    metrics = {name: value for name, value in summary.get("metrics", {}).items() if "loss" not in name}
    return RunFacts(
        folder=folder,
        classes=folder / CLASSES_FILE if (folder / CLASSES_FILE).is_file() else _given_classes(config),
        prompts=parse_config(PromptConfig, section, str(folder / CONFIG_FILE)) if section else None,
        train_data=tuple(address for address in _texts(config.get("data")) if not is_cache(address)),
        eval_data=scoring.get("eval_data"),
        facts=_card_facts(config),
        metrics=metrics,
        intervals={name: (low, high) for name, (low, high) in (summary.get("intervals") or {}).items()},
    )


def _given_classes(config: Mapping[str, Any]) -> Path | None:
    # A run of version 0.1 has no class list of its own.
    return Path(config["classes"]) if config.get("classes") else None


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _card_facts(config: Mapping[str, Any]) -> dict[str, str]:
    teachers = [*_texts(config.get("teacher")), *_texts(config.get("more_teachers"))]
    student = (config.get("student") or {}).get("student")
    vision = " + ".join(_texts(config.get("vision_teachers")))
    facts = {"teacher": " + ".join(teachers), VISION_TEACHER: vision, "student": student} if teachers else {}
    if not teachers:
        facts = {name: config.get(name) for name in ("model", "init", "objective")}
    facts["data"] = " + ".join(_texts(config.get("data")))
    return {name: value for name, value in facts.items() if value}


def some_pictures(
    address: str, clip: LoadedClip, most: int, *, half: int | None = None
) -> Iterator[tuple[bytes, NDArray[np.uint8]]]:
    """Yield images of a data set, as files and as the model takes them; unusable ones are passed over.

    They are spread evenly over a folder of images. Of other data they come from the start of up to 16 shards.

    Args:
        address: shards or a folder of images; no labels or captions are needed.
        most: images to yield.
        half: 0 takes every other row of a shard, 1 the rows between; None takes any.

    Raises:
        InputError: there is no such data.
    """
    usable = (row for row in _spread_rows(list_shards(address), most, half) if not row["problem"])
    fitted = ((row["image"], _fitted(row["image"], clip)) for row in usable)
    yield from islice(((content, image) for content, image in fitted if image is not None), most)


def _spread_rows(shards: list[Shard], most: int, half: int | None) -> Iterator[dict[str, Any]]:
    in_files = shards[0].format in _IN_FILES
    chosen = [shards[place] for place in _evenly(len(shards), _SHARDS if in_files else most)]
    number = -(-most // len(chosen))
    for shard in chosen:
        # From the start of each file: they are read forwards, and may be remote.
        reach = min(shard.samples, _PASSED * number) if in_files else shard.samples
        rows = range(reach) if half is None or reach == 1 else range(half, reach, 2)
        yield from iterate_rows(shard, Columns(), np.array([rows[k] for k in _evenly(len(rows), number)]))


def _fitted(content: bytes, clip: LoadedClip) -> NDArray[np.uint8] | None:
    try:
        return fitted_picture(content, clip)
    except Exception:  # training and scoring count and report it
        return None


def _evenly(total: int, most: int) -> list[int]:
    """At most `most` numbers of `range(total)`, at even distances."""
    number = min(total, most)
    return [total * (2 * place + 1) // (2 * number) for place in range(number)]


def checked_images(clip: LoadedClip, given: str | None, run: RunFacts) -> tuple[Tensor, tuple[bytes, ...]]:
    """Return the images on which an export is compared with PyTorch, and print where they come from.

    Args:
        given: --check-data.

    Returns:
        uint8 [N, 3, S, S], N >= 2; the files of some of them.

    Raises:
        InputError: there are no two usable images in `given`.
    """
    for address in (given, run.eval_data, *run.train_data):
        if address is None:
            continue
        # Calibration takes the other half of the training data.
        half = 0 if address in run.train_data else None
        try:
            pictures = list(some_pictures(address, clip, CHECKED_IMAGES, half=half))
        except InputError:
            # The data of a run may have gone since; those that were asked for may not.
            if address == given:
                raise
            continue
        if len(pictures) >= 2:
            print_stage("images", f"{plural(len(pictures), 'image')} of {address}", "to compare on")
            originals = tuple(pictures[place][0] for place in _evenly(len(pictures), _ORIGINALS))
            return stacked([image for _, image in pictures], clip.image_size), originals
        if address == given:
            raise InputError(f"--check-data {address}: holds fewer than two usable images. Give more.")
    print_stage("images", "noise: no images are known, --check-data gives some", "to compare on")
    return _noise(CHECKED_IMAGES // 4, clip.image_size, clip.image_size), _noise_files(clip.image_size)


def _noise(number: int, height: int, width: int) -> Tensor:
    shape = (number, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _noise_files(size: int) -> tuple[bytes, ...]:
    shapes = ((2 * size + 1, size + 3), (size + 3, 2 * size + 1), (size // 2 + 1, size // 2))
    return tuple(png_bytes(_noise(1, *shape)[0]) for shape in shapes)


def calibration_images(clip: LoadedClip, given: str | None, run: RunFacts) -> Tensor | None:
    """Return images to calibrate int8 on, and print where they come from; None if there are none.

    Args:
        given: --calibration-data; by default, the training data of the run, of each data set a share.

    Returns:
        uint8 [M, 3, S, S].

    Raises:
        InputError: there are no such data.
    """
    addresses = [given] if given else list(run.train_data)
    images: list[NDArray[np.uint8]] = []
    for address in addresses:
        try:
            found = some_pictures(address, clip, -(-CALIBRATION_IMAGES // len(addresses)), half=1)
            own = [image for _, image in found]
        except InputError:
            if given:
                raise
            continue
        if own:
            print_stage("int8", f"calibrated on {plural(len(own), 'image')} of {address}")
        images += own
    return stacked(images, clip.image_size) if images else None


def show_parities(parities: Parities) -> None:
    """Print a line for each part of an export that was compared with PyTorch."""
    for name, parity in parities.items():
        same = "" if parity.same_top1 is None else f", same top-1 {percent(parity.same_top1)}"
        print_stage("parity", f"{parity.what} differ by at most {parity.largest:.2g}{same}", name)
        if warning := warning_of(parity):
            print_stage("warning", f"{name}: {warning}")


def classes_of(clip: LoadedClip, path: Path, prompts: PromptConfig, data: Sequence[str]) -> Classes:
    """Encode the anchors of a class list.

    Args:
        prompts: how names become prompts; templates `auto` are those that fit the model.
        data: addresses of shards, for contexts that come from captions.

    Raises:
        InputError: the class list or the prompts cannot be used.
    """
    entries = load_classes(path)
    prompts = with_templates(prompts, clip)
    here = WorkersConfig(num_workers=0)
    with tempfile.TemporaryDirectory() as cache:
        external_sources = context_sources(entries, prompts, data, Path(cache))
        anchors = class_anchors(entries, prompts, external_sources, clip, here, Path(cache))
    return classes_from(clip, entries, anchors, prompts)


def classes_from(
    clip: LoadedClip, entries: Sequence[ClassEntry], anchors: Anchors, prompts: PromptConfig
) -> Classes:
    """Make the classes of a classifier from anchors that were encoded before.

    Args:
        prompts: those of the anchors, with templates other than `auto`.
    """
    return Classes(
        labels=[{"id": entry.id, "name": entry.name} for entry in entries],
        head=ClassHead(anchors, len(entries), logit_scale(clip)),
        templates=resolve_templates(prompts.templates),
    )
