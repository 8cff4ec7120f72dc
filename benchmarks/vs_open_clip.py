"""Speed, memory and CPU time of a distillation, against open_clip's own training command.

python benchmarks/vs_open_clip.py [--pair large|small] [--rounds 3]

All systems have the same shards, teacher, initial student, batch size, crops, arithmetic and number of
threads. In each round, every system trains once, in an order that is rotated by one from round to round.
Inputs are kept in --out. Linux only.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from support.made_shards import Photos, made, photo_shards
from support.open_clip_peer import (
    SCRATCH,
    Launch,
    Window,
    Work,
    build_cache,
    install_webdataset,
    launches,
    write_students,
)
from support.process_tree import Sample, TreeRun
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import find_config, new_clip
from beamclip.summary import library_versions

PHOTOS = Photos(width=256, height=256, samples=512, distinct=512, per_shard=64)
BATCH_SIZE = 32
CLASSES = 256
CROP_SCALE_MIN = 0.9
"""The default of open_clip's command, which does nothing else to images."""
WARM_UP_STEPS = 8
"""Steps that are left out of all speeds; a multiple of LOG_EVERY."""
LOG_EVERY = 4
GIB = 2**30

NOTES = (
    "open_clip's command also trains a student text tower of the teacher's shape and runs the teacher's text "
    "tower on each batch; with --lock-text, the student's is the teacher's, runs on each batch and does not "
    "train. Ours runs no text tower while it trains.",
    "images/s: from the commands' own records of their steps, the first ones left out.",
    "memory: highest sum of PSS of all processes of a command; a page that several share counts once.",
    "CPU s: user and system time of all processes of a command. In training: from the end of the first steps "
    "to the end of the last one; whole: start, prompts and the writing of the model included.",
    "from a cache: the cost of building it is shown separately; one cache serves any number of trainings.",
)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student."""

    teacher: str
    """Name of the teacher's config; its weights are random."""
    backbone: str
    image_size: int
    epochs: int


PAIRS = {
    "large": Pair("ViT-B-16", "resnet18", 224, epochs=2),
    "small": Pair("tiny-vit", "resnet18", 64, epochs=10),
}


@dataclass(frozen=True)
class Figures:
    """Figures of one system in one round."""

    images_per_second: float
    peak_gib: float
    training_cpu_seconds: float
    """CPU seconds of training per 1,000 images."""
    command_cpu_seconds: float
    """CPU seconds of the whole command per 1,000 images."""
    wall_seconds: float
    processes: int
    sampling_share: float
    """Share of a core that was spent on watching."""


HEADINGS = {
    "images_per_second": "images/s",
    "peak_gib": "peak memory, GiB",
    "training_cpu_seconds": "CPU s / 1,000 images, training",
    "command_cpu_seconds": "the same, whole command",
    "wall_seconds": "wall s, whole command",
}


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", choices=PAIRS, default="large", help="teacher, student and image size")
    parser.add_argument("--rounds", type=int, default=3, help="times that every system trains")
    parser.add_argument("--epochs", type=int, help=f"passes over {PHOTOS.samples} images; default: by pair")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of every system")
    parser.add_argument("--out", type=Path, default=Path("runs/vs_open_clip"), help="for inputs and logs")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/benchmarks/vs_open_clip.json"), help="file to write"
    )
    options = parser.parse_args()
    pair, out = PAIRS[options.pair], options.out.resolve()
    work = prepare(pair, options.epochs or pair.epochs, options.threads, out / options.pair)
    cache = cache_building(work)
    rounds = [one_round(work, number, out / options.pair) for number in range(options.rounds)]
    rows = figures_table(rounds)
    table(rows)
    print("\n".join(NOTES))
    print(f"the cache took {cache['wall_seconds']:.0f} s, {cache['cpu_seconds']:.0f} CPU s")
    command = (
        f"python benchmarks/vs_open_clip.py --pair {options.pair} --rounds {options.rounds} "
        f"--epochs {work.epochs} --threads {work.threads}"
    )
    settings = {**asdict(PHOTOS), **asdict(pair), **asdict(work)}
    result = {
        "circumstances": [line.removeprefix("- ") for line in circumstances(command).splitlines()],
        "versions": library_versions(),
        "notes": NOTES,
        "settings": {name: value for name, value in settings.items() if not isinstance(value, Path)},
        "cache": cache,
        "table": rows,
        "rounds": [{name: asdict(figures) for name, figures in each.items()} for each in rounds],
    }
    write_result(options.report, options.pair, result)


def prepare(pair: Pair, epochs: int, threads: int, out: Path) -> Work:
    """Make what the commands read and is missing, except the cache."""
    shards = photo_shards(PHOTOS, out.parent)
    teacher = made(out / "teacher", partial(write_teacher, pair))
    students = made(out / "students", partial(write_students, teacher, pair.backbone))
    webdataset = made(out.parent / "webdataset", install_webdataset)
    classes = out / "classes.txt"
    classes.write_text("".join(f"thing number {number}\n" for number in range(CLASSES)))
    return Work(
        shards=shards,
        cache=out / "cache",
        teacher=teacher,
        students=students,
        webdataset=webdataset,
        backbone=pair.backbone,
        classes=classes,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        crop_scale_min=CROP_SCALE_MIN,
        plain=True,
        log_every=LOG_EVERY,
        checkpoint_every=epochs,
        threads=threads,
    )


def write_teacher(pair: Pair, folder: Path) -> None:
    """Write the pair's teacher at its image size, with random weights: they cost what trained ones cost."""
    model_cfg, _ = find_config(pair.teacher)
    vision_cfg = {**model_cfg["vision_cfg"], "image_size": pair.image_size}
    write_open_clip_dir(new_clip(pair.teacher, seed=0, vision_cfg=vision_cfg), folder)


def cache_building(work: Work) -> dict[str, Any]:
    """Build the cache unless it exists; return what it took, which is kept beside it."""
    kept = work.cache.with_suffix(".json")
    if not kept.exists():
        built = build_cache(work, 1, work.cache.with_suffix(".log"))
        figures = {
            "augmentations": 1,
            "wall_seconds": built.wall_seconds,
            "cpu_seconds": built.cpu_seconds,
            "peak_gib": built.peak_bytes / GIB,
        }
        kept.write_text(json.dumps(figures))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def one_round(work: Work, number: int, out: Path) -> dict[str, Figures]:
    """Measure each system once."""
    with tempfile.TemporaryDirectory(dir=out, prefix="round-") as scratch:
        systems = launches(work, Path(scratch))
        names = list(systems)
        first = number % len(names)
        found = {}
        for name in names[first:] + names[:first]:
            found[name] = measured(systems[name], work, out, name)
            print(f"round {number + 1}, {name}: {found[name].images_per_second:.1f} images/s", flush=True)
    return {name: found[name] for name in names}


def measured(launch: Launch, work: Work, out: Path, name: str) -> Figures:
    """Run a command and return its figures."""
    ran = launch.run(out / f"{name.replace(', ', '-').replace(' ', '-')}.log")
    images = work.steps * work.batch_size / 1000
    trained = (work.steps - WARM_UP_STEPS) * work.batch_size / 1000
    return Figures(
        images_per_second=steady_speed(launch.windows()),
        peak_gib=ran.peak_bytes / GIB,
        training_cpu_seconds=training_cpu_seconds(ran, work.steps) / trained,
        command_cpu_seconds=ran.cpu_seconds / images,
        wall_seconds=ran.wall_seconds,
        processes=ran.processes,
        sampling_share=ran.sampling_share,
    )


def steady_speed(windows: list[Window]) -> float:
    """Return images per second, with the first steps left out."""
    steady = [window for window in windows if window.last_step > WARM_UP_STEPS]
    return sum(window.images for window in steady) / sum(window.seconds for window in steady)


def training_cpu_seconds(ran: TreeRun, steps: int) -> float:
    """Return the CPU seconds of all processes from the end of the warm-up steps to the end of the last step.

    Both ends are the first samples that saw them.
    """

    def when(step: int) -> Sample:
        return next(sample for sample in ran.samples if sample.progress >= step)

    return when(steps).cpu_seconds - when(WARM_UP_STEPS).cpu_seconds


def figures_table(rounds: Sequence[dict[str, Figures]]) -> list[list[str]]:
    """Build a row for each system: medians over the rounds, with minima and maxima."""
    rows = [["", "images/s over open_clip's", *HEADINGS.values()]]
    for name in rounds[0]:
        ratios = [each[name].images_per_second / each[SCRATCH].images_per_second for each in rounds]
        values = [[getattr(each[name], key) for each in rounds] for key in HEADINGS]
        rows.append([name, spread(ratios, 2), *(spread(each, 1) for each in values)])
    return rows


def spread(values: Sequence[float], digits: int) -> str:
    """Format the median, minimum and maximum of values: `12.3 (12.1 to 12.8)`."""
    low, middle, high = (
        f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def write_result(report: Path, pair: str, result: dict[str, Any]) -> None:
    """Write one pair's result to the report, and keep the other's."""
    found = json.loads(report.read_text()) if report.exists() else {}
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({**found, pair: result}, indent=2) + "\n")
    print(f"results written to {report}")


if __name__ == "__main__":
    main()
