"""Runs whose cluster grows and shrinks while they train: nodes of a Ray of their own, on this machine."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from support.restarts import (
    CHECKPOINT_EVERY,
    PATIENCE_SECONDS,
    Lost,
    Run,
    expect_exit,
    kill_all,
    last_step,
    start,
)

from beamclip.json_lines import read_json_lines

CPUS = 2
"""CPUs of each node, of which a worker takes one: it has room for one worker."""

LAUNCHER = (
    "import runpy, sys\n"
    "from beamclip.training import scaling\n"
    "scaling.SECONDS_BETWEEN_RESIZES = 5.0\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)
"""Starts a program that waits seconds, and not ten minutes, before it changes the number of its workers."""


def train_elastic(run: Run, rounds: int) -> list[Lost]:
    """Train by one to two workers while a node is added and lost again, so many times; return the costs.

    Raises:
        RuntimeError: the command ended with an unexpected exit code, or got stuck.
    """
    lost: list[Lost] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        # What a killed head leaves behind would be in the way of other programs that use Ray.
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": folder,
        }
        with _node(
            environment, "--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"
        ):
            environment["RAY_ADDRESS"] = address
            launcher = [sys.executable, "-c", LAUNCHER]
            process = start(run, "1..2", cpus=CPUS / 2, launcher=launcher, environment=environment)
            try:
                _progress_by(1, run, process)
                for _ in range(rounds):
                    with _node(environment, f"--address={address}"):
                        step, seconds = _progress_by(2, run, process)
                        lost.append(Lost("node added", 1, step, seconds))
                        # Past a checkpoint, so that steps of two workers last.
                        _progress_by(2, run, process, last_step(run) + CHECKPOINT_EVERY)
                    step, seconds = _progress_by(1, run, process)
                    lost.append(Lost("node lost", 2, step, seconds))
                expect_exit(process, 0, within=1200.0)
            finally:
                if process.poll() is None:
                    kill_all(process)
    return lost


@contextlib.contextmanager
def _node(environment: dict[str, str], *options: str) -> Iterator[None]:
    """A node of a Ray, from when it is started until it is killed with all its processes."""
    words = [f"--num-cpus={CPUS}", "--num-gpus=0", "--object-store-memory=300000000", "--block"]
    program = Path(sys.executable).with_name("ray")
    node = subprocess.Popen(
        [program, "start", "--node-ip-address=127.0.0.1", *options, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if "--head" in options:
            _wait_for_head(options, node)
        yield
    finally:
        # All at once, as a machine is lost.
        for child in [*psutil.Process(node.pid).children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        node.wait()


def _wait_for_head(options: tuple[str, ...], node: subprocess.Popen[bytes]) -> None:
    port = next(int(option.rpartition("=")[2]) for option in options if option.startswith("--port="))
    while node.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise RuntimeError("`ray start --head` ended at once")


def _progress_by(
    workers: int, run: Run, process: subprocess.Popen[str], beyond: int = 0
) -> tuple[int, float]:
    """Wait until so many workers take a step that the run has not taken before, beyond a step.

    Returns:
        The last step before it, and the seconds between the two.
    """
    last, at = last_step(run), time.monotonic()
    deadline = at + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        records = read_json_lines(run.out / "metrics.jsonl")
        if records and int(records[-1]["step"]) > last:
            if int(records[-1]["workers"]) == workers and int(records[-1]["step"]) > beyond:
                return last, time.monotonic() - at
            last, at = int(records[-1]["step"]), time.monotonic()
        time.sleep(0.05)
    raise RuntimeError(f"{run.out}: no step by {workers} workers within {PATIENCE_SECONDS:.0f} s")
