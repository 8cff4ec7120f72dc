"""What every format has in common: nothing takes its place that differs from PyTorch."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from beamclip.errors import FailedRunError, InputError
from beamclip.export.formats import Exported, write_mlflow, write_open_clip, write_timm
from beamclip.models.clip import LoadedClip, new_clip


def test_an_export_that_differs_is_refused_and_the_former_one_stays(
    student: LoadedClip, exported: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    assert write_open_clip(exported, out)["model"].largest < 1e-5
    before = (out / "open_clip_model.safetensors").read_bytes()
    changed = Exported(deepcopy(student), exported.pixels)
    assert changed.embeddings.shape == (48, student.embed_dim)  # computed before the weights change
    with torch.no_grad():
        changed.clip.model.visual.head.proj.weight[0] += 1.0
    with pytest.raises(FailedRunError, match=r"embeddings of the export differ .* nothing was written"):
        write_open_clip(changed, out)
    assert (out / "open_clip_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_backbone_is_compared_by_both_ways_to_load_it(exported: Exported, tmp_path: Path) -> None:
    parities = write_timm(exported, tmp_path / "timm")
    assert {name: (parity.what, parity.largest) for name, parity in parities.items()} == {
        "directory": ("features", 0),
        "checkpoint": ("features", 0),
    }


def test_a_format_that_the_model_does_not_have_is_refused(exported: Exported, tmp_path: Path) -> None:
    transformer = Exported(new_clip("tiny-vit", seed=0), exported.pixels)
    with pytest.raises(InputError, match="not a timm network"):
        write_timm(transformer, tmp_path / "timm")
    with pytest.raises(InputError, match="a classifier needs classes"):
        write_mlflow(transformer, tmp_path / "mlflow", opset=18)
    assert list(tmp_path.iterdir()) == []
