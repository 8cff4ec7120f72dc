"""Ray for one command: join the cluster of RAY_ADDRESS, or start a quiet one and stop it afterwards."""

import contextlib
import gc
import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from beamclip.cluster.config import WorkersConfig
from beamclip.errors import FailedRunError, InputError
from beamclip.forking import worker_setup
from beamclip.forking.start import fork_server
from beamclip.ray_environment import ask_for_tokens

ANSWER_WITHIN_S = 8.0
"""Seconds that the head of a cluster has to answer, name look-up included."""

_TOKEN_PLACES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")
MODELS = (
    "beamclip.training.worker",
    "beamclip.training.distillation",
    "beamclip.training.pretraining",
    "beamclip.models.teacher",
    "beamclip.evaluation.zeroshot",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "requests",
    "google.protobuf.message",
)
"""Modules that forked Ray processes start with: those that take long to import for training and encoding, and
those that Ray imports. Not Ray itself, which reads its settings when it is imported."""

_LONGEST_SOCKET = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"
"""Longest path of a socket below Ray's folder for temporary files."""
_MOST_SOCKET_BYTES = 107
"""Longest path of a Unix socket, bytes."""
_SHORT_FOLDER = "/tmp/ray"


def cluster_address() -> str | None:
    """Return the address of the cluster to join, from RAY_ADDRESS; None if the command starts its own Ray."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


@contextlib.contextmanager
def forked_python() -> Iterator[str | None]:
    """Yield the command line of a Python that starts with the model libraries imported, for `ray_session`.

    None if Ray is already up or is to be joined, and where processes are not forked (on anything but Linux).
    """
    if _ray_is_up() or cluster_address() or sys.platform != "linux":
        yield None
        return
    with fork_server(MODELS) as command:
        yield command


@contextlib.contextmanager
def ray_session(
    environment: Mapping[str, str] | None = None, *, dashboard: bool = False, python: str | None = None
) -> Iterator[None]:
    """Keep Ray up inside. A Ray that was up before is left as it is; one that this started is stopped.

    Args:
        environment: variables for all processes that Ray starts for this command.
        dashboard: whether a Ray that is started here has one; without it, trainings that a sweep stops early
            keep their resources.
        python: command line by which a Ray that is started here runs its workers; see `forked_python`.

    Raises:
        InputError: RAY_ADDRESS is no address, or names a cluster that does not answer or cannot be joined.
        FailedRunError: a Ray on this machine took too long to start.
    """
    if _ray_is_up():
        yield
        return
    at_sigterm = signal.getsignal(signal.SIGTERM)
    runtime: dict[str, Any] = {"env_vars": dict(environment)} if environment else {}
    address = cluster_address()
    try:
        if address:
            _check_answers(address)
            _join(address, runtime)
        else:
            if python:
                runtime["py_executable"] = python
                # Prestarted workers would run without `python`, and never be used.
                os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            _start(runtime, _own_ray(dashboard=dashboard))
    except SystemExit as error:
        # While it starts, Ray answers SIGTERM by a handler of its own.
        raise KeyboardInterrupt from error
    if threading.current_thread() is threading.main_thread():
        # Ray has installed a handler of its own, which prints its stack and exits at once.
        signal.signal(signal.SIGTERM, at_sigterm or signal.SIG_DFL)
    try:
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    """Stop Ray, or leave the cluster, while Python frees nothing of Ray's by itself.

    A reference that is freed while Ray stops, in whichever thread, ends the whole process with exit code 1.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        sys.modules["ray"].shutdown()
    finally:
        if collects:
            gc.enable()


def _ray_is_up() -> bool:
    # A process that has not imported Ray has not started it.
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _start(runtime: dict[str, Any], options: dict[str, Any]) -> None:
    import ray

    try:
        with _quick_worker_setup():
            ray.init(
                "local",
                runtime_env=runtime or None,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **options,
            )
    except Exception as error:
        # Ray raises no type of its own for it, and has no option for the 30 s that it waits.
        if "timed out during startup" not in str(error):
            raise
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
        raise FailedRunError(
            f"Ray did not start within 30 s, as happens on a busy machine ({load}). Run the command again."
        ) from error


@contextlib.contextmanager
def _quick_worker_setup() -> Iterator[None]:
    """Have a Ray that is started inside set up its workers by `forking.worker_setup`.

    Ray has no option for it. Should it no longer look for its own program by this name, that one runs, and
    each worker starts 0.6 s later.
    """
    from ray._private import ray_constants

    own = ray_constants.SETUP_WORKER_FILENAME
    # An absolute path replaces the folder that Ray puts before the name.
    ray_constants.SETUP_WORKER_FILENAME = str(Path(worker_setup.__file__).resolve())
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = own


def _join(address: str, runtime: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(address, runtime_env=runtime or None, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        # Another version, another token, no Ray at all: the user can fix each of these.
        raise _no_cluster(address, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


@contextlib.contextmanager
def workers_session(workers: WorkersConfig) -> Iterator[None]:
    """Keep Ray up inside (see `ray_session`), unless the workers do without it."""
    if workers.without_ray:
        yield
        return
    with forked_python() as python, ray_session(python=python):
        yield


def share(value: Any, workers: WorkersConfig) -> Any:
    """Make a value available to the workers of a run.

    Returns:
        What workers pass to `fetch`: a reference into Ray's object store, or without Ray the value itself.
    """
    if workers.without_ray:
        return value
    import ray

    return ray.put(value)


def fetch(reference: Any) -> Any:
    """Return a copy of a value that `share` made available."""
    ray = sys.modules.get("ray")
    # Without Ray, nothing can be a reference into its store.
    if ray is not None and isinstance(reference, ray.ObjectRef):
        return ray.get(reference)
    return deepcopy(reference)


def _own_ray(*, dashboard: bool) -> dict[str, Any]:
    """Return the options of a Ray that lives as long as the command; set the variables that it reads."""
    ask_for_tokens()
    # In places, Ray takes an empty one for an address.
    os.environ.pop("RAY_ADDRESS", None)
    # Without this, Ray would leave a token in the home folder that other users can read.
    if not any(name in os.environ for name in _TOKEN_PLACES) and not _TOKEN_FILE.expanduser().exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # The watcher takes seconds to start; for the metrics, an agent looks at all processes every few seconds.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    options: dict[str, Any] = {"include_dashboard": dashboard}
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    if len(os.fsencode(folder / _LONGEST_SOCKET)) > _MOST_SOCKET_BYTES:
        options["_temp_dir"] = _SHORT_FOLDER
    return options


def _check_answers(address: str) -> None:
    """Refuse an address at which no cluster answers: Ray itself would try for a minute.

    Raises:
        InputError: it is not an address, or nobody answers there in time, or something other than Ray does.
    """
    if address == "auto" or ("://" in address and not address.startswith("ray://")):
        return
    found = re.fullmatch(r"(?:ray://)?(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", address)
    if found is None:
        raise InputError(
            f"RAY_ADDRESS={address}: not an address of a Ray cluster. Give HOST:PORT (of the head; its port "
            "is 6379 by default), or unset RAY_ADDRESS to run on this machine."
        )
    problems = [f"no answer within {ANSWER_WITHIN_S:.0f} s"]

    def connect() -> None:
        try:
            _greet(found[1] or found[2], int(found[3]))
            problems.clear()
        except TimeoutError:
            pass
        except (OSError, OverflowError, UnicodeError) as error:
            problems[:] = [getattr(error, "strerror", None) or str(error)]

    # In a thread, since a name look-up has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(ANSWER_WITHIN_S)
    if problems:
        raise _no_cluster(address, problems[0])


def _greet(host: str, port: int) -> None:
    """Exchange the first frames of HTTP/2, with which gRPC, and so Ray, begins.

    Raises:
        OSError: nobody answers, or something other than Ray does.
    """
    with socket.create_connection((host, port), ANSWER_WITHIN_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        if connection.recv(9, socket.MSG_WAITALL)[3:4] != b"\x04":
            raise OSError("what listens there is not Ray")


def _no_cluster(address: str, reason: str) -> InputError:
    return InputError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason}). "
        "Start one with `ray up cluster.yaml`, or unset RAY_ADDRESS to run on this machine."
    )
