"""Exports: what others load, without beamclip."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beamclip.errors import InputError
from beamclip.export.card import Card
from beamclip.export.open_clip_dir import write_card, write_open_clip_dir
from beamclip.models.clip import LoadedClip, load_clip, new_clip
from beamclip.models.student import StudentConfig, build_student
from beamclip.prompts.fitting import FITTING_FILE, fitting_of

FITTING = fitting_of(["crane", "owl"], ["crane", "owl"])
TEXTS = ["a photo of a crane", "a drawing of a whale"]

FOREIGN_PROGRAM = """
import sys
sys.modules["beamclip"] = None  # importing it from here on is an ImportError
import open_clip, torch
directory, images, out = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
model.eval()
with torch.no_grad():
    image = model.encode_image(torch.load(images))
    text = model.encode_text(tokenizer(["a photo of a crane", "a drawing of a whale"]))
normalise = preprocess.transforms[-1]
torch.save({"image": image, "text": text, "mean": normalise.mean, "std": normalise.std}, out)
"""


@pytest.fixture(scope="module")
def teacher() -> LoadedClip:
    return new_clip("tiny-vit", seed=0)


@pytest.fixture(scope="module")
def student(teacher: LoadedClip) -> LoadedClip:
    built = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    built.model.train()
    with torch.no_grad():  # batch statistics that are not those of initialisation
        built.model.encode_image(torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    built.model.eval()
    return built


@pytest.mark.slow
def test_a_process_without_beamclip_gets_the_same_embeddings(tmp_path: Path, student: LoadedClip) -> None:
    directory = write_open_clip_dir(replace(student, fitting=FITTING), tmp_path / "model")
    assert (directory / FITTING_FILE).exists()
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-I", "-c", FOREIGN_PROGRAM, directory, tmp_path / "images.pt", tmp_path / "out.pt"],
        cwd=tmp_path / "elsewhere",
        check=True,
        capture_output=True,
    )
    result = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        image = student.model.encode_image(images)
        text = student.model.encode_text(student.tokenizer(TEXTS))
    torch.testing.assert_close(result["image"], image, atol=1e-5, rtol=0)
    torch.testing.assert_close(result["text"], text, atol=1e-5, rtol=0)
    assert result["mean"] == list(student.preprocessing.mean)
    assert result["std"] == list(student.preprocessing.std)


@pytest.mark.slow
def test_a_reloaded_export_is_the_model_that_was_written(tmp_path: Path, teacher: LoadedClip) -> None:
    told = replace(teacher, fitting=FITTING)
    loaded = load_clip(str(write_open_clip_dir(told, tmp_path / "model")))
    assert loaded.fingerprint == teacher.fingerprint
    assert loaded.fitting == FITTING
    assert loaded.model_cfg == teacher.model_cfg
    assert loaded.preprocess_cfg == teacher.preprocess_cfg


def test_a_student_goes_by_the_templates_of_its_teacher(teacher: LoadedClip) -> None:
    assert teacher.fitting is None
    told = replace(teacher, fitting=FITTING)
    assert build_student(StudentConfig(student="test_resnet"), told, seed=0).fitting == FITTING


def test_weights_in_channels_last_are_written_as_they_are(tmp_path: Path, teacher: LoadedClip) -> None:
    built = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    built.model.to(memory_format=torch.channels_last)
    loaded = load_clip(str(write_open_clip_dir(built, tmp_path / "model")))
    assert loaded.fingerprint == built.fingerprint


@pytest.mark.slow
def test_a_model_is_as_readable_as_any_new_file_and_its_card_gives_no_access(
    tmp_path: Path, teacher: LoadedClip
) -> None:
    before = os.umask(0o022)
    try:
        model = write_open_clip_dir(
            teacher, tmp_path / "model", Card({"data": "s3://KEY:SECRET@bucket/shards"})
        )
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in model.iterdir()} == {"0o644"}
    assert "- data: s3://***@bucket/shards\n" in (model / "README.md").read_text()


def test_a_card_is_replaced_alone_and_the_model_stays(tmp_path: Path, teacher: LoadedClip) -> None:
    directory = write_open_clip_dir(teacher, tmp_path / "model", Card({"data": "emoji"}))
    weights = (directory / "open_clip_model.safetensors").stat().st_mtime_ns
    write_card(teacher, directory, Card({"data": "emoji"}, {"zeroshot_top1": 0.25}))
    assert "| zeroshot_top1 | 0.25 |" in (directory / "README.md").read_text()
    assert (directory / "open_clip_model.safetensors").stat().st_mtime_ns == weights
    assert len(list(directory.iterdir())) == 3


def test_a_second_export_replaces_the_first_and_leaves_nothing_else(
    tmp_path: Path, teacher: LoadedClip, student: LoadedClip
) -> None:
    write_open_clip_dir(teacher, tmp_path / "model")
    write_open_clip_dir(student, tmp_path / "model")
    assert load_clip(str(tmp_path / "model")).model_cfg == student.model_cfg
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_fails_leaves_the_former_one_whole(tmp_path: Path, teacher: LoadedClip) -> None:
    write_open_clip_dir(teacher, tmp_path / "model")
    with pytest.raises(ValueError, match="format code"):
        write_open_clip_dir(teacher, tmp_path / "model", Card(metrics={"zeroshot_top1": "high"}))  # type: ignore[dict-item]
    assert load_clip(str(tmp_path / "model")).fingerprint == teacher.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_cannot_take_its_place_leaves_the_former_one(
    tmp_path: Path, teacher: LoadedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_open_clip_dir(teacher, tmp_path / "model")
    rename = Path.rename

    def fails_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError("a watcher holds the folder")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises(PermissionError):
        write_open_clip_dir(teacher, out)
    assert load_clip(str(out)).fingerprint == teacher.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path, teacher: LoadedClip) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    for out in (tmp_path / "thesis", tmp_path / "thesis" / "chapter1.tex"):
        with pytest.raises(InputError, match=r"is not an exported model .* Name another directory"):
            write_open_clip_dir(teacher, out)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()
