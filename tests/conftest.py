"""One Ray instance for the whole session, and the order in which two processes take the files of tests."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from beamclip.cluster import forked_python, ray_session

# Before torch is imported, here and in what the tests start: threads that spin for each other, as they do by
# default, hold up the other process of tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that use Ray first: they take the longest, and the others fill what is left at the end."""
    items.sort(key=lambda item: not _uses_ray(item.path))
    for item in items:
        if _uses_ray(item.path):
            item.add_marker(pytest.mark.ray)


@cache
def _uses_ray(file: Path) -> bool:
    text = file.read_text()
    return "ray_cluster" in text or "ray_session" in text


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray, started once in each process of tests; commands that run in this process join it."""
    with forked_python() as python, ray_session(python=python):
        yield
