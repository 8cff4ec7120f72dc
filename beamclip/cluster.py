"""Ray for one command: join the cluster of RAY_ADDRESS, or start a quiet one and stop it afterwards."""

import contextlib
import logging
import math
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beamclip.errors import FailedRunError, InputError
from beamclip.forking import worker_setup
from beamclip.forking.start import fork_server
from beamclip.number_or_range import NumberOrRange, check_number_or_range, least_and_most
from beamclip.ranges import Count, Natural, NonNegative, Positive, check_ranges

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 8.0
"""Seconds that the head of a cluster has to answer, name look-up included."""

READING_CPUS = 1.0
"""CPUs of each node that no worker takes: what a task of Ray Data asks for to read."""

_TOKEN_PLACES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")
MODELS = (
    "beamclip.training.worker",
    "beamclip.training.method",
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


@dataclass(frozen=True)
class WorkersConfig:
    """Where a run trains, and with how many workers."""

    num_workers: NumberOrRange = 1
    """Workers, each with its share of the global batch. 2..8: as many as the cluster has room for, at least 2
    and at most 8; their number follows the nodes that are lost and added, and the batches stay the same.
    0: train in the command's own process, which starts sooner, without Ray: for small jobs and debugging."""
    use_gpu: bool = False
    """Train on GPUs."""
    gpus_per_worker: Positive = 1.0
    """GPUs that Ray reserves for a worker with --use-gpu; below 1, several runs or trials share one."""
    cpus_per_worker: NonNegative | None = None
    """CPUs that Ray reserves for a worker, by default 1 with --use-gpu, else 0.5; the remaining ones read the
    data, of which each node keeps at least one."""
    threads_per_worker: Count | None = None
    """CPU threads that torch uses in a worker; by default the processors of its node, split among the workers
    there. Small models and batches train faster with fewer: the remaining processors read the data."""
    max_failures: Natural = 3
    """How often the workers are restarted from the last checkpoint after one of them was lost."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_number_or_range("num_workers", self.num_workers)

    @property
    def without_ray(self) -> bool:
        """Whether the command's own process does all the work."""
        return self.num_workers == 0

    @property
    def least_workers(self) -> int:
        """Number of workers without which nothing starts."""
        return least_and_most(self.num_workers)[0]

    @property
    def most_workers(self) -> int:
        """Number of workers at most."""
        return least_and_most(self.num_workers)[1]

    @property
    def is_elastic(self) -> bool:
        """Whether their number may change while they work."""
        return self.least_workers < self.most_workers

    @property
    def world_size(self) -> int:
        """Number of processes that train together, at most."""
        return max(1, self.most_workers)

    @property
    def worker_cpus(self) -> float:
        """CPUs that Ray reserves for one worker."""
        # A worker on a GPU keeps one CPU busy; on CPUs, the threads of torch take turns with the reading.
        default = 1.0 if self.use_gpu else 0.5
        return default if self.cpus_per_worker is None else self.cpus_per_worker

    @property
    def worker_gpus(self) -> float:
        """GPUs that Ray reserves for one worker."""
        return self.gpus_per_worker if self.use_gpu else 0.0

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for one worker: resource -> amount."""
        return {"CPU": self.worker_cpus, **({"GPU": self.worker_gpus} if self.use_gpu else {})}


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
        sys.modules["ray"].shutdown()


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


def room(
    nodes: list[dict[str, Any]], resources: Mapping[str, float], *, reading_cpus: float = READING_CPUS
) -> int:
    """Return how many workers there is room for if every node keeps CPUs to read data with.

    Workers are spread over the nodes, each of them on the node with most to spare. So this sum over the nodes
    is reached without a node that keeps less.

    Args:
        nodes: as ray.nodes() returns them.
        resources: what Ray reserves for one worker; if that is nothing, there is room for any number.
        reading_cpus: CPUs that each node keeps.
    """
    wanted = {name: amount for name, amount in resources.items() if amount}
    if not wanted:
        return sys.maxsize
    total = 0
    for node in nodes:
        if node["Alive"]:
            free = {**node["Resources"], "CPU": node["Resources"].get("CPU", 0.0) - reading_cpus}
            # Without the small number, 0.3 / 0.1 would be 2.
            fits = [math.floor(free.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()]
            total += max(0, min(fits))
    return total


def check_resources(config: WorkersConfig) -> None:
    """Refuse a run that could not start, or whose workers would leave a node no CPU to read data with.

    A joined cluster may grow by its autoscaler. There, a run that does not fit yet only logs a warning; one
    that fits, but leaves a node no CPU to read data with, is refused.

    Raises:
        InputError: the GPUs do not suffice, or the workers take the last CPU of a node.
    """
    if config.without_ray:
        _check_own_gpu(config)
        return
    import ray

    least, nodes = config.least_workers, [node for node in ray.nodes() if node["Alive"]]
    if room(nodes, config.resources) >= least:
        return
    cpus, gpus = (sum(node["Resources"].get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    if cluster_address() and room(nodes, config.resources, reading_cpus=0.0) < least:
        log.warning("the cluster has %g CPUs and %d GPUs; waiting for its autoscaler to add more", cpus, gpus)
        return
    if config.use_gpu and gpus < least * config.gpus_per_worker:
        raise InputError(
            f"--use-gpu with --num-workers {config.num_workers}: there are {gpus:g} GPUs. "
            "Use fewer workers, or leave --use-gpu out."
        )
    raise InputError(
        f"--num-workers {config.num_workers} with {config.worker_cpus:g} CPU each: of {cpus:g} CPUs, each "
        f"node keeps {READING_CPUS:g} to read data, so there is room for {room(nodes, config.resources)}. "
        "Lower --num-workers or --cpus-per-worker."
    )


def _check_own_gpu(config: WorkersConfig) -> None:
    import torch

    if config.use_gpu and not torch.cuda.is_available():
        raise InputError(
            "--use-gpu with --num-workers 0: this machine has no GPU that torch can use. "
            "Leave --use-gpu out, or give --num-workers 1 to train on a GPU of the cluster."
        )
