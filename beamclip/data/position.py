"""Where a run stands in its data: the number of samples before it, in an order that never changes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from beamclip.data.mixture import Mixture
from beamclip.data.order import ORDER_VERSION, PIECE


class OtherOrderError(ValueError):
    """A checkpoint's place in the data means something else in the order of this run."""


@dataclass(frozen=True)
class DataPosition:
    """Where a run stands; the same for any number of workers."""

    samples: int
    """Samples before it, since the beginning of the run."""
    lanes: tuple[int, ...]
    """For each source, lanes of its order."""
    pieces: tuple[int, ...]
    """For each source, rows of a piece of its order."""
    seed: int
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples lost in the first pass over the data, by reason."""
    order_version: int = ORDER_VERSION
    """Version of the order that the number of samples is a place in."""


def position_in(mixture: Mixture, samples: int, skipped: dict[str, int]) -> DataPosition:
    """Return the place after so many samples of a run, with what was skipped before it, by reason."""
    lanes, pieces = zip(*((order.lanes, order.piece) for order in mixture.orders), strict=True)
    return DataPosition(samples, lanes, pieces, mixture.orders[0].seed, skipped)


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
        OtherOrderError: another version made it, whose order of the samples was another.
    """
    if content.get("order_version") != ORDER_VERSION:
        raise OtherOrderError(
            "its checkpoints are of another version of beamclip, which took the samples in another order: "
            "the run cannot be resumed. Its model can be trained further as a new run's --init-checkpoint."
        )
    whole = {name: tuple(content[name]) for name in ("lanes", "pieces")}
    return DataPosition(**{**content, **whole})


def check_order(position: DataPosition, mixture: Mixture) -> None:
    """Refuse to go on in another order.

    Raises:
        OtherOrderError: the weights, the window or the seed are not those that the position was taken in.
    """
    if replace(position, samples=0, skipped={}) == position_in(mixture, 0, {}):
        return
    # Lanes are weights that give just these lanes again.
    weights = f"--data-weights {' '.join(map(str, position.lanes))}, "
    raise OtherOrderError(
        "the run was begun in another order of its samples. Resume it with "
        f"{weights if len(position.lanes) > 1 else ''}--shuffle-window {sum(position.lanes) * PIECE} and "
        f"--seed {position.seed}, on the data that it was begun with."
    )
