"""A training that is only tried: all is loaded and checked, a few steps are timed, and nothing is written."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.console import format_duration, plural, print_stage
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.data.batch import Batch
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.prompts.anchors import Anchors
from beamclip.summary import Summary
from beamclip.training.loop import Training
from beamclip.training.worker import TrainingJob

TIMED_STEPS = 3
"""Steps that are timed, after one that is not."""
MOST_ON_A_CPU = 32
"""Images of a timed step where there is no GPU; one on a GPU has a worker's share of a batch."""


@dataclass(frozen=True)
class Timed:
    """What steps with random images took on this machine."""

    device: str
    """GPU or CPU."""
    images: int
    """Images in a step, in as many parts as in the training."""
    seconds: float
    """Seconds that a step takes when its batch is in memory."""
    memory: int
    """Most bytes of memory that were in use: of the GPU, or of this process."""
    parameters: int
    """Count of the parameters that are trained."""


def show_plan(
    command: str, config: DistillConfig | PretrainConfig, job: TrainingJob, widths: tuple[int, ...] = ()
) -> Summary:
    """Time a few steps of a job on this machine, and print what the whole training would take.

    Args:
        config: with batch size, length and learning rate filled in.
        job: as the workers get it, but with models in place of references (`share` without Ray).
        widths: of the embeddings that the batches carry.

    Returns:
        A summary that is not written, with the figures in its stages.
    """
    workers = config.workers
    share = -(-job.batch_size // workers.world_size)
    timed = _timed(job, workers, share, widths)
    step = timed.seconds * share / timed.images
    hours = step * job.total_steps / 3600
    group = plural(workers.world_size, "worker")
    print_stage("steps", f"{plural(job.total_steps, 'step')} of {plural(job.batch_size, 'image')}", group)
    print_stage("trained", f"{timed.parameters:,} parameters")
    gib = timed.memory / 2**30
    timing = f"{plural(timed.images, 'image')} in {timed.seconds:.3g} s on this {timed.device}"
    print_stage(
        "timed", f"{timing}, {gib:.1f} GiB of memory", f"{timed.images / timed.seconds:,.0f} images/s"
    )
    whole = format_duration(3600 * hours)
    print_stage("training", f"{whole}, if every worker is as fast, and data and network keep up")
    print("dry run: nothing was trained or written")
    stages = {"steps": job.total_steps, "seconds_per_step": step, "hours": hours, "memory": timed.memory}
    return Summary(command=command, status="finished", wall_seconds=0.0, stages=stages)


def random_anchors(count: int, width: int) -> Anchors:
    """Make anchors that no text tower had to encode, for the arithmetic alone."""
    return Anchors(F.normalize(torch.randn(count, width), dim=1), torch.arange(count))


def here(workers: WorkersConfig) -> WorkersConfig:
    """Return the options of workers for models that stay in this process."""
    return replace(workers, num_workers=0, use_gpu=False)


def _timed(job: TrainingJob, workers: WorkersConfig, share: int, widths: tuple[int, ...]) -> Timed:
    on_gpu = workers.use_gpu and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    images = share if on_gpu else min(share, MOST_ON_A_CPU)
    torch.manual_seed(job.seed)
    method = job.build_method(device).to(device).to(memory_format=torch.channels_last)
    method.train()
    training = Training(
        method, replace(job.optim, compile=False), total_steps=TIMED_STEPS + 1, device=device, seed=job.seed
    )
    part = min(images, job.optim.micro_batch or images)
    batches = [
        _random_batch(job, range(first, min(first + part, images)), images, widths)
        for first in range(0, images, part)
    ]
    seconds = [_seconds(lambda: training.advance(batches), device) for _ in range(TIMED_STEPS + 1)]
    trained = sum(each.numel() for each in method.parameters() if each.requires_grad)
    return Timed("GPU" if on_gpu else "CPU", images, statistics.median(seconds[1:]), _memory(device), trained)


def _random_batch(job: TrainingJob, numbers: range, size: int, widths: tuple[int, ...]) -> Batch:
    count = len(numbers)
    return Batch(
        pixels=torch.randint(0, 256, (count, 3, job.image_size, job.image_size), dtype=torch.uint8),
        draws=torch.rand(count, AUGMENT_DRAWS),
        captions=[f"a photo of thing {number}" for number in numbers],
        weights=torch.ones(count),
        numbers=torch.tensor(numbers),
        global_size=size,
        good=count,
        embeddings=tuple(F.normalize(torch.randn(count, width), dim=1).half() for width in widths),
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
