"""Workers that start while their command prepares their job, and wait for it.

If a command and its workers started one after the other, each would import the same libraries while the
other waits. So they overlap: a process that imports the libraries for all workers starts with the command,
Ray once all that needs no model is checked, and the workers when Ray is up. Until then, this module imports
neither torch nor Ray.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING

from beamclip.background import in_background
from beamclip.cluster import WorkersConfig, check_resources, forked_python, ray_session
from beamclip.training.channel import RemoteChannel

if TYPE_CHECKING:
    from beamclip.training.worker import TrainingJob


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
        self._job_given = False
        self._decided = threading.Event()
        """Set when a job was given, and when it is known that there will be none."""
        self._left = threading.Event()

    def start_ray(self) -> None:
        """Start Ray in the background."""
        if self._ray is None:
            self._ray = in_background("beamclip-ray", self._hold_ray)

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

    def give(self, job: "TrainingJob") -> None:
        """Give the workers a job to train.

        Raises:
            InputError: see `wait_for_ray`.
        """
        import ray

        self.wait_for_ray()
        self.channel.give(ray.put(job))
        self._job_given = True
        self._decided.set()

    @property
    def ended(self) -> "Future[None]":
        """Future that is done when no worker runs any more; holds their TrainingError if they failed."""
        assert self._workers is not None, "Ray is not up"
        return self._workers

    def release_ray(self) -> None:
        """Let Ray, if it was started here, stop in the background: nothing needs it any more."""
        self._left.set()

    def leave(self) -> None:
        """Stop workers that have no job, without waiting for them, and stop Ray if it was started here."""
        self._decided.set()
        if self._ray is None:
            return
        wait([self._channel])
        if self._channel.exception() is None and not self._job_given:
            self.channel.request_stop()
        self._left.set()
        wait([self._ray])

    def _hold_ray(self) -> None:
        # In one thread from beginning to end: Ray's processes end with the thread that started them.
        try:
            with ray_session(python=self._python):
                check_resources(self._config)
                channel = RemoteChannel()
                self._workers = in_background("beamclip-workers", partial(self._run, channel))
                self._channel.set_result(channel)
                self._left.wait()
        except BaseException as error:
            if self._channel.done():
                raise
            self._channel.set_exception(error)

    def _run(self, channel: RemoteChannel) -> None:
        # This import takes seconds.
        from beamclip.training.ray_train import run_workers

        if self._config.use_gpu:
            # The command encodes texts on the GPUs before it has a job.
            self._decided.wait()
        if self._job_given or not self._decided.is_set():
            run_workers(channel, self._config)


@contextlib.contextmanager
def waiting_workers(config: WorkersConfig) -> Iterator[WaitingWorkers | None]:
    """Yield workers that are yet to be started; None if the command's own process is to train.

    Call `start_ray` and `give` in this order; `give` makes up for an omitted `start_ray`.
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
