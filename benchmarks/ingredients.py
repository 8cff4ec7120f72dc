"""What each ingredient of a distillation costs in a step.

python benchmarks/ingredients.py

A student learns from cached embeddings; each variant adds one ingredient to the step of a run without
options. Steps of all variants are taken in turn, in one process on one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from support.cached_distillation import distillation, random_batch, write_teacher
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.data.config import PRESETS, Augmentation
from beamclip.losses.config import BatchTermsConfig, FeatureConfig
from beamclip.training.config import OptimConfig
from beamclip.training.loop import Training
from beamclip.training.process import prepare_process

IMAGE_SIZE, BATCH = 96, 64
STEPS = 2
"""Steps of a variant in each round."""


@dataclass(frozen=True)
class Variant:
    """Options that differ from those of a run without options."""

    optim: dict[str, Any] = field(default_factory=dict)
    terms: BatchTermsConfig = field(default_factory=BatchTermsConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)


VARIANTS = {
    "default": Variant(),
    "the same again": Variant(),
    "feature term": Variant(feature=FeatureConfig(feature_weight=1.0)),
    "ICL": Variant(terms=BatchTermsConfig(icl_weight=1.0)),
    "CRD": Variant(terms=BatchTermsConfig(crd_weight=1.0)),
    "affinity mimicking": Variant(terms=BatchTermsConfig(affinity_weight=1.0)),
    "relations": Variant(terms=BatchTermsConfig(relation_weight=1.0)),
    "ICL in two micro-batches": Variant({"micro_batch": BATCH // 2}, BatchTermsConfig(icl_weight=1.0)),
    "sgd": Variant({"optimizer": "sgd"}),
    "lars": Variant({"optimizer": "lars"}),
    "layer decay": Variant({"layer_decay": 0.75}),
    "moving average": Variant({"ema_decay": 0.999}),
    "photos": Variant(augmentation=PRESETS["photos"]),
    "no augmentation": Variant(augmentation=PRESETS["none"]),
}
"""What is timed; the second shows how far the measurement itself is off."""


def main() -> None:
    """Time the variants, print and write their step times relative to the default's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds that are timed, after one to warm up")
    parser.add_argument("--out", type=Path, default=Path("runs/ingredients"), help="folder of the teacher")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/benchmarks/ingredients.json"), help="file to write"
    )
    options = parser.parse_args()
    prepare_process(threads=1, seed=0)
    teacher = options.out / "teacher"
    write_teacher(IMAGE_SIZE, teacher)
    steps = {name: stepper(variant, teacher) for name, variant in VARIANTS.items()}
    times = relative_times(steps, options.rounds)
    table([["ingredient", "step time", "quartiles"], *rows_of(times)])
    command = f"python benchmarks/ingredients.py --rounds {options.rounds}"
    lines = [line.removeprefix("- ") for line in circumstances(command).splitlines()]
    figures = {name: dict(zip(("low", "median", "high"), own, strict=True)) for name, own in times.items()}
    options.report.write_text(json.dumps({"circumstances": lines, **figures}, indent=1) + "\n")


def stepper(variant: Variant, teacher: Path) -> Callable[[], None]:
    """Return a function that takes one training step."""
    method = distillation(
        teacher, feature=variant.feature, terms=variant.terms, augmentation=variant.augmentation
    )
    optim = OptimConfig(lr=1e-3, **variant.optim)
    training = Training(method, optim, total_steps=10_000, device=torch.device("cpu"), seed=0)
    batch = random_batch(BATCH, IMAGE_SIZE)
    # The caption's embeddings stand after the image's.
    batch = replace(batch, embeddings=batch.embeddings * 2)
    size = optim.micro_batch or BATCH
    parts = [
        replace(
            batch.with_tensors(lambda tensor, first=first: tensor[first : first + size]),  # type: ignore[misc]
            captions=batch.captions[first : first + size],
            good=size,
            ends_step=first + size == BATCH,
        )
        for first in range(0, BATCH, size)
    ]

    def step() -> None:
        training.advance(parts)

    return step


def relative_times(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Return quartiles of each variant's time over the default's in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    reference = seconds["default"]
    return {
        name: tuple(statistics.quantiles([a / b for a, b in zip(own, reference, strict=True)], n=4))
        for name, own in seconds.items()
    }


def rows_of(times: dict[str, tuple[float, ...]]) -> list[list[str]]:
    """Format the times."""
    return [[name, f"{own[1]:.3f}", f"{own[0]:.3f} to {own[2]:.3f}"] for name, own in times.items()]


if __name__ == "__main__":
    main()
