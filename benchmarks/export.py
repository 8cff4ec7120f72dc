"""What each export costs and keeps: difference from PyTorch, top-1, images/s on the CPU, size on disk.

python benchmarks/export.py --model RUN --teacher RUN --data LABELLED --label-column hexcode --classes FILE

All formats are made by `beamclip export` first. Then each takes the same images in turn, for several rounds,
so that other work on the machine meets all of them. Times begin with uint8 pixels (MLflow: with PNG files,
sent to its server as base64) and end with embeddings or probabilities (timm: the backbone's features).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from support.export_runners import Runner, labelled_pixels, runners
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.commands.main import main as beamclip
from beamclip.models.clip import load_clip
from beamclip.prompts.classes import load_classes
from beamclip.summary import SUMMARY_FILE, library_versions

BATCHES = (1, 32)


def main() -> None:
    """Export, measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="run or directory of the student")
    parser.add_argument("--teacher", required=True, help="run or address of the teacher, to compare speeds")
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("--calibration-data", required=True, help="images for int8, not those of --data")
    parser.add_argument("--exports", type=Path, default=Path("runs/exports"), help="made where missing")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--classes", type=Path, required=True)
    parser.add_argument("--templates", nargs="+", default=["name"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7, help="for each format, batch size and round")
    parser.add_argument("--without-serving", action="store_true", help="do not start mlflow models serve")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks/export.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _export(options, options.exports)
    with runners(options, options.exports) as made:
        figures = _measure(options, made)
    _show(figures)
    where = circumstances(f"python benchmarks/export.py --threads {options.threads}").splitlines()
    result = {
        "circumstances": [line.removeprefix("- ") for line in where],
        "versions": library_versions(),
        "figures": figures,
    }
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(result, indent=2) + "\n")
    print(f"results written to {options.report}")


def _export(options: argparse.Namespace, folder: Path) -> None:
    prompts = ["--classes", str(options.classes), "--templates", *options.templates]
    int8 = ["--precision", "int8", "--calibration-data", options.calibration_data]
    for name, words in {
        "open_clip": ["--format", "open_clip"],
        "timm": ["--format", "timm"],
        "torch": ["--format", "torch", *prompts],
        "onnx": ["--format", "onnx", *prompts],
        "onnx-int8": ["--format", "onnx", *prompts, *int8],
        "mlflow": ["--format", "mlflow", *prompts],
    }.items():
        if _is_of(folder / name, options.model):
            continue
        given = ["--model", options.model, "--out", str(folder / name), "--check-data", options.data]
        if beamclip(["export", *given, *words]):
            raise SystemExit(f"the export {name} failed")


def _is_of(folder: Path, model: str) -> bool:
    """Whether an export is there and was made of this model."""
    summary = folder / SUMMARY_FILE
    return summary.is_file() and json.loads(summary.read_text())["stages"]["model"] == model


def _measure(options: argparse.Namespace, made: dict[str, Runner]) -> dict[str, dict[str, float | None]]:
    clip = load_clip(options.model)
    ids = [entry.id for entry in load_classes(options.classes)]
    pixels, labels = labelled_pixels(clip, options.data, ids, options.label_column)
    figures: dict[str, dict[str, float | None]] = {}
    for name, runner in made.items():
        figures[name] = {"megabytes": runner.megabytes, **runner.quality(pixels, labels)}
        print(f"{name}: {figures[name]}", flush=True)
    for batch in BATCHES:
        speeds: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(options.rounds + 1):
            for name, runner in made.items():
                speed = _speed(runner.timed(pixels[:batch]), batch, options.seconds)
                if turn:  # the first round warms up
                    speeds[name].append(speed)
        for name, own in speeds.items():
            pairs = zip(own, speeds["PyTorch"], strict=True)
            figures[name][f"images_per_second_{batch}"] = statistics.median(own)
            figures[name][f"times_pytorch_{batch}"] = statistics.median(a / b for a, b in pairs)
    return figures


def _speed(run: Callable[[], object], images: int, seconds: float) -> float:
    began, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds or not done:
        run()
        done += images
    return done / taken


def _show(figures: dict[str, dict[str, float | None]]) -> None:
    columns = {
        "difference": "{:.1e}",
        "top1": "{:.4f}",
        "megabytes": "{:.1f}",
        **{f"images_per_second_{batch}": "{:,.0f}" for batch in BATCHES},
        **{f"times_pytorch_{batch}": "{:.2f}" for batch in BATCHES},
    }
    rows = [["export", *columns]]
    for name, own in figures.items():
        shown = (own.get(column) for column in columns)
        cells = [
            "" if value is None else form.format(value)
            for form, value in zip(columns.values(), shown, strict=True)
        ]
        rows.append([name, *cells])
    table(rows)


if __name__ == "__main__":
    main()
