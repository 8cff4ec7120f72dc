"""Peak memory of ingest, embedding, training and evaluation on images made to exhaust it.

python benchmarks/image_bombs.py [--copies 2] [--largest]

Each command gets the same files: small ones that would decode to gigabytes or take minutes, hostile metadata,
and a few ordinary images; with --largest also the largest images that are accepted, for which a process may
take image_limits.DECODING_BYTES more. The table has each command's wall time, its counts, and the highest
resident memory of any of its processes. --copies 0 shows what the commands take by themselves. Linux only.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from support.image_bombs import refused, survived

from beamclip.commands.console import table
from beamclip.corpus.serve import serve_folder
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import new_clip

ROOT = Path(__file__).parents[1]
ORDINARY = 16
TARGET = 1.5e9
"""Most resident bytes that one process may hold."""


@dataclass(frozen=True)
class Outcome:
    """Time and memory of a command, and its counts."""

    exit_code: int
    seconds: float
    peak_bytes: int
    """Highest resident memory of any one process."""
    counts: dict[str, Any]


def main() -> None:
    """Make the files, run the four commands on them, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=2, help="copies of each file")
    parser.add_argument("--largest", action="store_true", help="add the largest images that are decoded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pictures = make_pictures(options.copies, largest=options.largest)
        commands = make_inputs(out, pictures)
        outcomes = {}
        with serve_folder(out / "val") as address:
            urls = [f"{address}/thing/{name}" for name in pictures]
            pq.write_table(pa.table({"url": urls, "caption": ["thing"] * len(urls)}), out / "urls.parquet")
            for name, flags in commands.items():
                outcomes[name] = run([sys.executable, str(ROOT / f"pipelines/{name}.py"), *flags], out / name)
    rows = [
        [
            name,
            str(each.exit_code),
            f"{each.seconds:.0f} s",
            f"{each.peak_bytes / 1e6:,.0f} MB",
            str(each.counts),
        ]
        for name, each in outcomes.items()
    ]
    table([["command", "exit", "wall", "peak of a process", "counts"], *rows])
    if any(each.peak_bytes > TARGET or each.exit_code for each in outcomes.values()):
        sys.exit(f"a command failed, or a process held more than {TARGET / 1e9:g} GB")


def make_pictures(copies: int, *, largest: bool) -> dict[str, bytes]:
    """Return all files by name: bombs, costly images, and ordinary ones."""
    made = {name: data for name, (data, _) in refused().items()}
    made |= {name: data for name, data in survived().items() if largest or not name.startswith("largest")}
    pictures = {f"{copy}-{name}": data for copy in range(copies) for name, data in made.items()}
    rng = np.random.default_rng(0)
    for number in range(ORDINARY):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
        pictures[f"ordinary-{number}.jpg"] = file.getvalue()
    return pictures


def make_inputs(out: Path, pictures: dict[str, bytes]) -> dict[str, list[str]]:
    """Write shards, class folders, class list and a model; return each command's flags, in running order."""
    for folder in ("val/thing", "shards"):
        (out / folder).mkdir(parents=True)
    with tarfile.open(out / "shards/00000.tar", "w") as tar:
        for number, (name, data) in enumerate(pictures.items()):
            (out / "val/thing" / name).write_bytes(data)
            for suffix, content in (("png", data), ("txt", b"thing")):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (out / "shards/00000_stats.json").write_text(json.dumps({"successes": len(pictures)}))
    (out / "classes.txt").write_text("thing\nother\n")
    write_open_clip_dir(new_clip("nano-resnet10t", seed=0), out / "model")
    model, shards, classes = str(out / "model"), str(out / "shards"), str(out / "classes.txt")
    scored = ["--eval-data", str(out / "val")]
    train = ["--steps", "8", "--batch-size", "8", "--decode-threads", "8", *scored]
    return {
        "ingest": ["--urls", str(out / "urls.parquet"), "--allow-private-hosts", "--image-size", "64"],
        "embed": ["--data", shards, "--teacher", model],
        "distill": ["--data", shards, "--teacher", model, "--classes", classes, *train],
        "evaluate": ["--model", model, "--data", str(out / "val"), "--classes", classes],
    }


def run(command: list[str], out: Path) -> Outcome:
    """Run a command to its end, watching the memory of each of its processes."""
    began, peaks = time.monotonic(), dict[int, int]()
    with open(f"{out}.log", "wb") as log:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                members = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(True))]
            except psutil.NoSuchProcess:
                break
            for member in members:
                peaks[member] = max(peaks.get(member, 0), peak_of(member))
            time.sleep(0.1)
    summary = out / "summary.json"
    counts = json.loads(summary.read_text()) if summary.exists() else {}
    if process.wait():
        print(Path(f"{out}.log").read_text()[-2000:])
    kept = {name: value for name, value in counts.get("counts", {}).items() if value}
    return Outcome(process.returncode, time.monotonic() - began, max(peaks.values()), kept)


def peak_of(pid: int) -> int:
    """Return the highest resident memory that a process has had, bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
