"""What workers tell the command that started them, in the order in which it happened.

Free of torch: a process that only passes events on imports this module.
"""

from dataclasses import dataclass

from beamclip.data.lost_samples import LostSample


@dataclass(frozen=True)
class Started:
    """Workers begin to train, or begin again."""

    step: int
    """Of the checkpoint that they go on from; 0: from the beginning."""


@dataclass(frozen=True)
class Damaged:
    """A checkpoint was passed over."""

    text: str
    """Which one, and what is wrong with it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint is whole."""

    step: int
    seconds: float
    """That writing it took, beside training."""


@dataclass(frozen=True)
class Lost:
    """Samples that cannot be used: the first few of each reason."""

    samples: tuple[LostSample, ...]


@dataclass(frozen=True)
class Recorded:
    """What a run records of a step."""

    values: dict[str, float]
    """By name: "step", "loss" and the method's own, means over the ranks since the last ones; "pid" is rank
    0's process."""


@dataclass(frozen=True)
class Embedded:
    """A process that embeds began a shard, or has done some more of it."""

    images: int
    """Since its last word."""
    time: float
    """Seconds since 1970."""


Event = Started | Damaged | Saved | Lost | Recorded | Embedded
