"""The command evaluate on the small corpus: all tasks in one pass, comparisons, and wrong input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import run_command
from beamclip.commands.evaluate import evaluate
from beamclip.commands.options import EvaluateConfig
from beamclip.errors import InputError
from beamclip.evaluation.config import ProbeConfig
from beamclip.evaluation.results import read_scores
from beamclip.files import read_json
from beamclip.summary import read_summary

HERE = WorkersConfig(num_workers=0)
ALL = {"zeroshot", "probe", "knn", "retrieval", "agreement"}


@pytest.fixture(scope="module")
def config(teacher, corpus, workspace) -> EvaluateConfig:
    return EvaluateConfig(
        model=str(teacher[0]),
        teacher=str(teacher[0]),
        data=(str(corpus.test),),
        classes=corpus.classes,
        train_data=str(corpus.train),
        tasks=("all",),
        out=workspace / "evaluated",
        probe=ProbeConfig(probe_c=0.1),
        workers=HERE,
    )


@pytest.fixture(scope="module")
def evaluated(config) -> Path:
    """The folder of an evaluation by all tasks."""
    evaluate(config)
    return config.out


def test_all_tasks_leave_figures_with_intervals_a_table_and_pictures(evaluated, teacher):
    summary = read_summary(evaluated)
    trained = teacher[1].metrics
    assert summary.metrics["zeroshot_top1"] == trained["zeroshot_top1"]
    assert set(summary.intervals) == set(summary.metrics)
    for name, (low, high) in summary.intervals.items():
        assert low <= high, name
    scores = read_scores(evaluated)
    assert set(scores.facts.tasks) == ALL
    assert set(scores.ranks) == {"zeroshot", "probe", "knn10", "knn20", "i2t"}
    assert np.mean(scores.ranks["zeroshot"] < 1) == summary.metrics["zeroshot_top1"]
    assert np.mean(scores.predicted[:, 0] == scores.labels) == summary.metrics["zeroshot_top1"]
    assert len(scores.captions.texts) == len(scores) == 60
    assert {"classes.png", "calibration.png"} <= {path.name for path in (evaluated / "plots").iterdir()}


def test_a_model_agrees_with_itself(evaluated):
    metrics = read_summary(evaluated).metrics
    assert metrics["agreement_top1"] == 1.0
    assert metrics["agreement_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["agreement_cosine"] == pytest.approx(1.0)


def test_training_leaves_the_scores_of_its_images_too(evaluated, teacher):
    scores, of_training = read_scores(evaluated), read_scores(teacher[0])
    assert of_training.keys == scores.keys
    assert of_training.ranks["zeroshot"].tolist() == scores.ranks["zeroshot"].tolist()
    assert teacher[1].intervals["zeroshot_top1"] == read_summary(evaluated).intervals["zeroshot_top1"]


def test_against_another_run_only_what_differs_is_called_better_or_worse(
    config, evaluated, teacher, workspace, capsys
):
    out = workspace / "against"
    summary = evaluate(replace(config, tasks=("zeroshot",), teacher=None, against=teacher[0], out=out))
    figures = summary.stages["against"]["figures"]
    assert {each["verdict"] for each in figures.values()} == {"cannot tell"}
    assert read_json(out / "summary.json")["stages"]["against"]["figures"]["zeroshot_top1"]["value"] == 0.0
    assert "cannot tell" in capsys.readouterr().out


def test_retrieval_needs_no_class_list(config, workspace):
    out = workspace / "retrieved"
    summary = evaluate(replace(config, tasks=("retrieval",), classes=None, teacher=None, out=out))
    assert set(summary.metrics) == {f"retrieval_{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert read_scores(out).labels is None


@pytest.fixture(scope="module")
def shifted(config, corpus, workspace) -> EvaluateConfig:
    """Options of an evaluation of two data sets."""
    data = (str(corpus.test), str(corpus.train))
    return replace(config, data=data, tasks=("zeroshot",), teacher=None, out=workspace / "shifted")


def test_several_data_sets_are_scored_at_once_and_held_against_a_line(shifted, workspace):
    evaluate(shifted)
    plain = read_summary(shifted.out)
    assert plain.counts.succeeded == 260
    assert {f"{name}/zeroshot_top1" for name in ("test", "train")} <= set(plain.metrics)
    assert len(read_scores(shifted.out, "train")) == 200
    line = []
    for number, (test, train) in enumerate([(0.1, 0.1), (0.3, 0.3), (0.5, 0.5)]):
        other = workspace / f"model-{number}"
        content = json.loads((shifted.out / "summary.json").read_text())
        content["metrics"] |= {"test/zeroshot_top1": test, "train/zeroshot_top1": train}
        other.mkdir()
        (other / "summary.json").write_text(json.dumps(content))
        line.append(str(other))
    summary = evaluate(replace(shifted, baseline=tuple(line), out=workspace / "robust"))
    found = summary.metrics["train/effective_robustness_zeroshot_top1"]
    metrics = summary.metrics
    assert found == pytest.approx(metrics["train/zeroshot_top1"] - max(metrics["test/zeroshot_top1"], 1e-4))
    low, high = summary.intervals["train/effective_robustness_zeroshot_top1"]
    assert low <= found <= high
    assert summary.stages["robustness"]["ordinary"] == "test"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "--tasks is empty"),
        ({"tasks": ("zeroshot",), "classes": None, "teacher": None}, "--tasks zeroshot needs --classes"),
        ({"tasks": ("probe",), "train_data": None, "teacher": None}, "--tasks probe needs --train-data"),
        ({"tasks": ("knn",), "train_data": None, "teacher": None}, "--tasks knn needs --train-data"),
        ({"tasks": ("agreement",), "teacher": None}, "--tasks agreement needs --teacher"),
        ({"tasks": ("zeroshot",)}, "--teacher is read by --tasks agreement only"),
        ({"baseline": ("a", "b", "c")}, "--baseline: there is one data set"),
        ({"against": Path("nowhere")}, "nowhere/scores.parquet: no such file"),
        ({"caption_columns": ("no_such",), "tasks": ("retrieval",), "teacher": None}, "a text in no_such"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_model_is_loaded(config, changes, message, tmp_path):
    with pytest.raises(InputError) as error:
        evaluate(replace(config, model="no such model", out=tmp_path / "run", **changes))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_baseline_of_two_is_too_few(shifted, tmp_path):
    with pytest.raises(InputError, match="2 runs do not define a line"):
        evaluate(replace(shifted, baseline=("a", "b"), out=tmp_path / "run"))


def test_an_evaluation_of_other_images_is_no_comparison(config, evaluated, corpus, tmp_path):
    data = (str(corpus.train),)
    changed = replace(config, data=data, tasks=("zeroshot",), teacher=None, against=evaluated, out=tmp_path)
    with pytest.raises(InputError, match="scored other images: 60 of its 60 are among the 200 here"):
        evaluate(changed)


def test_a_class_list_of_one_class_is_refused_in_one_line(config, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\n")
    argv = ["--model", config.model, "--data", config.data[0], "--classes", str(classes)]
    assert run_command(EvaluateConfig, evaluate, "", argv=argv) == 2
    assert "holds one class, 'cat'" in capsys.readouterr().err
