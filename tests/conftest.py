"""Fixtures for all tests, one Ray and one fork server; and the spreading of test files over two processes."""

import os
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from beamclip.cluster.session import forked_python, ray_session

# Before torch is imported, here and in child processes: by default, OpenMP threads spin while they wait,
# which slows down the other test process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As beamclip sets it before it imports MLflow, which test files import first: it would talk on stderr.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
MLFLOW_PLACES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
"""Variables that say where MLflow keeps a run; functions of MLflow set some of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files that share slow fixtures first, so that the others fill the gaps at the end."""
    items.sort(key=lambda item: _shared_by(item.path), reverse=True)
    for item in items:
        if _uses_ray(item.path):
            item.add_marker(pytest.mark.ray)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Send files that share slow fixtures to one test process, which makes them once."""
    return _Files(config, log)


class _Files(LoadScopeScheduling):  # type: ignore[misc]
    """Schedules whole files, as --dist loadfile does; files that share fixtures count as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return _shared_by(self.config.rootpath / file) or file


@cache
def _shared_by(file: Path) -> str:
    """Return what a test file shares with others: a Ray and a trained teacher, a Ray alone, or nothing."""
    if file.parent.name == "commands" and "corpus" in file.read_text():
        return "teacher"
    return "ray" if _uses_ray(file) else ""


@cache
def _uses_ray(file: Path) -> bool:
    text = file.read_text()
    return "ray_cluster" in text or "ray_session" in text


@pytest.fixture(scope="session", autouse=True)
def user_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that beamclip keeps for its user, with the MLflow store of all runs; not the tester's own.

    Child processes inherit it.
    """
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder))
        for name in MLFLOW_PLACES:
            patch.delenv(name, raising=False)
        yield folder / "beamclip"


@pytest.fixture(autouse=True)
def _mlflow_place() -> Iterator[None]:
    """Refuse a test that leaves another MLflow store or experiment to those after it."""
    before = {name: os.environ.get(name) for name in MLFLOW_PLACES}
    yield
    assert {name: os.environ.get(name) for name in MLFLOW_PLACES} == before


@pytest.fixture(scope="session")
def fork_command() -> Iterator[str | None]:
    """Command line of a Python that has imported the model libraries, or None; see forked_python."""
    with forked_python() as command:
        yield command


@pytest.fixture(scope="session")
def python(fork_command: str | None) -> list[str]:
    """Command of a Python to run scripts with; it has imported torch already if possible."""
    return shlex.split(fork_command) if fork_command else [sys.executable]


@pytest.fixture(scope="session")
def ray_cluster(fork_command: str | None) -> Iterator[None]:
    """A local Ray, started once in each test process; commands run in that process join it."""
    with ray_session(python=fork_command):
        yield
