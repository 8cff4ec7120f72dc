"""What a checkpoint holds and how it is written and read: one file, tensors and plain values only."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from beamclip.data.stream import Position

STATE_FILE = "state.pt"

State = dict[str, Any]


def write_state(state: State, folder: Path) -> None:
    """Write a state to `folder`; a `positions` list of Position becomes plain dictionaries."""
    plain = {**state, "positions": [asdict(position) for position in state["positions"]]}
    torch.save(plain, folder / STATE_FILE)


def read_state(folder: Path) -> State:
    """The state in `folder`, on the CPU. Nothing but tensors and plain values is ever unpickled."""
    state: State = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    return {**state, "positions": [Position(**position) for position in state["positions"]]}


def position_of_rank(state: State, rank: int, world_size: int) -> Position:
    """Where `rank` goes on.

    With another number of workers than before, the current epoch starts anew: its order over the ranks
    is another one, and repeating part of an epoch beats leaving part of it out.
    """
    positions: list[Position] = state["positions"]
    if len(positions) == world_size:
        return positions[rank]
    epoch = min(position.epoch for position in positions)
    skipped: dict[str, int] = {}
    # The first epoch counts what it loses; where it starts anew, so does the count.
    for position in positions if rank == 0 and epoch > 0 else []:
        for reason, count in position.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    return Position(epoch, 0, skipped)
