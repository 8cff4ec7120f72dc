"""Checkpoints: what is written comes back, nothing is executed, and every rank finds its place."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from beamclip.data.stream import Position
from beamclip.training.checkpoint import STATE_FILE, position_of_rank, read_state, write_state

FOUR_ROWS_IN = Position(epoch=2, drawn=4, skipped={"corrupt image": 1})
SIX_ROWS_IN = Position(epoch=1, drawn=6, skipped={"corrupt image": 2, "missing image": 1})


def state_at(*positions: Position) -> dict[str, Any]:
    method = {"weight": torch.arange(3.0), "steps": torch.tensor(7)}
    return {
        "method": method,
        "ema": None,
        "optimizer": {"state": {0: {}}},
        "step": 5,
        "positions": [*positions],
    }


def test_a_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = state_at(FOUR_ROWS_IN, SIX_ROWS_IN)
    write_state(state, tmp_path)
    got = read_state(tmp_path)
    torch.testing.assert_close(got.pop("method"), state.pop("method"), rtol=0, atol=0)
    assert got == state


def test_writing_leaves_the_state_itself_alone(tmp_path: Path) -> None:
    state = state_at(FOUR_ROWS_IN)
    write_state(state, tmp_path)
    assert state["positions"] == [FOUR_ROWS_IN]


def test_reading_executes_nothing_from_the_file(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"positions": [], "method": Harmful()}, tmp_path / STATE_FILE)
    with pytest.raises(pickle.UnpicklingError):
        read_state(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_with_as_many_workers_as_before_each_rank_goes_on_where_it_was(rank: int) -> None:
    positions = [FOUR_ROWS_IN, SIX_ROWS_IN]
    assert position_of_rank(state_at(*positions), rank, world_size=2) == positions[rank]


def test_with_other_workers_than_before_all_ranks_begin_the_earliest_epoch_anew() -> None:
    state = state_at(FOUR_ROWS_IN, SIX_ROWS_IN)
    got = [position_of_rank(state, rank, world_size=3) for rank in range(3)]
    assert got == [Position(1, 0, {"corrupt image": 3, "missing image": 1}), Position(1, 0), Position(1, 0)]


def test_where_the_first_epoch_begins_anew_so_does_the_count_of_what_was_skipped() -> None:
    state = state_at(Position(0, 9, {"corrupt image": 2}))
    assert [position_of_rank(state, rank, world_size=2) for rank in range(2)] == [Position(), Position()]
