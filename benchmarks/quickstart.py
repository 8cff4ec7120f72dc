"""Whether the quickstart succeeds every time: fresh runs of several seeds, and of one seed several times.

python benchmarks/quickstart.py [--seeds 0 1 2 3 4] [--repeats 5]

Each run is a process of its own with an empty folder: drawings, downloads, teacher, student, scores. Repeats
take the first seed, and must agree in every figure but the times. The table and the JSON file have top-1 of
teacher and student on the unseen styles, and what each run took.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from beamclip.commands.console import percent, table
from beamclip.files import write_whole
from beamclip.summary import Summary, library_versions, read_summary

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """What a run of the quickstart came to."""

    seed: int
    teacher_top1: float
    student_top1: float
    retained_top1: float
    """The student's top-1 over the teacher's."""
    loss: float
    """Last loss of the student, by which runs of one seed are compared to the last digit."""
    seconds: float
    """From the command to the prompt."""
    cpu_seconds: float
    """Of the command and all processes that it waited for."""


def main() -> None:
    """Run all of it, one after the other, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--repeats", type=int, default=5, help="runs of the first seed, the first included")
    parser.add_argument("--json", type=Path, default=ROOT / "docs/benchmarks/quickstart.json")
    options = parser.parse_args()
    outcomes = []
    for seed in [*options.seeds, *[options.seeds[0]] * (options.repeats - 1)]:
        outcomes.append(run_quickstart(seed))
        write_outcomes(outcomes, options.json)
    show(outcomes)
    same = {(each.loss, each.teacher_top1) for each in outcomes if each.seed == options.seeds[0]}
    print(f"runs of seed {options.seeds[0]}: {'equal' if len(same) == 1 else f'{len(same)} different ones'}")


def run_quickstart(seed: int) -> Outcome:
    """Run the quickstart of a seed in an empty folder, and return its outcome."""
    with tempfile.TemporaryDirectory(prefix="quickstart-") as folder:
        command = [sys.executable, "-m", "beamclip", "quickstart", "--seed", str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        before, began = _cpu_seconds(), time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        student = _summary(Path(folder), "student")
        figures = {name: value or 0.0 for name, value in student.metrics.items()}
        return Outcome(
            seed,
            figures["teacher_zeroshot_top1"],
            figures["zeroshot_top1"],
            figures["retained_top1"],
            figures["loss"],
            round(seconds, 1),
            round(_cpu_seconds() - before, 1),
        )


def write_outcomes(outcomes: list[Outcome], path: Path) -> None:
    """Write the figures so far: a run takes minutes, and the next one may fail."""
    runs = [asdict(outcome) for outcome in outcomes]
    content = {"versions": library_versions(), "cpus": os.cpu_count(), "runs": runs}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def show(outcomes: list[Outcome]) -> None:
    """Print a line for each outcome."""
    rows = [["seed", "teacher", "student", "retained", "loss", "seconds", "CPU s"]]
    for each in outcomes:
        shares = (each.teacher_top1, each.student_top1, each.retained_top1)
        times = (each.seconds, each.cpu_seconds)
        rows.append(
            [str(each.seed), *map(percent, shares), f"{each.loss:.6f}", *(f"{value:.0f}" for value in times)]
        )
    table(rows)


def _summary(folder: Path, name: str) -> Summary:
    (run,) = (folder / "runs").glob(f"quickstart-{name}-*")
    return read_summary(run)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
