"""The command evaluate on the small corpus: all tasks in one pass, comparisons, and wrong input."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import run_command
from beamclip.commands.data_set_scores import Evaluator
from beamclip.commands.evaluate import evaluate
from beamclip.commands.main import main
from beamclip.commands.options import EvaluateConfig
from beamclip.errors import InputError
from beamclip.evaluation.config import ProbeConfig
from beamclip.evaluation.encode import UNKNOWN_LABEL, Encoded, EncodeSpec
from beamclip.evaluation.results import Facts, Scores, read_scores, write_scores
from beamclip.files import read_json
from beamclip.models.clip import LoadedClip
from beamclip.prompts.classes import load_classes
from beamclip.prompts.fitting import FITTING_FILE
from beamclip.summary import Summary, read_summary, write_summary

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


@pytest.fixture(scope="module")
def zeroshot(config) -> EvaluateConfig:
    """Options of an evaluation by zero-shot alone."""
    return replace(config, tasks=("zeroshot",), teacher=None, train_data=None)


@pytest.fixture
def _without_pictures(monkeypatch):
    """Pictures take most of the time of an evaluation this small."""
    monkeypatch.setattr("beamclip.commands.evaluate.draw_evaluation", lambda *_: None)


def test_a_model_is_not_told_apart_from_itself(zeroshot, teacher, workspace, capsys):
    out = workspace / "against"
    summary = evaluate(replace(zeroshot, against=teacher[0], out=out))
    figures = summary.stages["against"]["figures"]
    assert {each["verdict"] for each in figures.values()} == {"cannot tell"}
    assert read_json(out / "summary.json")["stages"]["against"]["figures"]["zeroshot_top1"]["value"] == 0.0
    assert "cannot tell" in capsys.readouterr().out


@pytest.mark.usefixtures("_without_pictures")
def test_against_another_run_what_differs_is_called_better_or_worse(config, evaluated, tmp_path, capsys):
    """The other run names all classes right, and agrees with the teacher on none."""
    scores = read_scores(evaluated)
    none, all_off = np.zeros(len(scores), np.int32), np.ones(len(scores), np.float32)
    other = replace(
        scores,
        facts=replace(scores.facts, data="a copy"),
        ranks={**scores.ranks, "zeroshot": none},
        beside=replace(scores.beside, same_class=none.astype(bool), kl=all_off),
    )
    write_scores(tmp_path / "other", other)
    changes = {"tasks": ("agreement",), "train_data": None, "against": tmp_path / "other"}
    summary = evaluate(replace(config, **changes, out=tmp_path / "run"))
    verdicts = {name: each["verdict"] for name, each in summary.stages["against"]["figures"].items()}
    assert verdicts["zeroshot_top1"] == "worse"
    assert (verdicts["agreement_top1"], verdicts["agreement_kl"]) == ("better", "better")
    assert verdicts["agreement_cosine"] == "cannot tell"
    assert not [name for name in verdicts if name.startswith(("calibration", "teacher"))]
    assert "there of a copy" in capsys.readouterr().out


@pytest.mark.usefixtures("_without_pictures")
def test_a_teacher_is_prompted_by_templates_that_fit_it(config, teacher, tmp_path):
    """The same weights twice, with other notes on their captions: prompts and predictions differ."""
    shutil.copytree(teacher[0] / "model", tmp_path / "model")
    note = tmp_path / "model" / FITTING_FILE
    note.write_text(
        json.dumps({**json.loads(note.read_text()), "templates": ["something else entirely, {}"]})
    )
    changes = {"teacher": str(tmp_path / "model"), "tasks": ("agreement",), "train_data": None}
    summary = evaluate(replace(config, **changes, out=tmp_path / "run"))
    assert summary.metrics["agreement_kl"] > 1e-4
    assert summary.metrics["agreement_cosine"] == pytest.approx(1.0)


def test_images_to_train_on_are_counted_for_each_task(evaluated):
    stages = read_summary(evaluated).stages
    for task in ("probe", "knn"):
        assert (stages[task]["train_images"], stages[task]["train_skipped"]) == (200, {})
        assert len(stages[task]["notes"]) <= 1


def write_classes(path: Path, ids: Sequence[str]) -> Path:
    path.write_text(yaml.safe_dump([{"id": each, "name": f"name of {each}"} for each in ids]))
    return path


@pytest.mark.usefixtures("_without_pictures")
def test_images_of_other_classes_are_counted(config, corpus, tmp_path, capsys):
    few = write_classes(tmp_path / "few.yaml", [entry.id for entry in load_classes(corpus.classes)][:20])
    changes = {"classes": few, "tasks": ("knn", "retrieval"), "teacher": None}
    summary = evaluate(replace(config, **changes, out=tmp_path / "run"))
    knn = summary.stages["knn"]
    assert knn["train_images"] + knn["train_skipped"][UNKNOWN_LABEL] == 200
    out = capsys.readouterr().out
    assert f"of --train-data {corpus.train}: {knn['train_skipped'][UNKNOWN_LABEL]} {UNKNOWN_LABEL}" in out
    assert f"; {summary.counts.skipped[UNKNOWN_LABEL]} of other classes left out" in out


def test_training_images_of_one_class_are_refused(config, evaluated, tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    Image.new("RGB", (32, 32), (90, 10, 10)).save(tmp_path / "train" / "ant" / "0.png")
    scores = read_scores(evaluated)
    scored = scores.facts.class_ids[scores.labels[0]]
    changes = {"classes": write_classes(tmp_path / "two.yaml", ["ant", scored]), "tasks": ("probe",)}
    with pytest.raises(InputError, match="all 1 image that can be used are of one class, 'name of ant'"):
        evaluate(
            replace(config, **changes, teacher=None, train_data=str(tmp_path / "train"), out=tmp_path / "run")
        )


@pytest.mark.usefixtures("_without_pictures")
def test_a_probe_is_fitted_once_for_all_data_sets(config, evaluated, tmp_path, capsys):
    scored = read_scores(evaluated)
    folder = tmp_path / "drawn" / scored.facts.class_ids[scored.labels[0]]
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32), (90, 10, 10)).save(folder / "0.png")
    changes = {"data": (*config.data, str(tmp_path / "drawn")), "tasks": ("probe", "knn"), "teacher": None}
    summary = evaluate(replace(config, **changes, out=tmp_path / "run"))
    assert set(summary.stages["data"]) == {"test", "drawn"}
    assert summary.metrics["test/probe_top1"] == read_summary(evaluated).metrics["probe_top1"]
    assert capsys.readouterr().out.count("fitted on 200 images") == 1


@pytest.mark.usefixtures("_without_pictures")
def test_a_teacher_that_could_not_use_all_images_costs_the_agreement_only(
    config, tmp_path, monkeypatch, capsys
):
    original = Evaluator.encode

    def encode(evaluator: Evaluator, clip: LoadedClip, address: str, spec: EncodeSpec) -> Encoded:
        found = original(evaluator, clip, address, spec)
        return replace(found, keys=found.keys[1:]) if clip is evaluator.teacher else found

    monkeypatch.setattr(Evaluator, "encode", encode)
    changes = {"tasks": ("agreement",), "train_data": None}
    summary = evaluate(replace(config, **changes, out=tmp_path / "run"))
    assert "zeroshot_top1" in summary.metrics
    assert not [name for name in summary.metrics if "agreement" in name or "teacher" in name]
    assert "the teacher could use 59 images, the model 60" in capsys.readouterr().out


def test_retrieval_needs_no_class_list(zeroshot, workspace):
    out = workspace / "retrieved"
    summary = evaluate(replace(zeroshot, tasks=("retrieval",), classes=None, out=out))
    assert set(summary.metrics) == {f"retrieval_{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert read_scores(out).labels is None


@pytest.fixture(scope="module")
def shifted(zeroshot, corpus, workspace) -> EvaluateConfig:
    """Options of an evaluation of two data sets."""
    data = (str(corpus.test), str(corpus.train))
    return replace(zeroshot, data=data, out=workspace / "shifted")


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
        (
            {"tasks": ("zeroshot",), "classes": None, "teacher": None, "train_data": None},
            "--tasks zeroshot needs --classes",
        ),
        ({"tasks": ("probe",), "train_data": None, "teacher": None}, "--tasks probe needs --train-data"),
        ({"tasks": ("knn",), "train_data": None, "teacher": None}, "--tasks knn needs --train-data"),
        ({"tasks": ("agreement",), "teacher": None}, "--tasks agreement needs --teacher"),
        ({"tasks": ("zeroshot",)}, "--teacher is read by --tasks agreement only. Add agreement to --tasks"),
        ({"classes": None}, "--teacher is read by --tasks agreement only. Give --classes"),
        (
            {"tasks": ("zeroshot",), "teacher": None},
            "--train-data is read by --tasks probe and knn only. Add probe or knn to --tasks",
        ),
        ({"caption_columns": ("no_such",)}, "a text in no_such"),
        ({"baseline": ("a", "b", "c")}, "--baseline: there is one data set"),
        ({"against": Path("nowhere")}, "nowhere/scores.parquet: no such file"),
        (
            {"caption_columns": ("no_such",), "tasks": ("retrieval",), "teacher": None, "train_data": None},
            "a text in no_such",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_model_is_loaded(config, changes, message, tmp_path):
    with pytest.raises(InputError) as error:
        evaluate(replace(config, model="no such model", out=tmp_path / "run", **changes))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_images_are_not_scored_by_themselves(config, tmp_path):
    for place in (config.data[0], f"{config.data[0]}/"):
        with pytest.raises(InputError, match=r"holds images of --data .*scored by themselves"):
            evaluate(replace(config, train_data=place, model="no such model", out=tmp_path / "run"))
    with pytest.raises(InputError, match="names one data set twice"):
        evaluate(replace(config, data=(config.data[0], f"{config.data[0]}/"), model="no such model"))


def test_a_baseline_of_two_is_too_few(shifted, tmp_path):
    with pytest.raises(InputError, match="2 runs do not define a line"):
        evaluate(replace(shifted, baseline=("a", "b"), out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"test/probe_top1": 0.5, "train/probe_top1": 0.5}, "has no accuracy on test by --tasks zeroshot"),
        ({"test/zeroshot_top1": 0.5, "train/zeroshot_top1": 0.4}, "all models have the same accuracy"),
    ],
)
def test_a_baseline_that_says_nothing_is_refused_before_a_model_is_loaded(shifted, tmp_path, metrics, said):
    for number in range(3):
        write_summary(tmp_path / str(number), Summary("evaluate", "finished", 1.0, metrics=metrics))
    line = tuple(str(tmp_path / str(number)) for number in range(3))
    with pytest.raises(InputError, match=said):
        evaluate(replace(shifted, baseline=line, model="no such model", out=tmp_path / "run"))


def test_a_run_on_several_data_sets_is_no_comparison_for_one(shifted, zeroshot, tmp_path):
    write_scores(tmp_path, Scores(Facts("a", "b", ()), ["k"]), "test")
    with pytest.raises(InputError, match=r"has no scores on a single data set \(only on: test\)"):
        evaluate(replace(zeroshot, against=tmp_path, model="no such model", out=tmp_path / "run"))


def test_an_evaluation_of_other_images_is_no_comparison_and_loses_no_score(
    zeroshot, evaluated, corpus, tmp_path
):
    changed = replace(zeroshot, data=(str(corpus.train),), against=evaluated, out=tmp_path)
    with pytest.raises(InputError, match="scored other images: 60 of its 60 are among the 200 here"):
        evaluate(changed)
    assert "zeroshot_top1" in read_summary(tmp_path).metrics


def test_a_folder_is_used_again_by_an_evaluation_only(zeroshot, teacher, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="holds the results of another command"):
        evaluate(replace(zeroshot, out=teacher[0]))
    (tmp_path / "plots").mkdir()
    stale = [tmp_path / "scores-old.parquet", tmp_path / "captions.parquet", tmp_path / "plots" / "old.png"]
    for path in stale:
        path.write_text("of an earlier evaluation")
    monkeypatch.setattr("beamclip.plots.scores.plot_classes", None)
    for _ in range(2):
        evaluate(replace(zeroshot, out=tmp_path))
    assert not [path for path in stale if path.exists()]
    assert "pictures  could not be drawn" in capsys.readouterr().out
    assert (tmp_path / "summary.json").exists()


def test_a_class_list_of_one_class_is_refused_in_one_line(config, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\n")
    argv = ["--model", config.model, "--data", config.data[0], "--classes", str(classes)]
    assert run_command(EvaluateConfig, evaluate, "", argv=argv) == 2
    assert "holds one class, 'cat'" in capsys.readouterr().err


def test_samples_that_cannot_be_scored_are_named_in_stages(teacher, corpus, tmp_path, capsys):
    options = ["--model", str(teacher[0]), "--data", str(corpus.test), "--label-column", "nowhere"]
    assert main(["evaluate", *options, "--num-workers", "0", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "skipped   shard 00000.tar, sample" in told.out
    assert "WARNING" not in told.err
    assert "no image to score" in told.err
