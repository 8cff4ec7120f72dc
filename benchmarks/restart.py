"""Exact restart: what runs interrupted at random see, what it costs, and how well the stream shuffles.

python benchmarks/restart.py [--interruptions 32]

Trains the same small model again and again by the public command: uninterrupted with one to seven workers;
killed, stopped and resumed at random, with one worker, with two, and with two, then one, then two; and by one
to two workers, while a node is added and lost. Each run's trace of samples is checked against the data, and
compared step by step with that of an uninterrupted run, as are its final weights. The rest is arithmetic on
synthetic counts: the position at web scale, and the mixing of shards.
"""

import argparse
import io
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from support.elastic import train_elastic
from support.reports import circumstances, markdown_table, write_figures
from support.restarts import (
    KINDS,
    NODE_KINDS,
    Accounts,
    Interruption,
    Lost,
    Run,
    accounts,
    changed_steps,
    draw_shards,
    train,
    weights,
)

from beamclip.commands.console import table
from beamclip.data.mixture import Mixture, mixture_of
from beamclip.data.order import lanes_in, order_over, windows_from
from beamclip.data.position import DataPosition, position_in, to_plain
from beamclip.data.worker_stream import WorkerShare

SHARDS = [150, 130, 90, 160, 70]
STEPS = 300
ELASTIC_STEPS = 3000
"""Long enough for nodes to start and to be lost while it trains."""
WORKERS = {"1 worker": [1], "2 workers": [2], "2, then 1, then 2 workers": [2, 1]}
"""Number of workers at each start of a run, repeated in a cycle."""
ALONE = (1, 2, 3, 5, 7)
"""Number of workers of the runs that are left alone."""
PER_RUN = 4
"""Interruptions of one run, at most."""
LARGE_SHARDS, LARGE_SAMPLES, LARGE_WORKERS, LARGE_WINDOW = 1_000_000, 400_000_000, 64, 65_536
REPEATS = 3
"""Times that each line of the position's table is timed; the least counts."""
BATCH, WINDOW = 256, 4096
SHARING = (1, 8, 16)
"""Numbers of workers whose batches are looked at for mixing."""


def main() -> None:
    """Interrupt runs, measure, and write tables and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interruptions", type=int, default=32, help="over all runs together")
    parser.add_argument("--node-changes", type=int, default=3, help="times that a node is added and lost")
    parser.add_argument("--out", type=Path, default=Path("runs/restart"), help="a new folder for the runs")
    parser.add_argument("--report", type=Path, default=Path("docs/studies/restart.md"), help="to write")
    options = parser.parse_args()
    outcomes, lost = interrupted_runs(options.out, options.interruptions)
    elastic, changes = elastic_run(options.out, options.node_changes)
    outcomes, lost = {**outcomes, **elastic}, [*lost, *changes]
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
    calm = {workers: Run(data, out / f"calm-{workers}", STEPS) for workers in ALONE}
    again = Run(data, out / "calm-2-again", STEPS)
    outcomes, lost = Outcomes(), list[Lost]()
    for run, workers in [*((run, workers) for workers, run in calm.items()), (again, 2)]:
        # Many workers on few CPUs take turns.
        train(run, workers, iter(()), cpus=0.5 if workers <= 2 else 0.1)
        against = compared(run, calm[1], calm[workers]) if run is not calm[1] else ("the reference",) * 2
        outcomes[f"left alone, {run.out.name}"] = (accounts(run), *against)
    for number, (name, workers) in enumerate(itertools.cycle(WORKERS.items())):
        if len(lost) >= interruptions:
            return outcomes, lost
        run = Run(data, out / f"interrupted-{number}", STEPS)
        mishaps = random_interruptions(number, workers)
        at_most = min(PER_RUN, interruptions - len(lost))
        mine = train(run, workers[0], itertools.islice(mishaps, at_most))
        lost += mine
        title = f"{name}, {len(mine)} interruptions"
        outcomes[f"{title} (run {number})"] = (accounts(run), *compared(run, calm[1], calm[workers[0]]))
        print(f"{len(lost)} interruptions; {title}: {outcomes[f'{title} (run {number})']}", flush=True)
    raise AssertionError("a cycle does not end")


def elastic_run(out: Path, rounds: int) -> tuple[Outcomes, list[Lost]]:
    """Train by one to two workers while a node is added and lost, and by one worker that is left alone."""
    data = draw_shards(out / "data", SHARDS)
    calm, run = (Run(data, out / name, ELASTIC_STEPS) for name in ("calm-long", "elastic"))
    train(calm, 1, iter(()))
    lost = train_elastic(run, rounds)
    outcome = accounts(run), *compared(run, calm, calm)
    print(f"1 to 2 workers, {len(lost)} changes: {outcome}", flush=True)
    return {f"1 to 2 workers, {len(lost)} changes of the nodes": outcome}, lost


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


def compared(run: Run, first: Run, peer: Run) -> tuple[str, str]:
    """Describe the order of the samples and the final weights, compared with uninterrupted runs.

    Args:
        first: of any number of workers, since its order is to be the same for all.
        peer: of as many workers as at first, whose sums are rounded alike.
    """
    changed = changed_steps(run, first)
    order = f"differs in {len(changed)} steps, first in {changed[0]}" if changed else "the same"
    if run is peer:
        return order, "the reference"
    mine, theirs = weights(run), weights(peer)
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
    for kind in (*KINDS, *NODE_KINDS):
        for workers in (1, 2):
            found = [one.seconds for one in lost if (one.kind, one.workers) == (kind, workers)]
            if found:
                figures = (statistics.median(found), min(found), max(found))
                rows.append([kind, str(workers), str(len(found)), *(f"{figure:.1f}" for figure in figures)])
    return rows


def position_table() -> list[list[str]]:
    """Build the table of size and cost of the position at web scale."""
    mean = LARGE_SAMPLES // LARGE_SHARDS
    counts = np.random.default_rng(0).integers(mean // 2, 3 * mean // 2 + 1, LARGE_SHARDS)
    order = order_over(counts, lanes_in(LARGE_WINDOW, LARGE_WORKERS), 0)
    place = 2 * order.rows + order.rows // 3
    position = position_in(Mixture((order,)), place, {"broken shard": 1_234, "corrupt image": 56_789})
    seconds = {
        "write it to a checkpoint": lambda: saved_bytes(position),
        "find it: the order of its epoch": lambda: order_over(
            counts, lanes_in(LARGE_WINDOW, LARGE_WORKERS), 0
        ).epoch(2),
        "find it: a worker's first window": lambda: next(windows_from(order, place, 5, LARGE_WORKERS)),
        f"make a window of {LARGE_WINDOW:,}": lambda: order.epoch(2).window(1_000),
    }
    rows = [["position", "bytes", "seconds"]]
    rows += [[name, "", f"{least_seconds(compute):.4f}"] for name, compute in seconds.items()]
    rows[1][1] = f"{saved_bytes(position):,}"
    return rows


def least_seconds(compute: Callable[[], object]) -> float:
    """Return the seconds that a call takes where nothing else is in its way."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        compute()
        found.append(time.perf_counter() - began)
    return min(found)


def saved_bytes(position: DataPosition) -> int:
    """Return the bytes that a position takes in a checkpoint."""
    file = io.BytesIO()
    torch.save(to_plain(position), file)
    return file.tell()


@dataclass(frozen=True)
class Sorted:
    """Shards of equal size, whose rows belong to groups: stretches of neighbouring rows of equal length."""

    name: str
    shards: int
    rows: int
    """Rows of a shard."""
    group: int
    """Rows of a group."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.shards * self.rows // self.group

    def drawn(self, workers: int) -> NDArray[np.int64]:
        """Return the group of each sample of one worker's batches, int64 [steps, BATCH // workers]."""
        mixture = mixture_of([np.full(self.shards, self.rows)], (), WINDOW, 0, workers)
        planned = WorkerShare(mixture, BATCH, 0, workers).windows_from(0)
        windows = takewhile(lambda window: window.epoch == 0, planned)
        group = np.concatenate([window.shard * self.rows + window.row for window in windows]) // self.group
        steps = self.shards * self.rows // BATCH
        return group[: steps * BATCH // workers].reshape(steps, -1)


DATA = (
    *(
        Sorted(f"shards: {shards:,} of {rows:,}", shards, rows, rows)
        for shards, rows in ((8, 10_000), (40, 10_000), (1_000, 1_000), (1_000, 1_008))
    ),
    Sorted("classes: 1,000 of 1,280 neighbours, in shards of 1,000", 1_280, 1_000, 1_280),
)
"""Data sets whose mixing is measured, the last as large as ImageNet and sorted by class."""


def mixing_table() -> list[list[str]]:
    """Build the table of how well shards and classes mix in batches, and how well in a perfect shuffle."""
    heads = [f"in the {BATCH // each} of one of {each} workers" for each in SHARING[1:]]
    rows = [["data", "pairs of one, against chance", f"different in a batch of {BATCH}", *heads]]
    for data in DATA:
        cells = []
        for workers in SHARING:
            groups = different(data.drawn(workers))
            cells.append(f"{groups:.1f} (perfect {expected_different(data, BATCH // workers):.1f})")
        rows.append([data.name, f"{pairs_against_chance(data):.2f}", *cells])
    return rows


def different(batches: NDArray[np.int64]) -> float:
    """Return the number of different values in a row, the mean over all rows."""
    return float((np.diff(np.sort(batches, axis=1), axis=1) > 0).sum(axis=1).mean()) + 1


def expected_different(data: Sorted, batch: int) -> float:
    """Return the expected number of groups in a batch that is drawn from all rows without replacement."""
    total, drawn = data.groups * data.group, np.arange(batch)
    return data.groups * (1 - float(np.prod((total - data.group - drawn) / (total - drawn))))


def pairs_against_chance(data: Sorted) -> float:
    """Return how often two samples of a batch are of one group, relative to a perfect shuffle."""
    batches = data.drawn(workers=1)
    counts = [np.unique(batch, return_counts=True)[1] for batch in batches]
    same = np.mean([(count * (count - 1)).sum() for count in counts]) / (BATCH * (BATCH - 1))
    return float(same) / ((data.group - 1) / (data.groups * data.group - 1))


if __name__ == "__main__":
    main()
