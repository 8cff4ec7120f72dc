"""The quickstart at a small size: what it prints, what it leaves, and what a second start does."""

import io
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import parse
from beamclip.commands.console import REWRITE, ProgressLine, progress_only
from beamclip.commands.main import COMMANDS, main
from beamclip.commands.options import DistillConfig, QuickstartConfig
from beamclip.commands.quickstart import LOG, RECIPE, Recipe, quickstart
from beamclip.commands.quickstart_speed import SPEED_FILE
from beamclip.models.clip import load_clip
from beamclip.prompts.classes import load_classes
from beamclip.training.config import OptimConfig

HERE = WorkersConfig(num_workers=0, threads_per_worker=1)
SMALL = Recipe(
    replace(RECIPE.corpus, images=128, test_images=64),
    replace(RECIPE.teacher, optim=OptimConfig(steps=3, lr=1e-3), workers=HERE),
    replace(RECIPE.student, optim=OptimConfig(steps=3, lr=1e-3), workers=HERE),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, monkeypatch_session):
    return tmp_path_factory.mktemp("quickstart") / "runs"


@pytest.fixture(scope="module")
def first(runs):
    """The summary of the first start."""
    return quickstart(QuickstartConfig(seed=1, folder=runs), SMALL)


@pytest.fixture
def again(first, runs, capsys):
    """What a second start prints."""
    capsys.readouterr()
    assert quickstart(QuickstartConfig(seed=1, folder=runs), SMALL) == first
    return capsys.readouterr().out


def test_each_stage_is_one_line_and_a_second_start_skips_them_all(again):
    lines = again.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["corpus", "shards", "teacher", "student", "onnx", "speed"]
    assert all(line.endswith("there already") for line in lines)


def test_what_the_commands_print_is_kept(first, runs):
    text = (runs / LOG).read_text()
    assert "test_resnet <- resnet10t, 3 steps" in text
    assert "128 of 128 URLs" in text


def test_scores_stand_beside_weights_and_speed(again, first, runs):
    (student,) = runs.glob("quickstart-student-*")
    row = re.search(r"^student +([\d.]+) % +[\d.]+ % +([\d,]+) +[\d.]+ +[\d,]+ +[\d,]+$", again, re.MULTILINE)
    assert row[1] == f"{100 * first.metrics['zeroshot_top1']:.1f}"
    visual = load_clip(str(student)).model.visual
    assert int(row[2].replace(",", "")) == sum(weight.numel() for weight in visual.parameters())
    speeds = json.loads((student / SPEED_FILE).read_text())
    assert speeds["teacher"]["weights"] > 5 * speeds["student"]["weights"]
    with Image.open(student / "plots" / "predictions.png") as picture:
        assert picture.width > 300


def test_the_next_commands_parse_and_name_what_is_there(again):
    command = next(line for line in again.splitlines() if "beamclip distill" in line)
    words = shlex.split(command)
    config = parse(DistillConfig, words[words.index("distill") + 1 :], "")
    assert len(load_classes(config.classes)) == 64
    assert load_clip(config.teacher).image_size > 0


@pytest.mark.slow
def test_one_seed_gives_the_same_figures_in_another_folder(first, tmp_path):
    other = quickstart(QuickstartConfig(seed=1, folder=tmp_path), SMALL)
    assert other.metrics == first.metrics


def test_distill_without_options_is_the_quickstart():
    assert COMMANDS["distill"].without_options == COMMANDS["quickstart"].body


def test_a_wrong_list_of_symbols_is_refused(capsys):
    assert main(["quickstart", "--symbols", "few"]) == 2
    assert "common" in capsys.readouterr().err


def test_a_terminal_shows_the_progress_of_a_stage_and_nothing_else(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with progress_only("teacher", tmp_path / "log"):
        print("anchors   64 classes")
        line = ProgressLine()
        line.show("step 3/9")
        line.close()
        print("scored")
    assert terminal.getvalue() == (f"{REWRITE}teacher   ...{REWRITE}teacher   step 3/9{REWRITE}")
    assert [text for text in (tmp_path / "log").read_text().splitlines() if text] == [
        "anchors   64 classes",
        "scored",
    ]


def test_the_command_takes_its_options():
    config = parse(QuickstartConfig, ["--symbols", "all", "--seed", "3", "--folder", "elsewhere"], "")
    assert config == QuickstartConfig("all", 3, Path("elsewhere"))
