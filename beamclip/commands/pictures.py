"""Draw what models make of some images, and keep the numbers behind the pictures for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from beamclip.commands.scoring import SCORING_TEMPERATURE, ScoredData
from beamclip.evaluation.anchor_spread import class_means
from beamclip.evaluation.spaced import sample_images
from beamclip.evaluation.zeroshot import class_scores
from beamclip.heap import trim_heap
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import copied_image_teacher
from beamclip.plots.similarity import grouped_classes
from beamclip.prompts.anchors import Anchors

SAMPLED = 96
"""Images that the classes of the similarity matrices are chosen from."""
PICTURED = 12
"""Images on the sheet of predictions."""
GROUPS, MEMBERS = 4, 4
"""Groups of classes in the similarity matrices, and classes in each."""


def draw_models(
    models: Mapping[str, tuple[LoadedClip, Anchors]], data: ScoredData, plots: Path
) -> list[Path]:
    """Draw the sheet of predictions and, of a teacher and a student, the similarity matrices.

    Beside each picture goes a JSON file of the same name, from which a report is made.

    Args:
        models: role -> model, and anchors of the classes of `data` by its text tower; the sheet shows them in
            this order.
        plots: folder of the pictures.

    Returns:
        Paths of the PNG files; none if there are no labelled images.
    """
    size = max(clip.image_size for clip, _ in models.values())
    images, labels = sample_images(
        data.address, data.label_ids, data.label_column, SAMPLED, size, allow_missing=data.allow_missing
    )
    if not labels:
        return []
    spaced = list(range(0, len(labels), max(1, len(labels) // PICTURED)))[:PICTURED]
    count = len(data.classes)
    means = class_means(next(iter(models.values()))[1], count)
    grouped = _grouped(labels, means) if len(models) == 2 else []
    chosen = sorted({*spaced, *grouped})
    scores = {role: _scores(*model, images[chosen], count) for role, model in models.items()}
    # Frees the copies of the models.
    trim_heap()
    row = {image: place for place, image in enumerate(chosen)}
    sheet = _draw_sheet(
        images[spaced],
        [labels[i] for i in spaced],
        {role: values[[row[i] for i in spaced]] for role, values in scores.items()},
        data,
        plots,
    )
    if len(grouped) < 2:
        return [sheet]
    own = [labels[i] for i in grouped]
    matrices = [values[[row[i] for i in grouped]][:, own] for values in scores.values()]
    return [sheet, _draw_similarity([data.classes[k].name for k in own], matrices, means[own], plots)]


def _scores(clip: LoadedClip, anchors: Anchors, images: Tensor, classes: int) -> Tensor:
    embeddings = copied_image_teacher(clip).encode_image(images)
    return class_scores(embeddings, anchors, classes, temperature=SCORING_TEMPERATURE).cpu()


def _grouped(labels: Sequence[int], means: Tensor) -> list[int]:
    """Choose images, one of each class, whose classes form groups; return their indices."""
    first = {label: image for image, label in reversed([*enumerate(labels)])}
    classes = sorted(first)
    places = grouped_classes(means[classes].double().numpy(), GROUPS, MEMBERS)
    return [first[classes[place]] for place in places]


def _draw_sheet(
    images: Tensor, labels: Sequence[int], scores: Mapping[str, Tensor], data: ScoredData, plots: Path
) -> Path:
    # Importing matplotlib takes half a second, for which training need not wait.
    from beamclip.plots.comparison import plot_predictions
    from beamclip.plots.sheet import make_sheet, write_sheet

    names = [entry.name for entry in data.classes]
    sheet = make_sheet(
        images.permute(0, 2, 3, 1).numpy(),
        [names[label] for label in labels],
        {role: values.double().numpy() for role, values in scores.items()},
        names,
        temperature=SCORING_TEMPERATURE,
    )
    write_sheet(sheet, plots / "predictions.json")
    return plot_predictions(sheet, plots / "predictions.png")


def _draw_similarity(names: Sequence[str], matrices: Sequence[Tensor], means: Tensor, plots: Path) -> Path:
    from beamclip.plots.comparison import plot_similarity
    from beamclip.plots.similarity import ordered_similarity, write_similarity

    teacher, student = (matrix.double().numpy() for matrix in matrices)
    similarity = ordered_similarity(names, teacher, student, means.double().numpy())
    write_similarity(similarity, plots / "similarity.json")
    return plot_similarity(similarity, plots / "similarity.png")
