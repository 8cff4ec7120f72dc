"""Forks of a server, as the processes that they stand for: started by a command line, seen from outside."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import beamclip
from beamclip.forking import client
from beamclip.forking.start import ARENAS, fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")

SOURCES = Path(beamclip.__file__).parents[1]
Finished = subprocess.CompletedProcess[str]

REPORT = """
import json, os, random, sys
import numpy
print(json.dumps({
    "arguments": sys.argv,
    "folder": os.getcwd(),
    "variable": os.environ.get("FOR_THE_FORK"),
    "group": os.getpgrp(),
    "process": os.getpid(),
    "preloaded": "wave" in sys.modules,
    "main": __name__,
    "path": sys.path[0],
    "input": sys.stdin.read(),
    "numbers": [random.random(), float(numpy.random.random())],
}))
print("to standard error", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def python() -> Iterator[list[str]]:
    with fork_server(("wave", "numpy")) as command:
        yield shlex.split(command)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(REPORT)
    return path


def run(
    python: list[str], script: Path, *arguments: str, **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*python, str(script), *arguments], capture_output=True, text=True, **options
    )


def test_a_fork_is_the_process_that_its_command_line_says(
    python: list[str], script: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "FOR_THE_FORK": "a value"}
    found = run(python, script, "--flag", "ä b", env=environment, cwd=tmp_path, input="what it reads")
    report = json.loads(found.stdout)
    assert found.returncode == 3
    assert found.stderr == "to standard error\n"
    assert report["arguments"] == [str(script), "--flag", "ä b"]
    assert report["folder"] == str(tmp_path)
    assert report["variable"] == "a value"
    assert report["main"] == "__main__"
    assert report["path"] == str(tmp_path)
    assert report["input"] == "what it reads"
    assert report["preloaded"]


def test_forks_have_random_numbers_of_their_own(python: list[str], script: Path) -> None:
    reports = [json.loads(run(python, script, input="").stdout) for _ in range(2)]
    (first, first_numpy), (second, second_numpy) = (report["numbers"] for report in reports)
    assert first != second
    assert first_numpy != second_numpy


def test_without_a_server_python_itself_runs(python: list[str], script: Path) -> None:
    found = run([*python[:-1], "/nowhere/socket"], script, input="")
    assert found.returncode == 3
    assert not json.loads(found.stdout)["preloaded"]


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\0\0\x09half"])
def test_a_client_that_is_gone_before_it_has_asked_harms_nobody(
    python: list[str], script: Path, said: bytes
) -> None:
    """Ray may kill a worker while it starts."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(python[-1])
        client.sendall(said)
    assert json.loads(run(python, script, input="").stdout)["preloaded"]


def test_an_error_is_told_as_python_tells_it(python: list[str], script: Path) -> None:
    script.write_text("raise LookupError('not there')")
    found = run(python, script)
    assert found.returncode == 1
    assert found.stderr.endswith("LookupError: not there\n")


def test_a_fork_ends_as_python_does(python: list[str], script: Path) -> None:
    """With the threads that are no daemons, and with what is registered for the end."""
    script.write_text(
        "import atexit, threading, time\n"
        "atexit.register(print, 'registered')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "print('script', end=' ')\n"
    )
    found = run(python, script)
    assert (found.returncode, found.stdout) == (0, "script thread\nregistered\n")


def test_a_signal_that_ends_a_fork_ends_its_client(python: list[str], script: Path) -> None:
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run(python, script).returncode == -signal.SIGKILL


def test_a_client_that_is_killed_takes_its_fork_along(python: list[str], script: Path) -> None:
    script.write_text("import os, time; print(os.getpid(), os.getpgrp(), flush=True); time.sleep(600)")
    client = subprocess.Popen([*python, str(script)], stdout=subprocess.PIPE, text=True, process_group=0)
    assert client.stdout is not None
    fork, group = map(int, client.stdout.readline().split())
    assert group == client.pid != fork
    client.kill()
    assert client.wait() == -signal.SIGKILL
    # The fork held the other end of this.
    assert client.stdout.read() == ""


def test_a_server_that_is_killed_takes_its_forks_and_their_clients_along(script: Path) -> None:
    script.write_text("import os, time; print(os.getppid(), flush=True); time.sleep(600)")
    with fork_server(()) as command:
        waiting = subprocess.Popen([*shlex.split(command), str(script)], stdout=subprocess.PIPE, text=True)
        assert waiting.stdout is not None
        os.kill(int(waiting.stdout.readline()), signal.SIGKILL)
        assert waiting.wait() == -signal.SIGKILL
        # The fork held the other end of this.
        assert waiting.stdout.read() == ""


def test_a_process_of_very_many_open_files_is_left_to_python_itself(python: list[str], script: Path) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(script.open()).fileno() for _ in range(client.MOST_FILES + 1)]
        found = run(python, script, input="", pass_fds=files)
    assert found.returncode == 3
    assert not json.loads(found.stdout)["preloaded"]


USES_ARENAS = """
import ctypes, threading
libc = ctypes.CDLL(None)
gate = threading.Barrier(4)

def take():
    libc.malloc(1000)
    gate.wait()

threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def test_a_fork_has_as_many_arenas_of_malloc_as_it_was_given(python: list[str], script: Path) -> None:
    script.write_text(USES_ARENAS)
    without = {name: value for name, value in os.environ.items() if name != ARENAS}
    one, many = (
        run(python, script, env=environment).stdout for environment in ({**without, ARENAS: "1"}, without)
    )
    assert one.count("<heap nr=") == 1
    assert many.count("<heap nr=") > 1


def test_a_server_ends_with_what_started_it() -> None:
    with fork_server(()) as command:
        address = Path(shlex.split(command)[-1])
        assert address.exists()
    assert not address.parent.exists()


def test_workers_of_ray_are_forks(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def report(self) -> tuple[int, str, bool]:
            context = ray.get_runtime_context()
            return os.getppid(), context.get_worker_id(), "beamclip.training.distillation" in sys.modules

    workers = [Worker.remote() for _ in range(2)]
    (server, first, begins_with_models), (same_server, second, _) = ray.get(
        [worker.report.remote() for worker in workers]
    )
    assert begins_with_models
    assert server == same_server
    assert first != second


def test_a_worker_of_ray_that_is_killed_is_seen_to_be_lost(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def end(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(Worker.remote().end.remote(), timeout=60)


IMPORTS = """
import importlib, sys
import torch
from beamclip.cluster.session import MODELS

asked = []
for place, name in ((torch.cuda, "is_available"), (torch.cuda, "device_count"), (torch.cuda, "_lazy_init")):
    found = getattr(place, name)
    setattr(place, name, lambda *args, name=name, found=found: (asked.append(name), found(*args))[1])
for module in MODELS:
    importlib.import_module(module)
print(asked, "ray" in sys.modules)
"""


@pytest.mark.slow
def test_what_is_imported_for_forks_leaves_cuda_and_ray_to_them(tmp_path: Path) -> None:
    """CUDA works in no fork of a process that used it, and Ray reads its settings when it is imported."""
    script = tmp_path / "imports.py"
    script.write_text(IMPORTS)
    assert (
        run([sys.executable], script, env={**os.environ, "PYTHONPATH": str(SOURCES)}).stdout == "[] False\n"
    )
