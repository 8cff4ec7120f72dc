"""Where the images of a training are decoded: in its workers, or in tasks of Ray Data on any node."""

from dataclasses import replace
from typing import Literal

from beamclip.cluster import WorkersConfig
from beamclip.data.rows import CROPS_AHEAD_BYTES
from beamclip.errors import InputError
from beamclip.training.worker import TrainingJob

CPUS_TO_DECODE = 4
"""CPUs for each worker from which on tasks decode more than the threads of the worker would."""


def placed(job: TrainingJob, workers: WorkersConfig) -> TrainingJob:
    """Return the job with its place of decoding decided. Ray must be up, unless the workers do without it.

    Tasks pay where workers train on GPUs: the threads of one process decode a few thousand images a second
    at most, since they take turns with Python's lock.

    Raises:
        InputError: tasks were asked for, and there is no Ray, or its object store is too small for the crops.
    """
    place = _place(job.stream.decode, job, workers)
    return replace(job, stream=replace(job.stream, decode=place))


def _place(
    asked: Literal["auto", "worker", "tasks"], job: TrainingJob, workers: WorkersConfig
) -> Literal["worker", "tasks"]:
    if asked == "worker" or (workers.without_ray and asked == "auto"):
        return "worker"
    if workers.without_ray:
        raise InputError(
            "--decode tasks with --num-workers 0: without Ray there are no tasks. "
            "Give --num-workers 1 or more, or leave --decode out."
        )
    import ray

    total = ray.cluster_resources()
    free = total.get("CPU", 0.0) - workers.num_workers * workers.cpus_per_worker
    held, needed = total.get("object_store_memory", 0.0), _store_bytes(job, workers)
    if asked == "auto":
        enough = free >= CPUS_TO_DECODE * workers.num_workers and held >= needed
        return "tasks" if workers.use_gpu and enough else "worker"
    if held < needed:
        raise InputError(
            f"--decode tasks: two windows of crops and those on their way take {needed / 2**30:.1f} GiB, and "
            f"Ray's object store holds {held / 2**30:.1f} GiB. Lower --shuffle-window, give --decode worker, "
            "or start Ray with a larger store."
        )
    return "tasks"


def _store_bytes(job: TrainingJob, workers: WorkersConfig) -> int:
    """What crops take in the object store: a window that is used up, the next one, and what is read ahead."""
    samples = min(job.stream.shuffle_window, sum(shard.samples for shard in job.shards))
    windows = 2 * samples * 3 * job.image_size**2
    return windows + min(windows, workers.num_workers * CROPS_AHEAD_BYTES)
