"""Every option of every command refuses a wrong value by its name: from a file, from a flag, in Python."""

import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from beamclip.commands.command_line import parse
from beamclip.commands.main import COMMANDS
from beamclip.config import UNRECORDED, parse_config
from beamclip.corpus.glyphs import GlyphConfig
from beamclip.errors import InputError
from beamclip.option_texts import option_texts
from beamclip.ranges import Range, ranges_of
from beamclip.training.config import OptimConfig

CONFIGS = {name: command.options for name, command in COMMANDS.items()} | {"corpus": GlyphConfig}


def sections(config_class: type) -> list[type]:
    kinds = typing.get_type_hints(config_class).values()
    return [config_class, *(kind for kind in kinds if is_dataclass(kind))]


def options(section: type) -> dict[str, Any]:
    """Name -> type, without the sections in it."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {item.name: hints[item.name] for item in fields(section) if not is_dataclass(hints[item.name])}


def leaves(kind: Any) -> list[Any]:
    """What a type is made of: int of `tuple[Annotated[int, ...], ...] | None`."""
    if typing.get_origin(kind) is Annotated:
        return leaves(kind.__origin__)
    if typing.get_origin(kind) is Literal:
        return [kind]
    parts = [part for part in typing.get_args(kind) if part is not ...]
    return [leaf for part in parts for leaf in leaves(part)] if parts else [kind]


def wrong_value(section: type, name: str, kind: Any) -> Any:
    """A value that the option cannot have, as a YAML file may hold it."""
    held = leaves(kind)
    allowed = ranges_of(section).get(name)
    if allowed is not None:
        wrong: Any = allowed.least if allowed.beyond_least else allowed.least - 1
        return [wrong] if typing.get_origin(kind) is tuple else wrong
    if typing.get_origin(held[0]) is Literal:
        return ["nonsense"] if typing.get_origin(kind) is tuple else "nonsense"
    if Path in held:
        return "s3://bucket/file"
    return {"a": "mapping"} if bool not in held else "perhaps"


EVERY_OPTION = {
    (section.__name__, name): (section, kind)
    for config_class in CONFIGS.values()
    for section in sections(config_class)
    for name, kind in options(section).items()
    if name not in UNRECORDED
}


@pytest.mark.parametrize(("section_name", "name"), EVERY_OPTION)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(section_name, name):
    section, kind = EVERY_OPTION[section_name, name]
    wrong = wrong_value(section, name, kind)
    with pytest.raises((InputError, ValueError)) as refused:
        parse_config(section, {name: wrong}, "run.yaml")
    message = str(refused.value)
    assert name in message or "only a path of this machine" in message
    allowed = ranges_of(section).get(name)
    if allowed is not None:
        shown = wrong[0] if isinstance(wrong, list) else wrong
        assert f"{name} is {shown:g}" in message.replace(f"{name} is {float(shown)}", f"{name} is {shown:g}")
        assert f"give {allowed}." in message


@pytest.mark.parametrize(("section_name", "name"), EVERY_OPTION)
def test_every_number_has_a_range_and_its_default_lies_in_it(section_name, name):
    section, kind = EVERY_OPTION[section_name, name]
    if {int, float} & {*leaves(kind)} and name not in ("init_mean", "init_std", "num_workers"):
        default = getattr(section(), name)
        for each in default if isinstance(default, tuple) else (default,):
            assert each is None or each in ranges_of(section)[name]


@pytest.mark.parametrize(("section_name", "name"), EVERY_OPTION)
def test_every_option_says_what_it_is(section_name, name):
    section, _ = EVERY_OPTION[section_name, name]
    assert option_texts(section)[name].endswith(".")


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("distill", ["--tau-student", "-1"], "tau_student is -1.0: give a number above 0."),
        ("distill", ["--epochs", "-1"], "epochs is -1.0: give a number above 0."),
        ("distill", ["--lr", "nan"], "lr is nan, not a finite number: give a number above 0."),
        ("distill", ["--crop-scale-min", "7"], "crop_scale_min is 7.0: give a number above 0 and at most 1."),
        ("ingest", ["--ports", "80", "70000"], "ports is 70000: give a number from 1 to 65535."),
        (
            "ingest",
            ["--encode-quality", "101"],
            "encode_quality is 101 with encode_format jpg: give 0 to 100.",
        ),
        ("embed", ["--verify", "-1"], "verify is -1: give 0 or more."),
        ("sweep", ["--trials", "0"], "trials is 0: give 1 or more."),
    ],
)
def test_flags_are_refused_as_files_are(command, flags, message):
    with pytest.raises(InputError) as refused:
        parse(CONFIGS[command], flags, "")
    assert message in str(refused.value)


def test_a_section_made_in_python_is_checked():
    with pytest.raises(InputError, match=r"^ema_decay is 1\.5: give a number from 0 to 1\.$"):
        OptimConfig(ema_decay=1.5)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(1), (1, 9), (0, float("nan"), float("inf")), "1 or more"),
        (Range(0, beyond_least=True), (1e-9,), (0, -1), "a number above 0"),
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1), "a number from 0 to 1"),
        (Range(0, 1, beyond_least=True), (0.1, 1), (0, 1.1), "a number above 0 and at most 1"),
    ],
)
def test_ranges(allowed, inside, outside, words):
    assert str(allowed) == words
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
