"""What comparisons of commands stand on: all processes count, shared memory once, no CPU second twice."""

import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEGABYTES = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc"),
]


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The folder of a program is on its path when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """run(code): a Python program under watch that may wait for `released`, a file made at the second look
    after `ready` is there; memory is taken at every look."""
    from support import process_tree

    monkeypatch.setattr(process_tree, "MEMORY_SHARE", 1.0)
    looks = 0

    def progress() -> int:
        nonlocal looks
        looks += (tmp_path / "ready").exists()
        if looks == 3:
            (tmp_path / "released").touch()
        return looks

    def run(code: str) -> Any:
        program = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
        return process_tree.run_tree(
            [sys.executable, "-c", program], tmp_path / "log", cwd=tmp_path, progress=progress
        )

    return run


PRELUDE = """
import os, pathlib, subprocess, sys, time
def burn(seconds):
    began = time.process_time()
    while time.process_time() < began + seconds:
        pass
def await_release():
    pathlib.Path("ready").touch()
    while not pathlib.Path("released").exists():
        time.sleep(0.01)
"""


def test_an_orphan_in_a_session_of_its_own_counts_as_well(run: Callable[[str], Any]) -> None:
    found = run(
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                memory = bytearray(b"x") * (60 << 20)
                burn(0.3)
                await_release()
            os._exit(0)
        os.wait()
        while not pathlib.Path("released").exists():
            time.sleep(0.01)
        """
    )
    assert found.exit_code == 0
    assert found.cpu_seconds >= 0.3
    assert found.peak_bytes >= 60 * MEGABYTES


def test_pages_that_two_processes_share_count_once(run: Callable[[str], Any]) -> None:
    found = run(
        """
        memory = bytearray(b"x") * (100 << 20)
        if os.fork() == 0:
            await_release()
            os._exit(0)
        os.wait()
        """
    )
    assert 100 * MEGABYTES <= found.peak_bytes < 170 * MEGABYTES


def test_children_too_short_lived_to_be_seen_count(run: Callable[[str], Any]) -> None:
    found = run(
        """
        for _ in range(6):
            if os.fork() == 0:
                burn(0.05)
                os._exit(0)
            os.wait()
        """
    )
    assert found.cpu_seconds >= 0.3


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z" not in stat.read_text()


def test_what_a_daemon_holds_after_the_command_is_ended_with_it(
    run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support import process_tree

    monkeypatch.setattr(process_tree, "PATIENCE_SECONDS", 0.2)
    found = run("print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)")
    pid = int(found.log.read_text())
    # A signal takes its moment to arrive.
    deadline = time.monotonic() + 10.0
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_exit_code_output_and_environment_are_the_commands(tmp_path: Path) -> None:
    from support.process_tree import run_tree

    code = "import os, sys; print(os.environ['COLOUR']); sys.exit(3)"
    environment = {**os.environ, "COLOUR": "blue"}
    found = run_tree([sys.executable, "-c", code], tmp_path / "log", environment=environment)
    assert (found.exit_code, found.log.read_text()) == (3, "blue\n")


def test_cpu_seconds_of_ended_children_count_once_whether_or_not_they_were_waited_for() -> None:
    from support.process_tree import Process, total_cpu_seconds

    root, parent, child = (1, 0), (2, 0), (3, 0)

    def total(*, reaped: float, ended: bool) -> float:
        processes = [
            Process(root, (0, 0), 0.0, 0.0),
            Process(parent, root, 2.0, reaped),
            Process(child, parent, 5.0, 0.0, ended=ended),
        ]
        return total_cpu_seconds({process.key: process for process in processes}, root)

    assert total(reaped=0.0, ended=False) == 7.0
    assert total(reaped=5.5, ended=True) == 7.5
    assert total(reaped=0.0, ended=True) == 7.0
    assert total(reaped=4.0, ended=False) == 11.0
