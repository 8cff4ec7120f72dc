"""Data in an object store: requests, seconds and memory of opening, indexing and reading; and a training.

python benchmarks/object_store.py [--shards 1000]

The store is moto's server, on this machine: it answers as S3 does, in some milliseconds and from one process,
so what counts is the number of requests, and what our side does for each.
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
from support.made_shards import Photos, made, photo_shards
from support.random_cache import write_random_cache
from support.reports import circumstances
from support.restarts import MODEL, ROOT

from beamclip.cluster.session import ray_session
from beamclip.commands.console import table
from beamclip.data import index_pass
from beamclip.data.bundles import bundles_of
from beamclip.data.cache import CachedViews
from beamclip.data.known_shards import KNOWN_FILE
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.order import PIECE
from beamclip.data.rows import read_rows
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare, worker_rows
from beamclip.json_lines import read_json_lines
from beamclip.models.clip import new_clip

ROWS = 32
"""Samples of a shard: two pieces."""
DATA, FOREIGN = "s3://data/shards", "s3://data/foreign"
CACHE, LARGE_DATA = "s3://data/cache", "s3://data/large"
WINDOW, BATCH, STEPS = 4096, 64, 40
READ = 8192
"""Samples that are read through Ray Data."""
CACHED, VIEWS = Photos(64, 64, 4096, 512, 1024), 4
LARGE = Photos(512, 512, 4096, 512, 4096)
"""One shard, for the memory of a read task: 256 rows of it are some 20 MB."""


@dataclass(frozen=True)
class Cost:
    """Of one thing that was done."""

    seconds: float
    requests: int
    other_requests: int
    """Of them, those that neither list nor read a tar."""


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=1000, help="shards of 32 samples each")
    parser.add_argument("--out", type=Path, default=Path("runs/object_store"), help="folder of the inputs")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/benchmarks/object_store.json"), help="file to write"
    )
    options = parser.parse_args()
    local = photo_shards(Photos(64, 64, options.shards * ROWS, 512, ROWS), options.out.resolve())
    large = photo_shards(LARGE, options.out.resolve())
    teacher = new_clip("tiny-resnet18", 0)
    cached = photo_shards(CACHED, options.out.resolve())
    cache = made(
        options.out.resolve() / "cache",
        lambda folder: write_random_cache(cached, teacher, VIEWS, folder, processes=2),
    )
    with _store() as store:
        _upload(
            {f"{local}/*": DATA, f"{local}/*.tar": FOREIGN, f"{large}/*": LARGE_DATA, f"{cache}/*": CACHE}
        )
        found = {**measure_opening(store), **measure_reading(store), **measure_cache(store)}
        memory = measure_memory()
        found["train over the store"] = train_both(local, store)
    rows = [["", "seconds", "requests", "neither listing nor tar"]]
    rows += [
        [name, f"{c.seconds:.2f}", f"{c.requests:,}", f"{c.other_requests:,}"] for name, c in found.items()
    ]
    table(rows)
    print(json.dumps(memory, indent=2))
    command = f"python benchmarks/object_store.py --shards {options.shards}"
    lines = [line.removeprefix("- ") for line in circumstances(command).splitlines()]
    figures = {name: vars(cost) for name, cost in found.items()}
    options.report.write_text(
        json.dumps({"circumstances": lines, "costs": figures, "memory": memory}, indent=2) + "\n"
    )


class Store:
    """A running store, and its log of requests."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def cost(self, work: Callable[[], Any]) -> Cost:
        """Do something, and say what it cost."""
        fsspec.filesystem("s3").invalidate_cache()
        start, began = self._log.stat().st_size, time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        with self._log.open() as file:
            file.seek(start)
            lines = re.findall(r'"(?:\x1b\[\d+m)*(\w+ /\S+) HTTP', file.read())
        others = [line for line in lines if "list-type=2" not in line and not line.endswith(".tar")]
        return Cost(seconds, len(lines), len(others))


@contextlib.contextmanager
def _store() -> Iterator[Store]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "requests.log")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with log.open("w") as file:
            server = subprocess.Popen(command, stdout=file, stderr=file)
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1",
        )
        try:
            while "Running on" not in log.read_text():
                time.sleep(0.1)
            yield Store(log)
        finally:
            server.terminate()
            server.wait()


def _upload(places: Mapping[str, str]) -> None:
    fs = fsspec.filesystem("s3")
    fs.mkdir("data")
    for source, target in places.items():
        print(f"uploading {target}", flush=True)
        fs.put(source, f"{target}/", batch_size=16)


def measure_opening(store: Store) -> dict[str, Cost]:
    """Open finished shards and tars of others, for the first time and again, and look for their samples."""
    fs, shards = fsspec.filesystem("s3"), list[Shard]()
    costs = {
        "open finished shards, first": store.cost(lambda: shards.extend(list_shards(DATA))),
        "open them again": store.cost(lambda: list_shards(DATA)),
        "index them, here": store.cost(lambda: read_starts(shards)),
        "know their index": store.cost(lambda: read_starts(shards)),
    }
    index_pass.BYTES_HERE = 0
    costs["open and index tars of others, by Ray"] = store.cost(lambda: list_shards(FOREIGN))
    costs["open those again"] = store.cost(lambda: list_shards(FOREIGN))
    print(f"{KNOWN_FILE}: {fs.size(f'{FOREIGN}/{KNOWN_FILE}'):,} bytes")
    return costs


def measure_reading(store: Store) -> dict[str, Cost]:
    """Read samples in training order through Ray Data."""
    shards = list_shards(DATA)
    mixture = mixture_of(source_counts(shards), (), WINDOW, seed=0, num_workers=1)
    starts = read_starts(shards)

    def read() -> None:
        rows = worker_rows(shards, starts, Columns(), WorkerShare(mixture, BATCH), 0, read_rows)
        with contextlib.closing(rows):
            assert len(list(islice(rows, READ))) == READ

    with ray_session():
        return {f"read {READ:,} samples, and the window after them": store.cost(read)}


def measure_cache(store: Store) -> dict[str, Cost]:
    """Read pieces of a teacher cache, in one process that comes to know the footers of its shards."""
    shards = list_shards(CACHE)
    views = CachedViews((0,), VIEWS)

    def read() -> None:
        for first in range(0, shards[0].samples, PIECE):
            for shard in shards:
                rows = list(iterate_rows(replace(shard, views=views), Columns(), range(first, first + PIECE)))
                assert [row["problem"] for row in rows] == [None] * PIECE

    return {f"read {sum(shard.samples for shard in shards):,} samples of a cache": store.cost(read)}


def measure_memory() -> dict[str, float]:
    """Megabytes of a process before it reads bundles of 256 rows, at its peak, and of a bundle's rows."""
    shards = list_shards(LARGE_DATA)
    mixture = mixture_of(source_counts(shards), (), WINDOW, seed=0, num_workers=1)
    window = next(mixture.windows_from(0, 0, 1))
    bundles = bundles_of(window, shards, read_starts(shards))
    # A process of its own: it has what a read task has in memory, and nothing else.
    program = [sys.executable, str(ROOT / "benchmarks" / "support" / "read_memory.py")]
    found = subprocess.run(program, input=pickle.dumps(bundles), check=True, capture_output=True, cwd=ROOT)
    figures: dict[str, float] = json.loads(found.stdout)
    return figures


def train_both(local: Path, store: Store) -> Cost:
    """Train over the store and over files; the losses of all steps must be equal.

    Raises:
        SystemExit: they are not.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model.json")
        model.write_text(json.dumps(MODEL))
        cost = store.cost(lambda: _train(DATA, model, Path(scratch, "store")))
        _train(str(local), model, Path(scratch, "files"))
        losses = [
            [record["loss"] for record in read_json_lines(Path(scratch, name, "metrics.jsonl"))]
            for name in ("store", "files")
        ]
    if losses[0] != losses[1] or len(losses[0]) != STEPS:
        sys.exit(f"the losses differ: {losses}")
    print(f"the losses of {STEPS} steps over the store and over files are equal")
    return cost


def _train(data: str, model: Path, out: Path) -> None:
    command = [
        sys.executable, ROOT / "pipelines" / "pretrain.py", "--data", data, "--model", model, "--out", out,
        "--steps", STEPS, "--batch-size", BATCH, "--log-every", 1, "--threads-per-worker", 1,
        "--shuffle-window", WINDOW, "--no-system-metrics",
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
