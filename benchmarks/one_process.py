"""What one process can take: how fast crops of others become batches, and what it costs of Python's lock.

python benchmarks/one_process.py [--rounds 5]

Blocks of 256 crops of 224 px come from memory, in place of Ray's object store, through a worker's own reading
side: windows, rows, batches. For comparison, a thread of the process decodes the same images. Python's lock
is measured by a thread that counts: the time that it loses beside the stream, somebody else held the lock.
"""

import argparse
import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
from support.made_shards import Photos, photo_shards
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.data.config import AugmentConfig, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.index import read_starts
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.rows import ROWS_PER_TASK, Bundle, RowReader, read_bundle, rows_of
from beamclip.data.shards import Columns, Row
from beamclip.data.stream import Batch, WorkerShare, training_batches, worker_rows
from beamclip.training.process import prepare_process

PHOTOS = Photos(256, 256, 4096, 1024, 512)
SIDE = 224
BATCH = 256
WINDOW = 4096
IMAGES = {"crops": 32768, "encoded": 2048}
"""Images of a measurement, by what the reader hands over."""


@dataclass(frozen=True)
class Figures:
    """Of one measurement."""

    images_per_second: float
    cpu_microseconds: float
    """Of the whole process, per image."""
    lock_microseconds: float
    """Time that an image holds Python's lock."""


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
    found: dict[str, list[Figures]] = {name: [] for name in IMAGES}
    for _ in range(options.rounds):
        for name, figures in found.items():
            figures.append(measure(shards, name, IMAGES[name]))
    rows = [["median of the rounds", *found]]
    medians = {
        key: {
            name: statistics.median(getattr(each, key) for each in figures) for name, figures in found.items()
        }
        for key in ("images_per_second", "cpu_microseconds", "lock_microseconds")
    }
    rows += [
        [key.replace("_", " "), *(f"{value:,.1f}" for value in of.values())] for key, of in medians.items()
    ]
    table(rows)
    command = f"python benchmarks/one_process.py --rounds {options.rounds}"
    lines = [line.removeprefix("- ") for line in circumstances(command).splitlines()]
    options.report.write_text(json.dumps({"circumstances": lines, **medians}, indent=2) + "\n")


def measure(shards: Path, name: str, images: int) -> Figures:
    """Measure one way of reading: the stream alone, and once more beside a thread that counts.

    Args:
        name: one of IMAGES.
        images: of each of the two.
    """
    count = images // BATCH
    with contextlib.closing(_batches(shards, crops=name == "crops")) as batches:
        _use_up(batches, WINDOW // BATCH)
        began, cpu = time.perf_counter(), time.process_time()
        _use_up(batches, count)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        alone = _counts_per_second(lambda: time.sleep(1.0))
        began = time.perf_counter()
        beside = _counts_per_second(lambda: _use_up(batches, count))
        shared = time.perf_counter() - began
    images = count * BATCH
    return Figures(images / seconds, 1e6 * cpu / images, 1e6 * shared * (1 - beside / alone) / images)


def _batches(folder: Path, *, crops: bool) -> Generator[Batch, None, None]:
    shards = list_shards(str(folder))
    mixture = mixture_of(source_counts(shards), (), WINDOW, seed=0, num_workers=1)
    share, decoding = WorkerShare(mixture, BATCH), Decoding(SIDE, AugmentConfig(), CaptionConfig(), seed=0)
    decoded = decoding if crops else None
    starts, _ = read_starts(shards)
    rows = worker_rows(shards, starts, Columns(), share, 0, _memory(decoded), decoded)
    return training_batches(rows, share, decoding, threads=1)


def _memory(decoding: Decoding | None) -> RowReader:
    """A reader that reads the first window, and hands over the rows of its bundles again and again."""
    tables: list[list[pa.Table]] = []

    def read(bundles: Iterable[Bundle], columns: Columns, _: Decoding | None) -> Generator[Row, None, None]:
        for number, bundle in enumerate(bundles):
            if number * ROWS_PER_TASK < WINDOW:
                tables.append([*read_bundle(bundle, columns, decoding)])
            yield from chain.from_iterable(map(rows_of, tables[number % len(tables)]))

    return read


def _counts_per_second(body: Callable[[], object]) -> float:
    """How fast a thread counts while `body` runs in this one."""
    done, counted = threading.Event(), 0

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    began = time.perf_counter()
    thread.start()
    body()
    done.set()
    thread.join()
    return counted / (time.perf_counter() - began)


def _use_up(items: Iterator[object], count: int) -> None:
    for _ in islice(items, count):
        pass


if __name__ == "__main__":
    main()
