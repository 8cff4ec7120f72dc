"""Runs that are interrupted again and again, and the proof that they saw what undisturbed ones see."""

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from beamclip.training.checkpoint import find_checkpoint

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 180.0

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
"""Two towers that start in no time; an interruption costs the same whatever it interrupts."""

Kind = Literal["worker killed", "driver killed", "Ctrl-C", "SIGTERM"]
KINDS: tuple[Kind, ...] = ("worker killed", "driver killed", "Ctrl-C", "SIGTERM")


@dataclass(frozen=True)
class Data:
    """Shards on disk, and what is wrong with them."""

    folder: Path
    keys: list[list[str]]
    """Of each shard, those of its usable samples in their places; an empty one where a sample is damaged."""
    damage: dict[str, int]


@dataclass(frozen=True)
class Run:
    """What is trained, and where."""

    data: Data
    out: Path
    steps: int
    seed: int = 0
    batch_size: int = 24


@dataclass(frozen=True)
class Interruption:
    """What happens to a run, and when."""

    kind: Kind
    after_seconds: float
    """Since the first step of this start."""
    victim: int = 0
    """Which of its workers is killed, modulo their number."""
    then_workers: int = 1
    """With how many workers a run goes on whose command has ended."""


@dataclass(frozen=True)
class Lost:
    """What an interruption cost."""

    kind: Kind
    workers: int
    step: int
    """The last step before it that was recorded."""
    seconds: float
    """Until the run was as far as before; the command was started again at once."""


@dataclass(frozen=True)
class Accounts:
    """A run's samples against what the data and its final position say."""

    seen: int
    skipped: int
    """Samples that should have been seen and were not."""
    doubled: int
    """Times that a sample was seen again in the same epoch."""
    foreign: int
    """Samples that should not have been seen yet."""
    lost: dict[str, int]
    """Samples that could not be used, as the run counted them."""


def draw_shards(folder: Path, sizes: list[int], seed: int = 0) -> Data:
    """Shards of noisy pictures with captions; some images are damaged, and the second tar is cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    keys: list[list[str]] = []
    damage: Counter[str] = Counter()
    for shard, samples in enumerate(sizes):
        path = folder / f"{shard:05d}.tar"
        ends, found = list[int](), list[str]()
        with tarfile.open(path, "w") as tar:
            for row in range(samples):
                corrupt = generator.random() < 0.01
                found.append("" if corrupt else f"{shard:05d}{row:05d}")
                damage["corrupt image"] += corrupt
                _add(tar, f"{shard:05d}{row:05d}.png", b"no image" if corrupt else _noise(generator))
                _add(tar, f"{shard:05d}{row:05d}.txt", f"picture {row} of {shard}".encode())
                ends.append(tar.offset)
        if shard == 1:
            whole = samples * 9 // 10
            path.write_bytes(path.read_bytes()[: ends[whole - 1] + 700])
            damage["corrupt image"] -= found[whole:].count("")
            damage["broken shard"] += samples - whole
            found[whole:] = [""] * (samples - whole)
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": samples}))
        keys.append(found)
    return Data(folder, keys, {reason: count for reason, count in sorted(damage.items()) if count})


def _noise(generator: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def train(run: Run, workers: int, interruptions: Iterator[Interruption] = iter(())) -> list[Lost]:
    """Train to the end by the public command, whatever comes in between.

    Raises:
        RuntimeError: the command ended otherwise than it should.
    """
    lost: list[Lost] = []
    while True:
        process = _start(run, workers)
        try:
            ended = _live_through(run, process, workers, interruptions, lost)
        finally:
            _end(process)
        if ended is None:
            return lost
        workers = ended.then_workers


def _start(run: Run, workers: int) -> subprocess.Popen[str]:
    model = run.out.parent / "model.json"
    model.write_text(json.dumps(MODEL))
    resume = (run.out / "checkpoints").exists() and find_checkpoint(str(run.out / "checkpoints")).manifest
    if resume:
        options = ["--resume", str(run.out)]
    else:
        options = ["--data", run.data.folder, "--model", model, "--out", run.out]
    command = [
        sys.executable, ROOT / "pipelines" / "pretrain.py", *options,
        "--steps", run.steps, "--batch-size", run.batch_size, "--seed", run.seed,
        "--num-workers", workers, "--cpus-per-worker", 0.5, "--threads-per-worker", 1,
        "--log-every", 1, "--checkpoint-every", 20, "--shuffle-buffer", 100, "--trace-samples",
        "--max-failures", 100, "--no-system-metrics",
    ]  # fmt: skip
    log = (run.out.parent / f"{run.out.name}.log").open("a")
    return subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, text=True, cwd=ROOT)
