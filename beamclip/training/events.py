"""Events that workers send to the command that started them, in order.

This module does not import torch: processes that only pass events on import it.
"""

from dataclasses import dataclass

from beamclip.data.lost_samples import LostSample


@dataclass(frozen=True)
class Started:
    """Workers start or restart training."""

    step: int
    """Step of the checkpoint that they resume from; 0: from the beginning."""


@dataclass(frozen=True)
class Damaged:
    """A damaged checkpoint was passed over."""

    text: str
    """Which one, and what is wrong with it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written completely."""

    step: int
    seconds: float
    """Time that writing it took, beside training."""


@dataclass(frozen=True)
class Lost:
    """Samples that cannot be used: the first few of each reason."""

    samples: tuple[LostSample, ...]


@dataclass(frozen=True)
class Recorded:
    """A run made a record of its metrics."""

    values: dict[str, float]
    """Name -> value: "step", "loss" and the method's own metrics, as means over the ranks and the steps since
    the last record; "pid" is the process of rank 0."""


@dataclass(frozen=True)
class Embedded:
    """An embedding process began a shard, or finished a batch of it."""

    images: int
    """Images done since its last event."""
    time: float
    """Seconds since 1970."""


Event = Started | Damaged | Saved | Lost | Recorded | Embedded
