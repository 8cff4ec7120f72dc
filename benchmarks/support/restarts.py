"""Interrupt runs again and again, and check that they saw the samples that uninterrupted ones see."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from PIL import Image

from beamclip.data.order import Order, windows_from
from beamclip.data.position import DataPosition, from_plain
from beamclip.json_lines import read_json_lines
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.checkpoint_store import find_checkpoint
from beamclip.training.trace import read_trace

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 180.0
CHECKPOINT_EVERY = 20
"""Steps between the checkpoints of a run."""

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
"""Two tiny towers that start at once; the cost of an interruption does not depend on the model."""

Kind = Literal["worker killed", "driver killed", "Ctrl-C", "SIGTERM", "node added", "node lost"]
KINDS: tuple[Kind, ...] = ("worker killed", "driver killed", "Ctrl-C", "SIGTERM")
"""What happens at random; nodes are added and lost in elastic runs (support.elastic)."""
NODE_KINDS: tuple[Kind, ...] = ("node added", "node lost")


@dataclass(frozen=True)
class Data:
    """Shards on disk, and what is wrong with them."""

    folder: Path
    keys: list[list[str]]
    """Keys of the samples of each shard, in their order; empty for a damaged sample."""
    damage: dict[str, int]
    """Number of damaged samples by reason."""


@dataclass(frozen=True)
class Run:
    """What is trained, and where."""

    data: Data
    out: Path
    steps: int
    seed: int = 0
    batch_size: int = 24
    window: int = 1024
    """Samples that are shuffled among each other: lanes for seven workers."""


@dataclass(frozen=True)
class Interruption:
    """What happens to a run, and when."""

    kind: Kind
    after_seconds: float
    """Seconds since the first new step after the last start or interruption."""
    victim: int = 0
    """Which of its workers is killed, modulo their number."""
    then_workers: int = 1
    """Number of workers that the run is resumed with, if its command has ended."""


@dataclass(frozen=True)
class Lost:
    """Cost of an interruption."""

    kind: Kind
    workers: int
    step: int
    """The last step that was recorded before it."""
    seconds: float
    """Seconds until the run was past that step. A command that had ended was restarted once it was gone."""


@dataclass(frozen=True)
class Accounts:
    """The samples that a run saw, compared with what its data and its final position imply."""

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
    """Write shards of noise images with captions; some images are damaged, some captions are missing, and the
    second tar is cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    keys: list[list[str]] = []
    damage: Counter[str] = Counter()
    for shard, samples in enumerate(sizes):
        path = folder / f"{shard:05d}.tar"
        names = [f"{shard:05d}{row:05d}" for row in range(samples)]
        problems = generator.choice(["", "corrupt image", "missing caption"], samples, p=[0.96, 0.02, 0.02])
        ends = list[int]()
        with tarfile.open(path, "w") as tar:
            for name, problem in zip(names, problems, strict=True):
                corrupt = problem == "corrupt image"
                _add(tar, f"{name}.png", b"\x89PNG\r\n\x1a\n" if corrupt else _noise(generator))
                if problem != "missing caption":
                    _add(tar, f"{name}.txt", f"picture {name}".encode())
                ends.append(tar.offset)
        if shard == 1:
            whole = samples * 9 // 10
            path.write_bytes(path.read_bytes()[: ends[whole - 1] + 700])
            problems[whole:] = "broken shard"
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": samples}))
        damage.update(str(problem) for problem in problems if problem)
        keys.append(["" if problem else name for name, problem in zip(names, problems, strict=True)])
    return Data(folder, keys, dict(sorted(damage.items())))


def _noise(generator: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def train(run: Run, workers: int, interruptions: Iterator[Interruption], cpus: float = 0.5) -> list[Lost]:
    """Train to the end by the public command, through these interruptions; return the cost of each.

    Args:
        cpus: of each worker.

    Raises:
        RuntimeError: the command ended with an unexpected exit code, or got stuck.
    """
    lost: list[Lost] = []
    process, reached = start(run, workers, cpus=cpus), 0
    struck: tuple[Kind, int, float] | None = None
    try:
        while _passes(run, reached, process):
            if struck is not None:
                kind, of, since = struck
                lost.append(Lost(kind, of, reached, time.monotonic() - since))
            interruption = next(interruptions, None)
            if interruption is None or _ends_within(process, interruption.after_seconds):
                break
            struck = interruption.kind, workers, time.monotonic()
            ended = _interrupt(process, interruption)
            reached = last_step(run)
            if ended:
                workers = interruption.then_workers
                process = start(run, workers, cpus=cpus)
        expect_exit(process, 0)
    finally:
        if process.poll() is None:
            kill_all(process)
    return lost


def start(
    run: Run,
    workers: int | str,
    *,
    cpus: float = 0.5,
    launcher: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start the public command that trains a run, or resumes it.

    Args:
        workers, cpus: number of workers, or a range of it, and CPUs of each.
        launcher: what runs the command's program, with its options.
        environment: of the command; None: that of this process.
    """
    model = run.out.parent / "model.json"
    model.write_text(json.dumps(MODEL))
    resume = (run.out / "checkpoints").exists() and find_checkpoint(str(run.out / "checkpoints")).manifest
    options = ["--resume", run.out] if resume else ["--out", run.out]
    command = [
        *launcher, ROOT / "pipelines" / "pretrain.py", *options,
        "--data", run.data.folder, "--model", model, "--seed", run.seed,
        "--steps", run.steps, "--batch-size", run.batch_size,
        "--num-workers", workers, "--cpus-per-worker", cpus, "--threads-per-worker", 1,
        "--log-every", 1, "--checkpoint-every", CHECKPOINT_EVERY,
        "--shuffle-window", run.window, "--trace-samples", "--max-failures", 100, "--no-system-metrics",
    ]  # fmt: skip
    with (run.out.parent / f"{run.out.name}.log").open("a") as log:
        words = [str(word) for word in command]
        return subprocess.Popen(words, stdout=log, stderr=log, text=True, cwd=ROOT, env=environment)


def last_step(run: Run) -> int:
    """Return the last step that the run recorded; 0 before the first."""
    records = read_json_lines(run.out / "metrics.jsonl")
    return int(records[-1]["step"]) if records else 0


def _passes(run: Run, step: int, process: subprocess.Popen[str]) -> bool:
    """Wait until a run records a step after `step`; return False if its command ends before that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while last_step(run) <= step:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise RuntimeError(f"{run.out}: no step after {step} within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.05)
    return True


def _ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


def _interrupt(process: subprocess.Popen[str], interruption: Interruption) -> bool:
    """Interrupt a command; return whether that ended it."""
    if interruption.kind == "worker killed":
        victims = _train_workers(process)
        if victims:
            os.kill(victims[interruption.victim % len(victims)], signal.SIGKILL)
        # Records that it sent before still arrive, and do not show that training went on.
        time.sleep(1.0)
        return False
    if interruption.kind == "driver killed":
        kill_all(process)
    else:
        process.send_signal(signal.SIGINT if interruption.kind == "Ctrl-C" else signal.SIGTERM)
        expect_exit(process, 130)
    return True


def _train_workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the training workers below a command."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a command; its workers must end by themselves, other processes that Ray leaves are killed."""
    below = psutil.Process(process.pid).children(recursive=True)
    workers = [psutil.Process(pid) for pid in _train_workers(process)]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, PATIENCE_SECONDS)
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    if alive:
        raise RuntimeError(f"{len(alive)} workers outlived their command by {PATIENCE_SECONDS:.0f} s")


def expect_exit(process: subprocess.Popen[str], code: int, within: float = PATIENCE_SECONDS) -> None:
    """Wait until a command ends, by 0 or this exit code."""
    ended = process.wait(within)
    # A command that had finished its steps may end before the signal reaches it.
    if ended not in (code, 0):
        raise RuntimeError(f"the command ended with exit code {ended}, and {code} was expected")


def accounts(run: Run) -> Accounts:
    """Compare the samples that a finished run saw with those it should have seen, by its final position.

    Raises:
        RuntimeError: the trace lacks steps.
    """
    expected = _usable_before(from_plain(final_state(run)["position"]), run.data)
    trace = read_trace(run.out / "trace")
    if sorted(trace) != list(range(1, run.steps + 1)):
        raise RuntimeError(f"{run.out}: the trace lacks steps")
    seen = Counter((sample.epoch, sample.key) for samples in trace.values() for sample in samples)
    return Accounts(
        seen=seen.total(),
        skipped=len(expected - seen.keys()),
        doubled=sum(count - 1 for count in seen.values()),
        foreign=len(seen.keys() - expected),
        lost=json.loads((run.out / "summary.json").read_text())["counts"]["skipped"],
    )


def _usable_before(position: DataPosition, data: Data) -> set[tuple[int, str]]:
    """Return epoch and key of each usable sample that comes before a position."""
    counts = np.array([len(keys) for keys in data.keys])
    epochs, rest = divmod(position.samples, int(counts.sum()))
    order = Order(counts, *position.lanes, *position.pieces, position.seed)
    # Only the last epoch's part depends on the order: of a whole epoch, the order is to miss and repeat none.
    windows = windows_from(order, epochs * order.rows, rank=0, world_size=1)
    places = chain.from_iterable(np.stack([window.shard, window.row], 1).tolist() for window in windows)
    found = {(epochs, data.keys[shard][row]) for shard, row in islice(places, rest)}
    found |= {(epoch, key) for epoch in range(epochs) for keys in data.keys for key in keys}
    return {(epoch, key) for epoch, key in found if key}


def final_state(run: Run) -> dict[str, Any]:
    """Return the state that a run ended with."""
    return read_checkpoint(str(run.out / "checkpoints"), run.steps)


def weights(run: Run) -> torch.Tensor:
    """Return all weights that a run ended with, as one vector."""
    return torch.cat([value.flatten().float() for value in final_state(run)["method"].values()])


def step_hashes(run: Run) -> dict[int, str]:
    """Return a hash of the samples of each step, in their order, whichever workers served them."""
    return {
        step: hashlib.sha256(json.dumps([(one.epoch, one.key) for one in seen]).encode()).hexdigest()
        for step, seen in read_trace(run.out / "trace").items()
    }


def changed_steps(run: Run, other: Run) -> list[int]:
    """Return the steps whose samples, or their order, differ between two runs."""
    mine, theirs = step_hashes(run), step_hashes(other)
    return [step for step in sorted(mine.keys() | theirs.keys()) if mine.get(step) != theirs.get(step)]
