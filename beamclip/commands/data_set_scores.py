"""Score a model on one data set: one pass over the images, and all tasks from it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beamclip.commands.anchors import class_anchors, encoded_texts
from beamclip.commands.class_list import label_ids
from beamclip.commands.console import ProgressLine, plural, print_stage
from beamclip.commands.contexts import context_sources
from beamclip.commands.options import EvaluateConfig, Task
from beamclip.commands.scoring import SCORING_TEMPERATURE, with_agreement, zeroshot_parts
from beamclip.commands.templates import warn_of_misfit, with_templates
from beamclip.errors import InputError
from beamclip.evaluation.encode import UNKNOWN_LABEL, Encoded, EncodeSpec, encode_labelled
from beamclip.evaluation.intervals import Figure, figures
from beamclip.evaluation.knn import NEIGHBOURS, knn_ranks, nearest_neighbours
from beamclip.evaluation.probe import Probe, fit_probe, unseen_note
from beamclip.evaluation.probe_stream import StreamProbe, train_by_stream
from beamclip.evaluation.results import NO_RANK, Captions, Facts, Scores, as_ranks
from beamclip.evaluation.retrieval import retrieval_ranks
from beamclip.evaluation.scores import statistics_of
from beamclip.evaluation.statistic import Statistic
from beamclip.models.clip import LoadedClip
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig

TASKS: tuple[Task, ...] = ("zeroshot", "probe", "knn", "retrieval", "agreement")
CLASS_TASKS = ("zeroshot", "probe", "knn", "agreement")
"""Tasks that need a class list."""
FIT_TASKS = frozenset(("probe", "knn"))
"""Tasks that need training images."""


@dataclass(frozen=True)
class Evaluator:
    """A model, and what all data sets of an evaluation share."""

    config: EvaluateConfig
    tasks: tuple[str, ...]
    """Names of the tasks that run, each one of TASKS."""
    clip: LoadedClip
    teacher: LoadedClip | None
    classes: list[ClassEntry]
    """Empty where only retrieval runs."""
    cache: Path
    """Folder in which encoded prompts are kept."""
    templates: tuple[str, ...] = ()
    """Prompt templates that come with the data; empty if none do."""
    known_anchors: dict[tuple[str, str, PromptConfig], Anchors] = field(default_factory=dict)
    """Anchors made so far, by the fingerprint of the model, the address of the data, and the prompts."""

    def label_ids(self, address: str) -> list[str] | None:
        """What the labels of a data set call the classes, in the list's order; None without classes."""
        return label_ids(self.classes, address, self.config.label_column) if self.classes else None

    @property
    def device(self) -> str:
        """Where scores are computed from embeddings."""
        return "cuda" if self.config.workers.use_gpu and torch.cuda.is_available() else "cpu"

    @cached_property
    def prompts(self) -> PromptConfig:
        """Options of the prompts, with the templates of the data or that fit the model."""
        return with_templates(self.config.prompts, self.clip, self.templates)

    @cached_property
    def teacher_prompts(self) -> PromptConfig:
        """Options of the teacher's prompts, with the templates of the data or that fit the teacher."""
        assert self.teacher is not None, "checked before anything is loaded"
        return with_templates(self.config.prompts, self.teacher, self.templates)

    def encode(self, clip: LoadedClip, address: str, spec: EncodeSpec) -> Encoded:
        """Encode a data set by a model, under the options of the command."""
        spec = replace(spec, batch_size=self.config.scoring_batch, precision=self.config.scoring_precision)
        return encode_labelled(
            clip,
            address,
            self.label_ids(address),
            self.config.label_column,
            spec,
            self.config.workers,
            allow_missing=self.config.allow_missing_shards,
        )

    @cached_property
    def train(self) -> Encoded:
        """Features of the training images, encoded once for all data sets and tasks."""
        address = self.config.train_data
        assert address is not None, "checked before anything is loaded"
        train = self.encode(self.clip, address, EncodeSpec(embeddings=False, features=True))
        show_skipped(address, train.skipped)
        return train

    @cached_property
    def probe(self) -> Probe:
        """The classifier of --probe clip, fitted once for all data sets."""
        config, train = self.config.probe, self.train
        present = train.labels.unique()
        if len(present) < 2:
            raise InputError(
                f"--train-data {self.config.train_data}: all {plural(len(train.labels), 'image')} that can "
                f"be used are of one class, {self.classes[int(present[0])].name!r}. Give two classes or more."
            )
        fitted = fit_probe(
            train.features,
            train.labels,
            inverse_regularisation=config.probe_c,
            max_iterations=config.probe_iterations,
            probe_seed=config.probe_seed,
            device=self.device,
        )
        text = f"fitted on {plural(fitted.train_images, 'image')} of {plural(len(fitted.classes), 'class')}"
        print_stage("probe", text, f"C {fitted.inverse_regularisation:g}")
        for note in fitted.notes:
            print_stage("note", note)
        return fitted

    @cached_property
    def stream_probe(self) -> StreamProbe:
        """The classifier of --probe ssl, trained once for all data sets."""
        config = self.config
        assert config.train_data is not None, "checked before anything is loaded"
        line = ProgressLine()
        trained = train_by_stream(
            self.clip,
            config.train_data,
            label_ids(self.classes, config.train_data, config.label_column),
            config.label_column,
            config.probe,
            EncodeSpec(batch_size=config.scoring_batch, precision=config.scoring_precision),
            config.workers,
            device=self.device,
            allow_missing=config.allow_missing_shards,
            show=lambda done, every: line.show(f"probe     epoch {done}/{every}", last=done == every),
        )
        line.close()
        show_skipped(config.train_data, trained.skipped)
        text = f"trained on {plural(trained.train_images, 'image')}, {config.probe.probe_epochs} epochs"
        print_stage("probe", text, f"learning rate {config.probe.probe_lrs[trained.best]:g}")
        return trained

    def anchors(self, clip: LoadedClip, prompts: PromptConfig, address: str) -> Anchors:
        """Return the anchors of the classes by a model's text tower."""
        key = (clip.fingerprint, address, prompts)
        if key not in self.known_anchors:
            sources = context_sources(
                self.classes, prompts, [address], self.cache, allow_missing=self.config.allow_missing_shards
            )
            workers = self.config.workers
            self.known_anchors[key] = class_anchors(self.classes, prompts, sources, clip, workers, self.cache)
        return self.known_anchors[key]


@dataclass(frozen=True)
class Retrieved:
    """What retrieval compared on a data set."""

    images: Tensor
    """[N, D], embeddings of all images, with captions or without."""
    texts: Tensor
    """[M, D], embeddings of the captions."""


@dataclass(frozen=True, eq=False)
class DataSetScores:
    """How a model scored on one data set."""

    scores: Scores
    statistics: dict[str, Statistic]
    """Every figure, by name."""
    figures: dict[str, Figure]
    """Every figure of the data set by its name, with its interval."""
    skipped: dict[str, int]
    """Samples left out, by reason."""
    seconds: float
    """Seconds that the pass over the images took."""
    retrieved: Retrieved | None = None
    stages: dict[str, Any] = field(default_factory=dict)


def named(data_set: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with the name of their data set in front; "" is the only one."""
    return {f"{data_set}/{name}" if data_set else name: figure for name, figure in figures.items()}


def score_data_set(evaluator: Evaluator, address: str) -> DataSetScores:
    """Run the tasks on a data set.

    Raises:
        InputError: the data, or the class list, cannot be used for a task.
    """
    tasks = evaluator.tasks
    began = time.perf_counter()
    encoded = evaluator.encode(evaluator.clip, address, _spec(evaluator))
    seconds = time.perf_counter() - began
    show_encoded(encoded, len(evaluator.classes), seconds)
    scores = _unscored(evaluator, encoded, address)
    stages: dict[str, Any] = {}
    if "zeroshot" in tasks or "agreement" in tasks:
        scores = _with_zeroshot(evaluator, encoded, scores)
    if "probe" in tasks:
        scores, stages["probe"] = _with_probe(evaluator, encoded, scores)
    if "knn" in tasks:
        scores, stages["knn"] = _with_knn(evaluator, encoded, scores)
    retrieved = None
    if "retrieval" in tasks:
        scores, texts = _with_retrieval(evaluator, encoded, scores)
        retrieved = Retrieved(encoded.embeddings, texts)
    statistics = statistics_of(scores)
    measured = figures(statistics, len(scores))
    return DataSetScores(scores, statistics, measured, encoded.skipped, seconds, retrieved, stages)


def show_encoded(encoded: Encoded, classes: int, seconds: float) -> None:
    """Print how many images were encoded, and how fast."""
    number = len(encoded.keys)
    of_classes = f", {plural(classes, 'class')}" if classes else ""
    captions = sum(map(len, encoded.texts))
    of_captions = f", {plural(captions, 'caption')}" if captions else ""
    speed = f"{number / seconds:,.0f} img/s"
    print_stage("images", f"{plural(number, 'image')}{of_classes}{of_captions}", speed)


def show_skipped(train_data: str, skipped: Mapping[str, int]) -> None:
    """Print how many training images could not be used, if any."""
    if skipped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(skipped.items()))
        print_stage("skipped", f"of --train-data {train_data}: {reasons}")


def _spec(evaluator: Evaluator) -> EncodeSpec:
    tasks = set(evaluator.tasks)
    return EncodeSpec(
        embeddings=bool(tasks & {"zeroshot", "agreement", "retrieval"}),
        features="knn" in tasks or "probe" in tasks,
        captions="retrieval" in tasks,
        caption_columns=evaluator.config.caption_columns,
    )


def _unscored(evaluator: Evaluator, encoded: Encoded, address: str) -> Scores:
    facts = Facts(
        model=str(evaluator.config.model),
        data=address,
        tasks=evaluator.tasks,
        class_ids=tuple(entry.id for entry in evaluator.classes),
        class_names=tuple(entry.name for entry in evaluator.classes),
        temperature=SCORING_TEMPERATURE,
    )
    labels = encoded.labels.numpy().astype("int32") if evaluator.classes else None
    return Scores(facts, encoded.keys, labels)


def _with_zeroshot(evaluator: Evaluator, encoded: Encoded, scores: Scores) -> Scores:
    """Add the predictions, and the agreement with the teacher's if that is asked for."""
    prompts, clip, classes = evaluator.prompts, evaluator.clip, evaluator.classes
    workers, address = evaluator.config.workers, scores.facts.data
    warn_of_misfit(prompts, classes, clip, lambda: encoded.embeddings, workers, evaluator.cache)
    anchors = evaluator.anchors(clip, prompts, address)
    scores = zeroshot_parts(scores, clip, anchors, encoded, device=evaluator.device)
    teacher = evaluator.teacher
    if teacher is None:
        return scores
    theirs = evaluator.encode(teacher, address, EncodeSpec())
    if theirs.keys != encoded.keys:
        # The other figures stand without it.
        print_stage(
            "note",
            f"no agreement on {address}: the teacher could use {plural(len(theirs.keys), 'image')}, the "
            f"model {len(encoded.keys):,}, and their predictions cannot be paired",
        )
        return scores
    return with_agreement(
        scores,
        encoded,
        anchors,
        theirs,
        evaluator.anchors(teacher, evaluator.teacher_prompts, address),
        teacher_fingerprint=teacher.fingerprint,
        device=evaluator.device,
    )


def _with_probe(evaluator: Evaluator, encoded: Encoded, scores: Scores) -> tuple[Scores, dict[str, Any]]:
    """Add the ranks by the probe; return what the summary keeps of it."""
    if evaluator.config.probe.probe == "ssl":
        trained, lrs = evaluator.stream_probe, evaluator.config.probe.probe_lrs
        ranks = trained.ranks(encoded.features, encoded.labels)
        facts: dict[str, Any] = {
            "protocol": "ssl",
            "learning_rate": lrs[trained.best],
            "held_out_accuracies": dict(zip(map(str, lrs), trained.accuracies, strict=True)),
            "epochs": evaluator.config.probe.probe_epochs,
            **_train_facts(trained.train_images, trained.skipped),
        }
        seen, notes = trained.class_images.nonzero()[:, 0], list[str]()
    else:
        probe, train = evaluator.probe, evaluator.train
        ranks = probe.ranks(encoded.features, encoded.labels)
        facts = {
            "protocol": "clip",
            "inverse_regularisation": probe.inverse_regularisation,
            "iterations": probe.iterations,
            "classes": len(probe.classes),
            **_train_facts(probe.train_images, train.skipped),
        }
        seen, notes = train.labels, [*probe.notes]
    facts |= {"test_images": len(scores), "notes": notes + _unseen(encoded, seen)}
    return replace(scores, ranks={**scores.ranks, "probe": as_ranks(ranks)}), facts


def _train_facts(images: int, skipped: Mapping[str, int]) -> dict[str, Any]:
    return {"train_images": images, "train_skipped": dict(skipped)}


def _unseen(encoded: Encoded, train_labels: Tensor) -> list[str]:
    """Print and return a note on test images whose class had no training image."""
    notes = unseen_note(encoded.labels, train_labels)
    for note in notes:
        print_stage("note", note)
    return notes


def _with_knn(evaluator: Evaluator, encoded: Encoded, scores: Scores) -> tuple[Scores, dict[str, Any]]:
    """Add the ranks by neighbours; return what the summary keeps of them."""
    train, device = evaluator.train, evaluator.device
    found = nearest_neighbours(
        train.features.to(device), train.labels.to(device), encoded.features.to(device), max(NEIGHBOURS)
    )
    ranks = {
        f"knn{number}": as_ranks(knn_ranks(found, encoded.labels, len(evaluator.classes), neighbours=number))
        for number in NEIGHBOURS
    }
    facts = _train_facts(len(train.labels), train.skipped)
    # The probe, which comes first, has said it already.
    unseen = [] if "probe" in evaluator.tasks else _unseen(encoded, train.labels)
    return replace(scores, ranks={**scores.ranks, **ranks}), {**facts, "notes": unseen}


def _with_retrieval(evaluator: Evaluator, encoded: Encoded, scores: Scores) -> tuple[Scores, Tensor]:
    """Add the ranks of both directions; return the embeddings of the captions, too."""
    rows = [row for row, texts in enumerate(encoded.texts) if texts]
    if not rows:
        raise InputError(
            f"{scores.facts.data}: no image has a caption, which --tasks retrieval needs. Give captioned "
            "images, or name the field of the captions by --caption-columns."
        )
    texts = [text for row in rows for text in encoded.texts[row]]
    owners = torch.tensor([place for place, row in enumerate(rows) for _ in encoded.texts[row]])
    embedded = encoded_texts(texts, evaluator.clip, evaluator.config.workers)
    device = evaluator.device
    of_images, of_texts = retrieval_ranks(encoded.embeddings[rows].to(device), embedded.to(device), owners)
    ranks = torch.full((len(encoded.keys),), NO_RANK, dtype=torch.long)
    ranks[rows] = of_images
    image = torch.tensor(rows)[owners].numpy().astype("int32")
    captions = Captions(texts, image, as_ranks(of_texts))
    left, foreign = len(encoded.keys) - len(rows), encoded.skipped.get(UNKNOWN_LABEL, 0)
    missing = f", {plural(left, 'image')} without one" if left else ""
    outside = f"; {foreign:,} of other classes left out" if foreign else ""
    print_stage(
        "retrieval", f"{plural(len(rows), 'image')}, {plural(len(texts), 'caption')}{missing}{outside}"
    )
    scores = replace(scores, ranks={**scores.ranks, "i2t": as_ranks(ranks)}, captions=captions)
    return scores, embedded.cpu()
