"""Whether the autoscaler of a cluster could ever add a node for a worker."""

import json
from pathlib import Path
from typing import Any

import pytest

from beamclip.cluster import room
from beamclip.cluster.room import may_get_node

GPU_TYPES: dict[str, Any] = {
    "head": {"resources": {"CPU": 8, "GPU": 8}, "max_workers": 1},
    "gpu": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 2},
    "cpu": {"resources": {"CPU": 32}, "max_workers": 8},
}


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `ray up` leaves on the head."""
    path = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(room, "BOOTSTRAP_FILE", path)
    return path


def write(path: Path, provider: dict[str, Any], types: dict[str, Any]) -> None:
    path.write_text(
        json.dumps({"provider": provider, "available_node_types": types, "head_node_type": "head"})
    )


@pytest.mark.parametrize(
    ("wanted", "may"),
    [
        ({"CPU": 1.0, "GPU": 1.0}, True),
        ({"CPU": 48.0, "GPU": 4.0}, True),
        ({"CPU": 1.0, "GPU": 5.0}, False),  # the head's own eight are not for workers
        ({"CPU": 49.0}, False),
    ],
)
def test_a_node_may_come_if_one_type_has_room_for_a_worker(
    bootstrap: Path, wanted: dict[str, float], may: bool
) -> None:
    write(bootstrap, {"type": "aws"}, GPU_TYPES)
    assert may_get_node(wanted, nodes=1) is may


def test_a_type_that_may_have_no_node_does_not_count(bootstrap: Path) -> None:
    write(bootstrap, {"type": "aws"}, {**GPU_TYPES, "gpu": {**GPU_TYPES["gpu"], "max_workers": 0}})
    assert not may_get_node({"GPU": 1.0}, nodes=1)


@pytest.mark.parametrize(("nodes", "may"), [(1, True), (2, True), (3, False)])
def test_of_ones_own_machines_those_that_are_listed_may_come(bootstrap: Path, nodes: int, may: bool) -> None:
    write(bootstrap, {"type": "local", "head_ip": "a", "worker_ips": ["b", "c"]}, {"local.cluster.node": {}})
    assert may_get_node({"GPU": 1.0}, nodes=nodes) is may


def test_elsewhere_the_cluster_is_asked_for_its_largest_size(
    bootstrap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_most_resources", lambda: {"CPU": 64, "GPU": 0})
    assert may_get_node({"CPU": 1.0}, nodes=1)
    assert not may_get_node({"CPU": 1.0, "GPU": 1.0}, nodes=1)
    monkeypatch.setattr(room, "_most_resources", lambda: None)
    assert may_get_node({"GPU": 1.0}, nodes=1)
