"""Score a model on labelled images and draw its predictions, at the end of a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.class_list import label_ids
from beamclip.evaluation.encode import Encoded, EncodeSpec, encode_labelled, sample_images
from beamclip.evaluation.zeroshot import class_scores, zeroshot_metrics
from beamclip.heap import trim_heap
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import copied_image_teacher
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry

SCORING_TEMPERATURE = 0.01
"""Temperature of the soft maximum over the anchors of a class that has several: CLIP's own scale of 100."""
PICTURED = 12
"""Images on the sheet of predictions."""
COMPARED = 24
"""Images and classes in the similarity matrices."""


@dataclass(frozen=True)
class ScoredData:
    """The labelled data that models are scored on."""

    address: str
    label_column: str
    classes: Sequence[ClassEntry]
    batch_size: int
    allow_missing: bool = False
    """Whether the samples of a shard that cannot be opened count as lost, instead of raising."""

    @cached_property
    def label_ids(self) -> list[str]:
        """What the labels call the classes, in the order of the class list."""
        return label_ids(self.classes, self.address, self.label_column)


def score_zeroshot(
    clip: LoadedClip, anchors: Anchors, data: ScoredData, workers: WorkersConfig
) -> tuple[dict[str, float], Encoded]:
    """Return zero-shot accuracy over all classes of the list, and the encoded images it was computed from."""
    spec = EncodeSpec(batch_size=data.batch_size)
    encoded = encode_labelled(
        clip,
        data.address,
        data.label_ids,
        data.label_column,
        spec,
        workers,
        allow_missing=data.allow_missing,
    )
    # Frees decoded images and activations; the next model to be scored takes as much again.
    trim_heap()
    metrics = zeroshot_metrics(
        encoded.embeddings, encoded.labels, anchors, len(data.classes), temperature=SCORING_TEMPERATURE
    )
    return metrics, encoded


def draw_comparison(
    teacher: LoadedClip,
    student: LoadedClip,
    anchors: Anchors,
    data: ScoredData,
    *,
    tau_teacher: float,
    tau_student: float,
    plots: Path,
) -> list[Path]:
    """Draw the sheet of predictions and the similarity matrices of teacher and student.

    Args:
        plots: folder of the pictures.

    Returns:
        Paths of the PNG files; none if there are no labelled images.
    """
    # Importing matplotlib takes half a second, for which training need not wait.
    from beamclip.plots.comparison import plot_predictions, plot_similarity

    size = max(teacher.image_size, student.image_size)
    images, labels = sample_images(
        data.address, data.label_ids, data.label_column, COMPARED, size, allow_missing=data.allow_missing
    )
    if not labels:
        return []
    names = [entry.name for entry in data.classes]
    scores = {
        role: class_scores(
            copied_image_teacher(clip).encode_image(images), anchors, len(names), temperature=tau
        )
        for role, clip, tau in (("teacher", teacher, tau_teacher), ("student", student, tau_student))
    }
    # Frees the copies of both models.
    trim_heap()
    truths = [names[label] for label in labels]
    shown = slice(0, None, max(1, len(labels) // PICTURED))
    sheet = plot_predictions(
        images[shown],
        truths[shown],
        scores["teacher"][shown] / tau_teacher,
        scores["student"][shown] / tau_student,
        names,
        plots / "predictions.png",
    )
    matrices = plot_similarity(
        scores["teacher"][:, labels],
        scores["student"][:, labels],
        truths,
        truths,
        plots / "similarity.png",
    )
    return [sheet, matrices]
