"""Real images end to end: ingest over loopback, a teacher from captions, a student from images alone.

python benchmarks/emoji.py --emoji FOLDER --out DIR

FOLDER holds pairs.parquet (path, label, hexcode, tags, group, subgroup, split) and its images.
Every stage is the public command, run as a user would; the table gives scores, speed and wall time.
A stage with a result in DIR is not run again.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

from beamclip.commands.console import percent, table
from beamclip.corpus.serve import serve_folder
from beamclip.summary import SUMMARY_FILE, Summary, read_summary

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
SPLITS = ("train", "test")


def main() -> None:
    """Run the stages and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=Path, required=True, help="folder with pairs.parquet and images/")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"), help="where everything is written")
    parser.add_argument("--teacher", choices=TEACHERS, default="clip", help="how the teacher is made")
    parser.add_argument("--seed", type=int, default=0, help="seed of teacher and student")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pairs = pd.read_parquet(arguments.emoji / "pairs.parquet")
    classes = write_classes(pairs, out / "classes.yaml")
    for split in SPLITS:
        ingest(pairs[pairs["split"] == split], arguments.emoji, split, out)
    scored = [
        "--eval-data",
        out / "test",
        "--label-column",
        "hexcode",
        "--classes",
        classes,
        "--templates",
        "name",
    ]
    seeded = ["--seed", arguments.seed]
    made = f"{arguments.teacher}-{arguments.seed}"
    teacher, student = out / f"teacher-{made}", out / f"student-{made}"
    run("pretrain", teacher, *TEACHERS[arguments.teacher], "--data", out / "train", *scored, *seeded)
    run("distill", student, *STUDENT, "--data", out / "train", "--teacher", teacher, *scored, *seeded)
    rows = [["stage", "top-1", "top-5", "images", "img/s", "wall s"]]
    for name in (*SPLITS, teacher.name, student.name):
        rows.append(row(name, read_summary(out / name)))
    table(rows)
    metrics = read_summary(student).metrics
    print(f"the student keeps {percent(metrics.get('retained_top1') or 0.0)} of its teacher's top-1")


TEACHERS = {
    "clip": ("--model", "tiny-resnet18", "--epochs", 24, "--batch-size", 256, "--lr", 1e-3),
    "psd": (
        "--model", "nano-resnet10t", "--objective", "psd", "--epochs", 20, "--batch-size", 128, "--lr", 1e-3,
    ),
    "msclip-s": ("--model", "tiny-msclip-s", "--epochs", 20, "--batch-size", 128, "--lr", 1e-3),
}  # fmt: skip
STUDENT = ("--student", "resnet10t", "--epochs", 20, "--batch-size", 64, "--lr", 2e-3)


def write_classes(pairs: pd.DataFrame, path: Path) -> Path:
    """Write the class list: every emoji once, with its place in the Unicode taxonomy and its keywords."""
    first = pairs.drop_duplicates("hexcode").sort_values("hexcode")
    entries = [
        {
            "id": item.hexcode,
            "name": item.label,
            "parents": [item.subgroup.replace("-", " "), item.group.replace("-", " ")],
            "contexts": [str(tag) for tag in item.tags],
        }
        for item in first.itertuples()
    ]
    path.write_text(yaml.safe_dump(entries, allow_unicode=True, sort_keys=False))
    return path


def ingest(pairs: pd.DataFrame, emoji: Path, split: str, out: Path) -> None:
    """Serve the images on loopback and ingest one split, unless its shards are there."""
    shards = out / split
    if (shards / SUMMARY_FILE).exists():
        return
    urls = out / f"{split}-urls.parquet"
    with serve_folder(emoji) as address:
        listed = pairs.assign(url=address + "/" + pairs["path"], caption=pairs["label"])
        listed[["url", "caption", "hexcode"]].to_parquet(urls)
        call(
            "ingest",
            "--urls",
            urls,
            "--keep-columns",
            "hexcode",
            "--encode-format",
            "png",
            "--shard-size",
            500,
            "--resize-mode",
            "no",
            "--allow-private-hosts",
            "--out",
            shards,
        )


def run(pipeline: str, out: Path, *flags: object) -> None:
    """Run a training command, unless its result is there."""
    if not (out / SUMMARY_FILE).exists():
        call(pipeline, *flags, "--out", out)


def call(pipeline: str, *flags: object) -> None:
    """Run one public command, with its output, and print its wall time."""
    command = [sys.executable, str(PIPELINES / f"{pipeline}.py"), *map(str, flags)]
    print("$", " ".join(["python", f"pipelines/{pipeline}.py", *command[2:]]), flush=True)
    began = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


def row(name: str, summary: Summary) -> list[str]:
    """Build one row of the table."""
    scores = [summary.metrics.get(key) for key in ("zeroshot_top1", "zeroshot_top5")]
    shown = [percent(score) if score is not None else "" for score in scores]
    speed = f"{summary.images_per_second or 0:,.0f}"
    return [name, *shown, f"{summary.images:,}", speed, f"{summary.wall_seconds:.0f}"]


if __name__ == "__main__":
    main()
