"""Exact restart: what runs interrupted at random see, what it costs, and how well the stream shuffles.

python benchmarks/restart.py [--interruptions 24]

Trains the same small model again and again by the public command: uninterrupted, and killed, stopped and
resumed at random, with one worker, with two, and with two, then one, then two. Each run's trace of samples is
checked against the data, and trace and final weights are compared with those of an uninterrupted run. The
rest is arithmetic on synthetic counts: the position at web scale, and the mixing of shards.
"""

import argparse
import io
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from support.reports import circumstances, markdown_table, write_figures
from support.restarts import (
    KINDS,
    Accounts,
    Interruption,
    Lost,
    Run,
    accounts,
    draw_shards,
    same_order,
    train,
    weights,
)

from beamclip.commands.console import table
from beamclip.data.order import Order, Part, epoch_part, interleaved, unread
from beamclip.data.position import DataPosition, Position, continued, to_plain
from beamclip.data.stream import advanced, shuffled

T = TypeVar("T")

SHARDS = [150, 130, 90, 160, 70]
STEPS = 300
WORKERS = {"1 worker": [1], "2 workers": [2], "2, then 1, then 2 workers": [2, 1]}
"""Number of workers at each start of a run, repeated in a cycle."""
PER_RUN = 4
"""Interruptions of one run, at most."""
LARGE = {"shards": 1_000_000, "samples": 400_000_000, "workers": 64}
BATCH = 256


def main() -> None:
    """Interrupt runs, measure, and write tables and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interruptions", type=int, default=24, help="over all runs together")
    parser.add_argument("--out", type=Path, default=Path("runs/restart"), help="a new folder for the runs")
    parser.add_argument("--report", type=Path, default=Path("docs/studies/restart.md"), help="to write")
    options = parser.parse_args()
    outcomes, lost = interrupted_runs(options.out, options.interruptions)
    tables = {
        "Runs": runs_table(outcomes),
        "Seconds lost": lost_table(lost),
        "Position": position_table(),
        "Mixing": mixing_table(),
    }
    for rows in tables.values():
        table(rows)
        print()
    (options.out / "restart.json").write_text(
        json.dumps({"lost": [asdict(one) for one in lost], "tables": tables}, indent=1)
    )
    text = "\n\n".join(
        [
            circumstances(f"python benchmarks/restart.py --interruptions {options.interruptions}"),
            *(f"## {title}\n\n{markdown_table(rows)}" for title, rows in tables.items()),
        ]
    )
    write_figures(options.report, "Exact restart", text)


Outcomes = dict[str, tuple[Accounts, str, str]]
"""For each run: its accounts, and how its order and its weights compare with an uninterrupted run."""


def interrupted_runs(out: Path, interruptions: int) -> tuple[Outcomes, list[Lost]]:
    """Train uninterrupted runs, then interrupted ones until so many interruptions have happened."""
    data = draw_shards(out / "data", SHARDS)
    calm = {workers: Run(data, out / f"calm-{workers}", STEPS) for workers in (1, 2)}
    again = Run(data, out / "calm-2-again", STEPS)
    outcomes, lost = Outcomes(), list[Lost]()
    for run, workers in [*((run, workers) for workers, run in calm.items()), (again, 2)]:
        train(run, workers, iter(()))
        against = compared(run, calm[2]) if run is again else ("the reference", "the reference")
        outcomes[f"left alone, {run.out.name}"] = (accounts(run), *against)
    for number, (name, workers) in enumerate(itertools.cycle(WORKERS.items())):
        if len(lost) >= interruptions:
            return outcomes, lost
        run = Run(data, out / f"interrupted-{number}", STEPS)
        mishaps = random_interruptions(number, workers)
        at_most = min(PER_RUN, interruptions - len(lost))
        mine = train(run, workers[0], itertools.islice(mishaps, at_most))
        lost += mine
        reference = calm[workers[0]] if len(workers) == 1 else None
        title = f"{name}, {len(mine)} interruptions"
        against = compared(run, reference) if reference else ("differs, as expected", "differ, as expected")
        outcomes[f"{title} (run {number})"] = (accounts(run), *against)
        print(f"{len(lost)} interruptions; {title}: {outcomes[f'{title} (run {number})']}", flush=True)
    raise AssertionError("a cycle does not end")


def random_interruptions(seed: int, workers: list[int]) -> Iterator[Interruption]:
    """Yield interruptions of all kinds, at random times."""
    generator = random.Random(seed)
    starts = itertools.cycle(workers)
    next(starts)
    while True:
        # Half of them hit a worker, and the command goes on: starting it again takes most of the time.
        kind = generator.choice([*KINDS, *["worker killed"] * 2])
        yield Interruption(
            kind,
            after_seconds=generator.uniform(0.1, 3.0),
            victim=generator.randrange(2),
            then_workers=workers[0] if kind == "worker killed" else next(starts),
        )


def compared(run: Run, reference: Run) -> tuple[str, str]:
    """Describe the order of the samples and the final weights, compared with those of another run."""
    order = "the same" if same_order(run, reference) else "differs"
    mine, theirs = weights(run), weights(reference)
    if torch.equal(mine, theirs):
        return order, "equal bit for bit"
    return order, f"differ by {(mine - theirs).abs().max():.1e} at most"


def runs_table(outcomes: Outcomes) -> list[list[str]]:
    """Build a row for each run."""
    rows = [["run", "seen", "skipped", "doubled", "too early", "could not be used", "order", "final weights"]]
    for name, (found, order, final) in outcomes.items():
        lost = ", ".join(f"{count} {reason}" for reason, count in found.lost.items())
        counts = (found.seen, found.skipped, found.doubled, found.foreign)
        rows.append([name, *map(str, counts), lost, order, final])
    return rows


def lost_table(lost: list[Lost]) -> list[list[str]]:
    """Build a row for each kind of interruption and number of workers."""
    rows = [["interruption", "workers", "times", "seconds, median", "least", "most"]]
    for kind in KINDS:
        for workers in (1, 2):
            found = [one.seconds for one in lost if (one.kind, one.workers) == (kind, workers)]
            if found:
                figures = (statistics.median(found), min(found), max(found))
                rows.append([kind, str(workers), str(len(found)), *(f"{figure:.1f}" for figure in figures)])
    return rows


def position_table() -> list[list[str]]:
    """Build the table of size and cost of the position at web scale."""
    shards, total, workers = LARGE["shards"], LARGE["samples"], LARGE["workers"]
    counts = np.random.default_rng(0).integers(total // shards // 2, 3 * total // shards // 2 + 1, shards)
    order = Order(seed=0, world_size=workers, buffer=4096, shards=16)
    drawn = int(counts.sum()) // workers // 3
    position = DataPosition(order, tuple(Position(0, drawn + rank) for rank in range(workers)))
    fewer = Order(seed=0, world_size=workers * 3 // 4, buffer=4096, shards=16)
    divided, seconds = timed(lambda: continued(position, fewer, counts))
    again, seconds_again = timed(lambda: continued(divided, order, counts))
    rows = [["position", "bytes", "seconds"]]
    for name, place in {
        f"{workers} workers": position,
        f"after resuming with {fewer.world_size}": divided,
        f"after resuming with {workers} once more": again,
    }.items():
        size, written = timed(lambda place=place: saved_bytes(place))
        rows.append([f"write: {name}", f"{size:,}", f"{written:.4f}"])
    rows.append([f"divide among {fewer.world_size} workers what {workers} left", "", f"{seconds:.2f}"])
    rows.append([f"divide among {workers} workers once more", "", f"{seconds_again:.2f}"])
    _, found = timed(lambda: unread(order, 0, 5, epoch_part(counts, order, 0, 5).rows, drawn))
    rows.append(["find a worker's place, nothing read", "", f"{found:.3f}"])
    rows.append(["keep the place, for each image", "", f"{seconds_an_image():.7f}"])
    return rows


def seconds_an_image(images: int = 200_000) -> float:
    """Return the seconds it takes to draw a row from the buffer and to advance the position."""
    order, row = Order(seed=0, world_size=1, buffer=4096, shards=16), {"epoch": 0, "problem": None}

    def draw() -> None:
        position = Position()
        for _ in shuffled(iter(range(images)), order, 0, 0, images, 0):
            position = advanced(position, row, lost=False)

    return timed(draw)[1] / images


def timed(compute: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and the seconds it took."""
    began = time.perf_counter()
    return compute(), time.perf_counter() - began


def saved_bytes(position: DataPosition) -> int:
    """Return the bytes that a position takes in a checkpoint."""
    file = io.BytesIO()
    torch.save(to_plain(position), file)
    return file.tell()


def mixing_table() -> list[list[str]]:
    """Build the table of how often two images of a batch share a shard, against a perfect shuffle."""
    rows = [["data", "shards read at a time", "same-shard pairs, against chance", "shards in a batch"]]
    for shards, samples in ((8, 10_000), (40, 10_000), (1_000, 1_000)):
        for at_once in (1, 16):
            pairs, different = mixing(shards, samples, at_once)
            rows.append(
                [f"{shards:,} shards of {samples:,}", str(at_once), f"{pairs:.2f}", f"{different:.1f}"]
            )
    return rows


def mixing(shards: int, samples: int, at_once: int) -> tuple[float, float]:
    """Return same-shard pairs relative to chance and different shards per batch, as means over an epoch."""
    order = Order(seed=0, world_size=1, buffer=4096, shards=at_once)
    part = epoch_part(np.full(shards, samples), order, 0, 0)
    reading = shards_in_reading_order(part)
    drawn = np.fromiter(shuffled(iter(reading.tolist()), order, 0, 0, part.rows, 0), np.int64, part.rows)
    batches = drawn[: len(drawn) // BATCH * BATCH].reshape(-1, BATCH)
    same, different = [], []
    for batch in batches:
        counts = np.unique(batch, return_counts=True)[1]
        same.append((counts * (counts - 1)).sum() / (BATCH * (BATCH - 1)))
        different.append(len(counts))
    chance = (samples - 1) / (shards * samples - 1)
    return float(np.mean(same)) / chance, float(np.mean(different))


def shards_in_reading_order(part: Part) -> NDArray[np.int64]:
    """Return the shard of each row that a rank reads, in reading order."""
    found = []
    for bundle in range(len(part.bundles) - 1):
        pieces = part.pieces(bundle)
        turns = interleaved(np.array([stop - start for _, start, stop in pieces]))
        found.append(np.array([shard for shard, _, _ in pieces])[turns])
    return np.concatenate(found)


if __name__ == "__main__":
    main()
