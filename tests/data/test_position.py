"""The place of a run in its data, as a checkpoint holds it."""

import io

import numpy as np
import pytest
import torch

from beamclip.data.order import order_of
from beamclip.data.position import OtherOrderError, added, check_order, from_plain, position_in, to_plain

COUNTS = np.array([40, 2, 977])


def test_a_place_survives_a_checkpoint_in_a_few_bytes() -> None:
    position = position_in(order_of(COUNTS, 4096, 3, 2), 123_456, {"broken shard": 7})
    file = io.BytesIO()
    torch.save(to_plain(position), file)
    assert file.tell() < 2000
    file.seek(0)
    assert from_plain(torch.load(file, weights_only=True)) == position


def test_it_is_the_same_for_any_number_of_workers() -> None:
    position = position_in(order_of(COUNTS, 4096, 3, 2), 10, {})
    for workers in (1, 3, 7):
        order = order_of(COUNTS, 4096, 3, workers)
        check_order(position, order)
        assert position_in(order, 10, {}) == position


@pytest.mark.parametrize(("window", "seed"), [(2048, 3), (4096, 4)])
def test_another_order_is_refused_with_the_options_of_the_first(window: int, seed: int) -> None:
    position = position_in(order_of(COUNTS, 4096, 3, 1), 10, {})
    with pytest.raises(OtherOrderError, match="Resume it with --shuffle-window 4096 and --seed 3, on the"):
        check_order(position, order_of(COUNTS, window, seed, 1))


def test_the_place_of_an_earlier_version_is_refused_with_advice() -> None:
    with pytest.raises(OtherOrderError, match="of an earlier version of beamclip"):
        from_plain({"order": {}, "ranks": [], "leftovers": {}})


def test_losses_of_all_workers_are_added() -> None:
    assert added([{"b": 2}, {}, {"a": 1, "b": 3}]) == {"a": 1, "b": 5}
