"""Flags, YAML and messages, through the programs of the public commands."""

import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from beamclip.commands.command_line import parse, run_command
from beamclip.config import (
    DistillConfig,
    EvaluateConfig,
    PretrainConfig,
    parameters,
    plain,
    read_config,
    write_config,
)
from beamclip.data.ingest import IngestConfig
from beamclip.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What a program left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ended]:
    """run(pipeline, *flags): a program in this process, which has its imports already."""

    def run(pipeline: str, *flags: str) -> Ended:
        program = str(ROOT / "pipelines" / f"{pipeline}.py")
        monkeypatch.setattr(sys, "argv", [program, *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(program, run_name="__main__")
        return Ended(ended.value.code, *capsys.readouterr())

    return run


def test_a_flag_wins_over_yaml_and_yaml_over_the_default(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "csm": {"tau_teacher": 0.04, "tau_student": 0.1}}))
    config = parse(DistillConfig, ["--config", str(path), "--tau-student", "0.07"], "")
    assert (config.seed, config.csm.tau_teacher, config.csm.tau_student) == (3, 0.04, 0.07)
    assert config.stream.batch_size == DistillConfig().stream.batch_size


@pytest.mark.parametrize(
    "config", [DistillConfig(seed=7, data="s3://b/x"), PretrainConfig(out=Path("runs/a"))]
)
def test_a_written_config_reads_back_as_it_was(config, tmp_path):
    write_config(config, tmp_path / "config.yaml")
    assert read_config(type(config), tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"csm": {"tau_techer": 0.1}}, "csm.tau_techer: no such option. Did you mean tau_teacher?"),
        ({"quux": 1}, "quux: no such option."),
        ({"csm": {"tau_teacher": "warm"}}, "csm.tau_teacher: 'warm' does not fit."),
        ({"optim": {"steps": 1.5}}, "optim.steps: 1.5 does not fit."),
        ({"prompts": {"anchor_reduce": "median"}}, "prompts.anchor_reduce: 'median' does not fit."),
        ({"csm": 3}, "csm: 3 does not fit."),
    ],
)
def test_yaml_with_a_wrong_key_or_type_is_refused_with_its_path(content, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        read_config(DistillConfig, path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_list_or_nonsense_in_place_of_a_mapping_is_refused(tmp_path):
    for text, message in (("- 1", "holds a list"), ("a: [", "no valid YAML")):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_config(DistillConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize("config_class", [DistillConfig, PretrainConfig, EvaluateConfig, IngestConfig])
def test_every_option_has_a_name_of_its_own_and_a_text(config_class):
    import dataclasses
    import inspect

    names = []
    for item in dataclasses.fields(config_class):
        section = getattr(config_class(), item.name)
        owner = type(section) if dataclasses.is_dataclass(section) else config_class
        members = dataclasses.fields(section) if dataclasses.is_dataclass(section) else [item]
        source = inspect.getsource(owner)
        for member in members:
            names.append(member.name)
            after = source.split(f"    {member.name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), f"{owner.__name__}.{member.name} has no text for --help"
    assert len(names) == len(set(names))
    recorded = [name for name in names if name not in ("config", "resume")]
    assert sorted(parameters(config_class())) == sorted(recorded)
    assert set(plain(config_class())).isdisjoint({"config", "resume"})


@pytest.mark.parametrize("pipeline", ["ingest", "pretrain", "distill", "evaluate"])
def test_help_names_every_option(pipeline, run):
    config_class = {
        "ingest": IngestConfig,
        "pretrain": PretrainConfig,
        "distill": DistillConfig,
        "evaluate": EvaluateConfig,
    }[pipeline]
    done = run(pipeline, "--help")
    assert done.returncode == 0
    for name, default in parameters(config_class()).items():
        negation = "no-" if default is True else ""
        assert f"--{negation}{name.replace('_', '-')}" in done.stdout


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(DistillConfig, lambda _: signal.raise_signal(signal.SIGTERM), "", argv=[]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--studnet", "resnet18"], "Unrecognized options: --studnet, resnet18. Did you mean --student?"),
        (
            ["--tau-teacher", "warm"],
            "Error parsing --tau-teacher: could not convert string to float: 'warm'.",
        ),
        (
            ["--anchors", "texts"],
            "invalid choice 'texts' for argument '--anchors'. "
            "Expected one of ('classes', 'captions', 'both'). --help lists all options.",
        ),
        (["--seed", "1"], "--data SHARDS is missing."),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--resume", "nowhere"], "--resume nowhere: no run there (config.yaml is missing)"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, message, run):
    done = run("distill", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_program_needs_nothing_of_the_process_that_the_tests_run_in(tmp_path):
    command = [sys.executable, str(ROOT / "pipelines" / "distill.py"), "--studnet", "resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Unrecognized options: --studnet")
