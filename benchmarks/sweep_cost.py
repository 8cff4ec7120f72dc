"""What a sweep costs, against one live distillation for each of its settings.

python benchmarks/sweep_cost.py --data SHARDS --teacher T --classes FILE --eval-data LABELLED --out DIR
    [--vary OPTION=VALUE,VALUE ...] [-- any other options of a distillation]

Whole commands are timed as a user runs them: the sweep, which builds the teacher cache first, and
pipelines/distill.py once for each combination, with the teacher in its loop. All train for the same number
of steps; no trial is stopped early. Their scores are compared too.
"""

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from support.reports import circumstances

from beamclip.commands.console import percent, table
from beamclip.summary import read_summary

ROOT = Path(__file__).resolve().parents[1]
VARIED = ("tau_teacher=0.01,0.02,0.04", "tau_student=0.05,0.1", "num_contexts=0,1")


def main() -> None:
    """Time all commands and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="shards")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--classes", required=True, help="class list")
    parser.add_argument("--eval-data", required=True, help="labelled shards")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep_cost"), help="folder for all output")
    parser.add_argument("--vary", nargs="+", default=VARIED, help="as tune/sweep.py takes it")
    parser.add_argument("--live", type=int, help="live trainings to run, evenly spaced; by default all")
    parser.add_argument("rest", nargs="*", help="after --: any other options of a distillation")
    arguments = parser.parse_args()
    common = [
        *("--data", arguments.data, "--teacher", arguments.teacher, "--classes", arguments.classes),
        *("--eval-data", arguments.eval_data, *arguments.rest),
    ]
    out: Path = arguments.out
    sweep = out / "sweep"
    sweep_seconds = timed(
        "tune/sweep.py", *common, "--vary", *arguments.vary, "--grid", "--no-asha", "--out", sweep
    )
    settings = list(combinations(arguments.vary))
    chosen = settings[:: max(1, len(settings) // (arguments.live or len(settings)))]
    live = []
    for number, setting in enumerate(chosen):
        flags = [word for name, value in setting.items() for word in (f"--{name.replace('_', '-')}", value)]
        live.append(timed("pipelines/distill.py", *common, *flags, "--out", out / f"live-{number:03d}"))
    report(out, sweep, sweep_seconds, chosen, live, len(settings))


def combinations(vary: list[str]) -> list[dict[str, str]]:
    """Return every combination of the values, as option -> text."""
    options = [text.partition("=") for text in vary]
    values = [written.split(",") for _, _, written in options]
    names = [name for name, _, _ in options]
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]


def timed(program: str, *words: object) -> float:
    """Run a command and return its wall seconds, start and end included."""
    print("$ python", program, *words, flush=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / program), *map(str, words)], check=True)
    return time.perf_counter() - began


def report(
    out: Path, sweep: Path, sweep_seconds: float, chosen: list[dict[str, str]], live: list[float], count: int
) -> None:
    """Print times and scores, and write the times to a file in `out`."""
    with (sweep / "trials.csv").open(newline="", encoding="utf-8") as file:
        trials = list(csv.DictReader(file))
    rows = [["setting", "live, s", "live top-1", "trial top-1"]]
    for number, setting in enumerate(chosen):
        score = read_summary(out / f"live-{number:03d}").metrics["zeroshot_top1"] or 0.0
        own = [t for t in trials if all(float(t[name]) == float(value) for name, value in setting.items())]
        trial = percent(float(own[0]["zeroshot_top1"])) if own else "as another"
        rows.append([" ".join(setting.values()), f"{live[number]:.0f}", percent(score), trial])
    table(rows)
    # Trainings that were not run are taken to cost the mean of the others.
    total = statistics.mean(live) * count
    figures = {
        "trials": len(trials),
        "sweep_seconds": sweep_seconds,
        "live_seconds": live,
        "live_total_seconds": total,
        "ratio": sweep_seconds / total,
    }
    (out / "sweep_cost.json").write_text(json.dumps(figures, indent=1))
    print(f"\nsweep of {len(trials)} trials, cache included: {sweep_seconds:.0f} s")
    print(f"{len(live)} live trainings: {statistics.mean(live):.0f} s each; {count} of them: {total:.0f} s")
    print(f"ratio: {figures['ratio']:.2f}")
    print(circumstances("python benchmarks/sweep_cost.py ..."))


if __name__ == "__main__":
    main()
