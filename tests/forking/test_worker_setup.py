"""The program that runs before each worker of Ray, compared with Ray's own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from beamclip.forking import worker_setup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")

RAYS = Path(ray.__file__).parent / "_private" / "workers" / "setup_worker.py"
REPORT = """
import json, os, sys
variables = {name: os.environ.get(name) for name in ("FOR_THE_WORKER", "HOME")}
print(json.dumps([sys.argv[1:], variables, sys.flags.isolated, sys.flags.no_user_site, os.getcwd()]))
"""
INSTEAD = "import json, sys; print(json.dumps(sys.argv[1:]))"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A worker that tells how it was run, and beside it what stands for Ray's own program."""
    (tmp_path / "setup_worker.py").write_text(INSTEAD)
    worker = tmp_path / "default_worker.py"
    worker.write_text(REPORT)
    return worker


def run(program: Path | str, arguments: list[str]) -> Any:
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout)


def arguments_of(script: Path, context: dict[str, Any], language: str = "PYTHON") -> list[str]:
    return [
        "-s",
        str(script),
        "--node-ip-address=127.0.0.1",
        "--raylet-name=with a space",
        f"--language={language}",
        f"--serialized-runtime-env-context={json.dumps(context)}",
    ]


EMPTY: dict[str, Any] = {
    "command_prefix": [],
    "env_vars": {},
    "py_executable": sys.executable,
    "override_worker_entrypoint": None,
    "java_jars": [],
}


@pytest.mark.parametrize(
    "context",
    [
        {},
        EMPTY,
        {**EMPTY, "env_vars": {"FOR_THE_WORKER": "'quoted' and spaced"}},
        {**EMPTY, "py_executable": f"{sys.executable} -I"},
    ],
)
def test_a_worker_runs_as_by_rays_own_program(script: Path, context: dict[str, Any]) -> None:
    arguments = arguments_of(script, context)
    ours = run(worker_setup.__file__, arguments)
    assert ours == run(RAYS, arguments)
    assert ours[0] == ["--node-ip-address=127.0.0.1", "--raylet-name=with a space"]
    assert ours[1]["FOR_THE_WORKER"] == context.get("env_vars", {}).get("FOR_THE_WORKER")


@pytest.mark.parametrize(
    "context",
    [
        {**EMPTY, "command_prefix": ["cd", "/", "&&"]},
        {**EMPTY, "override_worker_entrypoint": "/elsewhere.py"},
        {**EMPTY, "env_vars": {"FOR_THE_WORKER": "${HOME}/x"}},
        {**EMPTY, "something_new": 1},
    ],
)
def test_other_environments_are_left_to_rays_own_program(script: Path, context: dict[str, Any]) -> None:
    arguments = arguments_of(script, context)
    assert run(worker_setup.__file__, arguments) == arguments


def test_workers_of_other_languages_are_left_to_rays_own_program(script: Path) -> None:
    arguments = arguments_of(script, EMPTY, language="JAVA")
    assert run(worker_setup.__file__, arguments) == arguments


def test_ray_starts_workers_by_this_program(ray_cluster: None) -> None:
    raylets = [
        command
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if b"--python_worker_command=" in (command := _read(process))
    ]
    assert any(os.fsencode(Path(worker_setup.__file__).resolve()) in command for command in raylets)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a process that has ended since
        return b""
