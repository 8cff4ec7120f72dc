"""Where a run stands in its data: what every checkpoint holds, and how other workers go on from it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beamclip.data.order import Order, Part, Unread, epoch_part, interleaved, partly_read, unread
from beamclip.data.row_sets import RowSet, runs_of


@dataclass(frozen=True)
class Position:
    """Where a rank stands: `drawn` rows of `epoch` have left its shuffle buffer, bad ones included."""

    epoch: int = 0
    drawn: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples lost so far in the first pass over the data, by reason."""


@dataclass(frozen=True)
class DataPosition:
    """Where all ranks stand."""

    order: Order
    ranks: tuple[Position, ...]
    leftovers: dict[int, RowSet] = field(default_factory=dict)
    """Of epochs that were begun in another order: the rows that were left, and that this order covers. All
    other epochs are made of all rows."""


def beginning(order: Order) -> DataPosition:
    """Before the first row."""
    return DataPosition(order, (Position(),) * order.world_size)


def continued(position: DataPosition, order: Order, samples: NDArray[np.int64]) -> DataPosition:
    """The same place in another order: what was drawn stays drawn, and all the rest is divided anew.

    Args:
        samples: int64 [shards], the rows that each shard holds.
    """
    if position.order == order:
        return position
    first = min(rank.epoch for rank in position.ranks)
    begun = max([*(rank.epoch for rank in position.ranks), *position.leftovers])
    leftovers = {epoch: _leftover(position, epoch, samples) for epoch in range(first, begun + 1)}
    skipped = skipped_of(position.ranks)
    ranks = tuple(Position(first, 0, skipped if rank == 0 else {}) for rank in range(order.world_size))
    return DataPosition(order, ranks, {e: rows for e, rows in leftovers.items() if not rows.whole.all()})


def skipped_of(ranks: Iterable[Position]) -> dict[str, int]:
    """Samples lost in the first pass over the data by all ranks together, by reason."""
    total: Counter[str] = Counter()
    for rank in ranks:
        total.update(rank.skipped)
    return dict(sorted(total.items()))


def _leftover(position: DataPosition, epoch: int, samples: NDArray[np.int64]) -> RowSet:
    rows = position.leftovers.get(epoch, RowSet.everything(samples))
    runs = [np.empty((0, 3), np.int64)]
    for rank, stands in enumerate(position.ranks):
        if stands.epoch <= epoch:
            part = epoch_part(rows.counts(samples), position.order, epoch, rank)
            drawn = stands.drawn if stands.epoch == epoch else 0
            left = unread(position.order, epoch, rank, part.rows, drawn)
            runs += _runs_left(rows, part, left)
    return RowSet.of_runs(np.concatenate(runs), samples)


def _runs_left(rows: RowSet, part: Part, left: Unread) -> Iterator[NDArray[np.int64]]:
    opened, untouched = partly_read(part, left)
    for bundle, keep in opened.items():
        pieces = part.pieces(bundle)
        turns = interleaved(np.array([stop - start for _, start, stop in pieces]))
        for turn, (shard, start, stop) in enumerate(pieces):
            yield runs_of(shard, np.asarray(rows.rows(shard, start, stop))[keep[turns == turn]])
    onwards = part.bundles[untouched]
    pieces_left = np.column_stack([part.shard, part.start, part.stop])[onwards:]
    whole = rows.whole[pieces_left[:, 0]]
    yield pieces_left[whole]
    for shard, start, stop in pieces_left[~whole].tolist():
        yield runs_of(shard, rows.rows(shard, start, stop))


def to_plain(position: DataPosition) -> dict[str, Any]:
    """Tensors, numbers and strings only."""
    return {
        "order": asdict(position.order),
        "ranks": [asdict(rank) for rank in position.ranks],
        "leftovers": {
            epoch: {
                "shards": len(rows.whole),
                "whole": torch.from_numpy(np.packbits(rows.whole)),
                "runs": torch.from_numpy(rows.runs),
            }
            for epoch, rows in position.leftovers.items()
        },
    }


def from_plain(content: dict[str, Any]) -> DataPosition:
    """What `to_plain` made."""
    leftovers = {
        epoch: RowSet(
            np.unpackbits(rows["whole"].numpy(), count=rows["shards"]).astype(np.bool_), rows["runs"].numpy()
        )
        for epoch, rows in content["leftovers"].items()
    }
    ranks = tuple(Position(**rank) for rank in content["ranks"])
    return DataPosition(Order(**content["order"]), ranks, leftovers)
