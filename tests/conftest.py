"""One Ray instance for the whole session, and how two processes share the tests."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from beamclip.cluster import ray_session

RAY_FIXTURE = "ray_cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that share a Ray come first: they take the longest, and one process runs them all."""
    items.sort(key=lambda item: not _shares_ray(item.path))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole files, those that share a Ray together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return RAY_FIXTURE if _shares_ray(config.rootpath / file) else file

    return ByFile(config, log)


@cache
def _shares_ray(file: Path) -> bool:
    return RAY_FIXTURE in file.read_text()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray, started once; commands that run in this process join it."""
    with ray_session():
        yield
