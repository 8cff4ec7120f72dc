"""Two workers against one process: the same samples in each step, the same losses."""

import contextlib
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle
import torch
from torch import nn

from beamclip.cluster.config import WorkersConfig
from beamclip.data.batch import Batch
from beamclip.data.bundles import read_rows_here
from beamclip.data.config import Augmentation, StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Columns, Shard
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare, training_batches, worker_rows
from beamclip.models.clip import new_clip
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.events import Event, Recorded
from beamclip.training.launch import fit
from beamclip.training.loop import Training
from beamclip.training.pretraining import ImageTextPretraining
from beamclip.training.waiting import waiting_workers
from beamclip.training.worker import Storage, TrainingJob

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 12


@dataclass(frozen=True)
class PretrainingBuilder:
    """Builds two towers."""

    config: Path

    def __call__(self, device: torch.device) -> nn.Module:
        return ImageTextPretraining(new_clip(self.config, seed=1), augmentation=Augmentation())


def batches_of(job: TrainingJob, world_size: int, rank: int) -> Generator[Batch, None, None]:
    """What a worker gets, without Ray Data and Ray Train."""
    mixture = mixture_of(source_counts(job.shards), (), job.stream.shuffle_window, job.seed, world_size)
    share = WorkerShare(mixture, job.batch_size, rank, world_size)
    starts = read_starts(job.shards)
    rows = worker_rows(job.shards, starts, job.columns, share, 0, read_rows_here)
    decoding = Decoding(job.image_size, job.augmentation, job.captions, job.seed)
    return training_batches(rows, share, decoding, threads=1)


@dataclass(frozen=True)
class Curves:
    """Losses, step for step."""

    two: list[float]
    """Of two workers."""
    one: list[float]
    """Of one process."""


@pytest.fixture(scope="module")
def job(shards: list[Shard], tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    return TrainingJob(
        build_method=PretrainingBuilder(tiny_config),
        threads=None,
        shards=shards,
        columns=Columns(caption=True),
        image_size=32,
        # No multiple of the workers: one of them has a row without weight.
        batch_size=11,
        total_steps=STEPS,
        seed=0,
        stream=StreamConfig(shuffle_window=256),
        augmentation=Augmentation(),
        optim=OptimConfig(lr=1e-3, precision="fp32"),
        cadence=CadenceConfig(log_every=1),
        storage=Storage(str(tmp_path_factory.mktemp("two") / "checkpoints")),
    )


@pytest.fixture(scope="module")
def curves(ray_cluster: None, job: TrainingJob) -> Curves:
    events = list[Event]()
    workers = WorkersConfig(num_workers=2)
    with waiting_workers(workers) as waiting:
        fit(job, workers, events.append, waiting)
    two = [event.values["loss"] for event in events if isinstance(event, Recorded)]
    method = job.build_method(torch.device("cpu"))
    training = Training(method, job.optim, total_steps=STEPS, device=torch.device("cpu"), seed=0)
    with contextlib.closing(batches_of(job, 1, 0)) as batches:
        one = [training.advance([next(batches)])[1]["loss"].item() for _ in range(STEPS)]
    return Curves(two, one)


def test_two_workers_have_the_losses_of_one(curves: Curves) -> None:
    assert curves.two == pytest.approx(curves.one, rel=1e-3)
    assert np.mean(curves.two[STEPS // 3 :]) < 0.7 * curves.two[0]


def test_two_workers_share_the_samples_of_one(job: TrainingJob) -> None:
    with contextlib.ExitStack() as stack:
        one, *two = (
            stack.enter_context(contextlib.closing(batches_of(job, world_size, rank)))
            for world_size, rank in ((1, 0), (2, 0), (2, 1))
        )
        for whole, *parts in islice(zip(one, *two, strict=True), STEPS):
            assert sorted(key for part in parts for key in part.keys) == sorted(whole.keys)
            assert {len(part.weights) for part in parts} == {6}


def test_a_worker_is_imported_without_the_libraries_of_the_models() -> None:
    """It would start to stream seconds later, and so would Ray Train's controller, which imports it too."""
    imports = "import sys, beamclip.training.builders, beamclip.training.worker"
    check = f"{imports}; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
