"""A sweep through the command: one cache, trials that are lost, fail and are resumed, a report that holds."""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from mlflow.tracking import MlflowClient

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.options import DistillConfig, SweepConfig
from beamclip.commands.search import SearchConfig
from beamclip.errors import InputError
from beamclip.json_lines import read_json_lines
from beamclip.prompts.config import PromptConfig
from beamclip.summary import read_summary
from beamclip.sweep.monitor import SweepMonitor
from beamclip.sweep.run_trial import Report, prompts_key
from beamclip.sweep.space import parse_space
from beamclip.sweep.sweep import _planned, sweep, trials_at_once
from beamclip.sweep.trial import Trial, read_trials
from beamclip.tracking import tracking_uri

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS = 9
CONFIG = SweepConfig()


@pytest.fixture(scope="module")
def class_file(corpus, workspace) -> Path:
    """The corpus' classes, each with a context and none with parents."""
    entries = yaml.safe_load(corpus.classes.read_text())
    path = workspace / "classes-with-contexts.yaml"
    plain = [{"id": entry["id"], "name": entry["name"], "contexts": ["a drawing"]} for entry in entries]
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture(scope="module")
def given(teacher, corpus, class_file) -> list[str]:
    """The flags that all sweeps here share."""
    return [
        *("--data", str(corpus.train), "--teacher", str(teacher[0]), "--classes", str(class_file)),
        *("--eval-data", str(corpus.test), "--student", "test_resnet", "--batch-size", "20"),
        *("--steps", str(STEPS), "--log-every", "1", "--context-source", "file"),
        *("--templates", "photo"),
    ]


def run_sweep(*flags: object) -> int:
    return run_command(SweepConfig, sweep, "", argv=[str(flag) for flag in flags])


@pytest.fixture(scope="module")
def swept(given, workspace) -> Path:
    """Two temperatures with and without contexts, and a rate at which nothing can be learnt.

    The process of the first trial is killed while it waits for its first score to be taken note of.
    """
    out = workspace / "sweep"
    flags = ["--vary", "lr=1e-3,1e38", "num_contexts=0,1", "anchor_reduce=mean,separate", "--grid"]

    def reported(watch: SweepMonitor, number: int, report: Report) -> None:
        hear(watch, number, report)
        if number == 0 and report["step"] == 3:
            os.kill(report["pid"], signal.SIGKILL)
            (out / "killed").write_text(str(report["pid"]))

    with pytest.MonkeyPatch.context() as patch:
        hear = SweepMonitor.reported
        patch.setattr(SweepMonitor, "reported", reported)
        code = run_sweep(*given, *flags, "--scores", 3, "--no-asha", "--augmentations", 1, "--out", out)
    assert code == 0
    return out


@pytest.fixture(scope="module")
def trials(swept) -> dict[int, Trial]:
    return read_trials(swept)


def test_combinations_that_mean_the_same_are_tried_once(trials):
    # Of a bare name, one prompt a class: its mean is itself. With one context it is, too.
    assert [tuple(trial.settings.values()) for trial in trials.values()] == [
        (1e-3, 0, "mean"),
        (1e-3, 1, "mean"),
        (1e38, 0, "mean"),
        (1e38, 1, "mean"),
    ]


def test_trials_are_scored_at_even_distances_and_one_that_was_lost_goes_on(trials, swept):
    for number in (0, 1):
        assert trials[number].status == "finished"
        assert [score.step for score in trials[number].scores] == [3, 6, 9]
    records = read_json_lines(swept / "trials" / "000" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert records[-1]["pid"] != int((swept / "killed").read_text())


def test_a_trial_that_fails_is_recorded_and_ends_nothing(trials, swept):
    for number in (2, 3):
        assert trials[number].status == "failed"
        assert "Lower --lr" in trials[number].problem
        records = read_json_lines(swept / "trials" / f"{number:03d}" / "metrics.jsonl")
        assert [record["step"] for record in records] == [1]
    summary = read_summary(swept)
    assert (summary.status, summary.counts.attempted, summary.counts.succeeded) == ("finished", 4, 2)
    assert sum(summary.counts.failed.values()) == 2
    with (swept / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert float(rows[0]["zeroshot_top1"]) == max(trials[number].score for number in (0, 1))


def test_checkpoints_of_trials_at_their_end_are_gone(swept):
    kept = {path.name for path in (swept / "checkpoints").iterdir()}
    assert kept <= {"002", "003"}


def test_mlflow_has_a_parent_with_a_child_for_each_trial(trials, swept, workspace):
    client = MlflowClient(tracking_uri(workspace / "run"))
    parent = client.get_run(read_summary(swept).mlflow_run_id)
    assert parent.info.status == "FINISHED"
    assert "lr" not in parent.data.params
    assert parent.data.params["batch_size"] == "20"
    assert {"trials.csv", "best.yaml", "plots", "summary.json"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    by_number = {int(run.info.run_name.rpartition("/")[2]): run for run in children}
    assert {number: run.info.status for number, run in by_number.items()} == {
        0: "FINISHED",
        1: "FINISHED",
        2: "FAILED",
        3: "FAILED",
    }
    for number in (0, 1):
        run = by_number[number]
        assert run.data.params["num_contexts"] == str(number)
        assert run.data.params["lr"] == "0.001"
        history = client.get_metric_history(run.info.run_id, "zeroshot_top1")
        assert [(metric.step, metric.value) for metric in history] == [
            (score.step, score.zeroshot_top1) for score in trials[number].scores
        ]
        losses = client.get_metric_history(run.info.run_id, "loss")
        assert [metric.step for metric in losses] == list(range(1, STEPS + 1))


def test_training_with_the_best_options_gives_the_score_of_the_trial(trials, swept, workspace):
    out = workspace / "best-again"
    argv = ["--config", str(swept / "best.yaml"), "--out", str(out), "--num-workers", "0"]
    assert run_command(DistillConfig, distill, "", argv=argv) == 0
    metrics = read_summary(out).metrics
    best = max((trial for trial in trials.values() if trial.scores), key=lambda trial: trial.score)
    assert metrics["zeroshot_top1"] == best.score
    assert metrics["zeroshot_top5"] == best.scores[-1].zeroshot_top5
    of_trial, of_run = (
        {record["step"]: record["loss"] for record in read_json_lines(folder / "metrics.jsonl")}
        for folder in (swept / "trials" / best.name, out)
    )
    assert of_run == of_trial


def test_a_resumed_sweep_runs_what_is_left_and_nothing_else(trials, swept, capsys):
    # As a driver leaves it that was killed while trial 1 was on its way, after trial 3 had been stopped.
    path = swept / "trials" / "001" / "trial.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "status": "running", "scores": content["scores"][:1]}))
    path = swept / "trials" / "003" / "trial.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "stopped"}))
    untouched = (swept / "trials" / "000" / "metrics.jsonl").stat().st_mtime_ns
    assert run_sweep("--resume", swept) == 0
    printed = capsys.readouterr().out
    assert "2 done before" in printed
    again = read_trials(swept)
    assert {number: trial.status for number, trial in again.items()} == {
        0: "finished",
        1: "finished",
        2: "failed",
        3: "stopped",
    }
    assert again[1].scores == trials[1].scores
    assert again[0] == trials[0]
    assert (swept / "trials" / "000" / "metrics.jsonl").stat().st_mtime_ns == untouched
    # The cache of the first start was found.
    assert "embedding" not in printed


def test_terms_that_read_captions_or_vision_teachers_can_be_switched_off_and_on(given, workspace):
    torch.save(timm.create_model("test_vit").state_dict(), workspace / "vision.pth")
    out = workspace / "sweep-of-terms"
    teacher = ["--vision-teachers", f"timm:test_vit/{workspace / 'vision.pth'}", "--vision-image-size", 48]
    tried = ["--vary", "icl_weight=0,1", "vision_feature_weight=0,1", "--grid"]
    short = ["--scores", 1, "--augmentations", 1, "--steps", 1, "--log-every", 1]
    assert run_sweep(*given, *teacher, *tried, *short, "--out", out) == 0
    trials = read_trials(out).values()
    assert [trial.status for trial in trials] == ["finished"] * 4
    for trial in trials:
        (record,) = read_json_lines(out / "trials" / trial.name / "metrics.jsonl")
        assert ("loss/icl" in record) == (trial.settings["icl_weight"] == 1)
        assert ("loss/vision_feature" in record) == (trial.settings["vision_feature_weight"] == 1)


def test_more_trials_can_be_asked_for_and_none_comes_twice(tmp_path):
    space = parse_space(["tau_teacher=0.1,0.2", "num_contexts=0,1", "anchor_reduce=mean,separate"], CONFIG)
    # Anchors are the same where there are no contexts, however they are reduced.
    meanings = {
        prompts_key(PromptConfig(num_contexts=number, anchor_reduce=reduce)): f"{number} {number and reduce}"
        for number in (0, 1)
        for reduce in ("mean", "separate")
    }

    def planned(trials: int) -> list[dict]:
        config = replace(CONFIG, search=SearchConfig(trials=trials))
        found = _planned(config, space, CONFIG, meanings, tmp_path)
        assert found == read_trials(tmp_path)
        assert [*found] == [*range(len(found))]
        return [trial.settings for trial in found.values()]

    three = planned(3)
    five = planned(5)
    assert five[:3] == three
    assert len(five) == 5
    every = planned(100)
    assert every[:5] == five
    # Of eight combinations two mean what others do.
    assert len(every) == 6


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--vary", "tau_techer=0.1"], "Did you mean tau_teacher"),
        (["--vary", "tau_teacher=0.1,0"], "tau_teacher is 0.0: give a number above 0"),
        (["--vary", "context_source=hierarchy", "num_contexts=0,1"], "carry `parents`"),
        (["--vary", "student=resnet18,resnet81"], "resnet81"),
        (["--vary", "batch_size=20,999"], "cannot fill a batch of 999"),
        (["--vary", "lr=1e-4..1e-2", "--grid"], "lr has a range"),
        (["--vary", "lr=1e-3", "--max-concurrent", "99"], "--max-concurrent 99: 99 trials"),
        (["--vary", "lr=1e-3", "--eval-data", "nowhere"], "nowhere"),
        (
            ["--vary", "lr=1e-3", "--label-column", "style"],
            "labels (column 'style') must be ids of the class",
        ),
    ],
)
def test_what_cannot_be_tried_is_refused_before_a_trial_or_a_cache(
    flags, expected, given, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = tmp_path / "sweep"
    assert run_sweep(*given, *flags, "--out", out) == 2
    assert expected in capsys.readouterr().err
    assert not (out / "cache").exists()
    assert not (out / "trials").exists()


def test_all_that_a_sweep_needs_and_was_not_given_is_named_at_once(tmp_path, capsys):
    assert run_sweep("--data", tmp_path, "--out", tmp_path / "sweep") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --teacher, --classes and --eval-data are required.")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "wanted", "at_once"),
    [
        (2, 0, WorkersConfig(), 16, 2),
        (16, 0, WorkersConfig(), 64, 16),
        (16, 0, WorkersConfig(), 3, 3),
        (16, 0, WorkersConfig(cpus_per_worker=2), 16, 7),
        (17, 0, WorkersConfig(num_workers=4, cpus_per_worker=1), 16, 3),
        (32, 2, WorkersConfig(use_gpu=True, gpus_per_worker=0.25), 64, 8),
        (32, 8, WorkersConfig(use_gpu=True, num_workers=4), 64, 2),
    ],
)
def test_as_many_trials_run_at_a_time_as_there_is_room_for(cpus, gpus, workers, wanted, at_once):
    config = replace(CONFIG, workers=workers)
    assert trials_at_once(config, wanted, {"CPU": cpus, "GPU": gpus}) == at_once
    fewer = replace(config, search=SearchConfig(max_concurrent=1))
    assert trials_at_once(fewer, wanted, {"CPU": cpus, "GPU": gpus}) == 1


@pytest.mark.parametrize("workers", [WorkersConfig(use_gpu=True), WorkersConfig(cpus_per_worker=1.5)])
def test_a_cluster_without_room_for_one_trial_is_refused(workers, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="Lower --cpus-per-worker"):
        trials_at_once(replace(CONFIG, workers=workers), 4, {"CPU": 2.0})


def test_a_folder_with_a_sweep_is_not_mixed_with_another(given, swept, capsys):
    assert run_sweep(*given, "--vary", "lr=1e-3", "--out", swept) == 2
    assert f"--resume {swept}" in capsys.readouterr().err
    assert run_sweep("--resume", swept, "--vary", "tau_teacher=0.1,0.2") == 2
    assert "its trials vary lr, num_contexts, anchor_reduce" in capsys.readouterr().err
