"""Where the seconds of a short distillation go, from the command to the prompt.

python benchmarks/startup.py [--rounds 3]

A toy distillation (16 noise images, tiny networks, 24 steps) runs with one Ray worker and with
--num-workers 0, in turn, as a user types it. Times are taken when its lines arrive; the table has the median
over the rounds of each part, in seconds.
"""

import argparse
import io
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from beamclip.commands.console import table
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import new_clip

STEPS = 24
IMAGES = 16
MOMENTS = {
    "inputs loaded": "shards",
    "anchors encoded": "anchors",
    "workers asked for": "training",
    "first step": "step 1/",
    "last step": f"step {STEPS}/{STEPS}",
    "scored": "scored",
}
"""Moments of a run, each with the beginning of the line that shows it."""


def main() -> None:
    """Time both kinds of run in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    times: dict[int, list[dict[str, float]]] = {1: [], 0: []}
    with tempfile.TemporaryDirectory() as folder:
        flags = make_inputs(Path(folder))
        for number in range(rounds):
            for workers, taken in times.items():
                out = Path(folder, f"run-{workers}-{number}")
                taken.append(arrivals([*flags, "--num-workers", str(workers), "--out", str(out)]))
    columns = {f"--num-workers {workers}": parts(taken) for workers, taken in times.items()}
    names = list(columns["--num-workers 1"])
    rows = [[name, *(f"{column[name]:.1f}" for column in columns.values())] for name in names]
    table([["from the line before to", *columns], *rows])


def make_inputs(folder: Path) -> list[str]:
    """Write a shard, class folders, a class list and a teacher; return the flags of the distillation."""
    rng = np.random.default_rng(0)
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/00000.tar", "w") as tar:
        for number in range(IMAGES):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
            labelled = folder / "val" / f"class{number % 2}" / f"{number}.png"
            labelled.parent.mkdir(parents=True, exist_ok=True)
            labelled.write_bytes(file.getvalue())
            member = tarfile.TarInfo(f"{number:09d}.png")
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    (folder / "shards/00000_stats.json").write_text(f'{{"successes": {IMAGES}}}')
    (folder / "classes.txt").write_text("class0\nclass1\n")
    write_open_clip_dir(new_clip("nano-resnet10t", seed=0), folder / "teacher")
    return [
        *("--data", str(folder / "shards"), "--teacher", str(folder / "teacher")),
        *("--student", "resnet10t", "--classes", str(folder / "classes.txt")),
        *("--eval-data", str(folder / "val"), "--steps", str(STEPS), "--batch-size", "8"),
        *("--log-every", "1"),
    ]


def arrivals(flags: list[str]) -> dict[str, float]:
    """Return the seconds from the start of a distillation to each of MOMENTS, and to the prompt."""
    began = time.monotonic()
    found: dict[str, float] = {}
    # `script` makes it a terminal, where every step prints a line; a pipe gets one only now and then.
    with subprocess.Popen(
        [
            "script",
            "-qec",
            shlex.join([sys.executable, "-m", "beamclip", "distill", *flags]),
            "/dev/null",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        rest = ""
        while chunk := process.stdout.read1(65536):  # type: ignore[attr-defined]
            now = time.monotonic() - began
            *lines, rest = (rest + chunk.decode()).replace("\x1b[2K", "\n").replace("\r", "\n").split("\n")
            for line in [*lines, rest]:
                for moment, start in MOMENTS.items():
                    if line.startswith(start):
                        found.setdefault(moment, now)
    if process.returncode:
        raise RuntimeError(f"the distillation ended with exit code {process.returncode}: {flags}")
    return {**found, "prompt": time.monotonic() - began}


def parts(taken: list[dict[str, float]]) -> dict[str, float]:
    """Return the median seconds between neighbouring moments, and of longer spans up to the whole command."""
    spans = [
        dict(zip(times, (b - a for a, b in pairwise([0.0, *times.values()])), strict=True)) for times in taken
    ]
    medians = {name: statistics.median(span[name] for span in spans) for name in spans[0]}
    whole = {
        "command to first step": [times["first step"] for times in taken],
        "last step to prompt": [times["prompt"] - times["last step"] for times in taken],
        "command to prompt": [times["prompt"] for times in taken],
    }
    return medians | {name: statistics.median(values) for name, values in whole.items()}


if __name__ == "__main__":
    main()
