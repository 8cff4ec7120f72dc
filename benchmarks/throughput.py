"""Whether the data keep up with training: training steps alone, the loader alone, and both in a real run.

python benchmarks/throughput.py [--rounds 5]

A ResNet-18 learns from a teacher cache, at 224 px and at 64 px. In each round, these are measured in turn,
each in processes of its own: steps on one batch in memory (the ceiling), the stream of batches without
training, and pipelines/distill.py, the last two with images decoded by the worker and by tasks. Inputs are
kept in --out.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from support.cached_distillation import (
    EMBED_DIM,
    STUDENT,
    VIEWS,
    distillation,
    random_batch,
    with_views,
    write_classes,
    write_teacher,
)
from support.made_shards import Photos, made, photo_shards
from support.pipelines import rates_of, run_pipeline
from support.reports import circumstances

from beamclip.cluster.session import ray_session
from beamclip.commands.console import percent, table
from beamclip.data.bundles import ROWS_PER_TASK, Bundle, bundles_of, read_bundle
from beamclip.data.cache import embedding_column
from beamclip.data.config import Augmentation, CaptionConfig, DecodePlace, StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.index import Starts
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Columns, Row, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import Numbered, WorkerShare, prefetched, training_batches, worker_rows
from beamclip.json_lines import read_json_lines
from beamclip.summary import library_versions
from beamclip.training.config import OptimConfig
from beamclip.training.loop import Training
from beamclip.training.process import prepare_process

T = TypeVar("T")

WARM_UP_STEPS = 10
"""Steps that are left out of every figure; a run also logs a record every so many steps."""
CEILING_STEPS = 40
STAGE_IMAGES = 2048
READ_REPEATS = 7
DECODE_PLACES: tuple[DecodePlace, ...] = get_args(DecodePlace)
THREADS = os.cpu_count() or 1
"""Threads of torch, as many as a single worker takes by default."""


@dataclass(frozen=True)
class Setting:
    """Sizes of one case that is measured."""

    image_size: int
    """Side of the images of student and teacher, pixels."""
    photos: Photos
    batch_size: int
    steps: int
    """Steps of a run."""
    loader_images: int
    target: float
    """Least ratio of a run's images per second to the ceiling's."""

    @property
    def name(self) -> str:
        """Name of the setting: `224 px`."""
        return f"{self.image_size} px"


SETTINGS = (
    Setting(224, Photos(256, 256, 8192, 2048, 1024), 32, steps=100, loader_images=8192, target=0.9),
    Setting(64, Photos(64, 64, 32768, 4096, 4096), 256, steps=100, loader_images=65536, target=0.88),
)


@dataclass(frozen=True)
class Inputs:
    """Files that a setting's measurements read."""

    shards: Path
    cache: Path
    teacher: Path
    classes: Path


Figures = dict[str, float]
"""Figures of one setting in one round, by the keys of HEADINGS."""

HEADINGS = {
    "ceiling": "ceiling, images/s",
    "loader worker": "loader alone, images/s",
    "loader tasks": "loader alone, decoded by tasks, images/s",
    "cpu worker": "loader alone, CPU seconds of the machine per 1,000 images",
    "cpu tasks": "loader alone, decoded by tasks, CPU seconds of the machine per 1,000 images",
    "run worker": "run, images/s",
    "run tasks": "run, decoded by tasks, images/s",
    "wait worker": "run, share of time waiting for data",
    "wait tasks": "run, decoded by tasks, share of time waiting for data",
    "ratio worker": "run / ceiling",
    "ratio tasks": "run, decoded by tasks / ceiling",
    "read_seconds": "read shards, one process, s per 1,000 images",
    "rows_seconds": "read through Ray Data into the window, s per 1,000 images",
    "decode_seconds": "decode, crop, collate, one thread, s per 1,000 images",
}


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is measured in turn")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"), help="folder of the inputs")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/benchmarks/throughput.json"), help="file to write"
    )
    options = parser.parse_args()
    inputs = {setting: make_inputs(setting, options.out.resolve()) for setting in SETTINGS}
    rounds: dict[Setting, list[Figures]] = {setting: [] for setting in SETTINGS}
    for number in range(1, options.rounds + 1):
        for setting in SETTINGS:
            rounds[setting].append(measure(setting, inputs[setting], options.out.resolve()))
            print(f"round {number}, {setting.name}: {in_words(rounds[setting][-1])}", flush=True)
    cached = {setting.name: cache_figures(setting, inputs[setting]) for setting in SETTINGS}
    for rows in (rounds_table(rounds), cache_table(cached)):
        table(rows)
        print()
    command = f"python benchmarks/throughput.py --rounds {options.rounds}"
    result = {
        "circumstances": [line.removeprefix("- ") for line in circumstances(command).splitlines()],
        "versions": library_versions(),
        "settings": {
            setting.name: {
                "target_ratio": setting.target,
                "quartiles": {name: quartiles([each[name] for each in figures]) for name in HEADINGS},
                "rounds": figures,
                "cache": cached[setting.name],
            }
            for setting, figures in rounds.items()
        },
    }
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(result, indent=2) + "\n")
    print(f"results written to {options.report}")


def make_inputs(setting: Setting, out: Path) -> Inputs:
    """Make shards, a teacher with random weights, a class list and the teacher's cache, unless they exist."""
    shards = photo_shards(setting.photos, out)
    teacher = made(
        out / f"teacher-{setting.image_size}", lambda draft: write_teacher(setting.image_size, draft)
    )
    classes = write_classes(out / "classes.txt")
    cache = out / f"cache-{setting.image_size}-{setting.photos.samples}"
    embed = ["--data", shards, "--teacher", teacher, "--augmentations", VIEWS, "--out"]
    made(cache, lambda draft: run_pipeline("embed", [*embed, draft], out))
    return Inputs(shards, cache, teacher, classes)


def measure(setting: Setting, inputs: Inputs, out: Path) -> Figures:
    """Measure one setting once."""
    found = {"ceiling": alone(measure_ceiling, setting, inputs)}
    for place in DECODE_PLACES:
        found |= alone(partial(measure_loader, place), setting, inputs)
    found |= alone(measure_stages, setting, inputs)
    for place in DECODE_PLACES:
        found |= measure_run(place, setting, inputs, out)
        found[f"ratio {place}"] = found[f"run {place}"] / found["ceiling"]
    return found


def alone(body: Callable[[Setting, Inputs], T], setting: Setting, inputs: Inputs) -> T:
    """Call a function of this module in a fresh process, and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(body, setting, inputs).result()


def measure_ceiling(setting: Setting, inputs: Inputs) -> float:
    """Return images per second of a worker's steps on a batch in memory."""
    prepare_process(THREADS, seed=0)
    training = Training(
        distillation(inputs.teacher),
        OptimConfig(lr=1e-3),
        total_steps=10_000,
        device=torch.device("cpu"),
        seed=0,
    )
    batch = random_batch(setting.batch_size, setting.image_size)
    for _ in range(WARM_UP_STEPS):
        training.advance([batch])
    began = time.perf_counter()
    for _ in range(CEILING_STEPS):
        training.advance([batch])
    return CEILING_STEPS * setting.batch_size / (time.perf_counter() - began)


@dataclass(frozen=True)
class Source:
    """What a lone worker reads."""

    shards: list[Shard]
    starts: Starts
    """Of the shards, from starts.read_starts."""
    share: WorkerShare

    def rows(self, decoding: Decoding | None = None) -> Generator[Numbered, None, None]:
        """Yield its samples through Ray Data, from the first one on, decoded by its tasks or not at all."""
        return worker_rows(self.shards, self.starts, Columns(), self.share, sample=0, decoding=decoding)

    def bundles(self) -> list[Bundle]:
        """Return the first bundles that its read tasks read, of about STAGE_IMAGES rows in all."""
        windows = self.share.mixture.windows_from(0, 0, 1)
        bundles = chain.from_iterable(bundles_of(window, self.shards, self.starts) for window in windows)
        return list(islice(bundles, STAGE_IMAGES // ROWS_PER_TASK))


def _source(setting: Setting, inputs: Inputs, window: int) -> Source:
    shards = [with_views(shard) for shard in list_shards(str(inputs.cache))]
    mixture = mixture_of(source_counts(shards), (), window, seed=0, num_workers=1)
    return Source(shards, read_starts(shards), WorkerShare(mixture, setting.batch_size))


def measure_loader(place: DecodePlace, setting: Setting, inputs: Inputs) -> Figures:
    """Return images per second of the stream and what they cost the machine, with Ray up and no training."""
    prepare_process(THREADS, seed=0)
    stream = StreamConfig()
    source = _source(setting, inputs, stream.shuffle_window)
    decoding = _decoding(setting)
    with ray_session():
        rows = source.rows(decoding if place == "tasks" else None)
        batches = training_batches(rows, source.share, decoding, threads=stream.decode_threads)
        with prefetched(batches, stream.prefetch_batches) as ready:
            _use_up(ready, stream.prefetch_batches + 1)
            spent = _cpu_seconds()
            seconds = _seconds(lambda: _use_up(ready, setting.loader_images // setting.batch_size))
            spent = _cpu_seconds() - spent
    images = setting.loader_images
    return {f"loader {place}": images / seconds, f"cpu {place}": spent / images * 1000}


def measure_stages(setting: Setting, inputs: Inputs) -> Figures:
    """Return seconds per 1,000 images of the stages of the stream."""
    prepare_process(THREADS, seed=0)
    window = StreamConfig().shuffle_window
    source = _source(setting, inputs, window)
    with ray_session():
        rows_seconds = _rows_seconds(source, 2 * window)
    bundles = source.bundles()
    rows = [row for table in _read(bundles) for row in table.to_pylist()]
    return {
        "rows_seconds": rows_seconds,
        "read_seconds": _seconds(lambda: _read(bundles)) / len(rows) * 1000,
        "decode_seconds": _decode_seconds(setting, source, rows),
    }


def _decoding(setting: Setting) -> Decoding:
    return Decoding(setting.image_size, Augmentation(), CaptionConfig(), 0, (2 * EMBED_DIM,))


def _rows_seconds(source: Source, count: int) -> float:
    """Return the seconds per 1,000 rows after the first one, before which Ray Data starts an execution.

    Args:
        count: of rows, whole windows of them: a window is read before its first row is handed out.
    """
    with closing(source.rows()) as rows:
        _use_up(rows, 1)
        return _seconds(lambda: _use_up(rows, count)) / count * 1000


def _read(bundles: list[Bundle]) -> list[Any]:
    """Return the tables that read tasks make of bundles."""
    return [table for bundle in bundles for table in read_bundle(bundle, Columns())]


def _decode_seconds(setting: Setting, source: Source, rows: list[Row]) -> float:
    numbered = (pair for pair in enumerate(cycle(rows)))  # a generator, since it is closed
    with closing(training_batches(numbered, source.share, _decoding(setting), threads=1)) as batches:
        count = STAGE_IMAGES // setting.batch_size
        return _seconds(lambda: _use_up(batches, count)) / (count * setting.batch_size) * 1000


def _use_up(items: Iterator[Any], count: int) -> None:
    for _ in islice(items, count):
        pass


def _seconds(body: Callable[[], object]) -> float:
    began = time.perf_counter()
    body()
    return time.perf_counter() - began


def _cpu_seconds() -> float:
    """CPU seconds that all processes of the machine have used."""
    used = psutil.cpu_times()
    return used.user + used.nice + used.system + used.irq + used.softirq


def measure_run(place: DecodePlace, setting: Setting, inputs: Inputs, out: Path) -> Figures:
    """Train by the public command; return the figures of all its records but the first."""
    with tempfile.TemporaryDirectory(dir=out, prefix="run-") as run:
        run_pipeline(
            "distill",
            [
                *("--data", inputs.cache, "--teacher", inputs.teacher, "--student", STUDENT),
                *("--classes", inputs.classes, "--out", run, "--steps", setting.steps),
                *("--batch-size", setting.batch_size, "--log-every", WARM_UP_STEPS),
                *("--decode", place),
            ],
            out,
        )
        rate, waited = rates_of(read_json_lines(Path(run, "metrics.jsonl"))[1:])
    return {f"run {place}": rate, f"wait {place}": waited}


def cache_figures(setting: Setting, inputs: Inputs) -> Figures:
    """Return what it costs per sample to store and to read embeddings, in bytes and microseconds."""
    shard = list_shards(str(inputs.cache))[0]
    plain, cached = (
        _median_seconds(partial(_read_all, each, Columns())) for each in (shard, with_views(shard))
    )
    column = _median_seconds(lambda: _embeddings(shard))
    samples = setting.photos.samples
    files = list(inputs.cache.glob("*.parquet"))
    return {
        "embedding_column_microseconds": 1e6 * column / shard.samples,
        "plain_row_microseconds": 1e6 * plain / shard.samples,
        "cached_row_microseconds": 1e6 * cached / shard.samples,
        "view_bytes": sum(map(_view_bytes, files)) / samples,
        "cache_bytes": sum(file.stat().st_size for file in files) / samples,
        "source_bytes": sum(file.stat().st_size for file in inputs.shards.glob("*.tar")) / samples,
    }


def _view_bytes(file: Path) -> int:
    """Return the bytes of all views' embeddings and random numbers in a shard."""
    metadata = pq.ParquetFile(file).metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    of_views = [column for column in columns if column.path_in_schema.startswith(("embedding.", "draws."))]
    return sum(column.total_compressed_size for column in of_views)


def _read_all(shard: Shard, columns: Columns) -> None:
    for _ in iterate_rows(shard, columns, range(shard.samples)):
        pass


def _median_seconds(body: Callable[[], object]) -> float:
    return statistics.median(_seconds(body) for _ in range(READ_REPEATS))


def _embeddings(shard: Shard) -> torch.Tensor:
    """Read the embeddings of one view, float16 [samples, EMBED_DIM]."""
    name = embedding_column(0, 0)
    column = pq.read_table(shard.path, columns=[name], use_threads=False)[name]
    joined = bytearray(b"".join(column.to_pylist()))
    return torch.from_numpy(np.frombuffer(joined, "<f2").reshape(-1, EMBED_DIM))


def quartiles(values: list[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def in_words(figures: Figures) -> str:
    """Format the rates of a round for the terminal."""
    names = ("ceiling", *(f"{what} {place}" for what in ("loader", "run") for place in DECODE_PLACES))
    rates = ", ".join(f"{name} {figures[name]:,.1f}" for name in names)
    ratios, waits = (
        " and ".join(form(figures[f"{what} {place}"]) for place in DECODE_PLACES)
        for what, form in (("ratio", "{:.3f}".format), ("wait", percent))
    )
    return f"{rates} images/s, run / ceiling {ratios}, waited {waits}"


def rounds_table(rounds: dict[Setting, list[Figures]]) -> list[list[str]]:
    """Build a row for each figure: median and quartiles over the rounds."""
    rows = [["figure", *(setting.name for setting in rounds)]]
    for name, heading in HEADINGS.items():
        cells = []
        for figures in rounds.values():
            low, middle, high = quartiles([each[name] for each in figures])
            cells.append(f"{middle:,.4g} ({low:,.4g} to {high:,.4g})")
        rows.append([heading, *cells])
    rows.append(["target of run / ceiling", *(f"{setting.target:.2f}" for setting in rounds)])
    return rows


def cache_table(cached: dict[str, Figures]) -> list[list[str]]:
    """Build a row for each figure of the caches, per sample."""
    names = next(iter(cached.values()))
    head = [f"per sample, {VIEWS} views of {EMBED_DIM} numbers", *cached]
    return [head, *([name, *(f"{each[name]:,.1f}" for each in cached.values())] for name in names)]


if __name__ == "__main__":
    main()
