"""The parts by which the number of workers follows the room that a cluster has."""

import itertools

import pytest

from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.room import room
from beamclip.errors import InputError
from beamclip.training.channel import Channel
from beamclip.training.events import Saved


def node(**resources: float) -> dict[str, object]:
    """A node as ray.nodes() lists it."""
    return {"Alive": True, "Resources": resources}


def spread(
    nodes: list[dict[str, float]], resources: dict[str, float], workers: int
) -> list[dict[str, float]]:
    """What nodes have left after Ray's SPREAD: each worker goes where most is left, to unused nodes first."""
    free, unused = [dict(each) for each in nodes], set(range(len(nodes)))
    for _ in range(workers):
        fits = [n for n, each in enumerate(free) if all(each.get(r, 0) >= a for r, a in resources.items())]
        chosen = max([n for n in fits if n in unused] or fits, key=lambda n: free[n]["CPU"])
        unused.discard(chosen)
        for name, amount in resources.items():
            free[chosen][name] -= amount
    return free


CLUSTERS = [
    ([{"CPU": 2.0}], {"CPU": 0.5}, 2),
    ([{"CPU": 2.0}, {"CPU": 2.0}], {"CPU": 0.5}, 4),
    ([{"CPU": 2.0}, {"CPU": 4.0}], {"CPU": 1.0}, 4),
    ([{"CPU": 8.0}, {"CPU": 3.0}, {"CPU": 1.0}], {"CPU": 1.5}, 5),
    ([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 1.0}, 3),
    ([{"CPU": 8.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 0.25}, 4),
    ([{"CPU": 4.0, "GPU": 4.0}], {"CPU": 1.0, "GPU": 1.0}, 3),
    ([{"CPU": 64.0}], {"CPU": 1.0, "GPU": 1.0}, 0),
]


@pytest.mark.parametrize(("nodes", "resources", "most"), CLUSTERS)
def test_the_room_of_a_cluster_leaves_each_node_a_cpu_and_no_place_unused(
    nodes: list[dict[str, float]], resources: dict[str, float], most: int
) -> None:
    assert room([node(**each) for each in nodes], resources) == most
    assert all(each["CPU"] >= 1 for each in spread(nodes, resources, most))
    used = list(itertools.chain(spread(nodes, resources, most)))
    fits = [all(each.get(name, 0) >= amount for name, amount in resources.items()) for each in used]
    # One more worker would go to a node that it leaves less than a CPU.
    assert not any(fit and each["CPU"] - resources["CPU"] >= 1 for fit, each in zip(fits, used, strict=True))


def test_a_lost_node_has_no_room_and_workers_that_take_nothing_have_room_anywhere() -> None:
    lost = {**node(CPU=8.0), "Alive": False}
    assert room([lost, node(CPU=2.0)], {"CPU": 1.0}) == 1
    assert room([node(CPU=1.0)], {"CPU": 0.0}) > 1000
    # Tenths have no exact binary form.
    assert room([node(CPU=1.3)], {"CPU": 0.1}) == 3


def test_a_checkpoint_is_asked_for_once_and_one_of_an_earlier_step_is_not_taken_for_it() -> None:
    channel = Channel()
    assert channel.request(1) == "nothing"
    channel.request_save()
    channel.put(Saved(1, 0.5))
    assert [channel.request(step) for step in (5, 6)] == ["save", "nothing"]
    channel.put(Saved(4, 0.5))
    assert not channel.saved()
    channel.put(Saved(5, 0.5))
    assert channel.saved()
    channel.request_save()
    assert not channel.saved()
    channel.request_stop()
    assert channel.request(7) == "stop"


def test_a_range_of_workers_has_two_ends_and_a_number_is_one() -> None:
    elastic, fixed = WorkersConfig(num_workers="2..8"), WorkersConfig(num_workers=4)
    assert (elastic.least_workers, elastic.most_workers, elastic.is_elastic) == (2, 8, True)
    assert (fixed.least_workers, fixed.most_workers, fixed.is_elastic) == (4, 4, False)


@pytest.mark.parametrize("wrong", ["8..2", "4..4", "0..2", "2..", "2-8", "two", "-1..3", -1])
def test_what_is_no_number_or_range_of_workers_is_refused(wrong: str | int) -> None:
    with pytest.raises(
        InputError, match=rf"^num_workers is {wrong}: give 0 or more, or a range such as 2\.\.8"
    ):
        WorkersConfig(num_workers=wrong)
