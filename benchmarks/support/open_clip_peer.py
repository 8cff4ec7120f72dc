"""Run open_clip's own training command and ours with the same shards, teacher, student and batch size.

open_clip distils from the pairs of a batch: its command also reads captions and runs two text towers on them,
the teacher's and the student's, which it trains unless it is locked. Ours reads only images, and encodes the
prompts of the classes once, before training.
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
from beamclip.data.listing import list_shards
from beamclip.export.open_clip_dir import WEIGHTS_FILE, write_open_clip_dir
from beamclip.json_lines import read_json_lines
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.tracking.place import DATABASE, sqlite_uri
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.loop import trained_weights
from beamclip.training.manifest import MANIFEST_FILE

ROOT = Path(__file__).parents[2]
WEBDATASET = "webdataset==0.2.86"
"""The newest version that open_clip's data code runs on; ingest needs a newer one."""
WARMUP_SHARE = 0.1
"""Share of the steps in which the learning rate rises; our default. open_clip's default is 10,000 steps."""
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
BETA2, EPSILON = 0.98, 1e-6
"""Parameters of AdamW. With weight decay and clipping, they are our values; open_clip's are set to them."""

_RUN = "run"
_STEP_LINE = re.compile(r"Train Epoch: \d+ \[.*? Batch \(t\): [\d.]+, ([\d.e+]+)/s,")


@dataclass(frozen=True)
class Work:
    """Inputs and settings of one training, for any of the systems."""

    shards: Path
    cache: Path
    """The same images with the teacher's embeddings; see `build_cache`."""
    teacher: Path
    """The teacher, an open_clip directory."""
    students: Path
    """Folder of the students that open_clip starts from; see `write_students`."""
    webdataset: Path
    """Folder with the webdataset that open_clip needs; see `install_webdataset`."""
    backbone: str
    """timm's name of the student's image tower."""
    classes: Path
    epochs: int
    batch_size: int
    learning_rate: float
    crop_scale_min: float
    """Smallest share of an image that a crop keeps."""
    plain: bool
    """Whether ours, like open_clip's command, only crops images."""
    log_every: int
    """Steps between two log lines of ours."""
    checkpoint_every: int
    """Epochs between two checkpoints."""
    threads: int
    """Threads of torch in the process that trains."""

    @property
    def samples(self) -> int:
        """Number of samples in the shards."""
        return sum(shard.samples for shard in list_shards(str(self.shards)))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one is filled up."""
        return -(-self.samples // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Window:
    """Some steps of a run, as its command logged them."""

    last_step: int
    """Number of the last of these steps, from 1."""
    images: float
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint."""

    step: int
    written_at: float
    """When it was complete, in seconds since 1970."""
    student: Callable[[], LoadedClip]
    """Loads its student."""


@dataclass(frozen=True)
class Launch:
    """A command, and how to read its results."""

    words: list[Any]
    environment: dict[str, str]
    windows: Callable[[], list[Window]]
    """Reads its windows in order; while it runs, those so far."""
    saved: Callable[[], list[Saved]]
    """Finds its checkpoints, in order."""

    def run(self, log: Path) -> TreeRun:
        """Run the command to its end, measuring its processes; `log` gets its output.

        Raises:
            RuntimeError: the command failed.
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
    """Return the systems' commands by name; each writes to a folder of its own in `out`."""
    return {
        SCRATCH: open_clip_training(work, out / "open_clip", locked=False),
        LOCKED: open_clip_training(work, out / "open_clip-locked", locked=True),
        LIVE: distillation(work, work.shards, out / "live"),
        CACHED: distillation(work, work.cache, out / "cached"),
    }


def open_clip_training(work: Work, out: Path, *, locked: bool) -> Launch:
    """Return open_clip's command with its distillation.

    Args:
        locked: whether the student has the teacher's text tower, which does not train; otherwise both of its
            towers start from random weights.
    """
    # One worker reads: on few cores, more of them would take cores from the training.
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
    environment = _environment(work.threads, out)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(work.webdataset), *filter(None, [environment.get("PYTHONPATH")])]
    )
    return Launch(
        words, environment, partial(_windows_of_open_clip, work, out), partial(_saved_by_open_clip, work, out)
    )


def distillation(work: Work, data: Path, out: Path) -> Launch:
    """Return the command of pipelines/distill.py, on shards or on a cache of them."""
    words = [
        sys.executable, ROOT / "pipelines" / "distill.py", "--data", data, "--teacher", work.teacher,
        "--student", work.backbone, "--classes", work.classes, "--templates", "name",
        "--steps", work.steps, "--batch-size", work.batch_size, "--precision", "bf16",
        "--teacher-precision", "bf16", "--lr", work.learning_rate, "--warmup", WARMUP_SHARE,
        "--weight-decay", WEIGHT_DECAY, "--clip-norm", CLIP_NORM, *_augmentation(work),
        "--log-every", work.log_every, "--checkpoint-every", work.checkpoint_every * work.steps_per_epoch,
        "--keep-checkpoints", work.epochs, "--threads-per-worker", work.threads, "--out", out,
    ]  # fmt: skip
    environment = _environment(work.threads, out)
    return Launch(words, environment, partial(_windows_of_ours, out), partial(_saved_by_us, work, out))


def build_cache(work: Work, augmentations: int, log: Path) -> TreeRun:
    """Build the cache from the shards with pipelines/embed.py; return what it took."""
    words = [
        sys.executable, ROOT / "pipelines" / "embed.py", "--data", work.shards, "--teacher", work.teacher,
        "--augmentations", augmentations, "--no-captions", *_augmentation(work),
        "--teacher-precision", "bf16", "--threads-per-worker", work.threads, "--out", work.cache,
    ]  # fmt: skip
    return Launch(words, _environment(work.threads, work.cache), list, list).run(log)


def _augmentation(work: Work) -> list[Any]:
    crop = ["--crop-scale-min", work.crop_scale_min]
    return [*crop, *(["--rotate", 0, "--translate", 0, "--zoom", 0, "--jitter", 0] if work.plain else [])]


def _environment(threads: int, out: Path) -> dict[str, str]:
    """Return this process's environment, changed so that commands stay on this machine, and beside `out`."""
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    store = sqlite_uri(out.resolve().parent / DATABASE)
    return {**own, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": store}


def _braces(shards: Path) -> str:
    names = [Path(shard.path).name for shard in list_shards(str(shards))]
    return f"{shards}/{{{','.join(names)}}}" if len(names) > 1 else str(shards / names[0])


def install_webdataset(folder: Path) -> None:
    """Install the webdataset that open_clip's data code needs into a folder; the installed one stays."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(folder), WEBDATASET], check=True)


def write_students(teacher: Path, backbone: str, folder: Path) -> None:
    """Write two open_clip directories: the student that ours starts from, and its config alone."""
    student = build_student(StudentConfig(student=backbone), load_clip(str(teacher)), seed=0)
    for name in ("whole", "bare"):
        write_open_clip_dir(student, folder / name)
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
