"""The pages of docs/ build without a warning, list every option, and show commands that work as typed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from beamclip.commands.command_line import parse
from beamclip.commands.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FROM_FILES = ("--config", "--resume")
"""Options whose files the pages only speak of."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; a dead link is a warning, and strict mode refuses warnings."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def test_every_option_of_every_command_is_on_one_page(site: Path) -> None:
    page = (site / "configuration.html").read_text()
    for command in COMMANDS.values():
        for name in option_names(command.options):
            assert f"<code>--{name.replace('_', '-')}</code>" in page


def test_files_of_the_repository_that_pages_link_to_are_on_the_site(site: Path) -> None:
    assert (site / "source/cluster.yaml").read_text() == (ROOT / "cluster.yaml").read_text()
    assert 'href="source/cluster.yaml"' in (site / "cluster.html").read_text()


def commands() -> list[tuple[str, str]]:
    """(page, command line) of each command of beamclip in a console block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line) for line in lines if line.startswith("beamclip ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_on_pages_can_be_typed(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, name, *words = shlex.split(line, comments=True)
    for option in FROM_FILES:
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
    assert isinstance(parse(COMMANDS[name].options, words, ""), COMMANDS[name].options)


def test_every_page_is_reached_from_the_menu() -> None:
    menu = str(yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"])
    assert [page.name for page in PAGES[1:] if f"'{page.name}'" not in menu] == []


def option_names(options: type) -> set[str]:
    """Names of the options of a command, those of its sections among them."""
    import dataclasses
    import typing

    names = set()
    for name, kind in typing.get_type_hints(options).items():
        names |= option_names(kind) if dataclasses.is_dataclass(kind) else {name}
    return names
