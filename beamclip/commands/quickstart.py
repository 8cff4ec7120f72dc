"""The quickstart: the whole path on the embedded corpus, from a list of URLs to a scored student.

Every stage has a folder named by a hash of everything that decides its result, so a finished stage is
skipped, and an interrupted one is resumed. On the terminal a stage is one line; what its command prints
is in quickstart.log.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from beamclip import __version__
from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.session import workers_session
from beamclip.commands.console import format_duration, percent, print_stage, progress_only, table
from beamclip.commands.distill import distill
from beamclip.commands.export import export
from beamclip.commands.ingest import ingest_urls
from beamclip.commands.options import DistillConfig, PretrainConfig, QuickstartConfig, ScoringConfig
from beamclip.commands.pretrain import pretrain
from beamclip.commands.quickstart_speed import ModelSpeed, has_speeds, measured_speeds
from beamclip.config import plain
from beamclip.corpus.common_symbols import COMMON_NAMES
from beamclip.corpus.glyphs import CorpusPaths, GlyphConfig, write_corpus, write_url_list
from beamclip.corpus.serve import serve_folder
from beamclip.data.config import AugmentConfig, StreamConfig
from beamclip.export.config import ExportConfig
from beamclip.export.onnx_model import IMAGE_ENCODER
from beamclip.ingest.config import IngestConfig
from beamclip.models.config import StudentConfig
from beamclip.prompts.classes import load_classes
from beamclip.prompts.config import PromptConfig
from beamclip.runs.folder import PLOTS, checkpoint_address
from beamclip.summary import SUMMARY_FILE, Summary, read_summary
from beamclip.training.checkpoint_store import has_checkpoints
from beamclip.training.config import CadenceConfig, OptimConfig

TrainConfig = DistillConfig | PretrainConfig

LOG = "quickstart.log"
CORPUS = GlyphConfig(symbols="common", images=8000, test_images=1600)
INGEST = IngestConfig(
    url_column="url",
    caption_column="caption",
    keep_columns=("label", "style"),
    resize_mode="no",
    image_size=None,
    encode_format="png",
    shard_size=1000,
    allow_private_hosts=True,
)
SCORING = ScoringConfig(label_column="label")
PROMPTS = PromptConfig(templates=("name",))
# The drawings vary enough in colour, size, tilt and place, and each is seen only a few times. Blurred ones
# are told apart by their outlines, which the unseen styles share, and not by how they are filled.
AUGMENTATION = AugmentConfig(
    crop_scale_min=0.9, rotate=0.0, translate=0.0, zoom=0.0, jitter=0.0, blur_prob=0.3
)
# The models are so small that a second thread would spend its time waiting for the first.
WORKERS = WorkersConfig(threads_per_worker=1)
TEACHER = PretrainConfig(
    model="nano-resnet10t",
    # In a larger batch most drawings would meet others of their own symbol, whose captions fit as well.
    stream=StreamConfig(batch_size=32),
    augmentation=AUGMENTATION,
    # Twice this rate keeps some seeds from ever leaving the plateau that a contrastive loss starts on.
    optim=OptimConfig(epochs=6, lr=1e-3),
    cadence=CadenceConfig(checkpoint_every=250),
    prompts=PROMPTS,
    workers=WORKERS,
)
STUDENT = DistillConfig(
    student=StudentConfig(student="test_resnet"),
    stream=StreamConfig(batch_size=64),
    augmentation=AUGMENTATION,
    optim=OptimConfig(epochs=4, lr=3e-3),
    cadence=CadenceConfig(checkpoint_every=200),
    prompts=PROMPTS,
    workers=WORKERS,
)


@dataclass(frozen=True)
class Recipe:
    """What the stages do."""

    corpus: GlyphConfig
    teacher: PretrainConfig
    student: DistillConfig


RECIPE = Recipe(CORPUS, TEACHER, STUDENT)


def quickstart(config: QuickstartConfig | None = None, recipe: Recipe = RECIPE) -> Summary:
    """Run or resume all stages, in folders below `config.folder`, and print the scores.

    Returns:
        The summary of the student.
    """
    config = config or QuickstartConfig()
    began = time.perf_counter()
    runs = Path(config.folder or "runs")
    corpus = _corpus(replace(recipe.corpus, symbols=config.symbols, corpus_seed=config.seed), runs)
    shards = _shards(corpus.root, recipe.corpus, runs)
    inputs: dict[str, Any] = {
        "data": (str(shards["train"]),),
        "classes": corpus.classes,
        "scoring": replace(SCORING, eval_data=str(shards["test"])),
        "seed": config.seed,
    }
    teaching = replace(recipe.teacher, **inputs)
    teacher = _run_dir("teacher", teaching, runs)
    learning = replace(recipe.student, **inputs, teacher=str(teacher))
    student = _run_dir("student", learning, runs)
    # One Ray for both: its start takes as long as fifty steps.
    with contextlib.nullcontext() if _finished(student) else workers_session(learning.workers):
        _run("teacher", f"{teaching.model}, from captions", pretrain, teaching, teacher)
        _run("student", f"{learning.student.student}, from images", distill, learning, student)
    onnx = _export(student)
    with _stage("speed", "from a PNG file to a name, on one core", runs, there=has_speeds(student)):
        speeds = measured_speeds(teacher, student, onnx, corpus)
    _show_scores(read_summary(teacher), read_summary(student), speeds, len(load_classes(corpus.classes)))
    print(f"Done in {format_duration(time.perf_counter() - began)}.")
    _show_next(student, teacher, shards["train"], corpus)
    return read_summary(student)


@contextlib.contextmanager
def _stage(name: str, text: str, runs: Path, *, there: bool) -> Iterator[None]:
    """Inside, show the progress of a stage; then print its one line, with the time that it took."""
    began = time.perf_counter()
    with progress_only(name, runs / LOG):
        yield
    print_stage(name, text, "there already" if there else format_duration(time.perf_counter() - began))


def _corpus(config: GlyphConfig, runs: Path) -> CorpusPaths:
    root = runs / f"quickstart-corpus-{_digest(asdict(config))}"
    symbols = f"{len(COMMON_NAMES)} common symbols" if config.symbols == "common" else "all symbols"
    text = f"{config.images + config.test_images:,} drawings of {symbols}"
    with _stage("corpus", text, runs, there=root.exists()):
        return write_corpus(config, root)


def _shards(corpus: Path, size: GlyphConfig, runs: Path) -> dict[str, Path]:
    """Ingest both splits; return the folder of each split's shards."""
    outs = {
        split: runs / f"quickstart-{split}-{_digest(corpus.name, split, asdict(INGEST))}"
        for split in ("train", "test")
    }
    missing = [split for split, out in outs.items() if not (out / SUMMARY_FILE).exists()]
    text = f"{size.images:,} training and {size.test_images:,} test images, by their URLs"
    with _stage("shards", text, runs, there=not missing):
        for split in missing:
            _ingest(corpus, split, outs[split], runs)
    return outs


def _ingest(corpus: Path, split: str, out: Path, runs: Path) -> None:
    """Serve the corpus from a local web server and ingest it like any URL list."""
    # An unfinished ingest refers to a server that is gone.
    shutil.rmtree(out, ignore_errors=True)
    with serve_folder(corpus) as address:
        urls = write_url_list(corpus, split, address, runs / "quickstart-urls" / f"{split}.parquet")
        ingest_urls(replace(INGEST, urls=str(urls), out=str(out)))


def _digest(*content: Any) -> str:
    """Hash of everything that decides the result of a stage, for the name of its folder."""
    text = json.dumps([__version__, *content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _run_dir(name: str, config: TrainConfig, runs: Path) -> Path:
    """Folder of a run, named by the hash of its options."""
    return runs / f"quickstart-{name}-{_digest(plain(config))}"


def _finished(run_dir: Path) -> bool:
    return (run_dir / SUMMARY_FILE).exists() and read_summary(run_dir).status == "finished"


def _run(name: str, text: str, command: Callable[[Any], Any], config: TrainConfig, run_dir: Path) -> None:
    """Run a training command, or resume it, unless it is finished."""
    done = _finished(run_dir)
    with _stage(name, text, run_dir.parent, there=done):
        if not done:
            begun = has_checkpoints(checkpoint_address(None, run_dir))
            command(replace(config, out=run_dir, resume=str(run_dir) if begun else None))


def _export(student: Path) -> Path | None:
    """Write the student as ONNX; return the folder, or None where the packages for it are missing."""
    out = student / "onnx"
    if any(find_spec(package) is None for package in ("onnx", "onnxruntime", "onnxscript")):
        print_stage("onnx", "left out: pip install 'beamclip[export]'")
        return None
    there = (out / IMAGE_ENCODER).exists()
    with _stage("onnx", "the student for ONNX Runtime", student.parent, there=there):
        if not there:
            export(ExportConfig(model=str(student), format="onnx", out=out))
    return out


def _show_scores(teacher: Summary, student: Summary, speeds: dict[str, ModelSpeed], classes: int) -> None:
    rows = [
        ["drawing styles not seen before", "top-1", "top-5", "weights", "MB", "images/s", "in ONNX Runtime"]
    ]
    for role, summary in (("teacher", teacher), ("student", student)):
        top1, top5 = summary.metrics["zeroshot_top1"] or 0.0, summary.metrics["zeroshot_top5"] or 0.0
        cost = speeds[role]
        size = [f"{cost.weights:,}", f"{cost.megabytes:.1f}", f"{cost.images_per_second:,.0f}"]
        exported = speeds.get(f"{role} in ONNX")
        in_onnx = f"{exported.images_per_second:,.0f}" if exported else ""
        rows.append([role, percent(top1), percent(top5), *size, in_onnx])
    rows.append(["chance", percent(1 / classes), percent(5 / classes), "", "", "", ""])
    print()
    table(rows)
    smaller = speeds["teacher"].weights / speeds["student"].weights
    fastest = max(each.images_per_second for role, each in speeds.items() if role.startswith("student"))
    faster = fastest / speeds["teacher"].images_per_second
    kept = student.metrics.get("retained_top1")  # none of a teacher that names nothing
    told = f"keeps {percent(kept)} of its teacher's top-1. It " if kept is not None else ""
    print(
        f"\nThe student {told}is {smaller:.0f} times smaller, and {faster:.1f} times as fast\n"
        "from a PNG file to a name, on one core. It learned without captions or labels."
    )


def _show_next(student: Path, teacher: Path, shards: Path, corpus: CorpusPaths) -> None:
    """Print three commands, which run as they stand."""
    python = _python()
    names = ["umbrella", "heart", "airplane", "chess king"]
    picture = _picture_of(names[0], corpus)
    code = f"import beamclip; print(beamclip.load('{student}').classify('{picture}', {names}))"
    again = ["--data", shards, "--teacher", teacher, "--classes", corpus.classes, "--student", "resnet10t"]
    print(
        f"""
{student / PLOTS / "predictions.png"} shows what both see.

Next:
  name a picture of your own, with names of your own
    {python} -c "{code}"
  compare the runs, their curves and pictures
    {python} -m beamclip.tracking ui
  distil another student; put images, a teacher and a class list of your own in their places
    {python} -m beamclip distill {shlex.join(map(str, again))}"""
    )


def _picture_of(name: str, corpus: CorpusPaths) -> Path:
    """A picture of the test split that shows the class of this name; any picture if there is none."""
    ids = [entry.id for entry in load_classes(corpus.classes) if entry.name == name]
    rows = pq.read_table(corpus.test, columns=["path", "label"]).to_pylist()
    return corpus.root / next((row["path"] for row in rows if row["label"] in ids), rows[0]["path"])


def _python() -> str:
    """The Python that runs this, as short as it can be typed here."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    inside = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if inside.startswith("..") else inside)
