"""open_clip's own training command and ours, on the same shards, teacher, student and batch.

open_clip distils from the pairs of a batch: its command reads captions as well, runs the teacher's text
tower on them, and the student's, which it trains along unless that is locked. Ours reads images alone, and
encodes the classes' prompts once, before it starts.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from support.process_tree import TreeRun, run_tree

from beamclip.commands.distill_job import restore_student
from beamclip.data.shards import list_shards
from beamclip.json_lines import read_json_lines
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.models.config import StudentConfig
from beamclip.models.export import WEIGHTS_FILE, write_open_clip_dir
from beamclip.models.student import build_student
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.checkpoint_store import MANIFEST_FILE
from beamclip.training.loop import trained_weights

ROOT = Path(__file__).parents[2]
WEBDATASET = "webdataset==0.2.86"
"""The newest that open_clip's data code runs on; ingest needs a newer one."""
WARMUP_SHARE = 0.1
"""Of the steps, in which the learning rate rises; the default of ours. open_clip's is 10,000 steps."""
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
BETA2, EPSILON = 0.98, 1e-6
"""Of AdamW; all four are ours, open_clip's are set to them."""

_RUN = "run"
_STEP_LINE = re.compile(r"Train Epoch: \d+ \[.*? Batch \(t\): [\d.]+, ([\d.e+]+)/s,")


@dataclass(frozen=True)
class Work:
    """One training, whoever does it."""

    shards: Path
    cache: Path
    """The same images with the teacher's embeddings; see `build_cache`."""
    teacher: Path
    """open_clip directory."""
    students: Path
    """Folder of the students that open_clip begins with; see `write_students`."""
    webdataset: Path
    """Folder with the version that open_clip wants; see `install_webdataset`."""
    backbone: str
    """timm's name of the student's image tower."""
    classes: Path
    epochs: int
    batch_size: int
    learning_rate: float
    crop_scale_min: float
    """Smallest share of an image that a crop keeps."""
    plain: bool
    """Whether ours, too, crops and does nothing else to images."""
    log_every: int
    """Steps."""
    checkpoint_every: int
    """Epochs."""
    threads: int
    """Of torch, in the process that trains."""

    @property
    def samples(self) -> int:
        """In the shards."""
        return sum(shard.samples for shard in list_shards(str(self.shards)))

    @property
    def steps_per_epoch(self) -> int:
        """Batches; the last one is filled up."""
        return -(-self.samples // self.batch_size)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Window:
    """Some steps of a run, as its command logged them."""

    last_step: int
    """Counted from 1."""
    images: float
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint."""

    step: int
    written_at: float
    """Seconds since the epoch, when it was complete."""
    student: Callable[[], LoadedClip]
    """Reads it."""


@dataclass(frozen=True)
class Launch:
    """A command, and how to read what it leaves."""

    words: list[Any]
    environment: dict[str, str]
    windows: Callable[[], list[Window]]
    """In order; those until now, while it runs."""
    saved: Callable[[], list[Saved]]
    """In order."""

    def run(self, log: Path) -> TreeRun:
        """Run it to its end under watch.

        Raises:
            RuntimeError: it failed.
        """
        found = run_tree(
            [str(word) for word in self.words],
            log,
            environment=self.environment,
            cwd=log.parent,
            progress=self._steps,
        )
        if found.exit_code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"exit code {found.exit_code}, see {log}:\n{tail}")
        return found

    def _steps(self) -> int:
        windows = self.windows()
        return windows[-1].last_step if windows else 0


SCRATCH, LOCKED = "open_clip", "open_clip, text tower locked"
LIVE, CACHED = "beamclip, live", "beamclip, from a cache"


def launches(work: Work, out: Path) -> dict[str, Launch]:
    """The systems' commands by name; each writes below a folder of its own in `out`."""
    return {
        SCRATCH: open_clip_training(work, out / "open_clip", locked=False),
        LOCKED: open_clip_training(work, out / "open_clip-locked", locked=True),
        LIVE: distillation(work, work.shards, out / "live"),
        CACHED: distillation(work, work.cache, out / "cached"),
    }


def open_clip_training(work: Work, out: Path, *, locked: bool) -> Launch:
    """open_clip's command with its distillation.

    Args:
        locked: the student has the teacher's text tower, which does not train; else both begin at random.
    """
    # One worker reads: on few cores, more of them take from the training what they give.
    words = [
        sys.executable, "-m", "open_clip_train.main", "--device", "cpu", "--precision", "amp_bf16",
        "--dataset-type", "webdataset", "--train-data", _braces(work.shards),
        "--train-num-samples", work.samples, "--workers", 1,
        "--batch-size", work.batch_size, "--epochs", work.epochs,
        "--model", f"local-dir:{_student(work, whole=locked)}",
        # A directory brings its weights; the second option only has to be there.
        "--distill-model", f"local-dir:{work.teacher}", "--distill-pretrained", "the directory's",
        "--lr", work.learning_rate, "--warmup", round(WARMUP_SHARE * work.steps), "--wd", WEIGHT_DECAY,
        "--beta1", 0.9, "--beta2", BETA2, "--eps", EPSILON, "--grad-clip-norm", CLIP_NORM,
        "--aug-cfg", f"scale=({work.crop_scale_min},1.0)", "--log-every-n-steps", 1,
        "--save-frequency", work.checkpoint_every, "--logs", out, "--name", _RUN,
        *(["--lock-text", "--lock-text-freeze-layer-norm"] if locked else []),
    ]  # fmt: skip
    environment = _environment(work.threads)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(work.webdataset), *filter(None, [environment.get("PYTHONPATH")])]
    )
    return Launch(
        words, environment, partial(_windows_of_open_clip, work, out), partial(_saved_by_open_clip, work, out)
    )


def distillation(work: Work, data: Path, out: Path) -> Launch:
    """pipelines/distill.py, on shards or on a cache of them."""
    words = [
        sys.executable, ROOT / "pipelines" / "distill.py", "--data", data, "--teacher", work.teacher,
        "--student", work.backbone, "--classes", work.classes, "--templates", "name",
        "--steps", work.steps, "--batch-size", work.batch_size, "--precision", "bf16",
        "--teacher-precision", "bf16", "--lr", work.learning_rate, "--warmup", WARMUP_SHARE,
        "--weight-decay", WEIGHT_DECAY, "--clip-norm", CLIP_NORM, *_augmentation(work),
        "--log-every", work.log_every, "--checkpoint-every", work.checkpoint_every * work.steps_per_epoch,
        "--keep-checkpoints", work.epochs, "--threads-per-worker", work.threads, "--out", out,
    ]  # fmt: skip
    return Launch(
        words, _environment(work.threads), partial(_windows_of_ours, out), partial(_saved_by_us, work, out)
    )


def build_cache(work: Work, augmentations: int, log: Path) -> TreeRun:
    """pipelines/embed.py, from the shards to the cache."""
    words = [
        sys.executable, ROOT / "pipelines" / "embed.py", "--data", work.shards, "--teacher", work.teacher,
        "--augmentations", augmentations, "--no-captions", *_augmentation(work),
        "--teacher-precision", "bf16", "--threads-per-worker", work.threads, "--out", work.cache,
    ]  # fmt: skip
    return Launch(words, _environment(work.threads), list, list).run(log)


def _augmentation(work: Work) -> list[Any]:
    crop = ["--crop-scale-min", work.crop_scale_min]
    return [*crop, *(["--rotate", 0, "--translate", 0, "--zoom", 0, "--jitter", 0] if work.plain else [])]


def _environment(threads: int) -> dict[str, str]:
    """This process's, on this machine alone."""
    away = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    own = {name: value for name, value in os.environ.items() if name not in away}
    return {**own, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def _braces(shards: Path) -> str:
    names = [Path(shard.path).name for shard in list_shards(str(shards))]
    return f"{shards}/{{{','.join(names)}}}" if len(names) > 1 else str(shards / names[0])


def install_webdataset(folder: Path) -> None:
    """Put the webdataset that open_clip's data code wants into a folder, beside whatever is installed."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(folder), WEBDATASET], check=True)


def write_students(teacher: Path, backbone: str, folder: Path) -> None:
    """Two open_clip directories: the student that ours begins with, and its config alone."""
    student = build_student(StudentConfig(student=backbone), load_clip(str(teacher)), seed=0)
    for name in ("whole", "bare"):
        write_open_clip_dir(student, folder / name, {})
    (folder / "bare" / WEIGHTS_FILE).unlink()


def _student(work: Work, *, whole: bool) -> Path:
    return work.students / ("whole" if whole else "bare")


def _windows_of_open_clip(work: Work, out: Path) -> list[Window]:
    log = out / _RUN / "out.log"
    if not log.exists():
        return []
    speeds = [float(found) for found in _STEP_LINE.findall(log.read_text(errors="replace"))]
    return [
        Window(step, work.batch_size, work.batch_size / speed) for step, speed in enumerate(speeds, start=1)
    ]


def _windows_of_ours(out: Path) -> list[Window]:
    return [
        Window(int(record["step"]), record["images_per_second"] * seconds, seconds)
        for record in read_json_lines(out / "metrics.jsonl")
        for seconds in [record["window_seconds"]]
    ]


def _saved_by_open_clip(work: Work, out: Path) -> list[Saved]:
    def read(file: Path) -> LoadedClip:
        student = load_clip(str(_student(work, whole=True)))
        student.model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["state_dict"])
        student.model.eval()
        return student

    files = {
        int(file.stem.partition("_")[2]): file for file in (out / _RUN / "checkpoints").glob("epoch_*.pt")
    }
    return [
        Saved(epoch * work.steps_per_epoch, file.stat().st_mtime, partial(read, file))
        for epoch, file in sorted(files.items())
    ]


def _saved_by_us(work: Work, out: Path) -> list[Saved]:
    def read(step: int) -> LoadedClip:
        student = load_clip(str(_student(work, whole=True)))
        weights = trained_weights(read_checkpoint(str(out / "checkpoints"), step))
        restore_student(student.model.visual, weights)
        return student

    manifests = sorted((out / "checkpoints").glob(f"step=*/{MANIFEST_FILE}"))
    steps = {int(file.parent.name.partition("=")[2]): file for file in manifests}
    return [Saved(step, file.stat().st_mtime, partial(read, step)) for step, file in sorted(steps.items())]
