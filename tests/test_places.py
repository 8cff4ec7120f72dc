"""Options that take a place: which accept addresses and which refuse them. Folders in a bucket."""

import dataclasses
from pathlib import Path

import pytest
from bucket import register_bucket

from beamclip.commands.command_line import parse
from beamclip.commands.options import (
    ClassesConfig,
    DistillConfig,
    EmbedConfig,
    EvaluateConfig,
    PretrainConfig,
    PromptsConfig,
    SweepConfig,
)
from beamclip.errors import InputError
from beamclip.ingest.config import IngestConfig
from beamclip.places import Folder

COMMANDS = (
    ClassesConfig,
    DistillConfig,
    EmbedConfig,
    EvaluateConfig,
    IngestConfig,
    PretrainConfig,
    PromptsConfig,
    SweepConfig,
)
LOCAL = {"out", "classes", "config", "init_checkpoint", "wordnet"}
ANYWHERE = {"data", "folder", "urls", "eval_data", "train_data", "checkpoints", "context_data"}


def options(config: object) -> set[str]:
    names = set()
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        names |= options(value) if dataclasses.is_dataclass(value) else {field.name}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_that_takes_a_place_takes_addresses_or_refuses_them(command: type) -> None:
    known = options(command())
    writes_anywhere = {"out"} if command in (EmbedConfig, IngestConfig) else set()
    for name in known & (LOCAL - writes_anywhere):
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(InputError, match=f"{flag}.*s3://bucket/x is an address") as refusal:
            parse(command, [flag, "s3://bucket/x"], "")
        assert "\n" not in str(refusal.value)
    for name in known & (ANYWHERE | writes_anywhere):
        parse(command, [f"--{name.replace('_', '-')}", "s3://bucket/x"], "")


def test_yaml_refuses_an_address_as_a_flag_does(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("classes: s3://bucket/classes.yaml\n")
    with pytest.raises(InputError, match=r"run.yaml: classes: .*is an address"):
        parse(DistillConfig, ["--config", str(tmp_path / "run.yaml")], "")


def test_help_says_which_option_takes_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(DistillConfig, ["--help"], "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--data PATH|ADDRESS" in shown
    assert "--classes PATH " in shown


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_an_empty_place_is_prepared_written_and_listed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_bucket(tmp_path / "store", monkeypatch)
    folder = Folder("bucket://a/new" if kind == "bucket" else str(tmp_path / "a/new"))
    assert folder.names() == set()
    folder.prepare("--out")
    assert folder.names() == set()
    folder.write("x.json", b"old")
    folder.write("x.json", b"new")
    folder.join("below").prepare("--out")
    assert folder.read("x.json") == b"new"
    assert folder.names() - {"below"} == {"x.json"}
    folder.remove("x.json")
    folder.remove("x.json")
    assert folder.read("x.json") is None


@pytest.mark.parametrize("place", ["nosuch://bucket/x", "/proc/nowhere/x"])
def test_a_place_that_cannot_be_written_is_one_line_with_the_option(place: str) -> None:
    with pytest.raises(InputError, match=f"--out {place}: cannot be written") as refusal:
        Folder(place).prepare("--out")
    assert "\n" not in str(refusal.value)
