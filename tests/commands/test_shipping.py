"""`beamclip distill --ship`: each format is a step of its own."""

from dataclasses import replace

import pytest
import torch

from beamclip.commands.after_training import AfterTraining, UnscoredError
from beamclip.commands.options import DistillConfig, ScoringConfig
from beamclip.commands.shipping import ship
from beamclip.models.clip import load_clip
from beamclip.models.student import StudentConfig, build_student
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import load_classes
from beamclip.prompts.config import PromptConfig


@pytest.mark.slow
def test_a_format_that_fails_does_not_keep_the_others_from_being_written(teacher, corpus, tmp_path, capsys):
    student = build_student(StudentConfig(student="test_resnet"), load_clip(str(teacher[0])), seed=0)
    student.model.eval()
    entries = load_classes(corpus.classes)
    texts = torch.nn.functional.normalize(torch.randn(len(entries), student.embed_dim), dim=1)
    config = DistillConfig(
        data=(str(corpus.train),),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        prompts=PromptConfig(templates=("name",)),
    )
    (tmp_path / "ship" / "torch").mkdir(parents=True)
    (tmp_path / "ship" / "torch" / "notes.txt").touch()
    after = AfterTraining()
    ship(config, student, entries, Anchors(texts, torch.arange(len(entries))), tmp_path, after)
    assert sorted(path.name for path in (tmp_path / "ship").iterdir()) == [
        "mlflow",
        "onnx",
        "onnx-int8",
        "timm",
        "torch",
    ]
    assert [path.name for path in (tmp_path / "ship" / "torch").iterdir()] == ["notes.txt"]
    assert (tmp_path / "ship" / "mlflow" / "MLmodel").exists()
    assert list(after.failed) == ["ship torch"]
    with pytest.raises(UnscoredError, match=r"ship torch: .*is not an exported model"):
        after.raise_failure(replace(config, classes=corpus.classes), tmp_path)
    assert f"calibrated on 100 images of {corpus.train}" in capsys.readouterr().out
