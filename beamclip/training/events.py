"""Events of a training that its command hears of, in order; most of them come from workers.

This module does not import torch, since processes that only pass events on import it.
"""

from dataclasses import dataclass

from beamclip.data.config import DecodePlace
from beamclip.data.lost_samples import LostSample


@dataclass(frozen=True)
class Started:
    """The workers start or restart training."""

    step: int
    """Step of the checkpoint that they resume from; 0 for the beginning."""
    workers: int
    """How many they are."""
    decode: DecodePlace
    """Where images are decoded."""


@dataclass(frozen=True)
class Waiting:
    """The cluster has no room for the workers."""

    room: int
    """How many workers it has room for."""
    least: int
    """How many are needed."""


@dataclass(frozen=True)
class Resizing:
    """The workers are to write a checkpoint, and to start again from it in another number."""

    workers: int
    """How many they will be."""


@dataclass(frozen=True)
class Damaged:
    """A damaged checkpoint was passed over when looking for one to resume from."""

    text: str
    """Which checkpoint, and what is wrong with it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written completely."""

    step: int
    seconds: float
    """Time that writing it took, while training went on."""


@dataclass(frozen=True)
class Stopped:
    """The workers ended before their last step, as they were asked to; their checkpoint is written."""

    step: int
    """Step of the checkpoint."""


@dataclass(frozen=True)
class Lost:
    """Samples that cannot be used: the first few of each reason."""

    samples: tuple[LostSample, ...]


@dataclass(frozen=True)
class Recorded:
    """A record of the metrics was made."""

    values: dict[str, float]
    """Name -> value: "step", "loss" and the method's own metrics, as means over the ranks and the steps since
    the last record; "workers" is the number of ranks, "pid" the process of rank 0."""


@dataclass(frozen=True)
class Embedded:
    """An embedding process began a shard, or finished a batch of it."""

    images: int
    """Images processed, usable or not, since the process's last event."""
    time: float
    """Seconds since 1970."""


Event = Started | Waiting | Resizing | Damaged | Saved | Stopped | Lost | Recorded | Embedded
