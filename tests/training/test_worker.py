"""Two workers against one process: the same global batches, the same losses."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle
import torch
from batches import all_good
from torch import nn

from beamclip.cluster import WorkersConfig
from beamclip.data.config import AugmentConfig, StreamConfig
from beamclip.data.order import Order
from beamclip.data.position import Position, beginning
from beamclip.data.rows import read_rows_here
from beamclip.data.shards import Columns, Shard
from beamclip.data.stream import Batch, shuffled_rows, training_batches
from beamclip.models.clip import new_clip
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.events import Event, Recorded
from beamclip.training.launch import fit
from beamclip.training.loop import Training
from beamclip.training.method import ImageTextPretraining
from beamclip.training.waiting import waiting_workers
from beamclip.training.worker import Storage, TrainingJob

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 12
SEEDS = 6


@dataclass(frozen=True)
class PretrainingBuilder:
    """Builds two towers."""

    config: Path

    def __call__(self, device: torch.device) -> nn.Module:
        return ImageTextPretraining(new_clip(self.config, seed=1), augmentation=AugmentConfig())


def global_batches(job: TrainingJob, world_size: int) -> Iterator[Batch]:
    """What the ranks get together, step for step, without Ray Data and Ray Train."""
    order = Order(job.seed, world_size, job.stream.shuffle_buffer, job.stream.shuffle_shards)
    shares = [
        training_batches(
            shuffled_rows(job.shards, job.columns, beginning(order), rank, read_rows_here),
            batch_size=job.batch_size // world_size,
            image_size=job.image_size,
            augment=job.augmentation,
            captions=job.captions,
            seed=job.seed,
            start=Position(),
            threads=1,
        )
        for rank in range(world_size)
    ]
    with contextlib.ExitStack() as stack:
        for share in shares:
            stack.enter_context(contextlib.closing(share))
        for parts in zip(*shares, strict=True):
            pixels, draws = torch.cat([p.pixels for p in parts]), torch.cat([p.draws for p in parts])
            captions = [caption for part in parts for caption in part.captions]
            keys = [key for part in parts for key in part.keys]
            epochs = [epoch for part in parts for epoch in part.epochs]
            position = parts[0].position
            yield Batch(pixels, draws, captions, keys, epochs, position, **all_good(len(keys)))


def curve_of_one(job: TrainingJob, seed: int, world_size: int) -> list[float]:
    """Losses of one process that takes the batches of a whole world."""
    method = job.build_method(torch.device("cpu"))
    training = Training(method, job.optim, total_steps=STEPS, device=torch.device("cpu"), seed=seed)
    with contextlib.closing(global_batches(replace(job, seed=seed), world_size)) as batches:
        return [training.advance([next(batches)])[1]["loss"].item() for _ in range(STEPS)]


@dataclass(frozen=True)
class Curves:
    """Losses, step for step."""

    two: list[float]
    """Of two workers from scratch, seed 0."""
    joined: list[list[float]]
    """Of one process that takes the batches of two, a curve a seed."""
    one: list[list[float]]
    """Of one process on batches of its own, a curve a seed."""


@pytest.fixture(scope="module")
def curves(
    ray_cluster: None, shards: list[Shard], tiny_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Curves:
    job = TrainingJob(
        build_method=PretrainingBuilder(tiny_config),
        threads=None,
        shards=shards,
        columns=Columns(caption=True),
        image_size=32,
        batch_size=12,
        total_steps=STEPS,
        seed=0,
        stream=StreamConfig(shuffle_buffer=16),
        augmentation=AugmentConfig(),
        optim=OptimConfig(lr=1e-3, precision="fp32"),
        cadence=CadenceConfig(log_every=1),
        storage=Storage(str(tmp_path_factory.mktemp("two") / "checkpoints")),
    )
    events = list[Event]()
    workers = WorkersConfig(num_workers=2)
    with waiting_workers(workers) as waiting:
        fit(job, workers, events.append, waiting)
    two = [event.values["loss"] for event in events if isinstance(event, Recorded)]
    joined, one = ([curve_of_one(job, seed, world_size) for seed in range(SEEDS)] for world_size in (2, 1))
    return Curves(two, joined, one)


def test_two_workers_have_the_losses_of_one_that_takes_their_batches_together(curves: Curves) -> None:
    assert curves.two == pytest.approx(curves.joined[0], rel=1e-3)


def test_the_order_of_two_workers_teaches_as_that_of_one_does(curves: Curves) -> None:
    """The mean losses over several seeds are within three standard errors of each other."""
    settled = slice(STEPS // 3, None)
    one, two = (np.mean(np.array(found)[:, settled], axis=1) for found in (curves.one, curves.joined))
    standard_error = np.sqrt((one.var(ddof=1) + two.var(ddof=1)) / SEEDS)
    assert abs(two.mean() - one.mean()) <= 3 * standard_error
    assert np.mean(curves.two[settled]) < 0.6 * curves.two[0]


def test_a_worker_is_imported_without_the_libraries_of_the_models() -> None:
    """It would start to stream seconds later, and so would Ray Train's controller, which imports it too."""
    imports = "import sys, beamclip.training.builders, beamclip.training.worker"
    check = f"{imports}; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
