"""Templates in the commands: noted by pretrain, inherited, found by auto, doubted where others fit better."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.anchors import class_anchors
from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.evaluate import evaluate
from beamclip.commands.options import DistillConfig, EvaluateConfig, SweepConfig
from beamclip.commands.templates import embedded_by, warn_of_misfit, with_templates
from beamclip.data.listing import list_shards
from beamclip.models.clip import LoadedClip, load_clip, new_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.fitting import FITTING_FILE, Fitting
from beamclip.sweep.prepare import with_own_values
from beamclip.sweep.space import Values, parse_space
from beamclip.sweep.sweep import sweep

BY_NAMES = Fitting(("name",), "its captions are bare names")
CLASSES = [ClassEntry(name, name) for name in ("crane", "owl", "polar bear", "ostrich", "whale", "tree")]
NAME, PHOTO = PromptConfig(("name",)), PromptConfig(("photo",))


@pytest.fixture(scope="module")
def clip(model_file: Path) -> LoadedClip:
    """An untrained model, sure of what it sees."""
    return new_clip(model_file, seed=0, init_logit_scale=4.6)


def warned(prompts: PromptConfig, clip: LoadedClip, known_by: PromptConfig, cache: Path, capsys) -> str:
    """What is printed of templates where the images are what the text tower makes of other ones."""
    names = [entry.name if known_by is NAME else f"a photo of a {entry.name}." for entry in CLASSES]
    images = Teacher(clip).encode_text(names)
    warn_of_misfit(prompts, CLASSES, clip, lambda: images, WorkersConfig(), cache)
    return capsys.readouterr().out


def test_other_templates_than_those_of_the_captions_are_warned_of_in_one_line(clip, tmp_path, capsys):
    line = warned(PHOTO, clip, NAME, tmp_path, capsys)
    assert line.count("\n") == 1
    assert line.startswith("warning")
    assert "templates photo" in line
    assert "--templates name" in line
    assert warned(NAME, clip, NAME, tmp_path, capsys) == ""


def test_nothing_is_compared_where_the_templates_are_known_to_fit(clip, tmp_path, capsys):
    def never() -> torch.Tensor:
        raise AssertionError("no image had to be embedded")

    known = replace(clip, fitting=BY_NAMES)
    warn_of_misfit(NAME, CLASSES, known, never, WorkersConfig(), tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_images_are_embedded_without_a_trace_in_what_training_starts_from(clip, corpus):
    tower, state = clip.image_tower, torch.get_rng_state()
    before = {name: value.clone() for name, value in tower.network.state_dict().items()}
    embeddings = embedded_by(tower, list_shards(str(corpus.train)), WorkersConfig())()
    assert embeddings.shape == (200, 32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(200))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in tower.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tower.network.state_dict().items())


def test_auto_is_what_the_model_says_and_photo_where_it_says_nothing(clip, capsys):
    assert with_templates(PromptConfig(), replace(clip, fitting=BY_NAMES)).templates == ("name",)
    assert "its captions are bare names" in capsys.readouterr().out
    assert with_templates(PromptConfig(), clip).templates == ("photo",)
    assert with_templates(NAME, clip) == NAME


def test_a_sweep_tries_what_auto_stands_for_once(clip):
    known = replace(clip, fitting=BY_NAMES)
    space = parse_space(["templates=auto,photo,name", "num_contexts=0,1"], SweepConfig())
    assert with_own_values(space, known) == {
        "templates": Values((("name",), ("photo",))),
        "num_contexts": Values((0, 1)),
    }


def test_classes_that_share_their_prompts_are_counted(clip, tmp_path, capsys):
    classes = [*CLASSES, ClassEntry("machine", "Crane")]
    class_anchors(classes, NAME, {}, clip, WorkersConfig(), tmp_path)
    assert "2 of 7 classes share their prompts" in capsys.readouterr().out


@pytest.mark.slow
def test_pretrain_notes_its_captions_and_its_scores_go_by_them(teacher, corpus):
    run, _ = teacher
    note = json.loads((run / "model" / FITTING_FILE).read_text())
    assert note["captions"]["looked_at"] == 200
    assert 0 < note["captions"]["name_share"] < 1
    assert yaml.safe_load((run / "config.yaml").read_text())["prompts"]["templates"] == note["templates"]
    assert load_clip(str(run)).fitting.templates == tuple(note["templates"])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distill", "evaluate", "sweep"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("red, green, blue\n", "holds one class, 'red, green, blue'"),
        ("crane\nCrane\n", "have the same prompts"),
    ],
)
def test_fewer_than_two_anchors_are_refused_before_anything_starts(
    command, content, expected, teacher, corpus, tmp_path, capsys
):
    (tmp_path / "classes.txt").write_text(content)
    given = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "run")]
    trained = ["--data", str(corpus.train), "--teacher", str(teacher[0]), "--batch-size", "20"]
    scored = ["--data", str(corpus.test), "--model", str(teacher[0])]
    run = {
        "distill": (DistillConfig, distill, [*given, *trained]),
        "evaluate": (EvaluateConfig, evaluate, [*given, *scored]),
        "sweep": (SweepConfig, sweep, [*given, *trained, "--eval-data", str(corpus.test)]),
    }[command]
    assert run_command(run[0], run[1], "", argv=run[2]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
