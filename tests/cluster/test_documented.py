"""What docs/cluster.md and the cluster files tell a user to type is there."""

import re
from pathlib import Path

import pytest

from beamclip.commands.main import COMMANDS

ROOT = Path(__file__).parents[2]
TEXTS = (
    "README.md",
    "docs/cluster.md",
    "cluster.yaml",
    "cluster/on-premises.yaml",
    "cluster/kubernetes.yaml",
)
# A target in a code block or in a comment's command line, or between backticks.
MAKE = re.compile(r"(?:^|`|#   )make ([a-z][a-z-]*)", re.MULTILINE)


@pytest.mark.parametrize("text", TEXTS)
def test_every_make_target_exists(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE.findall((ROOT / text).read_text())) <= targets


def test_the_page_names_every_target_for_clusters() -> None:
    named = set(MAKE.findall((ROOT / "docs/cluster.md").read_text()))
    assert {"up", "submit", "logs", "stop", "ui", "fetch", "down", "aws-role", "cluster-test"} <= named


def test_what_is_submitted_is_a_command_with_options_of_its_own() -> None:
    lines = re.findall(r'make submit ARGS="([^"]+)"', (ROOT / "docs/cluster.md").read_text())
    typed = [line for line in lines if "..." not in line]
    assert len(typed) == 4
    for line in typed:
        name, *words = line.split()
        fields = option_names(COMMANDS[name].options)
        flags = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert flags <= fields


def option_names(options: type) -> set[str]:
    """Names of the options of a command, those of its sections among them."""
    import dataclasses
    import typing

    names = set()
    for name, kind in typing.get_type_hints(options).items():
        names |= option_names(kind) if dataclasses.is_dataclass(kind) else {name}
    return names


@pytest.mark.parametrize("text", ["docs/cluster.md", "docs/architecture.md", "README.md"])
def test_every_linked_file_exists(text: str) -> None:
    path = ROOT / text
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []
