"""Validation through the commands: its scores, the best weights, and options that do not fit together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import parse, run_command
from beamclip.commands.distill import distill
from beamclip.commands.options import DistillConfig, PretrainConfig, ScoringConfig
from beamclip.commands.pretrain import pretrain
from beamclip.config import read_config
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.json_lines import read_json_lines
from beamclip.models.clip import load_clip
from beamclip.models.config import StudentConfig
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.config import OptimConfig, ValidationConfig

HERE = WorkersConfig(num_workers=0)


def distill_config(teacher, corpus, out, **changes) -> DistillConfig:
    config = DistillConfig(
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        classes=corpus.classes,
        out=out,
        student=StudentConfig(student="test_resnet"),
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=6, precision="fp32"),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        validation=ValidationConfig(eval_every=4),
        workers=HERE,
    )
    return replace(config, **changes)


def validations(out: Path) -> dict[int, dict[str, float]]:
    records = read_json_lines(out / "metrics.jsonl")
    return {record["step"]: record for record in records if "val_zeroshot_top1" in record}


def test_the_last_validation_on_all_images_has_the_score_of_the_run(teacher, corpus, workspace, capsys):
    out = workspace / "validated"
    config = distill_config(teacher, corpus, out)
    summary = distill(config)
    assert list(validations(out)) == [4, 6]
    assert summary.metrics["val_zeroshot_top1"] == summary.metrics["zeroshot_top1"]
    assert summary.metrics["val_loss"] > 0
    assert summary.stages["validation_seconds"] > 0
    assert summary.stages["exported_step"] == 6
    told = capsys.readouterr().out
    assert f"60 images of {corpus.test}, scored every 4 steps" in told
    assert "  val " in told
    kept = read_config(DistillConfig, out / "config.yaml").validation
    assert (kept.eval_every, kept.val_images) == (4, 60)


def test_the_best_weights_are_exported_where_they_are_asked_for(teacher, corpus, workspace):
    out = workspace / "best"
    # So high a rate that the student forgets again.
    optim = OptimConfig(steps=8, lr=0.05, warmup=0.0, precision="fp32")
    validation = ValidationConfig(
        eval_every=1, val_data=str(corpus.train), val_images=200, export_checkpoint="best"
    )
    summary = distill(distill_config(teacher, corpus, out, optim=optim, validation=validation))
    scores = {step: record["val_zeroshot_top1"] for step, record in validations(out).items()}
    best = max(scores, key=lambda step: (scores[step], step))
    assert summary.stages["exported_step"] == best
    state = read_checkpoint(str(out / "checkpoints"), best)
    exported = load_clip(str(out)).model.visual.state_dict()
    assert all(torch.equal(state["method"][f"visual.{name}"], own) for name, own in exported.items())
    assert summary.metrics["val_zeroshot_top1"] == scores[best]


def test_a_pretraining_is_validated_with_captions(corpus, model_file, workspace):
    out = workspace / "pretrained-validated"
    config = PretrainConfig(
        data=(str(corpus.train),),
        model=str(model_file),
        classes=corpus.classes,
        out=out,
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=3, precision="fp32"),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        validation=ValidationConfig(eval_every=2),
        workers=HERE,
    )
    summary = pretrain(config)
    assert list(validations(out)) == [2, 3]
    assert summary.metrics["val_zeroshot_top1"] == summary.metrics["zeroshot_top1"]
    # 32 captions that are hardly told apart: the logarithm of their number.
    assert summary.metrics["val_loss"] == pytest.approx(3.4, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": ValidationConfig(export_checkpoint="best")},
            "--export-checkpoint best: weights that are chosen on the images that they are scored on have",
        ),
        (
            {"validation": ValidationConfig(eval_every=0, val_images=50)},
            "--val-images has no effect with --eval-every 0. Leave one of them out.",
        ),
        (
            {"validation": ValidationConfig(eval_every=5), "scoring": ScoringConfig()},
            "--eval-every 5: there are no images to validate on. Give --val-data or --eval-data.",
        ),
        (
            {"classes": None, "anchors": "captions"},
            "--eval-data is given, but no --classes FILE to score its labels with.",
        ),
        ({"validation": ValidationConfig(val_data="nowhere")}, "nowhere: no such folder"),
    ],
)
def test_options_of_a_validation_that_cannot_be_followed(
    teacher, corpus, workspace, capsys, changes, message
):
    config = distill_config(teacher, corpus, workspace / "not-validated", **changes)
    assert run_command(DistillConfig, lambda _: distill(config), "", argv=[]) == 2
    assert message in capsys.readouterr().err
    assert not (workspace / "not-validated").exists()


def test_images_to_validate_on_without_classes_are_refused(teacher, corpus, workspace):
    without = {"classes": None, "anchors": "captions", "scoring": ScoringConfig()}
    validation = ValidationConfig(val_data=str(corpus.train))
    with pytest.raises(InputError, match="--val-data: there are no classes to validate on"):
        distill(distill_config(teacher, corpus, workspace / "none", validation=validation, **without))


def test_a_run_too_short_for_validation_resumes_by_its_own_options(teacher, corpus, workspace):
    out = workspace / "short"
    distill(distill_config(teacher, corpus, out, validation=ValidationConfig(), optim=OptimConfig(steps=3)))
    resumed = parse(DistillConfig, ["--resume", str(out), "--val-data", str(corpus.test), "--steps", "5"], "")
    summary = distill(resumed)
    assert summary.stages["steps"] == 5
    assert list(validations(out)) == [4, 5]
