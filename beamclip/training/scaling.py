"""How many workers train: as many as the cluster has room for, within the range of --num-workers.

Ray Train starts its workers anew whenever their number changes, after the loss of a node and when nodes are
added. This policy adds three things to Ray's own:

1. Room is counted node by node, and each node keeps CPUs to read data with (see cluster.room).
2. Where more workers would fit, those that train write a checkpoint first, and start again only once it is
   written. They train on meanwhile; the steps after the checkpoint are repeated.
3. Workers train for ten minutes before they are started again for the sake of their number.

The samples of a step do not depend on the number of workers, so the order of the run stays what it was.

Ray offers no public way to set a policy. ScalingTrainer, with the base class here, is where beamclip reaches
into it; the tests of tests/training/test_scaling.py fail if a later Ray moves these parts.
"""

import math
import time
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.room import room
from beamclip.cluster.session import cluster_address
from beamclip.training.channel import RemoteChannel
from beamclip.training.events import Resizing, Waiting

SECONDS_BETWEEN_RESIZES = 600.0
"""Least time that workers train before they are started again for the sake of their number: a start takes
seconds, or minutes with --compile."""
SAVE_WITHIN_S = 900.0
"""Time for a checkpoint, seconds; if it is not written by then, the number of workers stays as it is."""
SECONDS_BETWEEN_LOOKS = 10.0
"""How often a run looks how many workers there is room for, in seconds."""
SECONDS_BETWEEN_NOTICES = 60.0
"""How often a run that waits for room says so, in seconds."""


class StoppedWhileWaitingError(RuntimeError):
    """The run was asked to end while it had no workers."""


def scaling_config(workers: WorkersConfig) -> ScalingConfig:
    """Return what Ray Train is to start.

    A run with a fixed number of workers is one whose range has one number.
    """
    return ScalingConfig(
        num_workers=(workers.least_workers, workers.most_workers),
        use_gpu=workers.use_gpu,
        resources_per_worker=workers.resources,
        # By default Ray would fill one node before the next, and leave the first no CPU to read with.
        placement_strategy="SPREAD",
        elastic_resize_monitor_interval_s=min(SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_RESIZES),
    )


class ScalingTrainer(TorchTrainer):
    """A TorchTrainer under a policy of its own."""

    def __init__(self, *args: Any, policy: "WorkerScaling", **options: Any) -> None:
        super().__init__(*args, scaling_config=policy.scaling_config, **options)
        self._policy = policy

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        changed = {**options, "scaling_policy": self._policy}
        if cluster_address() is None and ray.get_runtime_context().get_actor_id() is None:
            # What a command reserves in a Ray of its own goes with that Ray. Only a trial of a sweep needs
            # a process that sees to it, which may take twelve seconds to end; a trial is an actor.
            changed["callbacks"] = [
                each for each in options["callbacks"] if not isinstance(each, PlacementGroupCleanerCallback)
            ]
        return super()._initialize_and_run_controller(**changed)


class WorkerScaling(ElasticScalingPolicy):
    """Decides on the number of workers, in Ray Train's controller; see the module's text."""

    def __init__(self, workers: WorkersConfig, channel: RemoteChannel) -> None:
        """Decide nothing yet.

        Args:
            channel: to the workers and to the command.
        """
        super().__init__(scaling_config(workers))
        self._channel = channel
        # As it is in the command: this object is copied into another process.
        self._least_age = SECONDS_BETWEEN_RESIZES
        self._coming: ResizeDecision | None = None
        self._save_by = 0.0
        self._look_at = 0.0
        self._notice_at = math.inf

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many workers as there is room for, or wait.

        Raises:
            ControllerError: the run is to end, and has no worker that could hear of it; caused by a
                StoppedWhileWaitingError.
        """
        self._coming = None
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            if self._channel.stop_requested():
                raise ray.train.ControllerError(StoppedWhileWaitingError())
            self._tell_waiting()
            # The controller asks again at once.
            time.sleep(0.2)
        else:
            self._notice_at = math.inf
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Start the workers again in another number, once they have written a checkpoint."""
        now = time.monotonic()
        fewer = self._fewer_than(worker_group_state.num_workers, now)
        if fewer is not None:
            return fewer
        if self._coming is None:
            if now - worker_group_state.start_time < self._least_age:
                self._maybe_send_resource_request()
                return NoopDecision()
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                self._coming, self._save_by = decision, now + SAVE_WITHIN_S
                self._channel.request_save()
                self._channel.put(Resizing(decision.num_workers))
            return NoopDecision()
        if self._channel.saved():
            coming, self._coming = self._coming, None
            return coming
        if now > self._save_by:
            self._coming = None
        return NoopDecision()

    def _fewer_than(self, workers: int, now: float) -> ResizeDecision | None:
        """Return a smaller number of workers if a node was lost that they were started to share.

        Ray takes up to a minute to notice a lost machine. Workers that start before may crowd on the nodes
        that are left, with no CPU to read with: they take no step, so no checkpoint of theirs is waited for.
        """
        if now < self._look_at:
            return None
        self._look_at = now + SECONDS_BETWEEN_LOOKS
        config = self.scaling_config
        found = room(ray.nodes(), config._resources_per_worker_not_none)
        return self._get_resize_decision(found) if config.min_workers <= found < workers else None

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """Return how many workers there is room for, at most as many as asked for."""
        config = self.scaling_config
        resources = config._resources_per_worker_not_none
        found = min(config.max_workers, room(ray.nodes(), resources))
        if config.min_workers == config.max_workers:
            return found
        # What Ray's coordinator has set aside for this run: other runs have the rest. Its sums of fractions
        # are rounded.
        name = max(resources, key=lambda name: (name == "GPU", resources[name]))
        reserved = sum(node.get(name, 0.0) for node in reserved_resources.values())
        return min(found, round(reserved / resources[name])) if resources[name] else found

    def _tell_waiting(self) -> None:
        now = time.monotonic()
        if now >= self._notice_at:
            found = room(ray.nodes(), self.scaling_config._resources_per_worker_not_none)
            self._channel.put(Waiting(found, self.scaling_config.min_workers))
        if now >= self._notice_at or math.isinf(self._notice_at):
            self._notice_at = now + SECONDS_BETWEEN_NOTICES
