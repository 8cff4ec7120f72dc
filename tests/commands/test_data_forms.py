"""Labelled data that name their classes themselves, scored by the command with a teacher of the corpus."""

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.distill import distill
from beamclip.commands.evaluate import evaluate
from beamclip.commands.options import DistillConfig, EvaluateConfig, ScoringConfig
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.evaluation.encode import UNKNOWN_LABEL
from beamclip.evaluation.results import read_scores
from beamclip.models.config import StudentConfig
from beamclip.prompts.classes import load_classes
from beamclip.training.config import OptimConfig

pytestmark = pytest.mark.slow

NAMES = ["cross", "bar", "ring", "star", "moon", "sun"]


def write_benchmark(folder: Path) -> None:
    """Twelve images to test on, one of a class that classnames.txt lacks, and twelve to train on."""
    for split, labels in (("test", [*range(6), *range(5), 6]), ("train", [*range(6)] * 2)):
        (folder / split).mkdir(parents=True)
        with webdataset.ShardWriter(str(folder / split / "%d.tar"), maxcount=5, verbose=0) as writer:
            for number, label in enumerate(labels):
                file = io.BytesIO()
                Image.new("RGB", (20, 20), (40 * label, number, 90)).save(file, "webp")
                writer.write({"__key__": f"s{number:07d}", "webp": file.getvalue(), "cls": label})
        (folder / split / "nshards.txt").write_text("3")
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    (folder / "zeroshot_classification_templates.txt").write_text("a drawing of a {c}.\nthe {c}\n")


def test_a_folder_in_the_form_of_clip_benchmark_needs_no_class_list(teacher, tmp_path):
    write_benchmark(tmp_path / "data")
    config = EvaluateConfig(
        model=str(teacher[0]),
        data=(str(tmp_path / "data"),),
        train_data=str(tmp_path / "data"),
        tasks=("zeroshot", "knn"),
        out=tmp_path / "scores",
        workers=WorkersConfig(num_workers=0),
    )
    summary = evaluate(config)
    assert (summary.counts.attempted, summary.counts.succeeded) == (12, 11)
    assert summary.counts.skipped == {UNKNOWN_LABEL: 1}
    used = yaml.safe_load((tmp_path / "scores" / "config.yaml").read_text())
    assert used["prompts"]["templates"] == ["a drawing of a {}.", "the {}"]
    assert used["train_data"] == str(tmp_path / "data" / "train")
    scores = read_scores(tmp_path / "scores")
    assert scores.facts.class_names == tuple(NAMES)
    assert scores.labels.tolist() == [*range(6), *range(5)]


def test_names_in_a_class_list_are_found_among_the_numbers_of_the_data(teacher, tmp_path):
    write_benchmark(tmp_path / "data")
    (tmp_path / "some.txt").write_text("Sun\nbar\n")
    config = EvaluateConfig(
        model=str(teacher[0]),
        data=(str(tmp_path / "data"),),
        classes=tmp_path / "some.txt",
        out=tmp_path / "scores",
        workers=WorkersConfig(num_workers=0),
    )
    assert evaluate(config).counts.skipped == {UNKNOWN_LABEL: 9}
    assert read_scores(tmp_path / "scores").labels.tolist() == [1, 0, 1]


def test_each_data_set_numbers_its_classes_in_its_own_order(teacher, tmp_path):
    write_benchmark(tmp_path / "a")
    write_benchmark(tmp_path / "b")
    (tmp_path / "b" / "classnames.txt").write_text("\n".join(NAMES[::-1]))
    config = EvaluateConfig(
        model=str(teacher[0]),
        data=(str(tmp_path / "a"), str(tmp_path / "b")),
        out=tmp_path / "scores",
        workers=WorkersConfig(num_workers=0),
    )
    evaluate(config)
    names = [path.name for path in sorted((tmp_path / "scores").glob("scores-*.parquet"))]
    assert names == ["scores-a-test.parquet", "scores-b-test.parquet"]
    assert read_scores(tmp_path / "scores", "a-test").labels.tolist() == [*range(6), *range(5)]
    assert read_scores(tmp_path / "scores", "b-test").labels.tolist() == [5, 4, 3, 2, 1, 0, 5, 4, 3, 2, 1]


def test_the_classes_of_a_run_are_not_those_of_numbers_that_nobody_names(teacher, tmp_path):
    config = EvaluateConfig(
        model=str(teacher[0]), data=("torchvision:FakeData?size=2",), out=tmp_path / "scores"
    )
    with pytest.raises(InputError, match="numbers without names, and nobody says which of the classes"):
        evaluate(config)


def test_a_data_set_of_torchvision_is_read_by_tasks_of_ray(ray_cluster, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("beamclip.data.listing.ROWS_PER_SHARD", 4)
    (tmp_path / "three.txt").write_text("cross\nbar\nring\n")
    address = "torchvision:FakeData?size=10&num_classes=3"
    config = EvaluateConfig(
        model=str(teacher[0]),
        data=(address,),
        classes=tmp_path / "three.txt",
        out=tmp_path / "scores",
        workers=WorkersConfig(num_workers=1),
    )
    assert evaluate(config).counts.succeeded == 10
    from torchvision.datasets import FakeData

    expected = [int(label) for _, label in (FakeData(size=10, num_classes=3)[number] for number in range(10))]
    scores = read_scores(tmp_path / "scores")
    assert np.array_equal(scores.labels, expected)
    assert list(scores.keys) == [f"FakeData/{number}" for number in range(10)]


def test_a_distillation_takes_the_classes_of_its_data_and_keeps_them(teacher, tmp_path, corpus):
    write_benchmark(tmp_path / "data")
    config = DistillConfig(
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        out=tmp_path / "student",
        student=StudentConfig(student="test_resnet"),
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=2, precision="fp32"),
        scoring=ScoringConfig(eval_data=str(tmp_path / "data")),
        workers=WorkersConfig(num_workers=0),
    )
    summary = distill(config)
    assert summary.metrics["scored_images"] == 11
    assert [entry.name for entry in load_classes(tmp_path / "student" / "classes.json")] == NAMES


def test_an_evaluation_takes_the_classes_of_the_run_where_the_data_name_none(teacher, corpus, tmp_path):
    config = EvaluateConfig(
        model=str(teacher[0]),
        data=(str(corpus.test),),
        out=tmp_path / "scores",
        workers=WorkersConfig(num_workers=0),
    )
    assert evaluate(config).counts.succeeded == 60
    assert read_scores(tmp_path / "scores").facts.class_ids == tuple(
        entry.id for entry in load_classes(corpus.classes)
    )


def test_data_that_name_no_classes_need_a_list(teacher, tmp_path):
    config = EvaluateConfig(
        model=str(teacher[0] / "model"), data=("torchvision:FakeData?size=2",), out=tmp_path / "scores"
    )
    with pytest.raises(InputError, match="needs --classes, a class list whose ids are the labels"):
        evaluate(config)
    assert not (tmp_path / "scores").exists()
