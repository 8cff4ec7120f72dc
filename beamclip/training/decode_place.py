"""Where the images of a training are decoded: in its workers, or in tasks of Ray Data on any node.

Free of torch, since a mistake is reported before it is imported.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from beamclip.cluster import WorkersConfig
from beamclip.data.config import StreamConfig
from beamclip.data.rows import CROPS_AHEAD_BYTES
from beamclip.errors import InputError

if TYPE_CHECKING:
    from beamclip.training.worker import TrainingJob

Place = Literal["worker", "tasks"]

CPUS_TO_DECODE = 4
"""CPUs for each worker from which on tasks decode more than the threads of the worker would."""


def check_decode(stream: StreamConfig, workers: WorkersConfig) -> None:
    """Refuse tasks that are to decode where there are none.

    Raises:
        InputError: the command's own process trains, without Ray.
    """
    if workers.without_ray and stream.decode == "tasks":
        raise InputError(
            "--decode tasks with --num-workers 0: without Ray there are no tasks. "
            "Give --num-workers 1 or more, or leave --decode out."
        )


def placed(job: "TrainingJob", workers: WorkersConfig) -> "TrainingJob":
    """Return the job with its place of decoding decided. Ray must be up, unless the workers do without it.

    Tasks pay where workers train on GPUs: the threads of one process decode a few thousand images a second
    at most, since they take turns with Python's lock.

    Raises:
        InputError: tasks were asked for, and the object store is too small for the crops.
    """
    place: Place = "worker"
    if not workers.without_ray:
        import ray

        needed = _store_bytes(job, workers)
        place = decode_place(job.stream.decode, needed, workers, ray.cluster_resources())
    return replace(job, stream=replace(job.stream, decode=place))


def decode_place(
    asked: Literal["auto", "worker", "tasks"],
    needed: int,
    workers: WorkersConfig,
    resources: Mapping[str, float],
) -> Place:
    """Decide where images are decoded.

    Args:
        needed: bytes that crops would take in the object store.
        resources: of the cluster, as `ray.cluster_resources` returns them.

    Raises:
        InputError: tasks were asked for, and the object store is too small for the crops.
    """
    free = resources.get("CPU", 0.0) - workers.num_workers * workers.cpus_per_worker
    held = resources.get("object_store_memory", 0.0)
    if asked == "auto":
        enough = free >= CPUS_TO_DECODE * workers.num_workers and held >= needed
        return "tasks" if workers.use_gpu and enough else "worker"
    if asked == "tasks" and held < needed:
        raise InputError(
            f"--decode tasks: crops would take {needed / 2**30:.1f} GiB of Ray's object store, which holds "
            f"{held / 2**30:.1f} GiB. Lower --shuffle-window, give --decode worker, or start Ray with a "
            "larger store."
        )
    return asked


def _store_bytes(job: "TrainingJob", workers: WorkersConfig) -> int:
    """What crops take in the object store: a window that is used up, the next one, and what is read ahead."""
    samples = min(job.stream.shuffle_window, sum(shard.samples for shard in job.shards))
    windows = 2 * samples * 3 * job.image_size**2
    return windows + min(windows, workers.num_workers * CROPS_AHEAD_BYTES)
