"""The model card: what the hub reads of it, what people read, and that its code runs."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from beamclip.export.card import Card, card_text
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import LoadedClip, new_clip

DISTILLED = Card(
    facts={"teacher": "open_clip:ViT-B-16/laion2b_s34b_b88k", "student": "resnet18", "data": "3,834 emoji"},
    metrics={"zeroshot_top1": 0.14159, "zeroshot_top5": 0.35},
    intervals={"zeroshot_top1": (0.12, 0.16)},
    classes=("crane", "o'clock", "owl", "heron"),
    templates=("a photo of {}.",),
    license="cc-by-4.0",
)


@pytest.fixture(scope="module")
def clip() -> LoadedClip:
    return new_clip("tiny-vit", seed=0)


def test_the_hub_reads_license_task_library_and_base_model(clip: LoadedClip) -> None:
    data = ModelCard(card_text(clip, DISTILLED)).data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert data["library_name"] == "open_clip"
    assert data["base_model"] == ["laion/CLIP-ViT-B-16-laion2B-s34B-b88K"]
    assert data["tags"] == ["clip", "zero-shot-image-classification", "distillation"]


def test_people_read_facts_and_figures_with_intervals(clip: LoadedClip) -> None:
    text = card_text(clip, DISTILLED)
    for part in (
        "- student: resnet18",
        "- data: 3,834 emoji",
        "- classes: 4 (crane, o'clock, owl, heron)",
        "- templates: `a photo of {}.`",
        "- image size: 48 x 48 pixels",
        "- temperature: 0.07 (logit scale 14.29)",
        "| zeroshot_top1 | 0.1416 | 0.12 to 0.16 |",
        "| zeroshot_top5 | 0.35 |  |",
        "cc-by-4.0. The text tower is the teacher's and the student learned from it",
    ):
        assert part in text


def test_without_a_license_there_is_a_field_to_fill(clip: LoadedClip) -> None:
    text = card_text(clip, Card())
    assert ModelCard(text).data.license == "unknown"
    assert "replace `unknown` in the first lines" in text
    assert "None were measured." in text


def test_a_teacher_that_the_hub_does_not_know_is_no_base_model(clip: LoadedClip) -> None:
    for teacher in ("runs/teacher", "open_clip:ViT-B-16/weights.pt", "local-dir:/models/a"):
        assert "base_model" not in card_text(clip, Card({"teacher": teacher}))
    both = Card({"teacher": "hf-hub:laion/CLIP-one + hf-hub:laion/CLIP-two"})
    assert ModelCard(card_text(clip, both)).data.base_model == ["laion/CLIP-one", "laion/CLIP-two"]


def test_the_card_of_a_model_without_a_teacher_speaks_of_none(clip: LoadedClip) -> None:
    text = card_text(clip, Card({"model": "tiny-vit"}))
    assert "teacher" not in text
    assert "distil" not in text
    assert "Both towers learned from images and their captions: the licences of both apply" in text


def test_the_card_of_an_average_or_a_fine_tuning_names_the_models_that_it_comes_from(
    clip: LoadedClip,
) -> None:
    facts = {
        "model": "open_clip:ViT-B-16/laion2b_s34b_b88k",
        "towards": "hf-hub:laion/CLIP-two",
        "alpha": "0.5",
    }
    data = ModelCard(card_text(clip, Card(facts))).data.to_dict()
    assert data["base_model"] == ["laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "laion/CLIP-two"]
    assert "merge" in data["tags"]
    tuned = card_text(clip, Card({"model": "ViT-B-16", "init": "hf-hub:laion/CLIP-one", "data": "shards"}))
    assert ModelCard(tuned).data.base_model == ["laion/CLIP-one"]
    assert "It began with the weights of another model" in tuned


def test_the_code_of_the_card_classifies_a_picture(
    clip: LoadedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_open_clip_dir(clip, tmp_path / "model", DISTILLED)
    Image.new("RGB", (64, 40), (200, 30, 30)).save(directory / "picture.png")
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(directory)
    exec(compile(code[1], "README.md", "exec"), {})
    answer = eval(capsys.readouterr().out)
    assert list(answer) == ["crane", "o'clock", "owl"]
    assert sum(answer.values()) == pytest.approx(1, abs=1e-5)


def test_the_card_of_a_model_that_open_clip_cannot_load_does_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_open_clip_dir(new_clip("tiny-msclip-s", seed=0), tmp_path / "model", DISTILLED)
    text = (directory / "README.md").read_text()
    assert ModelCard(text).data.library_name == "beamclip"
    assert "import open_clip" not in text
    Image.new("RGB", (64, 40), (200, 30, 30)).save(directory / "picture.png")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(directory)
    exec(compile(code[1], "README.md", "exec"), {})
    assert sorted(eval(capsys.readouterr().out)) == ["crane", "o'clock", "owl"]


def test_a_vision_teacher_of_timms_is_a_base_model_and_a_file_is_none(clip: LoadedClip) -> None:
    """Its license binds the student, too."""
    facts = {"teacher": "hf-hub:laion/CLIP-one", "vision teacher": "timm:test_vit + timm:test_vit/dino.pth"}
    text = card_text(clip, Card(facts))
    assert ModelCard(text).data.base_model == ["laion/CLIP-one", "timm/test_vit.r160_in1k"]
    assert "- vision teacher: timm:test_vit + timm:test_vit/dino.pth" in text
