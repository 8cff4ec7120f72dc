"""Run the workers of a job with Ray Train, and explain their failures."""

import tempfile
import time
from dataclasses import replace
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.collective
import ray.train.torch
from torch import nn

from beamclip.background import in_background
from beamclip.cluster.config import WorkersConfig
from beamclip.data.rows import prepared_dataset
from beamclip.training.channel import RemoteChannel
from beamclip.training.process import CPU_WORKER_ENVIRONMENT
from beamclip.training.scaling import ScalingTrainer, StoppedWhileWaitingError, WorkerScaling
from beamclip.training.worker import (
    NonRetryableError,
    TrainingError,
    TrainingJob,
    in_one_line,
    train_in_group,
)
from beamclip.training.worker_group import WorkerGroup

SECONDS_BETWEEN_LOOKS = 0.1
"""How often a worker that has no job yet looks for one, in seconds."""


def run_workers(channel: RemoteChannel, workers: WorkersConfig) -> None:
    """Run workers until they finish the job that they find in `channel`; if one is lost, restart all.

    The workers end without a job if the channel asks them to stop before it has one, and so does a run that
    waits for room for workers.

    Raises:
        TrainingError: they were lost more often than allowed, or met an error that a restart would repeat.
    """
    with tempfile.TemporaryDirectory(prefix="beamclip-ray-", ignore_cleanup_errors=True) as scratch:
        try:
            _trainer(channel, workers, scratch).fit()
        except (ray.train.TrainingFailedError, NonRetryableError) as error:
            if isinstance(getattr(error, "controller_failure", None), StoppedWhileWaitingError):
                return
            raise TrainingError(_cause(error)) from error


def _trainer(channel: RemoteChannel, workers: WorkersConfig, scratch: str) -> ScalingTrainer:
    return ScalingTrainer(
        train_worker,
        train_loop_config={"channel": channel},
        policy=WorkerScaling(workers, channel),
        run_config=ray.train.RunConfig(
            # Ray keeps nothing of value there: the workers write their checkpoints themselves.
            name="train",
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            callbacks=[FailFast()],  # type: ignore[list-item]
            logging_config=ray.train.LoggingConfig("ERROR"),  # type: ignore[call-arg]
            worker_runtime_env={"env_vars": {} if workers.use_gpu else CPU_WORKER_ENVIRONMENT},
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of Ray Train; `config["channel"]` is the RemoteChannel that holds or will hold the job.

    Raises:
        NonRetryableError: the run cannot be finished, however often its workers are restarted.
    """
    channel: RemoteChannel = config["channel"]
    if channel.job() is None:
        # Beside the loop: where no CPU is left to read with, a worker must still hear that it is to end.
        in_background("beamclip-warm-up", warm_up)
    while (reference := channel.job()) is None:
        if channel.stop_requested():
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)
    job: TrainingJob = ray.get(reference)
    train_in_group(replace(job, channel=channel), ray_train_group())


def warm_up() -> None:
    """Do the part of a worker's start that takes seconds and does not depend on the job."""
    # These import the model libraries.
    import beamclip.models.teacher
    import beamclip.training.distillation
    import beamclip.training.pretraining  # noqa: F401

    # The first read starts what Ray Data keeps running: two actors, and a process that reads.
    prepared_dataset(ray.data.range(1)).take(1)


def ray_train_group() -> WorkerGroup:
    """Return the group of Ray Train workers that this process belongs to."""
    context = ray.train.get_context()
    return WorkerGroup(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_world_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
        broadcast_from_rank_zero=ray.train.collective.broadcast_from_rank_zero,
        prepared=_data_parallel,
        preempted=lambda: ray.train.get_preemption_info() is not None,
        spare=_spare(context.get_world_size()),
    )


def _spare(world_size: int) -> dict[str, float]:
    total, own = ray.cluster_resources(), ray.get_runtime_context().get_assigned_resources()
    return {name: amount - world_size * own.get(name, 0.0) for name, amount in total.items()}


def _data_parallel(method: nn.Module) -> nn.Module:
    # Only rank 0's buffers are saved, so broadcasting them to the others in each step would change nothing.
    return ray.train.torch.prepare_model(method, parallel_strategy_kwargs={"broadcast_buffers": False})


class FailFast(ray.train.UserCallback):
    """Ends a run whose workers would only fail again.

    Ray Train restarts its workers whatever they raise; only an error in a callback ends a run.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the NonRetryableError of the lowest rank that has one, if any."""
        for _, error in sorted(worker_exceptions.items()):
            if isinstance(error, NonRetryableError):
                raise error


def _cause(error: BaseException) -> str:
    """Return what was wrong, in one line; Ray's own message is a page of nested tracebacks."""
    failures = sorted(getattr(error, "worker_failures", {}).items())
    # The peers of a lost worker fail as well, since their connections to it break.
    for rank, failure in failures:
        if isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayActorError):
            return (
                f"worker {rank}: its process or its node was lost, and --max-failures allows no more "
                "restarts. Most often memory ran out; lower --batch-size, or look into Ray's logs."
            )
    for rank, failure in failures:
        return f"worker {rank}: {in_one_line(failure)}"
    failure = getattr(error, "controller_failure", error)
    return str(failure).splitlines()[0] if isinstance(failure, NonRetryableError) else in_one_line(failure)
