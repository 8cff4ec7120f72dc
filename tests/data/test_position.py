"""The place of a run in its data, as a checkpoint holds it."""

import io
from typing import Any

import numpy as np
import pytest
import torch

from beamclip.data.mixture import Mixture, mixture_of
from beamclip.data.position import OtherOrderError, added, check_order, from_plain, position_in, to_plain

COUNTS = [np.array([40, 2, 977]), np.array([130, 40])]
WEIGHTS = (2.0, 1.0)


def mixture(
    weights: tuple[float, ...] = WEIGHTS, window: int = 4096, seed: int = 3, workers: int = 1
) -> Mixture:
    return mixture_of(COUNTS, weights, window, seed, workers)


def test_a_place_survives_a_checkpoint_in_a_few_bytes() -> None:
    position = position_in(mixture(), 123_456, {"broken shard": 7})
    file = io.BytesIO()
    torch.save(to_plain(position), file)
    assert file.tell() < 2000
    file.seek(0)
    assert from_plain(torch.load(file, weights_only=True)) == position


def test_it_is_the_same_for_any_number_of_workers() -> None:
    position = position_in(mixture(), 10, {})
    for workers in (1, 3, 7):
        again = mixture(workers=workers)
        check_order(position, again)
        assert position_in(again, 10, {}) == position


@pytest.mark.parametrize(
    "other", [{"window": 2048}, {"seed": 4}, {"weights": (1.0, 1.0)}, {"weights": ()}], ids=str
)
def test_another_order_is_refused_with_the_options_of_the_first(other: dict[str, Any]) -> None:
    position = position_in(mixture(), 10, {})
    advice = "Resume it with --data-weights 171 85, --shuffle-window 4096 and --seed 3, on the data"
    with pytest.raises(OtherOrderError, match=advice):
        check_order(position, mixture(**other))
    check_order(position, mixture(weights=(171.0, 85.0)))


def test_the_advice_names_no_weights_where_there_were_none() -> None:
    with pytest.raises(OtherOrderError, match="Resume it with --shuffle-window 4096 and --seed 3, on the"):
        check_order(position_in(mixture(()), 10, {}), mixture())


def test_the_place_of_an_earlier_version_is_refused_with_advice() -> None:
    earlier = to_plain(position_in(mixture(), 10, {}))
    earlier["order_version"] -= 1
    for content in (earlier, {"order": {}, "ranks": [], "leftovers": {}}):
        with pytest.raises(OtherOrderError, match="of another version of beamclip"):
            from_plain(content)


def test_losses_of_all_workers_are_added() -> None:
    assert added([{"b": 2}, {}, {"a": 1, "b": 3}]) == {"a": 1, "b": 5}
