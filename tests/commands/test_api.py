"""The commands as functions: options, scores that agree, threads, and a Ray that is somebody else's."""

import inspect
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
import yaml

import beamclip
from beamclip.api import commands
from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import configure, parse
from beamclip.commands.main import COMMANDS
from beamclip.commands.options import DistillConfig
from beamclip.config import parameters as parameters_of
from beamclip.config import with_options
from beamclip.data.listing import list_shards
from beamclip.data.shards import Columns, iterate_rows
from beamclip.evaluation.encode import EncodeSpec, encode_labelled
from beamclip.models.clip import load_clip
from beamclip.prompts.classes import load_classes
from beamclip.summary import read_summary


def test_keywords_mean_what_the_flags_of_their_names_mean():
    flags = shlex.split(
        "--data a b --teacher t --student resnet10t --tau-student 7e-2 --templates photo "
        "--num-workers 2..4 --use-gpu --classes c.yaml --steps 12"
    )
    keywords = {
        "data": [Path("a"), "b"],
        "teacher": Path("t"),
        "student": "resnet10t",
        "tau_student": "7e-2",
        "templates": "photo",
        "num_workers": "2..4",
        "use_gpu": True,
        "classes": "c.yaml",
        "steps": 12,
    }
    assert configure(DistillConfig, keywords, "here") == parse(DistillConfig, flags, "")


def test_a_keyword_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "csm": {"tau_teacher": 0.04, "tau_student": 0.1}}))
    config = configure(DistillConfig, {"config": path, "tau_student": 0.07}, "here")
    assert (config.seed, config.csm.tau_teacher, config.csm.tau_student) == (3, 0.04, 0.07)


def test_options_are_checked_together_with_those_that_were_given_before():
    in_steps = with_options(DistillConfig(), {"steps": 3}, "here")
    with pytest.raises(beamclip.InputError, match="here: optim: steps is 3 and samples 5: give one"):
        with_options(in_steps, {"samples": 5}, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_techer": 1}, "beamclip.distill: tau_techer: no such option. Did you mean tau_teacher?"),
        ({"tau_student": -1}, "beamclip.distill: csm: tau_student is -1.0: give a number above 0."),
        ({"anchor_reduce": "median"}, "beamclip.distill: prompts.anchor_reduce: 'median' does not fit."),
        ({"csm": 3}, "beamclip.distill: csm: 3 does not fit. It is a section"),
        ({"lr": 1, "optim": {"lr": 2}}, "beamclip.distill: given twice, as lr and as optim.lr."),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
        ({"resume": "nowhere"}, "--resume nowhere: no run there"),
        ({"data": "nowhere"}, "nowhere: no such folder."),
        (
            {"classes": "s3://bucket/classes.yaml"},
            "beamclip.distill: classes: 's3://bucket/classes.yaml' does",
        ),
        ({}, "--data and --teacher are required."),
    ],
)
def test_wrong_options_are_refused_with_the_message_of_the_command_line(options, message):
    with pytest.raises(beamclip.InputError) as caught:
        beamclip.distill(**options)
    assert str(caught.value).startswith(message)


def test_a_run_by_keywords_is_that_of_the_command_line_and_resumes(teacher, corpus, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    options = {"data": corpus.train, "teacher": teacher[0], "classes": corpus.classes, "num_workers": 0}
    options |= {"student": "test_resnet", "batch_size": 32, "threads_per_worker": threads + 1}
    summary = beamclip.distill(**options, out=tmp_path / "run", steps=2)
    assert summary.paths["out"] == str(tmp_path / "run")
    assert read_summary(tmp_path / "run").metrics == summary.metrics
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["stream"]["batch_size"] == 32
    further = beamclip.distill(resume=tmp_path / "run", steps=3)
    assert further.stages["steps"] == 3
    # Training in this process has set torch up for itself.
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_embeddings_and_predictions_are_those_that_evaluate_scores(teacher, corpus, tmp_path):
    model = beamclip.load(teacher[0], device="cpu")
    shards = list_shards(str(corpus.test))
    rows = [row for each in shards for row in iterate_rows(each, Columns(label="label"), range(each.samples))]
    images = [row["image"] for row in rows]
    ids = [entry.id for entry in load_classes(corpus.classes)]
    encoded = encode_labelled(
        load_clip(str(teacher[0])),
        str(corpus.test),
        ids,
        "label",
        EncodeSpec(),
        WorkersConfig(num_workers=0),
    )
    assert torch.equal(model.embed(images), encoded.embeddings)
    predictions = model.classify(images, corpus.classes, top=5)
    summary = beamclip.evaluate(
        model=teacher[0], data=corpus.test, classes=corpus.classes, num_workers=0, out=tmp_path / "scores"
    )
    truths = [row["label"] for row in rows]
    for top in (1, 5):
        hits = [
            truth in [each.label for each in likeliest[:top]]
            for truth, likeliest in zip(truths, predictions, strict=True)
        ]
        assert sum(hits) / len(hits) == summary.metrics[f"zeroshot_top{top}"]


@pytest.mark.usefixtures("ray_cluster")
def test_in_another_thread_a_command_uses_the_ray_that_is_up_and_leaves_it(teacher, corpus, tmp_path):
    def score() -> beamclip.Summary:
        assert threading.current_thread() is not threading.main_thread()
        return beamclip.evaluate(
            model=teacher[0], data=corpus.test, classes=corpus.classes, out=tmp_path / "scores"
        )

    with ThreadPoolExecutor(1) as pool:
        summary = pool.submit(score).result()
    assert summary.status == "finished"
    assert ray.is_initialized()


@pytest.mark.parametrize(
    "name", ["ingest", "pretrain", "embed", "distill", "evaluate", "export", "interpolate", "sweep"]
)
def test_what_the_signature_of_a_command_names_are_its_options(name):
    parameters = inspect.signature(getattr(commands, name)).parameters.values()
    called = getattr(beamclip, name)
    assert inspect.signature(called) == inspect.signature(getattr(commands, name))
    assert inspect.getdoc(called) == inspect.getdoc(getattr(commands, name))
    named = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert named <= set(parameters_of(COMMANDS[name].options()))
    with pytest.raises(beamclip.InputError, match=f"beamclip.{name}: quux: no such option"):
        getattr(beamclip, name)(quux=1)
