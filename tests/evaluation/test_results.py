"""Tables of scores: written and read back, figures from them, and two evaluations side by side."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamclip.errors import InputError
from beamclip.evaluation.results import (
    MISSED,
    NO_RANK,
    BesideTeacher,
    Captions,
    Facts,
    Scores,
    as_ranks,
    read_scores,
    score_names,
    write_scores,
)
from beamclip.evaluation.scores import compared, statistics_of, worst_classes

FACTS = Facts(
    "runs/a", "data/test", ("zeroshot", "retrieval"), ("ant", "bee", "cat"), ("Ant", "Bee", "Cät"), 0.01
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def small() -> Scores:
    """Four images of three classes; the last has no caption, the first has two."""
    return Scores(
        FACTS,
        ["k0", "k1", "k2", "k3"],
        labels=ints(0, 1, 1, 2),
        predicted=np.array([[0, 1, 2], [0, 1, 2], [0, 2, 1], [2, 0, 1]], np.int32),
        probability=np.array([0.9, 0.5, 0.6, 0.8], np.float32),
        own_probability=np.array([0.4, 0.4, 0.4, 0.4], np.float32),
        ranks={
            "zeroshot": ints(0, 1, 2, 0),
            "probe": ints(0, 0, MISSED, 7),
            "i2t": ints(0, 3, 12, NO_RANK),
        },
        captions=Captions(["a", "b", "c", "d"], ints(0, 0, 1, 2), ints(0, 4, 9, 11)),
        beside=BesideTeacher(
            ints(0, 0, 7, 0),
            np.array([True, False, True, False]),
            np.array([0.1, 0.2, 0.3, 0.4], np.float32),
            np.array([1.0, 0.5, 0.5, 0.0], np.float32),
        ),
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    scores = small()
    paths = write_scores(tmp_path, scores)
    assert [path.name for path in paths] == ["scores.parquet", "captions.parquet"]
    again = read_scores(tmp_path)
    assert again.facts == scores.facts
    assert again.keys == scores.keys
    for name in ("labels", "predicted", "probability", "own_probability"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    assert {task: ranks.tolist() for task, ranks in again.ranks.items()} == {
        task: ranks.tolist() for task, ranks in scores.ranks.items()
    }
    assert again.captions is not None
    assert again.captions.texts == ["a", "b", "c", "d"]
    assert again.captions.ranks.tolist() == [0, 4, 9, 11]
    assert again.beside is not None
    assert scores.beside is not None
    for name in ("ranks", "same_class", "kl", "cosine"):
        np.testing.assert_array_equal(getattr(again.beside, name), getattr(scores.beside, name))


def test_the_columns_are_those_that_others_rely_on(tmp_path: Path) -> None:
    write_scores(tmp_path, small())
    schema = pq.read_schema(tmp_path / "scores.parquet")
    assert {field.name: field.type for field in schema} == {
        "key": pa.string(),
        "label": pa.int32(),
        "predicted": pa.list_(pa.int32()),
        "probability": pa.float32(),
        "own_probability": pa.float32(),
        "rank_zeroshot": pa.int32(),
        "rank_probe": pa.int32(),
        "rank_i2t": pa.int32(),
        "rank_teacher": pa.int32(),
        "teacher_same_class": pa.bool_(),
        "teacher_kl": pa.float32(),
        "teacher_cosine": pa.float32(),
    }
    table = pq.read_table(tmp_path / "captions.parquet")
    assert table.column_names == ["key", "text", "image", "rank_t2i"]
    assert table["key"].to_pylist() == ["k0", "k0", "k1", "k2"]


def test_each_data_set_has_a_table_and_old_captions_do_not_stay(tmp_path: Path) -> None:
    write_scores(tmp_path, small())
    write_scores(tmp_path, small(), "sketch")
    assert score_names(tmp_path) == ["", "sketch"]
    without = replace(small(), ranks={"zeroshot": ints(0, 1, 2, 0)}, captions=None)
    write_scores(tmp_path, without)
    assert not (tmp_path / "captions.parquet").exists()
    assert read_scores(tmp_path).captions is None
    assert read_scores(tmp_path, "sketch").captions is not None


def test_figures_follow_from_the_ranks() -> None:
    weights = np.ones((1, 4))
    found = {name: float(each(weights)[0]) for name, each in statistics_of(small()).items()}
    assert found == pytest.approx(
        {
            "zeroshot_top1": 0.5,
            "zeroshot_top5": 1.0,
            "probe_top1": 0.5,
            "probe_top5": 0.5,
            "zeroshot_mean_class_top1": 2 / 3,
            "calibration_error": (0.1 + 0.5 + 0.6 + 0.2) / 4,
            "calibration_error_own_scale": (0.6 + 0.4 + 0.4 + 0.6) / 4,
            "retrieval_i2t_r1": 1 / 3,
            "retrieval_i2t_r5": 2 / 3,
            "retrieval_i2t_r10": 2 / 3,
            "retrieval_t2i_r1": 1 / 4,
            "retrieval_t2i_r5": 2 / 4,
            "retrieval_t2i_r10": 3 / 4,
            "teacher_zeroshot_top1": 3 / 4,
            "teacher_zeroshot_top5": 3 / 4,
            "agreement_top1": 1 / 2,
            "agreement_kl": 0.25,
            "agreement_cosine": 0.5,
            "retained_top1": 2 / 3,
        },
        abs=1e-6,
    )


def test_the_worst_classes_come_first_with_what_they_are_taken_for() -> None:
    worst = worst_classes(small(), most=2)
    assert worst[0] == {"id": "bee", "name": "Bee", "images": 2, "accuracy": 0.0, "taken_for": [("ant", 2)]}
    assert worst[1]["accuracy"] == 1.0


def test_counts_that_are_too_large_are_misses() -> None:
    assert as_ranks([0, 5, 2**62]).tolist() == [0, 5, MISSED]


def shuffled(scores: Scores) -> Scores:
    """The same images in another order, by which class list the labels count too."""
    order = np.array([2, 0, 3, 1])
    place = np.argsort(order).astype(np.int32)
    assert scores.captions is not None
    return replace(
        scores,
        facts=replace(scores.facts, class_ids=("bee", "cat", "ant")),
        keys=[scores.keys[row] for row in order],
        labels=ints(2, 0, 0, 1)[order],
        probability=scores.probability[order],
        own_probability=scores.own_probability[order],
        ranks={task: ranks[order] for task, ranks in scores.ranks.items()},
        captions=replace(scores.captions, image=place[scores.captions.image]),
        beside=BesideTeacher(
            *(getattr(scores.beside, part)[order] for part in ("ranks", "same_class", "kl", "cosine"))
        ),
    )


def test_evaluations_are_paired_by_key_whatever_the_order() -> None:
    found = compared(small(), shuffled(small()), "runs/b")
    assert {"zeroshot_mean_class_top1", "retrieval_t2i_r5", "agreement_kl", "retained_top1"} < set(found)
    assert all(each.value == each.low == each.high == 0 for each in found.values())
    assert {each.verdict for each in found.values()} == {"cannot tell"}


def test_figures_that_are_biased_or_of_another_teacher_get_no_verdict() -> None:
    found = compared(small(), small(), "runs/b")
    assert not [name for name in found if name.startswith(("calibration", "teacher_"))]
    assert {"agreement_top1", "agreement_kl", "agreement_cosine"} < set(found)
    elsewhere = replace(small(), facts=replace(FACTS, teacher="another"))
    found = compared(small(), elsewhere, "runs/b")
    assert not [name for name in found if name.startswith(("agreement", "retained"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ["k0", "k1", "k2", "x"]}, "scored other images: 3 of its 4 are among the 4 here"),
        ({"labels": ints(0, 1, 1, 1)}, "gives the same images other classes"),
        ({"facts": replace(FACTS, class_ids=("ant", "bee", "cat", "dog"))}, "chose among 4 classes, here"),
        ({"captions": Captions(["a"] * 4, ints(0, 1, 1, 2), ints(0, 0, 0, 0))}, "other captions"),
    ],
)
def test_other_images_classes_or_captions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compared(small(), replace(small(), **changes), "runs/b")


def test_files_that_are_no_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_scores(tmp_path)
    (tmp_path / "scores.parquet").write_text("no")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_scores(tmp_path)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "scores.parquet")
    with pytest.raises(InputError, match="not a table of beamclip"):
        read_scores(tmp_path)
