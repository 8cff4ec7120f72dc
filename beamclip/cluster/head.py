"""What a user does with a running cluster: `python -m beamclip.cluster.head COMMAND CLUSTER.yaml`.

`make submit`, `logs`, `stop`, `ui` and `fetch` call it. The dashboard and the MLflow server of the head are
reached through a tunnel of SSH, which `ray dashboard` opens: nothing of the cluster listens to the outside.
"""

import argparse
import contextlib
import getpass
import os
import posixpath
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beamclip.errors import FailedRunError, InputError
from beamclip.files import read_text
from beamclip.places import Folder, is_address
from beamclip.storage import COPY
from beamclip.summary import git_commit

DASHBOARD_PORT, MLFLOW_PORT = 8265, 5000
TUNNEL_WITHIN_S = 30.0
"""Seconds for SSH to reach the head."""

CONFIG_FILE = "config.yaml"
"""File that every run leaves in its folder."""
NOT_SENT = [
    "/.git",
    "/.venv",
    "/.venvs",
    "/runs",
    "/tests",
    "/docs",
    "/benchmarks",
    "__pycache__",
    "*.egg-info",
]
"""Parts of this folder that jobs do not need; what .gitignore names is not sent either."""


_PACKING = ("_private.runtime_env.working_dir", "_private.runtime_env.packaging")
_OF_RAY = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+\s(INFO|WARNING) [a-z_]+\.py:\d+ -- .*\n", re.MULTILINE)
"""Lines that Ray itself writes into the log of a job."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m beamclip.cluster.head", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("submit", "run a command of beamclip as a job, and follow its log"),
        ("logs", "follow the log of a job"),
        ("stop", "stop a job: it writes a checkpoint first"),
        ("ui", "open the MLflow server of the head at a port of this machine"),
        ("fetch", "copy the folders of all runs from the storage of the cluster to runs/"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("cluster", type=Path, help="such as cluster.yaml")
        if name == "submit":
            command.add_argument("words", nargs=argparse.REMAINDER, help="distill --data shards ...")
        if name in ("logs", "stop"):
            command.add_argument("--job", default="", help="by default the newest")
        if name == "ui":
            command.add_argument("--port", type=int, default=MLFLOW_PORT)
    given = parser.parse_args(argv)
    try:
        return _run(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FailedRunError, RuntimeError, ConnectionError, ValueError) as error:
        # Ray's client raises these three: no such job, too large a folder, a head that does not answer.
        print(f"error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    if given.command == "fetch":
        return fetch(given.cluster, Path("runs"))
    if given.command == "ui":
        return show_ui(given.cluster, given.port)
    if given.command == "submit" and not given.words:
        raise InputError('no command to submit. For example: make submit ARGS="distill --data shards ..."')
    with tunnel(given.cluster, DASHBOARD_PORT) as port:
        client = _client(port)
        if given.command == "stop":
            return _stop(client, given.job or _newest(client, running=True))
        job = given.job or _newest(client) if given.command == "logs" else submit(client, given.words)
        return follow(client, job)


@contextlib.contextmanager
def tunnel(cluster: Path, remote_port: int, local_port: int = 0) -> Iterator[int]:
    """Open a tunnel from a port of this machine, by default any free one, to one of the head; yield the port.

    Raises:
        InputError: the file is missing, or the port is taken.
        FailedRunError: the head is not reached in time.
    """
    read_text(cluster)
    local_port = _free_port(local_port, cluster)
    ports = ("--port", str(local_port), "--remote-port", str(remote_port))
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [_ray(), "dashboard", str(cluster), *ports],
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(process, local_port, cluster, said)
            yield local_port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait()


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _free_port(wanted: int, cluster: Path) -> int:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise InputError(
                f"port {wanted} is in use. Give another: make ui UI_PORT={wanted + 1}"
            ) from error
        return int(probe.getsockname()[1])


def _wait_for(process: "subprocess.Popen[bytes]", port: int, cluster: Path, said: Any) -> None:
    until = time.monotonic() + TUNNEL_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if "rror" in line or "denied" in line]
    reason = f" ({lines[-1][:200]})" if lines else ""
    raise FailedRunError(
        f"{cluster}: its head is not reached{reason}. If it was never started: make up CLUSTER={cluster}"
    )


def _client(port: int) -> Any:
    os.environ["RAY_AUTH_MODE"] = "token"
    import logging

    from ray.job_submission import JobSubmissionClient

    # They tell of each package that is sent, and of each connection that ends.
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", *_PACKING):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    until = time.monotonic() + TUNNEL_WITHIN_S
    while True:
        try:
            return JobSubmissionClient(f"http://127.0.0.1:{port}")
        except Exception as error:  # the tunnel is open before the dashboard answers
            if time.monotonic() > until:
                cause = str(error).splitlines()[0]
                raise FailedRunError(f"the cluster does not take jobs: {cause}") from error
            time.sleep(0.5)


def submit(client: Any, words: list[str]) -> str:
    """Submit a command of beamclip, with the code and the small files of this folder; return the job's id.

    No secret is sent: nodes have their own rights to the storage.
    """
    variables = {"BEAMCLIP_USER": getpass.getuser(), "BEAMCLIP_COMMIT": git_commit(Path.cwd()) or ""}
    job: str = client.submit_job(
        entrypoint=shlex.join(["beamclip", *words]),
        runtime_env={"working_dir": ".", "excludes": NOT_SENT, "env_vars": variables},
    )
    print(f"job {job}: Ctrl-C stops following it, not the job", flush=True)
    return job


def _newest(client: Any, *, running: bool = False) -> str:
    jobs = [job for job in client.list_jobs() if job.submission_id]
    if running:
        jobs = [job for job in jobs if not job.status.is_terminal()]
        if not jobs:
            raise InputError("no job runs.")
    if not jobs:
        raise InputError(
            'no job was submitted yet. For example: make submit ARGS="distill --data shards ..."'
        )
    return str(max(jobs, key=lambda job: job.start_time).submission_id)


def _stop(client: Any, job: str) -> int:
    if not client.stop_job(job):
        raise FailedRunError(f"job {job} has ended already")
    print(f"job {job} is asked to stop: {client.get_job_info(job).entrypoint}")
    return 0


def follow(client: Any, job: str) -> int:
    """Print the log of a job until the job ends; return 0 if it succeeded, 1 if not, 130 after Ctrl-C."""
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(_OF_RAY.sub("", lines), end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        print(f"\njob {job} goes on: make logs JOB={job} follows it, make stop JOB={job} stops it")
        return 130
    status = client.get_job_status(job)
    if not status.is_terminal():
        raise FailedRunError(f"the connection to job {job} was lost: make logs JOB={job} follows it again")
    print(f"job {job}: {status.value.lower()}")
    return 0 if status.value == "SUCCEEDED" else 1


def show_ui(cluster: Path, port: int) -> int:
    """Keep a tunnel to the MLflow server of the head open until Ctrl-C."""
    with tunnel(cluster, MLFLOW_PORT, port) as local, contextlib.suppress(KeyboardInterrupt):
        print(f"MLflow of the cluster: http://127.0.0.1:{local}  (Ctrl-C ends)", flush=True)
        while True:
            time.sleep(3600)
    return 0


def storage_of(cluster: Path) -> str:
    """Return the storage that a cluster's file gives to cluster/setup.sh.

    Raises:
        InputError: it gives none.
    """
    found = re.search(r"setup\.sh\s+[\"']?([^\s\"'#]+)", read_text(cluster))
    if found is None:
        raise InputError(f"{cluster}: no line runs cluster/setup.sh STORAGE, so where are its runs?")
    return found[1].rstrip("/")


def fetch(cluster: Path, into: Path) -> int:
    """Copy the folder of each run, without its checkpoints, from the storage of a cluster.

    From an address this works after `ray down`, too. A folder is copied by way of the head. Another run of
    the same name that is here stays as it is.
    """
    storage = storage_of(cluster)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetched-", dir=into) as scratch:
        fetched = Path(scratch)
        if is_address(storage):
            _fetch_address(storage, fetched)
        else:
            _fetch_folder(cluster, storage, fetched)
        names = _adopt(fetched, into)
    print(f"{into.absolute()}: {' '.join(names) or 'nothing to fetch'}")
    return 0


def _adopt(fetched: Path, into: Path) -> list[str]:
    """Move fetched runs to their places; return their names."""
    names = []
    for record in sorted(fetched.rglob(CONFIG_FILE)):
        run = record.parent
        name = str(run.relative_to(fetched))
        here = into / name
        if here.exists() and not _is_same_run(here, run):
            print(f"{here}: holds another run of this name, and is left as it is", file=sys.stderr)
            continue
        shutil.copytree(run, here, dirs_exist_ok=True)
        names.append(name)
    return names


def _is_same_run(here: Path, fetched: Path) -> bool:
    own = here / CONFIG_FILE
    return own.exists() and own.read_bytes() == (fetched / CONFIG_FILE).read_bytes()


def _fetch_address(storage: str, into: Path) -> None:
    runs = Folder(f"{storage}/runs")
    root = runs.path("")
    for path in runs.fs.find(root):
        run, found, name = posixpath.relpath(path, root).partition(f"/{COPY}/")
        if found:
            here = into / run / name
            here.parent.mkdir(parents=True, exist_ok=True)
            runs.fs.get_file(path, str(here))


def _fetch_folder(cluster: Path, storage: str, into: Path) -> None:
    gathered, runs = "~/.beamclip-fetch", f"{shlex.quote(storage)}/runs"
    gather = (
        f"rm -rf {gathered}; mkdir -p {gathered} {runs} && cd {runs} && "
        f"find . -type d -name {COPY} -prune | while read -r run; do "
        f'mkdir -p {gathered}/"${{run%/{COPY}}}" && cp -r "$run/." {gathered}/"${{run%/{COPY}}}"; done'
    )
    for words in (["exec", str(cluster), gather], ["rsync-down", str(cluster), f"{gathered}/", f"{into}/"]):
        done = subprocess.run([_ray(), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise FailedRunError(f"{cluster}: ray {words[0]} failed: {' '.join(last)}")


if __name__ == "__main__":
    sys.exit(main())
