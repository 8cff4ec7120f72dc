"""What tests share: one Ray, one fork server, and the order in which two processes take their files."""

import os
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from beamclip.cluster import forked_python, ray_session

# Before torch is imported, here and in what the tests start: threads that spin for each other, as they do by
# default, hold up the other process of tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = {"ray_cluster", "teacher", "corpus"}
"""Fixtures that take long, and serve many files."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of the same costly fixtures go to one process, and first; the other one takes the rest.

    Before xdist, which reads the groups in a hook of the same name.
    """
    together = {item.path for item in items if SHARED & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in together)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("shared" if item.path in together else str(item.path)))
        if _uses_ray(item.path):
            item.add_marker(pytest.mark.ray)


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
