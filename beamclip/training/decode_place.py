"""Where the images of a training are decoded: in its workers, or in tasks of Ray Data on any node.

Free of torch, since a mistake is reported before it is imported.
"""

from collections.abc import Mapping
from typing import Literal

from beamclip.cluster.config import WorkersConfig
from beamclip.data.config import DecodePlace, StreamConfig
from beamclip.data.rows import CROPS_AHEAD_BYTES
from beamclip.errors import InputError

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


def decode_place(
    asked: Literal["auto", "worker", "tasks"],
    needed: int,
    num_workers: int,
    spare: Mapping[str, float] | None,
    *,
    on_gpu: bool,
) -> DecodePlace:
    """Decide where images are decoded.

    Tasks pay where workers train on GPUs: the threads of one process take turns with Python's lock, and so
    keep two or three CPUs busy, however many there are (docs/benchmarks.md).

    Args:
        needed: bytes of the object store that crops would take; see `crop_store_bytes`.
        spare: what the workers leave of the cluster's resources; None if that is not known.

    Raises:
        InputError: tasks were asked for, and the object store is too small for the crops.
    """
    cpus, held = ((spare or {}).get(name, 0.0) for name in ("CPU", "object_store_memory"))
    if asked == "auto":
        return "tasks" if on_gpu and cpus >= CPUS_TO_DECODE * num_workers and held >= needed else "worker"
    if asked == "tasks" and spare is not None and held < needed:
        raise InputError(
            f"--decode tasks: crops would take {needed / 2**30:.1f} GiB of Ray's object store, which holds "
            f"{held / 2**30:.1f} GiB. Give --decode worker, or start Ray with a larger store; of a training, "
            "a lower --shuffle-window takes less."
        )
    return asked


def crop_store_bytes(samples: int, image_size: int, num_workers: int) -> int:
    """What crops take in the object store: a window that is used up, the next one, and what is read ahead.

    Args:
        samples: in a window.
        image_size: side of a crop, pixels.
    """
    windows = 2 * samples * 3 * image_size**2
    return windows + min(windows, num_workers * CROPS_AHEAD_BYTES)
