"""Where a run stands in its data: the number of samples before it, in an order that never changes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from beamclip.data.order import PIECE, Order


class OtherOrderError(ValueError):
    """A checkpoint's place in the data means something else in the order of this run."""


@dataclass(frozen=True)
class DataPosition:
    """Where a run stands; the same for any number of workers."""

    samples: int
    """Samples before it, since the beginning of the run."""
    lanes: int
    """Of a window of the order."""
    piece: int
    """Rows of a piece of the order."""
    seed: int
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples lost in the first pass over the data, by reason."""


def position_in(order: Order, samples: int, skipped: dict[str, int]) -> DataPosition:
    """Return the place after so many samples of an order, with what was skipped before it, by reason."""
    return DataPosition(samples, order.lanes, order.piece, order.seed, skipped)


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of counts by reason."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def to_plain(position: DataPosition) -> dict[str, Any]:
    """Numbers and strings only."""
    return asdict(position)


def from_plain(content: dict[str, Any]) -> DataPosition:
    """What `to_plain` made.

    Raises:
        OtherOrderError: an earlier version made it, whose order of the samples was another.
    """
    try:
        return DataPosition(**content)
    except TypeError as error:
        raise OtherOrderError(
            "its checkpoints are of an earlier version of beamclip, which took the samples in another order: "
            "the run cannot be resumed. Its model can be trained further as a new run's --init-checkpoint."
        ) from error


def check_order(position: DataPosition, order: Order) -> None:
    """Refuse to go on in another order.

    Raises:
        OtherOrderError: the order's window or seed is not the one that the position was taken in.
    """
    if (position.lanes, position.piece, position.seed) == (order.lanes, order.piece, order.seed):
        return
    raise OtherOrderError(
        "the run was begun in another order of its samples. Resume it with --shuffle-window "
        f"{position.lanes * PIECE} and --seed {position.seed}, on the data that it was begun with."
    )
