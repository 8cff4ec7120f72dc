"""What one process can take: how fast crops of others become batches, and what it costs of Python's lock.

python benchmarks/one_process.py [--rounds 5]

Blocks of 256 crops of 224 px come from memory, in place of Ray's object store, through a worker's own reading
side: windows, rows, batches. Python's lock is held for no longer than the CPU time without that of copying
pixels, for which numpy gives it back.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from support.made_shards import Photos, photo_shards
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.data.batch import Batch
from beamclip.data.bundles import ROWS_PER_TASK, Bundle, RowReader, read_bundle, rows_of
from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Columns, Row
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare, training_batches, worker_rows
from beamclip.training.process import prepare_process

PHOTOS = Photos(256, 256, 4096, 1024, 512)
SIDE = 224
BATCH = 256
WINDOW = 4096
IMAGES = 32768
COPIES = 20


@dataclass(frozen=True)
class Figures:
    """Of one measurement."""

    images_per_second: float
    cpu_microseconds: float
    """Of the whole process, per image."""
    lock_microseconds: float
    """Time for which an image holds Python's lock, at most."""


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured, in turn")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"), help="folder of the inputs")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/benchmarks/one_process.json"), help="file to write"
    )
    options = parser.parse_args()
    prepare_process(threads=1, seed=0)
    shards = photo_shards(PHOTOS, options.out.resolve())
    found = [measure(shards, IMAGES) for _ in range(options.rounds)]
    medians = {
        each.name: statistics.median(getattr(one, each.name) for one in found) for each in fields(Figures)
    }
    table([["median of the rounds", "crops"], *([name, f"{value:,.1f}"] for name, value in medians.items())])
    command = f"python benchmarks/one_process.py --rounds {options.rounds}"
    lines = [line.removeprefix("- ") for line in circumstances(command).splitlines()]
    options.report.write_text(json.dumps({"circumstances": lines, **medians}, indent=2) + "\n")


def measure(shards: Path, images: int) -> Figures:
    """Measure the reading of `images` images."""
    count = images // BATCH
    with contextlib.closing(_batches(shards)) as batches:
        _use_up(batches, WINDOW // BATCH)
        began, cpu = time.perf_counter(), time.process_time()
        _use_up(batches, count)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    each = 1e6 * cpu / (count * BATCH)
    return Figures(count * BATCH / seconds, each, each - _copy_microseconds())


def _copy_microseconds() -> float:
    """CPU time to copy a crop into a batch, for which numpy gives Python's lock back."""
    crops = [np.full((SIDE, SIDE, 3), number, np.uint8) for number in range(BATCH)]
    batch = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
    np.stack(crops, out=batch)
    cpu = time.process_time()
    for _ in range(COPIES):
        np.stack(crops, out=batch)
    return 1e6 * (time.process_time() - cpu) / (COPIES * BATCH)


def _batches(folder: Path) -> Generator[Batch, None, None]:
    shards = list_shards(str(folder))
    mixture = mixture_of(source_counts(shards), (), WINDOW, seed=0, num_workers=1)
    share, decoding = WorkerShare(mixture, BATCH), Decoding(SIDE, Augmentation(), CaptionConfig(), seed=0)
    starts = read_starts(shards)
    rows = worker_rows(shards, starts, Columns(), share, 0, _memory(decoding), decoding)
    return training_batches(rows, share, decoding, threads=1)


def _memory(decoding: Decoding) -> RowReader:
    """A reader that reads the first window, and hands over the rows of its bundles again and again."""
    tables: list[list[pa.Table]] = []

    def read(bundles: Iterable[Bundle], columns: Columns, _: Decoding | None) -> Generator[Row, None, None]:
        for number, bundle in enumerate(bundles):
            if number * ROWS_PER_TASK < WINDOW:
                tables.append([*read_bundle(bundle, columns, decoding)])
            yield from chain.from_iterable(map(rows_of, tables[number % len(tables)]))

    return read


def _use_up(items: Iterator[object], count: int) -> None:
    for _ in islice(items, count):
        pass


if __name__ == "__main__":
    main()
