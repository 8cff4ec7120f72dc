"""What tests share: one Ray, one fork server, and the order in which two processes take their files."""

import os
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from beamclip.cluster import forked_python, ray_session

# Before torch is imported, here and in what the tests start: threads that spin for each other, as they do by
# default, hold up the other process of tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that share what takes long first: the others fill what is left at the end."""
    items.sort(key=lambda item: _shared_by(item.path), reverse=True)
    for item in items:
        if _uses_ray(item.path):
            item.add_marker(pytest.mark.ray)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Files that share what takes long go to one process of tests, which makes it once."""
    return _Files(config, log)


class _Files(LoadScopeScheduling):  # type: ignore[misc]
    """Whole files, as by --dist loadfile; those that share something count as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return _shared_by(self.config.rootpath / file) or file


@cache
def _shared_by(file: Path) -> str:
    """What a file shares with others: a Ray and a trained teacher, a Ray alone, or nothing."""
    if file.parent.name == "commands" and "corpus" in file.read_text():
        return "teacher"
    return "ray" if _uses_ray(file) else ""


@cache
def _uses_ray(file: Path) -> bool:
    text = file.read_text()
    return "ray_cluster" in text or "ray_session" in text


@pytest.fixture(scope="session")
def fork_command() -> Iterator[str | None]:
    """See forked_python."""
    with forked_python() as command:
        yield command


@pytest.fixture(scope="session")
def python(fork_command: str | None) -> list[str]:
    """A Python for programs that need torch, which comes with it; a script follows."""
    return shlex.split(fork_command) if fork_command else [sys.executable]


@pytest.fixture(scope="session")
def ray_cluster(fork_command: str | None) -> Iterator[None]:
    """A local Ray, started once in each process of tests; commands that run in this process join it."""
    with ray_session(python=fork_command):
        yield
