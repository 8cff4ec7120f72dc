"""Seconds until a student is nearly as accurate as its teacher, against open_clip's own training command.

python benchmarks/time_to_accuracy.py --emoji FOLDER --teacher RUN

RUN is a run of pipelines/pretrain.py on the emoji; benchmarks/emoji.py makes one. Every system trains the
same student on the same shards and keeps evenly spaced checkpoints. They are scored afterwards, by one
function, on the held-out images: with the text tower that the system's user gets. A learning rate schedule is
made for one length, so each system trains for several lengths, from the shortest until one reaches the goal,
at the learning rate that was best for it at one length. Trainings with a result in --out are not run again.
Linux only.
"""

import argparse
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from emoji import ingest, write_classes
from support.emoji_pairs import Pairs, encode_pairs, load_emoji
from support.made_shards import made
from support.open_clip_peer import (
    CACHED,
    LOCKED,
    SCRATCH,
    Saved,
    Work,
    build_cache,
    install_webdataset,
    launches,
    write_students,
)
from support.reports import circumstances

from beamclip.commands.console import percent, table
from beamclip.evaluation.zeroshot import topk_accuracy
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.summary import library_versions

BACKBONE = "resnet10t"
BATCH_SIZE = 64
CROP_SCALE_MIN = 0.6
CHECKPOINTS = 10
"""Checkpoints of each training, about; fewer if it has fewer epochs."""
VIEWS = 4
"""Views of each image in the cache."""

NOTES = (
    "seconds: from the start of the command until the checkpoint was written, including start-up and the "
    "writing of earlier checkpoints; checkpoints are scored afterwards.",
    f"{SCRATCH}: trains on images and captions; the student's text tower starts from random weights, and "
    f"scores use it. {LOCKED}: the student's text tower is the teacher's and does not train.",
    "beamclip: trains on images and the class list, whose names are its prompts; the student's text tower is "
    "the teacher's. Images are also rotated, shifted and changed in colour, which open_clip's command cannot "
    "do.",
    f"{CACHED}: the seconds to build the cache are counted, and also shown separately.",
    "learning rate: of those given, each system's best at one length, by its best checkpoint; the search is "
    "not counted.",
)


@dataclass(frozen=True)
class Point:
    """A scored checkpoint."""

    seconds: float
    """From the start of the command until the checkpoint was written."""
    step: int
    top1: float
    """Zero-shot accuracy over all classes, 0..1."""


@dataclass(frozen=True)
class Attempt:
    """One training of one system."""

    system: str
    epochs: int
    learning_rate: float
    wall_seconds: float
    cpu_seconds: float
    points: tuple[Point, ...]

    @property
    def best(self) -> Point:
        """The best checkpoint, the earliest if several are equal."""
        return max(self.points, key=lambda point: point.top1)

    def reached(self, goal: float) -> Point | None:
        """Return the first checkpoint at the goal, or None."""
        return next((point for point in self.points if point.top1 >= goal), None)


@dataclass(frozen=True)
class Scorer:
    """Scores any model zero-shot on the held-out images."""

    test: Pairs
    names: list[str]

    def __call__(self, clip: LoadedClip) -> float:
        """Return top-1 accuracy, 0..1, with the model's own text tower and bare names as prompts."""
        images, texts = encode_pairs(clip, self.test, self.names)
        return topk_accuracy(images @ texts.T, torch.tensor(self.test.labels), ks=(1,))[1]


@dataclass(frozen=True)
class Search:
    """Lengths and learning rates to try for each system."""

    lengths: list[int]
    """Epochs, ascending."""
    learning_rates: list[float]
    tuned_at: int
    """Epochs of the trainings by which the learning rate is chosen."""


def main() -> None:
    """Train, score, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=Path, required=True, help="folder with pairs.parquet and images/")
    parser.add_argument("--teacher", type=Path, required=True, help="run of pipelines/pretrain.py")
    parser.add_argument("--lengths", type=int, nargs="+", default=[5, 10, 20, 40], help="epochs")
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3], help="learning rates")
    parser.add_argument("--tuned-at", type=int, default=10, help="epochs at which the rate is chosen")
    parser.add_argument("--share", type=float, default=0.95, help="share of teacher's top-1 to reach, 0..1")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of every system")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/time_to_accuracy"), help="where results are kept"
    )
    parser.add_argument(
        "--report", type=Path, default=Path("docs/benchmarks/time_to_accuracy.json"), help="file to write"
    )
    options = parser.parse_args()
    search = Search(sorted({*options.lengths, options.tuned_at}), options.lrs, options.tuned_at)
    work = prepare(options.emoji, options.teacher.resolve(), options.threads, options.out.resolve())
    _, test, names = load_emoji(options.emoji)
    scorer = Scorer(test, names)
    of_teacher = scorer(load_clip(str(work.teacher)))
    goal = options.share * of_teacher
    print(f"teacher {percent(of_teacher)}, goal {percent(goal)}", flush=True)
    cache_seconds = cache_building(work)
    systems = list(launches(work, options.out))
    attempts = {name: attempts_of(name, work, search, goal, scorer) for name in systems}
    rows = results_table(attempts, goal, of_teacher, cache_seconds)
    table(rows)
    print("\n".join(NOTES))
    lengths, rates = (" ".join(map(str, values)) for values in (options.lengths, options.lrs))
    command = (
        f"python benchmarks/time_to_accuracy.py --emoji FOLDER --teacher RUN --lengths {lengths} "
        f"--lrs {rates} --tuned-at {options.tuned_at} --share {options.share} --threads {options.threads}"
    )
    result = {
        "circumstances": [line.removeprefix("- ") for line in circumstances(command).splitlines()],
        "versions": library_versions(),
        "notes": NOTES,
        "teacher_top1": of_teacher,
        "goal_top1": goal,
        "cache_seconds": cache_seconds,
        "table": rows,
        "attempts": {name: [asdict(attempt) for attempt in tried] for name, tried in attempts.items()},
    }
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(result, indent=2) + "\n")
    print(f"results written to {options.report}")


def prepare(emoji: Path, teacher: Path, threads: int, out: Path) -> Work:
    """Make what the commands read and is missing, except the cache."""
    out.mkdir(parents=True, exist_ok=True)
    pairs = pd.read_parquet(emoji / "pairs.parquet")
    classes = write_classes(pairs, out / "classes.yaml")
    ingest(pairs[pairs["split"] == "train"], emoji, "train", out)
    return Work(
        shards=out / "train",
        cache=out / "cache",
        teacher=teacher / "model",
        students=made(out / "students", partial(write_students, teacher, BACKBONE)),
        webdataset=made(out / "webdataset", install_webdataset),
        backbone=BACKBONE,
        classes=classes,
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=0.0,
        crop_scale_min=CROP_SCALE_MIN,
        plain=False,
        log_every=10,
        checkpoint_every=1,
        threads=threads,
    )


def cache_building(work: Work) -> float:
    """Build the cache unless it exists; return the wall seconds that it took, which are kept beside it."""
    kept = work.cache.with_suffix(".json")
    if not kept.exists():
        built = build_cache(work, VIEWS, work.cache.with_suffix(".log"))
        kept.write_text(json.dumps({"views": VIEWS, "wall_seconds": built.wall_seconds}))
    return float(json.loads(kept.read_text())["wall_seconds"])


def attempts_of(name: str, work: Work, search: Search, goal: float, scorer: Scorer) -> list[Attempt]:
    """Train a system at all rates for one length, then at the best rate for the others until the goal."""

    def attempt(epochs: int, rate: float) -> Attempt:
        every = max(1, epochs // CHECKPOINTS)
        return trained(name, replace(work, epochs=epochs, learning_rate=rate, checkpoint_every=every), scorer)

    tuning = [attempt(search.tuned_at, rate) for rate in search.learning_rates]
    chosen = max(tuning, key=lambda tried: tried.best.top1)
    found = []
    for epochs in search.lengths:
        found.append(chosen if epochs == search.tuned_at else attempt(epochs, chosen.learning_rate))
        if found[-1].reached(goal):
            break
    return [*found, *(tried for tried in tuning if tried not in found)]


def trained(name: str, work: Work, scorer: Scorer) -> Attempt:
    """Train once, score the checkpoints and remove them; or read the result of an earlier run."""
    folder = work.cache.parent / "attempts"
    plain = name.replace(", ", "-").replace(" ", "-")
    stem = f"{plain}_{work.epochs}-epochs_{work.learning_rate:g}"
    kept = folder / f"{stem}.json"
    if kept.exists():
        fields = json.loads(kept.read_text())
        return Attempt(**{**fields, "points": tuple(Point(**point) for point in fields["points"])})
    scratch = folder / stem
    shutil.rmtree(scratch, ignore_errors=True)
    launch = launches(work, scratch)[name]
    ran = launch.run(folder / f"{stem}.log")
    points = tuple(scored(saved, ran.started_at, scorer) for saved in launch.saved())
    found = Attempt(name, work.epochs, work.learning_rate, ran.wall_seconds, ran.cpu_seconds, points)
    kept.write_text(json.dumps(asdict(found), indent=1))
    shutil.rmtree(scratch)
    best = f"{percent(found.best.top1)} after {found.best.seconds:.0f} s"
    print(f"{name}, {work.epochs} epochs, learning rate {work.learning_rate:g}: {best}", flush=True)
    return found


def scored(saved: Saved, started_at: float, scorer: Scorer) -> Point:
    """Score a checkpoint, and return its time and score."""
    return Point(saved.written_at - started_at, saved.step, scorer(saved.student()))


def results_table(
    attempts: dict[str, list[Attempt]], goal: float, of_teacher: float, cache_seconds: float
) -> list[list[str]]:
    """Build a row for each system: its fastest way to the goal, or how near it came."""
    rows = [["", "seconds to the goal", "of them cache", "epochs", "learning rate", "best, of the teacher's"]]
    for name, tried in attempts.items():
        before = cache_seconds if name == CACHED else 0.0
        ways = [(point.seconds + before, each) for each in tried if (point := each.reached(goal))]
        best = max((each.best for each in tried), key=lambda point: point.top1)
        share = f"{percent(best.top1 / of_teacher)} after {best.seconds + before:.0f} s"
        if ways:
            seconds, way = min(ways, key=lambda found: found[0])
            told = [f"{seconds:.0f}", f"{before:.0f}", str(way.epochs), f"{way.learning_rate:g}"]
        else:
            told = ["not reached", f"{before:.0f}", "", ""]
        rows.append([name, *told, share])
    return rows


if __name__ == "__main__":
    main()
