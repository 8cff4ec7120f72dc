"""Teachers of vision only by the public commands: live, resumed, and from a cache."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from mlflow.tracking import MlflowClient

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.distill import distill
from beamclip.commands.embed import embed
from beamclip.commands.options import DistillConfig, EmbedConfig
from beamclip.commands.validation import distillation_costs
from beamclip.data.cache import caption_column, read_manifest
from beamclip.data.config import StreamConfig
from beamclip.data.listing import list_shards
from beamclip.errors import InputError
from beamclip.losses.config import VisionConfig
from beamclip.models.clip import load_clip
from beamclip.models.config import StudentConfig
from beamclip.models.vision import load_vision_teacher
from beamclip.report.lineage import lineage
from beamclip.runs.recorder import read_history
from beamclip.summary import Summary
from beamclip.tracking import tracking_uri
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.config import CadenceConfig, OptimConfig

STEPS = 4
TERMS = ("loss", "loss/csm", "loss/vision_relation", "loss/vision_feature")


@pytest.fixture(scope="module")
def vision(workspace) -> str:
    """A random ViT of 160 pixels, saved as DINO's training saves its own."""
    torch.manual_seed(3)
    state = timm.create_model("test_vit").state_dict()
    file = workspace / "dino.pth"
    torch.save({"teacher": {f"module.backbone.{name}": value for name, value in state.items()}}, file)
    return f"timm:test_vit/{file}"


@pytest.fixture(scope="module")
def config(teacher, corpus, workspace, vision) -> DistillConfig:
    return DistillConfig(
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        teacher_precision="fp32",
        vision_teachers=(vision,),
        vision_image_size=48,
        classes=corpus.classes,
        out=workspace / "seeing",
        student=StudentConfig(student="test_resnet"),
        vision=VisionConfig(vision_relation_weight=1.0, vision_feature_weight=1.0),
        stream=StreamConfig(batch_size=20, shuffle_window=256),
        optim=OptimConfig(steps=STEPS, lr=1e-4, precision="fp32", micro_batch=10),
        cadence=CadenceConfig(log_every=1),
        workers=WorkersConfig(num_workers=0),
    )


@pytest.fixture(scope="module")
def live(config) -> Summary:
    return distill(config)


def test_a_student_learns_from_it_beside_its_teacher_and_is_exported_without_it(live, config, vision):
    run = Path(str(config.out))
    history = read_history(run)
    assert len(history) == STEPS
    assert all(record[name] > 0 for record in history for name in TERMS)
    total = sum(history[0][name] for name in TERMS[1:])
    assert history[0]["loss"] == pytest.approx(total, rel=1e-5)
    state = read_checkpoint(str(run / "checkpoints"), STEPS)["method"]
    beside = {name: list(value.shape) for name, value in state.items() if not name.startswith("visual.")}
    assert beside == {"projections.0.weight": [64, 96], "projections.0.bias": [64]}
    exported = load_clip(str(run)).model.visual.state_dict()
    assert {f"visual.{name}" for name in exported} == {*state} - {*beside}
    assert f"- vision teacher: {vision}" in (run / "model" / "README.md").read_text()
    assert ("Vision teacher", vision) in [(step.kind, step.place) for step in lineage(run).sources]


def test_mlflow_knows_the_teacher_and_the_weights_of_its_terms(live, teacher, vision):
    run = MlflowClient(tracking_uri(Path("runs/any"))).get_run(live.mlflow_run_id)
    assert run.data.params["vision_teachers"] == f"['{vision}']"
    assert run.data.params["vision_feature_weight"] == "1.0"
    assert "loss/vision_feature" in run.data.metrics
    alone = MlflowClient(tracking_uri(Path("runs/any"))).get_run(teacher[1].mlflow_run_id)
    assert not [name for name in alone.data.params if name.startswith("vision")]


def test_a_resumed_run_goes_on_with_its_projections(live, config, tmp_path, capsys):
    shutil.copytree(str(config.out), tmp_path / "run")
    further = replace(config.optim, steps=STEPS + 2, schedule="constant")
    distill(replace(config, out=tmp_path / "run", resume=str(tmp_path / "run"), optim=further))
    assert "test_resnet <- ViT of width 64 + test_vit, 6 steps" in capsys.readouterr().out
    before, after = read_history(Path(str(config.out))), read_history(tmp_path / "run")
    assert [record["step"] for record in after][-2:] == [STEPS + 1, STEPS + 2]
    assert after[-1]["loss/vision_feature"] < before[0]["loss/vision_feature"]


def test_a_dry_run_counts_its_projections(config, tmp_path, capsys):
    distill(replace(config, out=tmp_path / "none", dry_run=True))
    trained = int(capsys.readouterr().out.split("trained ")[1].split()[0].replace(",", ""))
    distill(replace(config, out=tmp_path / "none", dry_run=True, vision_teachers=(), vision=VisionConfig()))
    alone = int(capsys.readouterr().out.split("trained ")[1].split()[0].replace(",", ""))
    assert trained - alone == 97 * 64


def test_its_arithmetic_is_part_of_each_step_unless_a_cache_holds_its_features(config, teacher, vision):
    clip = load_clip(str(teacher[0]))
    large, tower = load_vision_teacher(vision)
    costs = [
        distillation_costs(clip, [clip.image_tower], towers, cached=cached)
        for towers, cached in (([tower], False), ([], False), ([tower], True))
    ]
    assert large.image_size == 160
    assert costs[0].sample > 2 * costs[1].sample
    assert costs[0].once == costs[1].once
    assert costs[2].sample < costs[1].sample


@pytest.fixture(scope="module")
def cache(ray_cluster, config, corpus, workspace) -> Path:
    embed(
        EmbedConfig(
            data=str(corpus.train),
            teacher=config.teacher,
            vision_teachers=config.vision_teachers,
            vision_image_size=48,
            out=str(workspace / "seeing-cache"),
            augmentations=1,
            teacher_precision="fp32",
            verify=20,
        )
    )
    return workspace / "seeing-cache"


def test_a_cache_says_which_teacher_has_no_texts(cache, vision):
    clip, backbone = read_manifest(str(cache)).teachers
    assert (clip.vision_only, backbone.vision_only, backbone.embed_dim) == (False, True, 64)
    assert backbone.preprocess == {"size": 48, "mean": [0.5] * 3, "std": [0.5] * 3}
    names = pq.read_schema(list_shards(str(cache))[0].path).names
    assert caption_column(0) in names
    assert caption_column(1) not in names


def test_training_from_a_cache_is_training_with_both_teachers(live, config, cache, workspace):
    distill(replace(config, data=(str(cache),), out=workspace / "seeing-cached"))
    first, second = read_history(Path(str(config.out))), read_history(workspace / "seeing-cached")
    for name in TERMS:
        values = [record[name] for record in first]
        assert [record[name] for record in second] == pytest.approx(values, rel=2e-3)


def test_a_cache_without_the_vision_teacher_is_refused(config, cache, tmp_path):
    other = replace(config, data=(str(cache),), out=tmp_path, vision_image_size=32)
    with pytest.raises(InputError, match=r"holds no embeddings by timm:test_vit.*one of --vision-teachers"):
        distill(other)
