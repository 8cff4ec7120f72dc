"""Workers that start while their command prepares their job, and wait for it.

If a command and its workers started one after the other, each would import the same libraries while the
other waits. So they overlap: a process that imports the libraries for all workers starts with the command,
Ray once all that needs no model is checked, and the workers once the models are loaded too. Until then, this
module imports neither torch nor Ray.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING

from beamclip.background import in_background
from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.nodes import NO_PLACES, SharedPlaces, ask_nodes
from beamclip.cluster.room import check_resources
from beamclip.cluster.session import cluster_address, forked_python, ray_session
from beamclip.training.channel import RemoteChannel

if TYPE_CHECKING:
    from beamclip.training.worker import TrainingJob

SECONDS_TO_END = 15.0
"""For Ray Train to end once the workers have: it takes one where nothing is wrong."""


class WaitingWorkers:
    """The workers of one training; see `waiting_workers`."""

    def __init__(self, config: WorkersConfig, python: str | None) -> None:
        """Start nothing yet.

        Args:
            python: command line of the Python for workers; see forked_python.
        """
        self._config = config
        self._python = python
        self._ray: Future[None] | None = None
        self._channel: Future[RemoteChannel] = Future()
        self._workers: Future[None] | None = None
        self._job: TrainingJob | None = None
        self._left = threading.Event()

    def start_ray(self, places: SharedPlaces = NO_PLACES) -> None:
        """Start Ray in the background; or join a cluster, and wait until its nodes have been asked.

        Args:
            places: what the nodes are asked about; see `nodes.ask_nodes`.

        Raises:
            InputError: RAY_ADDRESS names no cluster that can be joined, it is too small, or a node does not
                see what this machine sees.
        """
        if self._ray is None:
            self._ray = in_background("beamclip-ray", partial(self._hold_ray, places))
            if cluster_address():
                # Before the command loads a teacher, which takes minutes where it is large.
                self._channel.result()

    def wait_for_ray(self) -> None:
        """Start Ray unless it was started, and wait until it is up.

        Raises:
            InputError: RAY_ADDRESS names no cluster that can be joined, or the cluster is too small.
        """
        self.start_ray()
        self._channel.result()

    @property
    def channel(self) -> RemoteChannel:
        """Channel to the workers; waits until Ray is up. Call `start_ray` first."""
        return self._channel.result()

    def begin(self) -> None:
        """Start the workers unless they need GPUs, on which the command encodes texts before it has a job."""
        if not self._config.use_gpu:
            self._start_workers()

    def give(self, job: "TrainingJob") -> None:
        """Give the workers a job to train, and start them unless they were started.

        Raises:
            InputError: see `wait_for_ray`.
        """
        import ray

        self.wait_for_ray()
        self.channel.give(ray.put(job))
        # Its references must not be freed while Ray stops.
        self._job = job
        self._start_workers()

    @property
    def ended(self) -> "Future[None]":
        """Future that is done when no worker runs any more; holds their TrainingError if they failed."""
        assert self._workers is not None, "they were not started"
        return self._workers

    def release_ray(self) -> None:
        """Let Ray, if it was started here, stop in the background: nothing needs it any more."""
        self._left.set()

    def leave(self) -> None:
        """Stop workers that have no job, without waiting for them, and stop Ray if it was started here."""
        if self._ray is None:
            return
        wait([self._channel])
        if self._channel.exception() is None and self._job is None:
            self.channel.request_stop()
        self.release_ray()
        wait([self._ray])

    def _hold_ray(self, places: SharedPlaces) -> None:
        # In one thread from beginning to end: Ray's processes end with the thread that started them.
        try:
            with ray_session(python=self._python):
                check_resources(self._config)
                ask_nodes(places)
                self._channel.set_result(RemoteChannel())
                # This import takes seconds. Whether it fails is for the workers' thread to say.
                with contextlib.suppress(ImportError):
                    import beamclip.training.ray_train  # noqa: F401
                self._left.wait()
                # A thread that still asks Ray when it stops would end the whole process.
                if self._workers is not None:
                    wait([self._workers], SECONDS_TO_END)
        except BaseException as error:
            if self._channel.done():
                raise
            self._channel.set_exception(error)

    def _start_workers(self) -> None:
        if self._workers is None:
            self._workers = in_background("beamclip-workers", self._run)

    def _run(self) -> None:
        from beamclip.training.ray_train import run_workers

        run_workers(self.channel, self._config)


@contextlib.contextmanager
def waiting_workers(config: WorkersConfig) -> Iterator[WaitingWorkers | None]:
    """Yield workers that are yet to be started; None if the command's own process is to train.

    Call `start_ray`, `begin` and `give` in this order; `give` makes up for omitted calls.
    """
    if config.without_ray:
        yield None
        return
    with forked_python() as python:
        workers = WaitingWorkers(config, python)
        try:
            yield workers
        finally:
            workers.leave()
