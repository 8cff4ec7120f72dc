"""What growing data costs: time per image and peak memory with 1, 4 and 16 times the data; a small store.

python benchmarks/growth.py [--part growth|store] [--rounds 3]

growth: pipelines/distill.py on the teacher cache of each of three data sets, of which a larger one begins
with the smaller; one pass, or several over a small one. Teacher and student are so small that the data are
most of the work.
store: one pass over ten times as many bytes as Ray's object store holds, and the same with its default size.

Inputs are kept in --out.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from support.made_shards import Photos, Sample, made, photo_shards, write_shards
from support.process_tree import TreeRun, run_tree
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.corpus.glyphs import GlyphConfig, write_corpus
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.json_lines import read_json_lines
from beamclip.models.clip import new_clip
from beamclip.summary import library_versions
from beamclip.tracking.place import DATABASE, sqlite_uri

ROOT = Path(__file__).parents[1]
SIZES = (12_500, 50_000, 200_000)
"""Images of the data sets; the largest is compared with the smallest."""
LEAST_TRAINED = 50_000
"""Images that a run trains on at least, over several epochs if there are fewer: otherwise it would be over in
seconds, with most of its data read before its first step."""
PER_SHARD = 2_500
TEACHER = "nano-resnet10t"
STUDENT = "resnet10t"
BATCH = 256
ANCHORS = 1_000
TIME_TARGET, MEMORY_TARGET = 1.10, 1.15
"""Most that the ratio of the largest to the smallest data set should be."""

STORE_BYTES = 300_000_000
LARGE_PHOTOS = Photos(1024, 768, samples=18_000, distinct=300, per_shard=500)
"""About 170 kB each, 3 GB in all."""

MIB = 2**20


@dataclass(frozen=True)
class Inputs:
    """Inputs that all runs share."""

    teacher: Path
    classes: Path


@dataclass(frozen=True)
class Pass:
    """Figures of one command that trains for one or several epochs."""

    images: int
    """Images of the data set."""
    epochs: int
    steady_seconds: float
    """Seconds of training per image, by all records of the run but the first."""
    wall_seconds: float
    """Seconds of the whole command per image, less those of the same command with a single step."""
    cpu_seconds: float
    """The same for the CPU time of all its processes."""
    start_seconds: float
    """Wall seconds of the command with a single step."""
    peak_bytes: int


@dataclass(frozen=True)
class StoreRun:
    """Figures of one pass with an object store of some size."""

    store_bytes: int | None
    """Size of the object store; None: Ray's default."""
    images_per_second: float
    """Speed by all records of the run but the first."""
    spilled_bytes: int
    """Bytes that Ray last reported as spilled to disk; it reports once a second at most."""
    spilled_objects: int
    peak_bytes: int
    wall_seconds: float


def main() -> None:
    """Run both parts, or one; print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("growth", "store"), help="by default both, one after the other")
    parser.add_argument("--rounds", type=int, default=3, help="times that each data set is measured")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder of the inputs")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks/growth.json"), help="to write")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # The runs must stay on this machine.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["MLFLOW_TRACKING_URI"] = sqlite_uri(out / DATABASE)
    if options.part != "store":
        write_part(options.report, "growth", f"--rounds {options.rounds}", growth(out, options.rounds))
    if options.part != "growth":
        write_part(options.report, "store", "", store(out))


def write_part(report: Path, part: str, flags: str, figures: dict[str, Any]) -> None:
    """Write the results of one part to the report, and keep those of the other."""
    results = json.loads(report.read_text()) if report.exists() else {}
    command = f"python benchmarks/growth.py --part {part} {flags}".strip()
    results[part] = {
        "circumstances": [line.removeprefix("- ") for line in circumstances(command).splitlines()],
        "versions": library_versions(),
        **figures,
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(results, indent=2) + "\n")
    print(f"results written to {report}")


def growth(out: Path, rounds: int) -> dict[str, Any]:
    """Measure each data set once in each round, and return the results."""
    shards = {images: glyph_shards(out, images) for images in SIZES}
    inputs = make_inputs(out)
    embedded = {images: embed(shards[images], inputs, images, out) for images in SIZES}
    passes: dict[int, list[Pass]] = {images: [] for images in SIZES}
    for number in range(1, rounds + 1):
        for images in SIZES:
            passes[images].append(measure_pass(images, inputs, out))
            print(f"round {number}: {passes[images][-1]}", flush=True)
    rows = growth_table(passes, embedded)
    table(rows)
    return {
        "targets": {"time": TIME_TARGET, "memory": MEMORY_TARGET},
        "passes": {str(images): [asdict(each) for each in found] for images, found in passes.items()},
        "embedding": {str(images): found for images, found in embedded.items()},
        "table": rows,
    }


def glyph_shards(out: Path, images: int) -> Path:
    """Make shards of the embedded corpus; those of a smaller data set are the first ones of the largest."""
    if images == SIZES[-1]:
        return made(out / f"glyphs-{images}", _draw)
    everything = glyph_shards(out, SIZES[-1])

    def link(draft: Path) -> None:
        for number in range(images // PER_SHARD):
            for name in (f"{number:05d}.tar", f"{number:05d}_stats.json"):
                os.link(everything / name, draft / name)

    return made(out / f"glyphs-{images}", link)


def _draw(draft: Path) -> None:
    with tempfile.TemporaryDirectory(dir=draft.parent) as scratch:
        corpus = write_corpus(GlyphConfig(images=SIZES[-1], test_images=1), Path(scratch, "corpus"))
        write_shards(_drawn(corpus.root, corpus.train), PER_SHARD, draft)


def _drawn(root: Path, rows: Path) -> Iterator[Sample]:
    for row in pq.read_table(rows, columns=["path", "caption"]).to_pylist():
        yield Sample("png", (root / row["path"]).read_bytes(), row["caption"])


def make_inputs(out: Path) -> Inputs:
    """Make a small teacher with random weights, and a list of arbitrary classes."""
    classes = out / "classes.txt"
    classes.write_text("".join(f"thing number {number}\n" for number in range(ANCHORS)))

    def write(draft: Path) -> None:
        write_open_clip_dir(new_clip(TEACHER, seed=0), draft)

    return Inputs(made(out / "teacher", write), classes)


def embed(shards: Path, inputs: Inputs, images: int, out: Path) -> dict[str, float]:
    """Build the teacher cache of a data set unless it exists, one view per image.

    Returns:
        Wall seconds, CPU seconds and peak bytes of the building, which are kept beside the cache.
    """
    cache = out / f"cache-{images}"
    kept = out / f"cache-{images}.json"

    def build(draft: Path) -> None:
        options = ["--data", shards, "--teacher", inputs.teacher, "--out", draft, "--augmentations", 1]
        run = pipeline("embed", options, out)
        figures = {"seconds": run.wall_seconds, "cpu": run.cpu_seconds, "peak_bytes": run.peak_bytes}
        kept.write_text(json.dumps(figures))

    made(cache, build)
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def pipeline(name: str, options: list[Any], out: Path, environment: dict[str, str] | None = None) -> TreeRun:
    """Run a public command, watching its processes.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, ROOT / "pipelines" / f"{name}.py", *options]
    run = run_tree([str(word) for word in command], out / f"{name}.log", environment=environment, cwd=out)
    if run.exit_code:
        raise RuntimeError(f"pipelines/{name}.py ended with exit code {run.exit_code}; see {run.log}")
    return run


def measure_pass(images: int, inputs: Inputs, out: Path) -> Pass:
    """Train on a data set's cache, and for a single step, and return the figures."""
    epochs = max(1, LEAST_TRAINED // images)
    data = out / f"cache-{images}"
    started, _ = distill(data, inputs, out, ["--steps", 1])
    run, records = distill(data, inputs, out, ["--epochs", epochs])
    return Pass(
        images=images,
        epochs=epochs,
        steady_seconds=steady_seconds(records),
        wall_seconds=(run.wall_seconds - started.wall_seconds) / (epochs * images),
        cpu_seconds=(run.cpu_seconds - started.cpu_seconds) / (epochs * images),
        start_seconds=started.wall_seconds,
        peak_bytes=run.peak_bytes,
    )


def distill(
    data: Path, inputs: Inputs, out: Path, length: list[Any], environment: dict[str, str] | None = None
) -> tuple[TreeRun, list[dict[str, float]]]:
    """Train on a cache or on shards, with one thread; return the run and its records."""
    with tempfile.TemporaryDirectory(dir=out, prefix="run-") as folder:
        options = [
            *("--data", data, "--teacher", inputs.teacher, "--student", STUDENT, "--out", folder),
            *("--classes", inputs.classes, "--batch-size", BATCH, "--threads-per-worker", 1),
            *("--checkpoint-every", 1_000_000, *length),
        ]
        run = pipeline("distill", options, out, environment)
        return run, read_json_lines(Path(folder, "metrics.jsonl"))


def steady_seconds(records: list[dict[str, float]]) -> float:
    """Return the seconds of training per image, with the first record left out."""
    steady = records[1:]
    images = sum(record["images_per_second"] * record["window_seconds"] for record in steady)
    return sum(record["window_seconds"] for record in steady) / images


def growth_table(passes: dict[int, list[Pass]], embedded: dict[int, dict[str, float]]) -> list[list[str]]:
    """Build the table of medians over the rounds: a column per data set, and largest over smallest."""
    names = {
        "steady_seconds": ("training, µs an image", 1e6),
        "wall_seconds": ("whole command less start-up, µs an image", 1e6),
        "cpu_seconds": ("CPU time of all processes less start-up, µs an image", 1e6),
        "start_seconds": ("start-up, s", 1.0),
        "peak_bytes": ("peak memory, MiB", 1 / MIB),
    }
    rows = [["figure", *(f"{images:,} images" for images in passes), "largest / smallest"]]
    for name, (heading, scale) in names.items():
        found = [statistics.median(getattr(each, name) for each in own) for own in passes.values()]
        rows.append([heading, *(f"{scale * value:,.1f}" for value in found), f"{found[-1] / found[0]:.2f}"])
    for heading, values in {
        "embedding, whole command, µs an image": [1e6 * e["seconds"] / n for n, e in embedded.items()],
        "embedding, peak memory, MiB": [e["peak_bytes"] / MIB for e in embedded.values()],
    }.items():
        rows.append([heading, *(f"{value:,.1f}" for value in values), f"{values[-1] / values[0]:.2f}"])
    return rows


def store(out: Path) -> dict[str, Any]:
    """Measure one pass with a small object store and one with the default, and return the results."""
    inputs = make_inputs(out)
    shards = photo_shards(LARGE_PHOTOS, out)
    data_bytes = sum(file.stat().st_size for file in shards.glob("*.tar"))
    runs = [measure_store(shards, inputs, out, size) for size in (STORE_BYTES, None)]
    rows = store_table(data_bytes, runs)
    table(rows)
    return {"data_bytes": data_bytes, "runs": [asdict(run) for run in runs], "table": rows}


def measure_store(shards: Path, inputs: Inputs, out: Path, size: int | None) -> StoreRun:
    """Measure one pass, with Ray's logs, which report spilling, in a folder of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {"RAY_TMPDIR": scratch, "RAY_debug_dump_period_milliseconds": "1000"}
        if size is not None:
            # By default Ray takes a share of the memory, up to this.
            environment["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(size)
        run, records = distill(shards, inputs, out, ["--epochs", 1], environment)
        spilled_bytes, spilled_objects = spilled(Path(scratch, "ray", "session_latest", "logs"))
    return StoreRun(
        store_bytes=size,
        images_per_second=1 / steady_seconds(records),
        spilled_bytes=spilled_bytes,
        spilled_objects=spilled_objects,
        peak_bytes=run.peak_bytes,
        wall_seconds=run.wall_seconds,
    )


def spilled(logs: Path) -> tuple[int, int]:
    """Return the bytes and the objects that Ray has spilled to disk, by its own logs."""
    told = re.findall(r"Spilled (\d+) MiB, \d+ objects", (logs / "raylet.out").read_text())
    objects = re.findall(r"cumulative spill requests: (\d+)", (logs / "debug_state.txt").read_text())
    return int(told[-1]) * MIB if told else 0, int(objects[-1]) if objects else 0


def store_table(data_bytes: int, runs: list[StoreRun]) -> list[list[str]]:
    """Build the table of the runs, a column each."""
    stores = [f"{run.store_bytes / 1e6:,.0f} MB" if run.store_bytes else "default" for run in runs]
    figures = {
        "images/s": [f"{run.images_per_second:,.0f}" for run in runs],
        "spilled, MiB": [f"{run.spilled_bytes / MIB:,.0f}" for run in runs],
        "spilled objects": [f"{run.spilled_objects:,}" for run in runs],
        "peak memory, MiB": [f"{run.peak_bytes / MIB:,.0f}" for run in runs],
        "whole command, s": [f"{run.wall_seconds:,.0f}" for run in runs],
    }
    head = [f"one pass over {data_bytes / 1e9:.1f} GB, object store of", *stores]
    return [head, *([name, *cells] for name, cells in figures.items())]


if __name__ == "__main__":
    main()
