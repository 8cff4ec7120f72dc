"""Workers that start beside their command, and wait for the job that it makes of its options.

Ray starts with the command, and the workers once the options are known to be right: started one after the
other, a command and its workers would each import the same libraries while the other one waits. Free of torch
and Ray until workers are asked for.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from beamclip.background import in_background
from beamclip.cluster import WorkersConfig, check_resources, ray_session
from beamclip.training.channel import RemoteChannel

if TYPE_CHECKING:
    from beamclip.training.worker import TrainingJob


class WaitingWorkers:
    """The workers of one training; see `waiting_workers`."""

    def __init__(self, config: WorkersConfig) -> None:
        self._config = config
        self._wanted = threading.Event()
        self._has_job = False
        self._left = threading.Event()
        self._channel: Future[RemoteChannel] = Future()
        self._ray = in_background("beamclip-ray", self._hold_ray)
        self.ended = in_background("beamclip-workers", self._run)
        """When no worker runs any more; with the TrainingError by which they failed, if they did."""

    def wait_for_ray(self) -> None:
        """Return when Ray is up.

        Raises:
            InputError: RAY_ADDRESS names no cluster that can be joined, or the cluster is too small.
        """
        self._channel.result()

    @property
    def channel(self) -> RemoteChannel:
        """The line to the workers, once Ray is up."""
        return self._channel.result()

    def begin(self) -> None:
        """Start them. With GPUs, once they have a job: until then the command encodes texts on those."""
        if not self._config.use_gpu:
            self._wanted.set()

    def give(self, job: "TrainingJob") -> None:
        """Have them train a job."""
        import ray

        self.channel.give(ray.put(job))
        self._has_job = True
        self._wanted.set()

    def leave(self) -> None:
        """Send home workers that have no job, without waiting for them, and end a Ray that was started."""
        self._left.set()
        self._wanted.set()
        wait([self._channel])
        if not self._has_job and self._channel.exception() is None:
            self.channel.request_stop()
        wait([self._ray])

    def _hold_ray(self) -> None:
        # The processes of Ray end with the thread that started them.
        try:
            with ray_session():
                check_resources(self._config)
                self._channel.set_result(RemoteChannel())
                self._left.wait()
        except BaseException as error:
            self._channel.set_exception(error)

    def _run(self) -> None:
        channel = self.channel
        # Ray Train takes seconds to import.
        from beamclip.training.ray_train import run_workers

        self._wanted.wait()
        if not self._left.is_set():
            run_workers(channel, self._config)


@contextlib.contextmanager
def waiting_workers(config: WorkersConfig) -> Iterator[WaitingWorkers | None]:
    """Workers for whom Ray starts at once; None where the command's own process is to train.

    What is wrong with the cluster is told by `wait_for_ray`.
    """
    if config.without_ray:
        yield None
        return
    workers = WaitingWorkers(config)
    try:
        yield workers
    finally:
        workers.leave()
