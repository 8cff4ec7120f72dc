"""Size and speed of the quickstart's models, shown beside their scores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from beamclip.corpus.glyphs import CorpusPaths
from beamclip.evaluation.speed import class_namer, images_per_core_second
from beamclip.export.onnx_model import IMAGE_ENCODER, PIXELS, cpu_session
from beamclip.files import parse_json, read_text, write_whole
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import load_classes

SPEED_FILE = "speed.json"
PICTURES = 256


@dataclass(frozen=True)
class ModelSpeed:
    """What a model costs whoever uses it."""

    weights: int
    """Weights of the image tower."""
    megabytes: float
    """Size of the image tower, 10^6 bytes."""
    images_per_second: float
    """Pictures decoded and named in a second of one core."""


def has_speeds(student: Path) -> bool:
    """Whether the models have been measured before."""
    return (student / SPEED_FILE).exists()


def measured_speeds(
    teacher: Path, student: Path, onnx: Path | None, corpus: CorpusPaths
) -> dict[str, ModelSpeed]:
    """Measure the models on pictures of the test split, or return what was measured before.

    Args:
        teacher, student: folders of the runs; the figures are kept in the student's.
        onnx: folder of the student's export.

    Returns:
        Of "teacher", "student" and, with its export, "student in ONNX".
    """
    path = student / SPEED_FILE
    if has_speeds(student):
        return {role: ModelSpeed(**each) for role, each in parse_json(read_text(path), str(path)).items()}
    names = [entry.name for entry in load_classes(corpus.classes)]
    pictures = _pictures(corpus)
    clips = {"teacher": load_clip(str(teacher)), "student": load_clip(str(student))}
    namers = {role: _namer(clip, names) for role, clip in clips.items()}
    sizes = {role: _size(clip) for role, clip in clips.items()}
    if onnx is not None:
        file, role = onnx / IMAGE_ENCODER, "student in ONNX"
        namers[role] = _namer(clips["student"], names, _onnx_encoder(file))
        sizes[role] = (sizes["student"][0], file.stat().st_size / 1e6)
    rates = images_per_core_second(namers, pictures)
    speeds = {role: ModelSpeed(*size, rates[role]) for role, size in sizes.items()}
    write_whole(path, json.dumps({role: asdict(each) for role, each in speeds.items()}, indent=2) + "\n")
    return speeds


def _pictures(corpus: CorpusPaths) -> list[bytes]:
    paths = pq.read_table(corpus.test)["path"].to_pylist()[:PICTURES]
    return [(corpus.root / path).read_bytes() for path in paths]


def _namer(
    clip: LoadedClip, names: list[str], encode: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Sequence[bytes]], list[int]]:
    anchors = Anchors(Teacher(clip).encode_text(names), torch.arange(len(names)))
    return class_namer(clip, anchors, len(names), encode)


def _onnx_encoder(file: Path) -> Callable[[Tensor], Tensor]:
    session = cpu_session(file, threads=1)
    return lambda pixels: torch.from_numpy(session.run(None, {PIXELS: pixels.numpy()})[0])


def _size(clip: LoadedClip) -> tuple[int, float]:
    """Number of weights and megabytes of the image tower."""
    parameters = list(clip.model.visual.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters) / 1e6
