"""Folders of runs, written by the functions that commands write them with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pictures import noise

from beamclip.commands.options import DistillConfig
from beamclip.config import write_config
from beamclip.evaluation.results import Facts, Scores, write_scores
from beamclip.plots.contexts import ContextEffect, MovedPair, write_contexts
from beamclip.plots.retrieval import (
    FoundImage,
    FoundText,
    ImageQuery,
    RetrievalExamples,
    TextQuery,
    write_retrieval,
)
from beamclip.plots.sheet import make_sheet, webp, write_sheet
from beamclip.plots.similarity import ordered_similarity, write_similarity
from beamclip.runs.folder import CONFIG_FILE
from beamclip.runs.recorder import append_history
from beamclip.summary import Counts, Summary, write_summary

METRICS = {"zeroshot_top1": 0.5, "zeroshot_top5": 0.75, "teacher_zeroshot_top1": 0.625, "loss": 1.25}
INTERVALS = {"zeroshot_top1": [0.4, 0.6]}


def write_run(
    folder: Path,
    *,
    metrics: Mapping[str, float] = METRICS,
    steps: int = 60,
    config: DistillConfig | None = None,
    **facts: Any,
) -> Path:
    """Write the folder of a distillation that ended: options, records and summary."""
    folder.mkdir(parents=True)
    write_config(config or DistillConfig(), folder / CONFIG_FILE)
    for step in range(steps):
        record = {"step": float(step), "loss": 2.0 - step / 100, "lr": 1e-3, "window_seconds": 60.0}
        append_history(folder, {**record, "workers": 2.0, "images_per_second": 100.0})
    summary = Summary("distill", "finished", 90.0, 1000, 50.0, metrics, INTERVALS)
    write_summary(folder, replace(summary, **facts))
    return folder


def write_everything(folder: Path, names: Sequence[str]) -> None:
    """Add all that a run may leave for its report; the names stand wherever a name or a caption may."""
    count = len(names)
    plots, images = folder / "plots", np.stack([noise(16, 16, seed=i) for i in range(count)])
    scores = np.eye(count)
    models = {"teacher": scores, "student": scores[::-1]}
    write_sheet(make_sheet(images, names, models, names, temperature=0.01), plots / "predictions.json")
    write_similarity(ordered_similarity(names, scores, scores / 2, scores), plots / "similarity.json")
    pairs = tuple(MovedPair(a, b, 0.9, 0.4) for a, b in pairwise(names))
    near = tuple(np.linspace(0.3, 0.9, count).tolist())
    write_contexts(ContextEffect("1 from file", pairs, near, near), plots / "contexts.json")
    picture = webp(images[0])
    by_image = tuple(ImageQuery(picture, (name,), 9, (FoundText(name, 0.5, True),)) for name in names)
    by_text = tuple(TextQuery(name, 2, (FoundImage(picture, 0.25, False),)) for name in names)
    write_retrieval(RetrievalExamples(count, count, by_image, by_text), plots / "retrieval.json")
    labels = np.arange(200, dtype=np.int32) % count
    predicted = np.stack([(labels + 1) % count, labels], axis=1).astype(np.int32)
    facts = Facts("model", "data", ("zeroshot",), tuple(map(str, range(count))), tuple(names), 0.01)
    chances = np.linspace(0.1, 0.9, 200, dtype=np.float32)
    keys = [f"{i:03d}" for i in range(200)]
    ranks = {"zeroshot": np.ones(200, np.int32)}
    write_scores(folder, Scores(facts, keys, labels, predicted, chances, ranks=ranks))


def counted(attempted: int, **skipped: int) -> Counts:
    """Return counts of samples, with those that were left out by reason."""
    return Counts(attempted, attempted - sum(skipped.values()), {}, skipped)
