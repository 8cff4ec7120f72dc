"""Score a model on labelled images, at the end of a training."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.class_list import label_ids
from beamclip.commands.console import percent
from beamclip.evaluation.agreement import agreement
from beamclip.evaluation.encode import Encoded, EncodeSpec, encode_labelled
from beamclip.evaluation.intervals import Interval, figures
from beamclip.evaluation.results import BesideTeacher, Facts, Scores, as_ranks
from beamclip.evaluation.scores import statistics_of
from beamclip.evaluation.zeroshot import zeroshot_predictions
from beamclip.heap import trim_heap
from beamclip.models.clip import LoadedClip
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry

SCORING_TEMPERATURE = 0.01
"""Temperature of the soft maximum over the anchors of a class that has several: CLIP's own scale of 100."""


@dataclass(frozen=True)
class ScoredData:
    """The labelled data that models are scored on."""

    address: str
    label_column: str
    classes: Sequence[ClassEntry]
    batch_size: int
    allow_missing: bool = False
    """Whether the samples of a shard that cannot be opened count as lost, instead of raising."""

    @property
    def class_ids(self) -> list[str]:
        """Ids in the order of the class list."""
        return [entry.id for entry in self.classes]

    @cached_property
    def label_ids(self) -> list[str]:
        """What the labels call the classes, in the order of the class list."""
        return label_ids(self.classes, self.address, self.label_column)


@dataclass(frozen=True)
class ModelScores:
    """What a run says of the model that it trained; empty without labelled images."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    """95 % intervals of the metrics that have one."""

    def text(self, name: str) -> str:
        """Format a share with its interval: `14.0 % (12.5 to 15.6)`."""
        return percent(self.metrics[name], self.intervals.get(name))


@dataclass(frozen=True, eq=False)
class ZeroShotScores:
    """The zero-shot predictions of a model, and what they were computed from."""

    scores: Scores
    encoded: Encoded
    anchors: Anchors
    fingerprint: str
    """Of the model's weights."""

    def model_scores(self) -> ModelScores:
        """Return the figures of the predictions."""
        found = figures(statistics_of(self.scores), len(self.scores))
        return ModelScores(
            {
                **{name: each.value for name, each in found.items()},
                "scored_images": float(len(self.scores)),
                "scored_skipped": float(sum(self.encoded.skipped.values())),
            },
            {name: each.interval for name, each in found.items()},
        )


def score_zeroshot(
    clip: LoadedClip, anchors: Anchors, data: ScoredData, workers: WorkersConfig
) -> ZeroShotScores:
    """Predict the classes of all images, over the whole class list."""
    encoded = encode_labelled(
        clip,
        data.address,
        data.label_ids,
        data.label_column,
        EncodeSpec(batch_size=data.batch_size),
        workers,
        allow_missing=data.allow_missing,
    )
    # Frees decoded images and activations; the next model to be scored takes as much again.
    trim_heap()
    facts = Facts(
        model=clip.address,
        data=data.address,
        tasks=("zeroshot",),
        class_ids=tuple(data.class_ids),
        class_names=tuple(entry.name for entry in data.classes),
        temperature=SCORING_TEMPERATURE,
    )
    blank = Scores(facts, encoded.keys, encoded.labels.numpy().astype("int32"))
    scores = zeroshot_parts(blank, clip, anchors, encoded)
    return ZeroShotScores(scores, encoded, anchors, clip.fingerprint)


def zeroshot_parts(
    scores: Scores, clip: LoadedClip, anchors: Anchors, encoded: Encoded, *, device: str = "cpu"
) -> Scores:
    """Return the scores with the zero-shot predictions of a model."""
    found = zeroshot_predictions(
        encoded.embeddings.to(device),
        encoded.labels,
        anchors,
        len(scores.facts.class_ids),
        temperature=SCORING_TEMPERATURE,
        logit_scale=float(clip.model.logit_scale.detach().exp()),
    )
    return replace(
        scores,
        predicted=found.predicted.numpy(),
        probability=found.probability.numpy(),
        own_probability=found.own_probability.numpy(),
        ranks={**scores.ranks, "zeroshot": as_ranks(found.ranks)},
    )


def against_teacher(student: ZeroShotScores, teacher: ZeroShotScores) -> ZeroShotScores:
    """Return a student's scores with how they agree with its teacher's, on the same images.

    They stay as they are if the two could not use the same images, as with a damaged file on a failing disk.
    """
    if student.encoded.keys != teacher.encoded.keys:
        return student
    scores = with_agreement(
        student.scores,
        student.encoded,
        student.anchors,
        teacher.encoded,
        teacher.anchors,
        teacher_fingerprint=teacher.fingerprint,
    )
    return replace(student, scores=scores)


def with_agreement(
    student: Scores,
    encoded: Encoded,
    anchors: Anchors,
    teacher: Encoded,
    teacher_anchors: Anchors,
    *,
    teacher_fingerprint: str,
    device: str = "cpu",
) -> Scores:
    """Return the scores with how far a student's predictions agree with its teacher's.

    Args:
        student: with its zero-shot predictions.
        encoded, anchors: of the student.
        teacher: the same images by the teacher.
        teacher_anchors: of the same classes by the teacher's text tower.
        teacher_fingerprint: of the teacher's weights.
        device: where they are compared.
    """
    found = agreement(
        encoded.embeddings.to(device),
        teacher.embeddings.to(device),
        encoded.labels,
        anchors,
        teacher_anchors,
        len(student.facts.class_ids),
        temperature=SCORING_TEMPERATURE,
    )
    beside = BesideTeacher(
        as_ranks(found.teacher_ranks),
        found.same_class.numpy(),
        found.kl.numpy(),
        None if found.cosine is None else found.cosine.numpy(),
    )
    return replace(student, facts=replace(student.facts, teacher=teacher_fingerprint), beside=beside)
