"""The pictures of an evaluation that show images: predictions, similarities, and what retrieval finds."""

from collections.abc import Mapping
from pathlib import Path

from beamclip.commands.console import print_stage
from beamclip.commands.data_set_scores import DataSetScores, Evaluator, Retrieved
from beamclip.commands.figures import draw_scores
from beamclip.commands.pictures import draw_models
from beamclip.commands.retrieval_examples import read_images, retrieval_examples
from beamclip.commands.scoring import ScoredData
from beamclip.evaluation.results import Scores
from beamclip.plots.retrieval import write_retrieval


def draw_evaluation(
    evaluator: Evaluator, data: Mapping[str, str], found: Mapping[str, DataSetScores], plots: Path
) -> None:
    """Draw the scores of all data sets, and images of the first with what the models make of them.

    Failures are only mentioned.

    Args:
        data: name of each data set -> address.
        found: how the model scored on each.
        plots: folder of the pictures and of the numbers behind them.
    """
    name, scored = next(iter(found.items()))
    try:
        draw_scores(found, plots)
        if "zeroshot" in scored.scores.ranks:
            _draw_predictions(evaluator, data[name], plots)
        if scored.retrieved is not None:
            _keep_retrieval(evaluator, data[name], scored.scores, scored.retrieved, plots)
    except Exception as error:  # the scores are there, and pictures are no reason to lose them
        print_stage("pictures", f"could not be drawn: {error}")


def _draw_predictions(evaluator: Evaluator, address: str, plots: Path) -> None:
    config = evaluator.config
    data = ScoredData(
        address,
        config.label_column,
        evaluator.classes,
        config.scoring_batch,
        config.allow_missing_shards,
    )
    models = {"model": (evaluator.clip, evaluator.anchors(evaluator.clip, evaluator.prompts, address))}
    if evaluator.teacher is not None:
        teacher = evaluator.teacher
        models = {
            "teacher": (teacher, evaluator.anchors(teacher, evaluator.teacher_prompts, address)),
            **models,
        }
    draw_models(models, data, plots)


def _keep_retrieval(
    evaluator: Evaluator, address: str, scores: Scores, retrieved: Retrieved, plots: Path
) -> None:
    captions = scores.captions
    assert captions is not None, "retrieval fills it"
    captioned = sorted(set(captions.image.tolist()))
    place = {row: i for i, row in enumerate(captioned)}
    allow_missing, labelled = evaluator.config.allow_missing_shards, bool(evaluator.classes)
    keys = scores.keys
    examples = retrieval_examples(
        retrieved.images[captioned],
        retrieved.texts,
        captions.texts,
        [place[row] for row in captions.image.tolist()],
        (scores.ranks["i2t"][captioned], captions.ranks),
        lambda places: {
            place[row]: pixels
            for row, pixels in read_images(
                address, keys, [captioned[i] for i in places], labelled=labelled, allow_missing=allow_missing
            ).items()
        },
    )
    write_retrieval(examples, plots / "retrieval.json")
