"""Record which samples each optimiser step saw, on every rank: one file for each start of each worker.

A restart undoes the steps after the last whole checkpoint. `read_trace` leaves those out: for every step it
returns the samples that the surviving weights were trained on.
"""

import json
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TextIO

from beamclip.data.batch import Batch
from beamclip.json_lines import read_json_lines


@dataclass(frozen=True)
class Seen:
    """One sample in one step."""

    rank: int
    epoch: int
    """Pass over the data in which the sample was seen."""
    key: str


class Trace:
    """Writes the samples that one worker sees from one start to the next to a file."""

    def __init__(self, folder: Path, *, started: int, first_step: int, rank: int, world_size: int) -> None:
        """Open a new file.

        Args:
            folder: folder of the whole run's trace; made if missing.
            started: time in nanoseconds, which identifies and orders starts; the same on all ranks.
            first_step: number of steps that the weights have been trained for at this start.
        """
        path = folder / f"{started:020d}" / f"rank={rank:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("w")
        self._write({"first_step": first_step, "rank": rank, "world_size": world_size})

    def record(self, step: int, batches: list[Batch]) -> None:
        """Note the samples of a step, which counts from 1, and their places in its global batch."""
        seen = [pair for batch in batches for pair in zip(batch.epochs, batch.keys, strict=True)]
        runs = groupby(seen, key=itemgetter(0))
        places = [number for batch in batches for number in batch.numbers[batch.weights > 0].tolist()]
        keys = [[epoch, [key for _, key in run]] for epoch, run in runs]
        self._write({"step": step, "places": places, "keys": keys})

    def _write(self, line: dict[str, object]) -> None:
        # A worker may be killed at any time; what the operating system has received outlives it.
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; nothing can be recorded after that."""
        self._file.close()


def read_trace(folder: Path) -> dict[int, list[Seen]]:
    """Return, for each step, the samples that led to the final weights of the run, in the batch's order."""
    steps: dict[int, dict[int, Seen]] = {}
    for start in sorted(path for path in folder.iterdir() if path.is_dir()):
        for file in sorted(start.iterdir()):
            lines = read_json_lines(file)
            if not lines:
                continue
            header = lines[0]
            if header["rank"] == 0:
                steps = {step: seen for step, seen in steps.items() if step <= header["first_step"]}
            for line in lines[1:]:
                seen = [Seen(header["rank"], epoch, key) for epoch, keys in line["keys"] for key in keys]
                steps.setdefault(line["step"], {}).update(zip(line["places"], seen, strict=True))
    return {step: [seen[place] for place in sorted(seen)] for step, seen in steps.items()}
