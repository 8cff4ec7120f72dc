"""The recipes: they parse, name models that exist, say what is whose, and train a step on a small corpus."""

import shlex
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import parse
from beamclip.commands.distill import distill
from beamclip.commands.main import COMMANDS
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.commands.pretrain import pretrain
from beamclip.config import read_config
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import new_clip
from beamclip.models.model_config import own_configs
from beamclip.training.config import CadenceConfig, OptimConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def config_of(path: Path) -> DistillConfig | PretrainConfig:
    trains = "beamclip pretrain --config" in path.read_text()
    return read_config(PretrainConfig if trains else DistillConfig, path)


def header_of(path: Path) -> list[str]:
    return [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]


@every_recipe
def test_a_header_says_what_is_whose_and_its_commands_can_be_typed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    header = header_of(path)
    assert any("ours" in line.casefold() for line in header)
    text = "\n".join(header).replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("beamclip ")]
    assert any(f"--config recipes/{path.name}" in line for line in commands)
    for line in commands:
        _, name, *words = shlex.split(line)
        parse(COMMANDS[name].options, words, "")


@every_recipe
def test_the_models_of_a_recipe_exist(path: Path) -> None:
    config = config_of(path)
    if isinstance(config, PretrainConfig):
        assert config.model in (*own_configs(), *open_clip.list_models())
        return
    assert timm.is_model(config.student.student)
    teachers = [each for each in (config.teacher, *config.more_teachers) if each]
    pretrained = {f"open_clip:{model}/{tag}" for model, tag in open_clip.list_pretrained()}
    assert set(teachers) <= pretrained


@pytest.mark.slow
@every_recipe
def test_a_recipe_takes_a_step(path: Path, teacher, corpus, model_file, tmp_path: Path) -> None:
    write_open_clip_dir(new_clip(model_file, seed=77), tmp_path / "other")
    config = config_of(path)
    config = replace(
        config,
        data=(str(corpus.train),),
        out=tmp_path / "run",
        optim=replace(config.optim, epochs=None, steps=1, precision="fp32"),
        stream=replace(config.stream, batch_size=8),
        cadence=CadenceConfig(),
        workers=WorkersConfig(num_workers=0),
    )
    if isinstance(config, PretrainConfig):
        tiny = "tiny-msclip-s" if "msclip" in config.model else str(model_file)
        assert pretrain(replace(config, model=tiny)).stages["steps"] == 1
        return
    student = replace(config.student, pretrained=False, student_image_size=64)
    config = replace(
        config,
        teacher=str(teacher[0]),
        more_teachers=(str(tmp_path / "other"),) if config.more_teachers else (),
        classes=corpus.classes,
        student=student,
        caption_anchors=16,
    )
    assert distill(config).stages["steps"] == 1


def test_a_dry_run_prints_what_a_training_would_take_and_writes_nothing(
    teacher, corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(DistillConfig, ROOT / "recipes" / "two-cores.yaml")
    config = replace(
        config,
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        classes=corpus.classes,
        out=tmp_path / "run",
        optim=OptimConfig(steps=1000),
        dry_run=True,
    )
    summary = distill(config)
    assert summary.stages["hours"] == pytest.approx(summary.stages["seconds_per_step"] * 1000 / 3600)
    told = capsys.readouterr().out
    assert "1,000 steps of" in told
    assert "nothing was trained or written" in told
    assert not (tmp_path / "run").exists()
    trained = replace(PretrainConfig(data=config.data, model="tiny-vit"), dry_run=True)
    assert pretrain(trained).stages["steps"] > 0
