"""A script that uses beamclip, for mypy: the types of its calls, and three mistakes that it must find."""

from pathlib import Path
from typing import assert_type

import torch

import beamclip
from beamclip.data import ImageBatch, stream
from beamclip.losses import csm_loss
from beamclip.models import ImageTeacher, LoadedClip, StudentConfig, build_student, load_clip


def use_a_model(model: beamclip.Model, pixels: torch.Tensor) -> None:
    """Embed and classify images of several kinds."""
    assert_type(beamclip.load(Path("runs/a")), beamclip.Model)
    assert_type(model.embed(["a.png", Path("b.png"), b""]), torch.Tensor)
    assert_type(model.embed(pixels), torch.Tensor)
    assert_type(model.embed(texts=["a", "b"]), torch.Tensor)
    assert_type(model.classify("a.png", ["a", "b"]), list[list[beamclip.Prediction]])
    beamclip.export(model="runs/a", format="onxx", out="onnx")  # type: ignore[arg-type]
    model.embed(3)  # type: ignore[arg-type]
    beamclip.loud("runs/a")  # type: ignore[attr-defined]


def run_commands() -> None:
    """Commands, those that are packages too among them."""
    assert_type(beamclip.distill(data="shards", teacher="runs/a", epochs=3), beamclip.Summary)
    assert_type(beamclip.evaluate(model=Path("runs/a"), data=["a", "b"]), beamclip.Summary)
    assert_type(beamclip.export(model="runs/a", format="onnx", out="onnx"), beamclip.Summary)
    assert_type(beamclip.ingest(urls="list.csv", out="shards"), beamclip.Summary)
    assert_type(beamclip.sweep(data="shards", vary=["lr=1e-4..1e-2"]), beamclip.Summary)


def train() -> None:
    """The parts of a loop."""
    clip = load_clip("runs/a")
    teacher, student = ImageTeacher(clip.image_tower), build_student(StudentConfig(), clip, seed=0)
    assert_type(student, LoadedClip)
    for batch in stream(["a", Path("b")], batch_size=2, image_size=32):
        assert_type(batch, ImageBatch)
        embedded = teacher.encode_image(batch.augmented())
        loss = csm_loss(embedded, embedded, embedded, tau_student=0.1, tau_teacher=0.1, weights=batch.weights)
        assert_type(loss, torch.Tensor)
