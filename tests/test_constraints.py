"""constraints.txt names one version of everything that any extra brings, and these versions fit together."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")


def project() -> dict[str, Any]:
    described: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return described


def extras() -> dict[str, list[str]]:
    named: dict[str, list[str]] = project()["optional-dependencies"]
    return named


def constraints() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(python: str) -> dict[str, str]:
    """Version by name, of what holds for a version of Python."""
    held = {}
    for line in constraints():
        if line.marker is None or line.marker.evaluate({"python_version": python}):
            name = canonicalize_name(line.name)
            assert name not in held, f"{name} is pinned twice for Python {python}"
            held[name] = str(line.specifier).removeprefix("==")
    return held


def closure(requirements: list[str]) -> Iterator[tuple[str, Requirement]]:
    """(who needs it, what) of all that these bring, as far as packages are installed here."""
    queue = [("beamclip", Requirement(text)) for text in requirements]
    seen = set()
    while queue:
        source, wanted = queue.pop()
        yield source, wanted
        for extra in (*wanted.extras, ""):
            name = canonicalize_name(wanted.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = [Requirement(text) for text in requires(wanted.name) or ()]
            except PackageNotFoundError:  # an extra that is not installed here
                continue
            queue += [
                (name, each)
                for each in needed
                if each.marker is None or each.marker.evaluate({"extra": extra})
            ]


@pytest.mark.parametrize("extra", ["", *extras()])
def test_all_that_an_extra_brings_is_pinned_to_versions_that_fit_together(extra: str) -> None:
    held = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    wrong = [
        f"{source} needs {wanted}, pinned is {held.get(canonicalize_name(wanted.name))}"
        for source, wanted in closure(extras()[extra] if extra else project()["dependencies"])
        if not wanted.specifier.contains(held.get(canonicalize_name(wanted.name), "none"), prereleases=True)
    ]
    assert wrong == []


def test_what_is_pinned_for_one_python_is_pinned_for_every_newer_one() -> None:
    held = {python: set(pins(python)) for python in PYTHONS}
    assert held["3.11"] == held["3.12"]
    assert held["3.11"] <= held["3.13"]


@pytest.mark.skipif("RESOLVE_PIP" not in os.environ, reason="RESOLVE_PIP=23.0.1 resolves with that pip")
def test_an_old_pip_resolves_every_extra(tmp_path: Path) -> None:
    """What is installed here counts as it is; with an empty site-packages the same takes minutes."""
    version = os.environ["RESOLVE_PIP"]
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path, f"pip=={version}"],
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        pytest.skip(f"no package index gives pip {version}: {fetched.stderr.strip().splitlines()[-1]}")
    wanted = [*project()["dependencies"], *(text for extra in extras().values() for text in extra)]
    pip = tmp_path / f"pip-{version}-py3-none-any.whl" / "pip"
    done = subprocess.run(
        [sys.executable, pip, "install", "--dry-run", "-c", ROOT / "constraints.txt", *wanted],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
