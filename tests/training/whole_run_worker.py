"""One worker of whole trainings on one folder of shards; run as a program by test_whole_runs.py.

    python whole_run_worker.py RANK WORLD_SIZE CONFIG SHARDS FOLDER

Workers meet over a file in FOLDER. Rank 0 writes the loss of each step, by training and precision, to
FOLDER/losses.json.
"""

import json
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from data_parallel_worker import METHODS
from torch import Tensor, nn

from beamclip.data.batch import Batch
from beamclip.data.bundles import read_rows_here
from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Columns
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare, training_batches, worker_rows
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.models.clip import new_clip
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import Training

STEPS = {torch.float64: 50, torch.float32: 10}
BATCH = 13
TRAININGS = ("distillation", "psd swap")


def distillation(config: str) -> Distillation:
    """Return a ViT that learns from the mean colours, on which the size of a batch has no influence."""
    generator = torch.Generator().manual_seed(2)
    colours, points = torch.randn(3, 16, generator=generator), torch.randn(8, 16, generator=generator)

    def embed(pixels: Tensor) -> Tensor:
        return F.normalize(pixels.double().mean(dim=(2, 3)) @ colours.double(), dim=1).to(points.dtype)

    return Distillation(
        new_clip(config, seed=1).image_tower,
        [embed],
        [Anchors(F.normalize(points, dim=1), torch.arange(8))],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.1),
        feature=FeatureConfig(feature_weight=1.0),
        augmentation=Augmentation(),
    )


def batches_of(shards_folder: str, rank: int, world_size: int, columns: Columns, steps: int) -> list[Batch]:
    """Return a worker's batches of the first steps."""
    shards = list_shards(shards_folder)
    mixture = mixture_of(source_counts(shards), (), 512, seed=0, num_workers=world_size)
    share = WorkerShare(mixture, BATCH, rank, world_size)
    decoding = Decoding(32, Augmentation(), CaptionConfig(), seed=0)
    rows = worker_rows(shards, read_starts(shards), columns, share, 0, read_rows_here)
    with closing(training_batches(rows, share, decoding, threads=1)) as batches:
        return list(islice(batches, steps))


def losses(name: str, dtype: torch.dtype, config: str, batches: list[Batch]) -> list[float]:
    """Train, and return the loss of each step over all workers."""
    method = (distillation if name == "distillation" else METHODS[name])(config).to(dtype)
    tower = method.visual if name == "distillation" else method.clip.visual
    tower.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    optim = OptimConfig(lr=1e-3, precision="fp32")
    wrapped = nn.parallel.DistributedDataParallel(method)
    training = Training(wrapped, optim, total_steps=len(batches), device=torch.device("cpu"), seed=0)
    found = []
    for batch in batches:
        exact = batch.with_tensors(lambda each: each.to(dtype) if each.is_floating_point() else each)
        _, metrics = training.advance([exact])
        dist.all_reduce(metrics["loss"])
        found.append(metrics["loss"].item() / dist.get_world_size())
    return found


def main(rank: int, world_size: int, config: str, shards: str, folder: Path) -> None:
    """Run each training in both precisions; rank 0 writes the losses."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    found = {}
    for name in TRAININGS:
        columns = Columns(caption=name != "distillation")
        batches = batches_of(shards, rank, world_size, columns, max(STEPS.values()))
        for dtype, steps in STEPS.items():
            if dtype == torch.float64:
                # The methods leave half precision by float(): here it leads to double.
                single, Tensor.float = Tensor.float, Tensor.double
            found[f"{name} {dtype}"] = losses(name, dtype, config, batches[:steps])
            Tensor.float = single
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], Path(sys.argv[5]))
