"""The quickstart: the whole path on the embedded corpus, from a list of URLs to a scored student.

Every stage has a folder named by a hash of everything that decides its result, so a finished stage is
skipped, and an interrupted one is resumed.
"""

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from beamclip import __version__
from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.session import workers_session
from beamclip.commands.batches import TrainConfig
from beamclip.commands.console import percent, print_stage, table
from beamclip.commands.distill import distill
from beamclip.commands.ingest import ingest_urls
from beamclip.commands.options import DistillConfig, PretrainConfig, ScoringConfig
from beamclip.commands.pretrain import pretrain
from beamclip.config import plain
from beamclip.corpus.glyphs import GlyphConfig, write_corpus, write_url_list
from beamclip.corpus.serve import serve_folder
from beamclip.data.config import AugmentConfig, StreamConfig
from beamclip.ingest.config import IngestConfig
from beamclip.models.config import StudentConfig
from beamclip.prompts.classes import load_classes
from beamclip.prompts.config import PromptConfig
from beamclip.runs.folder import checkpoint_address
from beamclip.summary import SUMMARY_FILE, Summary, read_summary
from beamclip.training.checkpoint_store import has_checkpoints
from beamclip.training.config import CadenceConfig, OptimConfig

RUNS = Path("runs")

CORPUS = GlyphConfig(images=8000, test_images=1600)
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
# The drawings vary enough in colour, size, tilt and place, and each is seen only a few times.
AUGMENTATION = AugmentConfig(crop_scale_min=0.8, rotate=0.0, translate=0.0, zoom=0.0, jitter=0.0)
# The models are so small that a second thread would spend its time waiting for the first.
WORKERS = WorkersConfig(threads_per_worker=1)
TEACHER = PretrainConfig(
    model="nano-resnet10t",
    stream=StreamConfig(batch_size=64),
    augmentation=AUGMENTATION,
    optim=OptimConfig(epochs=5, lr=2e-3),
    cadence=CadenceConfig(checkpoint_every=200),
    prompts=PROMPTS,
    workers=WORKERS,
)
STUDENT = DistillConfig(
    student=StudentConfig(student="test_resnet"),
    stream=StreamConfig(batch_size=64),
    augmentation=AUGMENTATION,
    optim=OptimConfig(epochs=7, lr=3e-3),
    cadence=CadenceConfig(checkpoint_every=200),
    prompts=PROMPTS,
    workers=WORKERS,
)


def quickstart(runs: Path = RUNS) -> Summary:
    """Run or resume all stages, in folders below `runs`, and print the scores.

    Returns:
        The summary of the student.
    """
    corpus = runs / f"quickstart-corpus-{_digest(asdict(CORPUS))}"
    written = corpus.exists()
    paths = write_corpus(CORPUS, corpus)
    print_stage(
        "corpus",
        f"{CORPUS.images + CORPUS.test_images:,} drawings of {len(load_classes(paths.classes))} symbols",
        "there already" if written else "drawn",
    )
    shards = {split: _shards(corpus, split, runs) for split in ("train", "test")}
    scoring = replace(SCORING, eval_data=str(shards["test"]))
    inputs: dict[str, Any] = {"data": (str(shards["train"]),), "classes": paths.classes, "scoring": scoring}
    teacher_config = replace(TEACHER, **inputs)
    teacher = _run_dir("teacher", teacher_config, runs)
    student_config = replace(STUDENT, **inputs, teacher=str(teacher))
    student = _run_dir("student", student_config, runs)
    # One Ray for both: its start takes as long as fifty steps.
    with contextlib.nullcontext() if _finished(student) else workers_session(WORKERS):
        _run("teacher", pretrain, teacher_config, teacher)
        _run("student", distill, student_config, student)
    return _show(read_summary(teacher), read_summary(student), student, len(load_classes(paths.classes)))


def _digest(*content: Any) -> str:
    """Hash of everything that decides the result of a stage, for the name of its folder."""
    text = json.dumps([__version__, *content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shards(corpus: Path, split: str, runs: Path) -> Path:
    """Serve the corpus from a local web server and ingest it like any URL list."""
    out = runs / f"quickstart-{split}-{_digest(corpus.name, split, asdict(INGEST))}"
    if (out / SUMMARY_FILE).exists():
        summary = read_summary(out)
        print_stage("shards", f"{split}: {summary.counts.succeeded:,} images", "there already")
        return out
    # An unfinished ingest refers to a server that is gone.
    shutil.rmtree(out, ignore_errors=True)
    with serve_folder(corpus) as address:
        urls = write_url_list(corpus, split, address, runs / "quickstart-urls" / f"{split}.parquet")
        ingest_urls(replace(INGEST, urls=str(urls), out=str(out)))
    return out


def _run_dir(name: str, config: TrainConfig, runs: Path) -> Path:
    """Folder of a run, named by the hash of its options."""
    return runs / f"quickstart-{name}-{_digest(plain(config))}"


def _finished(run_dir: Path) -> bool:
    return (run_dir / SUMMARY_FILE).exists() and read_summary(run_dir).status == "finished"


def _run(name: str, command: Any, config: TrainConfig, run_dir: Path) -> None:
    """Run a training command, or resume it, unless it is finished."""
    if _finished(run_dir):
        print_stage(name, str(run_dir), "there already")
        return
    begun = has_checkpoints(checkpoint_address(None, run_dir))
    command(replace(config, out=run_dir, resume=str(run_dir) if begun else None))


def _show(teacher: Summary, student: Summary, run_dir: Path, classes: int) -> Summary:
    rows = [["held-out style", "top-1", "top-5", "img/s", "seconds"]]
    for name, summary in (("teacher, from captions", teacher), ("student, from images", student)):
        top1, top5 = summary.metrics["zeroshot_top1"] or 0.0, summary.metrics["zeroshot_top5"] or 0.0
        speed, seconds = f"{summary.images_per_second or 0:,.0f}", f"{summary.wall_seconds:.0f}"
        rows.append([name, percent(top1), percent(top5), speed, seconds])
    rows.append(["chance", percent(1 / classes), percent(5 / classes), "", ""])
    print()
    table(rows)
    print(f"\nthe student's model, plots and summary: {run_dir}\nthe runs in MLflow: make ui")
    return student
