"""Time the training steps of several recipes, taken in turn in one process."""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from support.pretraining import Recipe, build

from beamclip.data.batch import Batch
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.training.loop import Training
from beamclip.training.process import prepare_process

ROUNDS = 12
"""Rounds that are timed, after one to warm up; in each, every recipe takes STEPS steps."""
STEPS = 3


@dataclass(frozen=True)
class StepTime:
    """Step time of one recipe."""

    images_per_second: float
    """Speed in the median round."""
    relative: tuple[float, float, float]
    """Quartiles of its time over the reference's in the same round; the middle one is the median."""

    @property
    def text(self) -> str:
        """The relative time as text: `1.020 (1.010 to 1.030)`."""
        low, middle, high = self.relative
        return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def time_steps(recipes: dict[str, Recipe], reference: str, kept: Path) -> dict[str, StepTime]:
    """Time all recipes on one thread, on noise images; results are kept in a file, and read if it exists."""
    if kept.exists():
        return {name: StepTime(**fields) for name, fields in json.loads(kept.read_text()).items()}
    prepare_process(threads=1, seed=0)
    print(f"timing {len(recipes)} kinds of steps in turn", flush=True)
    runs = {name: (recipe, *_start(recipe)) for name, recipe in recipes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for turn in range(ROUNDS + 1):
        for name, (_, training, batch) in runs.items():
            began = time.perf_counter()
            for _ in range(STEPS):
                training.advance([batch])
            if turn:
                seconds[name].append(time.perf_counter() - began)
    times = {}
    for name, own in seconds.items():
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(own, seconds[reference], strict=True)], n=4
        )
        speed = STEPS * recipes[name].batch_size / statistics.median(own)
        times[name] = StepTime(speed, (low, middle, high))
    kept.write_text(json.dumps({name: asdict(taken) for name, taken in times.items()}, indent=2))
    return times


def _start(recipe: Recipe) -> tuple[Training, Batch]:
    clip, training = build(recipe, 0, 10_000)
    generator = torch.Generator().manual_seed(0)
    count, size = recipe.batch_size, clip.image_size
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    captions = [f"thing number {i}" for i in range(count)]
    return training, Batch(
        pixels=pixels,
        draws=torch.rand(count, AUGMENT_DRAWS, generator=generator),
        captions=captions,
        weights=torch.ones(count),
        numbers=torch.arange(count),
        global_size=count,
        good=count,
        keys=captions,
        epochs=[0] * count,
    )
