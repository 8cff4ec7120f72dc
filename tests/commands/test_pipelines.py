"""The whole path on a small corpus: what the commands leave behind, and what they say to wrong input."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import ray.data
import ray.train
import torch
import yaml
from mlflow.tracking import MlflowClient
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.embed import embed
from beamclip.commands.evaluate import evaluate
from beamclip.commands.ingest import ingest_urls
from beamclip.commands.options import (
    DistillConfig,
    EmbedConfig,
    EvaluateConfig,
    PretrainConfig,
    ScoringConfig,
    SweepConfig,
)
from beamclip.commands.pretrain import pretrain
from beamclip.config import read_config
from beamclip.data.config import CaptionConfig, StreamConfig
from beamclip.data.listing import list_shards
from beamclip.ingest.config import IngestConfig
from beamclip.losses.config import PsdConfig
from beamclip.models.clip import load_clip
from beamclip.models.config import StudentConfig
from beamclip.plots.sheet import read_sheet
from beamclip.summary import read_summary
from beamclip.sweep.sweep import sweep
from beamclip.tracking import tracking_uri
from beamclip.training.config import CadenceConfig, OptimConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

HERE = WorkersConfig(num_workers=0)
TEST_IMAGES = 60


def distill_config(teacher, corpus, out, **changes) -> DistillConfig:
    config = DistillConfig(
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        classes=corpus.classes,
        out=out,
        student=StudentConfig(student="resnet10t"),
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=12),
        cadence=CadenceConfig(log_every=4, checkpoint_every=6),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        workers=WorkersConfig(max_failures=0),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def student(teacher, corpus, workspace):
    out = workspace / "student"
    return out, distill(distill_config(teacher, corpus, out))


def test_a_run_leaves_what_its_contract_names(student, corpus):
    out, summary = student
    for name in (
        "config.yaml",
        "classes.json",
        "summary.json",
        "metrics.jsonl",
        "model",
        "plots",
        "report.html",
        "checkpoints",
    ):
        assert (out / name).exists(), name
    assert read_config(DistillConfig, out / "config.yaml").student.student == "resnet10t"
    assert read_summary(out) == summary
    assert summary.status == "finished"
    assert summary.images == 12 * 32
    assert summary.counts.attempted == summary.counts.succeeded == 200
    assert summary.metrics["scored_images"] == 60
    assert {"zeroshot_top1", "zeroshot_top5", "teacher_zeroshot_top1", "loss/csm"} <= set(summary.metrics)


def test_pictures_are_images_of_a_readable_size(student):
    for name in ("curves", "predictions", "similarity"):
        with Image.open(student[0] / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 300, name


def test_the_report_of_a_distillation_shows_images_and_classes_of_both_models(student):
    page = (student[0] / "report.html").read_text()
    for title in ("Scores", "Images", "Worst classes", "Similarity of images and text", "Curves", "Lineage"):
        assert f"<h2>{title}</h2>" in page
    sheet = read_sheet(student[0] / "plots" / "predictions.json")
    assert sheet.models == ("teacher", "student")


def test_mlflow_has_one_run_with_parameters_curves_and_artifacts(student, workspace):
    summary = student[1]
    client = MlflowClient(tracking_uri(workspace / "run"))
    run = client.get_run(summary.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["tau_teacher"] == "0.02"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [4, 6, 8, 12]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"summary.json", "config.yaml", "plots"} <= names


LOAD_ELSEWHERE = """
import sys, numpy, torch, open_clip
assert not any(name.startswith("beamclip") for name in sys.modules)
directory, pixels, out = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
model.eval()
tokens = open_clip.get_tokenizer(f"local-dir:{directory}")(["a red arrow", "a crab"])
with torch.no_grad():
    image = model.encode_image(torch.from_numpy(numpy.load(pixels)), normalize=True)
    text = model.encode_text(tokens, normalize=True)
numpy.savez(out, image=image.numpy(), text=text.numpy())
assert "beamclip" not in sys.modules
"""


def test_the_student_loads_in_open_clip_alone_with_the_same_embeddings(student, teacher, tmp_path):
    directory = student[0] / "model"
    pixels = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    command = [
        sys.executable,
        "-I",
        "-c",
        LOAD_ELSEWHERE,
        directory,
        tmp_path / "pixels.npy",
        tmp_path / "out.npz",
    ]
    subprocess.run([str(word) for word in command], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    clip = load_clip(str(student[0]))
    with torch.no_grad():
        image = clip.model.encode_image(torch.from_numpy(pixels), normalize=True)
        text = load_clip(str(teacher[0])).model.encode_text(
            clip.tokenizer(["a red arrow", "a crab"]), normalize=True
        )
    np.testing.assert_allclose(found["image"], image.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["text"], text.numpy(), atol=1e-5)
    assert isinstance(clip.model, open_clip.CLIP)


def test_evaluate_scores_a_run_as_its_own_training_did(student, corpus, workspace):
    summary = evaluate(
        EvaluateConfig(
            model=str(student[0]),
            data=(str(corpus.test),),
            classes=corpus.classes,
            tasks=("zeroshot", "probe"),
            train_data=str(corpus.train),
            out=workspace / "scores",
        )
    )
    assert summary.metrics["zeroshot_top1"] == student[1].metrics["zeroshot_top1"]
    assert summary.metrics["zeroshot_top5"] == student[1].metrics["zeroshot_top5"]
    assert 0.0 <= summary.metrics["probe_top1"] <= 1.0
    assert summary.counts.succeeded == 60
    assert summary.stages["probe"]["train_images"] == 200


def test_captions_of_the_shards_serve_as_anchors(teacher, corpus, workspace):
    config = distill_config(
        teacher, corpus, workspace / "from-captions", anchors="captions", caption_anchors=40, classes=None
    )
    changes = {"scoring": ScoringConfig(), "optim": OptimConfig(steps=2), "workers": HERE}
    summary = distill(replace(config, **changes))
    assert summary.stages["anchors"] == 40
    assert summary.metrics["loss/csm"] > 0


def test_without_workers_no_part_of_ray_is_used(teacher, corpus, workspace, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was used")

    for place, name in (
        (ray, "put"),
        (ray, "remote"),
        (ray.data, "read_datasource"),
        (ray.train, "get_context"),
    ):
        monkeypatch.setattr(place, name, refuse)
    out = workspace / "without-ray"
    trained = distill(distill_config(teacher, corpus, out, optim=OptimConfig(steps=2), workers=HERE))
    scored = evaluate(
        EvaluateConfig(
            model=str(out),
            data=(str(corpus.test),),
            classes=corpus.classes,
            out=workspace / "scored-without-ray",
            workers=HERE,
            scoring_batch=7,
        )
    )
    assert trained.metrics["scored_images"] == scored.counts.succeeded == TEST_IMAGES
    assert scored.metrics["zeroshot_top1"] == trained.metrics["zeroshot_top1"]


def test_self_distillation_under_a_moving_average_is_logged_and_leaves_a_plain_model(
    ray_cluster, corpus, model_file, workspace
):
    """Fields that no table can hold, and a size that no file can have, cost their own samples only."""
    soiled = shutil.copytree(corpus.train, workspace / "soiled")
    soil(sorted(soiled.glob("*.tar"))[0])
    out = workspace / "psd"
    config = PretrainConfig(
        data=(str(soiled),),
        model=str(model_file),
        objective="psd",
        psd=PsdConfig(psd_target="ema", psd_warmup=0.0),
        captions=CaptionConfig(caption_columns=("label",), caption_join="concat", caption_dropout=0.3),
        out=out,
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=8, micro_batch=16, grad_checkpointing=True),
        cadence=CadenceConfig(log_every=4),
        workers=WorkersConfig(max_failures=0),
    )
    summary = pretrain(config)
    assert summary.counts.skipped == {"unreadable sample": 1, "broken shard": 5}
    run = MlflowClient(tracking_uri(workspace / "run")).get_run(summary.mlflow_run_id)
    assert 0 < run.data.metrics["psd/share"] < 0.5
    assert run.data.metrics["psd/entropy"] > 0
    assert run.data.params["psd_target"] == "ema"
    assert run.data.params["caption_columns"] == "['label']"
    assert not any("average" in name for name in load_clip(str(out)).model.state_dict())


def soil(path: Path) -> None:
    """Three of 50 samples get JSON of the worst kind; a member of an exabyte stands before the last five."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    bad = [b"[" * 100_000, b'{"label": {"a": {}}}', b'{"label": "\\ud800"}']
    with tarfile.open(path, "w") as tar:
        for place, (name, content) in enumerate(members):
            if place == 45 * 3:
                impossible = tarfile.TarInfo("x.png")
                impossible.size = 2**60
                tar.addfile(impossible)
            data = bad.pop() if name.endswith(".json") and bad else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_damaged_shards_are_counted_exactly_and_training_ends(teacher, corpus, workspace, capsys):
    damaged = shutil.copytree(corpus.train, workspace / "damaged")
    tars = sorted(damaged.glob("*.tar"))
    assert len(tars) == 4
    corrupt = spoil_images(tars[0], every=20)
    whole = cut_after_samples(tars[1], 30)
    tars[2].write_bytes(b"")
    out = workspace / "from-damaged"
    config = distill_config(teacher, corpus, out, data=(str(damaged),))
    changes = {"scoring": ScoringConfig(), "optim": OptimConfig(epochs=2, steps=None), "workers": HERE}
    summary = distill(replace(config, **changes))
    assert summary.counts.skipped == {"unsupported image format": corrupt, "broken shard": (50 - whole) + 50}
    told = capsys.readouterr().out
    assert re.search(rf"shard {tars[0].name}, sample \w+: unsupported image format \(", told)
    assert f"shard {tars[2].name}: broken shard (" in told
    assert summary.counts.attempted == 200
    assert summary.counts.succeeded == 200 - corrupt - (50 - whole) - 50
    assert json.loads((out / "summary.json").read_text())["counts"]["skipped"] == summary.counts.skipped
    client = MlflowClient(tracking_uri(workspace / "run"))
    run = client.get_run(summary.mlflow_run_id)
    assert run.data.metrics["skipped"] == sum(summary.counts.skipped.values())
    assert run.data.metrics["skipped/unsupported image format"] == corrupt


def spoil_images(path: Path, every: int) -> int:
    """Overwrite the middle of every n-th image, leaving the tar whole; returns how many."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".png")][::every]
    data = bytearray(path.read_bytes())
    for member in members:
        data[member.offset_data : member.offset_data + member.size] = b"x" * member.size
    path.write_bytes(data)
    return len(members)


def cut_after_samples(path: Path, samples: int) -> int:
    """Cut a tar in the middle of an image; returns the whole samples before the cut."""
    with tarfile.open(path) as tar:
        first = {}
        for member in tar:
            first.setdefault(member.name.partition(".")[0], member)
    member = list(first.values())[samples]
    path.write_bytes(path.read_bytes()[: member.offset_data + member.size // 2])
    return samples


def messages(capsys, config, body) -> str:
    """What a command prints to stderr for a config that it must refuse with exit code 2."""
    assert run_command(type(config), lambda _: body(config), "", argv=[]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_a_missing_shard_folder(teacher, corpus, workspace, capsys):
    config = distill_config(teacher, corpus, workspace / "no", data=(str(workspace / "nowhere"),))
    assert "nowhere: no such folder" in messages(capsys, config, distill)
    assert not (workspace / "no").exists()


def test_shards_without_their_data(teacher, corpus, workspace, capsys):
    """The same for labelled ones; those that were never begun do not matter."""
    data = shutil.copytree(corpus.test, workspace / "incomplete")
    lost = sorted(data.glob("*.tar"))[-1]
    lost.unlink()
    want = f"shards have statistics and no data: {lost.name}. Bring them back, or give --allow-missing-shards"
    config = distill_config(teacher, corpus, workspace / "no", data=(str(data),))
    assert want in messages(capsys, config, distill)
    config = EvaluateConfig(model=str(teacher[0]), data=(str(data),), classes=corpus.classes)
    assert want in messages(capsys, config, evaluate)
    summary = evaluate(replace(config, out=workspace / "of-the-rest", allow_missing_shards=True))
    assert summary.counts.skipped == {"missing shard": 10}
    assert summary.counts.succeeded == 50


def test_an_unknown_student(teacher, corpus, workspace, capsys):
    config = distill_config(teacher, corpus, workspace / "no", student=StudentConfig(student="resnet19"))
    assert "student 'resnet19': timm has no such model. Did you mean" in messages(capsys, config, distill)


def test_a_teacher_checkpoint_of_the_wrong_shape(teacher, corpus, workspace, capsys):
    directory = shutil.copytree(teacher[0] / "model", workspace / "misfit")
    content = json.loads((directory / "open_clip_config.json").read_text())
    content["model_cfg"]["embed_dim"] = 48
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    config = distill_config((directory, None), corpus, workspace / "no")
    text = messages(capsys, config, distill)
    assert "open_clip_model.safetensors: does not fit the model" in text
    assert "tensors differ in shape" in text


def test_a_class_file_with_duplicate_ids(teacher, corpus, workspace, capsys):
    classes = workspace / "twice.yaml"
    classes.write_text(
        yaml.safe_dump(
            [{"id": "n1", "name": "crane"}, {"id": "n2", "name": "fan"}, {"id": "n1", "name": "crane"}]
        )
    )
    config = distill_config(teacher, corpus, workspace / "no", classes=classes)
    text = messages(capsys, config, distill)
    assert 'twice.yaml: 2 classes share the id n1 ("crane"): entries 1 and 3.' in text


def test_a_url_list_without_the_named_column(workspace, corpus, capsys):
    config = IngestConfig(urls=workspace / "train.parquet", url_column="link", out=workspace / "no")
    text = messages(capsys, config, ingest_urls)
    assert "link" in text
    assert "url, caption, label, style" in text


def test_fewer_samples_than_a_batch(teacher, corpus, workspace, capsys):
    config = distill_config(teacher, corpus, workspace / "no", stream=StreamConfig(batch_size=256))
    assert "200 samples cannot fill a batch of 256. Give --batch-size 200 or less" in messages(
        capsys, config, distill
    )


def test_a_window_of_too_few_lanes_for_the_workers(teacher, corpus, workspace, capsys):
    config = distill_config(teacher, corpus, workspace / "no", workers=WorkersConfig(num_workers=3))
    config = replace(config, stream=replace(config.stream, shuffle_window=100))
    assert "--shuffle-window 100: has 6 lanes of 16 samples, too few for 3 workers. Give 384" in messages(
        capsys, config, distill
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"psd": PsdConfig(psd_end=0.3)}, "--psd-end has no effect with --objective clip."),
        ({"captions": CaptionConfig(caption_dropout=0.3)}, "no effect without --caption-columns."),
        ({"captions": CaptionConfig(("tags",))}, "has a text in tags. Ingest with --keep-columns tags"),
        (
            {"workers": WorkersConfig(num_workers=8), "stream": StreamConfig(batch_size=7)},
            "leaves some of 8 workers without a sample",
        ),
        ({"workers": WorkersConfig(num_workers=64)}, "too few for 64 workers. Give 8192 or more."),
    ],
)
def test_options_of_a_pretraining_that_cannot_be_followed(corpus, workspace, capsys, change, message):
    config = PretrainConfig(data=(str(corpus.train),), out=workspace / "no")
    assert message in messages(capsys, replace(config, **change), pretrain)


@pytest.mark.parametrize("option", [["--num-workers", "-1"], ["--micro-batch", "0"], ["--objective", "nce"]])
def test_values_that_no_run_can_have(capsys, option):
    assert run_command(PretrainConfig, lambda _: None, "", argv=option) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "body", "message"),
    [
        (
            EmbedConfig(data="d", teacher="t", out="o", workers=HERE),
            embed,
            "embedding runs in actors of Ray.",
        ),
        (SweepConfig(workers=HERE), sweep, "the trials of a sweep run in processes of Ray."),
    ],
)
def test_commands_that_are_nothing_without_ray(capsys, config, body, message):
    text = messages(capsys, config, body)
    assert f"--num-workers 0: {message} Give 1 or more." in text


def test_tasks_that_are_to_decode_without_ray(teacher, corpus, workspace, capsys):
    stream = StreamConfig(decode="tasks")
    config = distill_config(teacher, corpus, workspace / "no-tasks", workers=HERE, stream=stream)
    assert "--decode tasks with --num-workers 0: without Ray there are no tasks." in messages(
        capsys, config, distill
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_of_this_process_that_is_not_there(teacher, corpus, workspace, capsys):
    workers = WorkersConfig(num_workers=0, use_gpu=True)
    config = distill_config(teacher, corpus, workspace / "no-gpu", workers=workers)
    assert "this machine has no GPU that torch can use" in messages(capsys, config, distill)


def test_workers_that_leave_no_cpu_for_the_data(teacher, corpus, workspace, capsys):
    config = distill_config(
        teacher, corpus, workspace / "starved", workers=WorkersConfig(num_workers=2, cpus_per_worker=64.0)
    )
    text = messages(capsys, config, distill)
    assert "--num-workers 2 with 64 CPU each: of " in text
    assert "Lower --num-workers or --cpus-per-worker." in text


def test_a_folder_of_an_earlier_run_is_not_mixed_with_a_new_one(student, teacher, corpus, capsys):
    config = distill_config(teacher, corpus, student[0])
    assert f"holds the checkpoints of an earlier run. Resume it with --resume {student[0]}" in messages(
        capsys, config, distill
    )


def test_labels_that_no_class_has(teacher, corpus, workspace, capsys):
    classes = workspace / "other.txt"
    classes.write_text("cat\ndog\n")
    config = EvaluateConfig(
        model=str(teacher[0]), data=(str(corpus.test),), classes=classes, out=workspace / "no-scores"
    )
    text = messages(capsys, config, evaluate)
    assert "label not in the class list" in text
    assert "the list has cat, dog" in text


def test_an_ingest_started_again_is_a_no_op(corpus, workspace):
    before = {shard.path: shard.samples for shard in list_shards(str(corpus.train))}
    summary = read_summary(corpus.train)
    assert summary.counts.attempted == summary.counts.succeeded == sum(before.values()) == 200
