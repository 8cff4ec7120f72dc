"""How many workers the nodes have room for, and whether a run can start on them."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.session import cluster_address
from beamclip.errors import InputError

log = logging.getLogger(__name__)

BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")
"""Ray's copy of the cluster's file on its head; it is JSON."""

READING_CPUS = 1.0
"""CPUs of each node that no worker takes: what a task of Ray Data asks for to read."""


def room(
    nodes: list[dict[str, Any]], resources: Mapping[str, float], *, reading_cpus: float = READING_CPUS
) -> int:
    """Return how many workers there is room for if every node keeps CPUs to read data with.

    Workers are spread over the nodes, each of them on the node with most to spare. So this sum over the nodes
    is reached without a node that keeps less.

    Args:
        nodes: as ray.nodes() returns them.
        resources: what Ray reserves for one worker; if that is nothing, there is room for any number.
        reading_cpus: CPUs that each node keeps.
    """
    wanted = {name: amount for name, amount in resources.items() if amount}
    if not wanted:
        return sys.maxsize
    total = 0
    for node in nodes:
        if node["Alive"]:
            free = {**node["Resources"], "CPU": node["Resources"].get("CPU", 0.0) - reading_cpus}
            # Without the small number, 0.3 / 0.1 would be 2.
            fits = [math.floor(free.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()]
            total += max(0, min(fits))
    return total


def check_resources(config: WorkersConfig) -> None:
    """Refuse a run that could not start, or whose workers would leave a node no CPU to read data with.

    A joined cluster may grow by its autoscaler. There, a run that does not fit yet only logs a warning,
    unless no node that could be added has room for a worker. One that fits, but leaves a node no CPU to read
    data with, is refused.

    Raises:
        InputError: the GPUs do not suffice, or the workers take the last CPU of a node.
    """
    if config.without_ray:
        _check_own_gpu(config)
        return
    import ray

    least, nodes = config.least_workers, [node for node in ray.nodes() if node["Alive"]]
    if room(nodes, config.resources) >= least:
        return
    cpus, gpus = (sum(node["Resources"].get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    grows = cluster_address() and room(nodes, config.resources, reading_cpus=0.0) < least
    if grows and may_get_node(config.resources, len(nodes)):
        log.warning("the cluster has %g CPUs and %d GPUs; waiting for its autoscaler to add more", cpus, gpus)
        return
    if config.use_gpu and gpus < least * config.gpus_per_worker:
        raise InputError(
            f"--use-gpu with --num-workers {config.num_workers}: there are {gpus:g} GPUs{_and_no_more()}. "
            "Use fewer workers, or leave --use-gpu out."
        )
    raise InputError(
        f"--num-workers {config.num_workers} with {config.worker_cpus:g} CPU each: of {cpus:g} CPUs, each "
        f"node keeps {READING_CPUS:g} to read data, so there is room for {room(nodes, config.resources)}. "
        "Lower --num-workers or --cpus-per-worker."
    )


def _and_no_more() -> str:
    return ", and no kind of node that could be added has room for a worker" if cluster_address() else ""


def may_get_node(resources: Mapping[str, float], nodes: int) -> bool:
    """Return whether the autoscaler of a cluster could add a node that has room for one worker.

    Args:
        resources: what Ray reserves for one worker.
        nodes: number of nodes that the cluster has, the head among them.
    """
    cluster = _bootstrap_config()
    if cluster is None:
        most = _most_resources()
        return most is None or all(most.get(name, 0) >= amount for name, amount in resources.items())
    types = cluster.get("available_node_types", {})
    if cluster["provider"]["type"] == "local":
        return nodes < 1 + len(cluster["provider"].get("worker_ips", ()))
    workers = [types[name] for name in types if name != cluster.get("head_node_type")]
    return any(
        kind.get("max_workers", 0) > 0
        and all(kind.get("resources", {}).get(name, 0.0) >= amount for name, amount in resources.items())
        for kind in workers
    )


def _bootstrap_config() -> dict[str, Any] | None:
    """What `ray up` left on the head of the cluster; None on any other machine."""
    try:
        content = json.loads(BOOTSTRAP_FILE.expanduser().read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "provider" in content else None


def _most_resources() -> Mapping[str, float] | None:
    """The resources of a cluster at its largest, where its autoscaler has reported them (KubeRay's does)."""
    import ray

    most: Mapping[str, float] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return most


def _check_own_gpu(config: WorkersConfig) -> None:
    import torch

    if config.use_gpu and not torch.cuda.is_available():
        raise InputError(
            "--use-gpu with --num-workers 0: this machine has no GPU that torch can use. "
            "Leave --use-gpu out, or give --num-workers 1 to train on a GPU of the cluster."
        )
