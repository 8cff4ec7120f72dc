"""What every format has in common: nothing takes its place that differs from PyTorch."""

import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from beamclip.errors import FailedRunError, InputError
from beamclip.export import formats, mlflow_model, resize
from beamclip.export.config import NEWEST_OPSET, Format
from beamclip.export.folder import check_replaceable, write_folder
from beamclip.export.formats import (
    LAYOUTS,
    Exported,
    Parities,
    write_mlflow,
    write_onnx,
    write_open_clip,
    write_timm,
)
from beamclip.export.parity import Parity, check_close
from beamclip.models.clip import LoadedClip, new_clip


def test_an_export_that_differs_is_refused_and_the_former_one_stays(
    student: LoadedClip, exported: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    parities = write_open_clip(exported, out)
    assert {name: parity.largest < 1e-5 for name, parity in parities.items()} == {"model": True, "text": True}
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
    check_replaceable(tmp_path / "timm", LAYOUTS["timm"])
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


def test_texts_that_the_exported_tokenizer_reads_otherwise_are_found(
    exported: Exported, tmp_path: Path
) -> None:
    def backwards(texts: list[str]) -> torch.Tensor:
        return exported.clip.tokenizer([text[::-1] for text in texts])

    other = replace(exported, clip=replace(exported.clip, tokenizer=backwards))
    with pytest.raises(FailedRunError, match=r"embeddings of the export differ .* on 3 images"):
        write_open_clip(other, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_open_clip_itself_loads_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(address: str) -> LoadedClip:
        raise AssertionError(f"{address} is loaded by our own code")

    monkeypatch.setattr(formats, "load_clip", ours)
    clip = new_clip("tiny-msclip", seed=0)
    pixels = torch.zeros(2, 3, clip.image_size, clip.image_size, dtype=torch.uint8)
    assert write_open_clip(Exported(clip, pixels), tmp_path / "model")["text"].largest < 1e-5


def test_msclip_s_is_checked_by_our_own_code(tmp_path: Path) -> None:
    clip = new_clip("tiny-msclip-s", seed=0)
    pixels = torch.zeros(2, 3, clip.image_size, clip.image_size, dtype=torch.uint8)
    assert write_open_clip(Exported(clip, pixels), tmp_path / "model")["model"].largest < 1e-5
    assert "library_name: beamclip" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.slow
def test_what_mlflow_would_resize_otherwise_is_found(
    onnx_export: tuple[Path, Parities], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def served() -> Parity:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        mlflow_model.save_mlflow_model(onnx_export[0], folder)
        check_replaceable(folder, LAYOUTS["mlflow"])
        return formats._served_parity(exported, folder, onnx_export[0])

    right = check_close(served())
    assert (right.images, right.same_top1) == (8 + len(exported.originals), 1)
    code, changed = mlflow_model.CODE, tmp_path / mlflow_model.CODE.name
    changed.write_text(code.read_text().replace("ImageOps.exif_transpose(opened)", "opened"))
    monkeypatch.setattr(mlflow_model, "CODE", changed)
    with pytest.raises(FailedRunError, match="probabilities of the export differ"):
        check_close(served())


@pytest.mark.slow
def test_int8_of_the_newest_opset_resizes_as_evaluation_does(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"precision": "int8", "opset": NEWEST_OPSET, "any_size": True}
    parities = write_onnx(exported, tmp_path / "onnx", **options)
    assert list(parities) == ["resizing", "image_encoder", "classifier"]
    assert (parities["resizing"].what, parities["resizing"].images) == ("pixels", 3)
    assert 0 < parities["image_encoder"].distance < 0.05
    model = onnx.load(tmp_path / "onnx" / "classifier.onnx")
    assert {each.version for each in model.opset_import if not each.domain} == {NEWEST_OPSET}
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    monkeypatch.setattr(resize, "_SHORTEST", resize._SQUASH)
    with pytest.raises(FailedRunError, match=r"3 pictures that the export resizes differ .* levels of 255"):
        write_onnx(exported, tmp_path / "onnx", **options)


FOREIGN = [".git", "pytorch_model.bin"]


@pytest.mark.parametrize("format", LAYOUTS)
def test_what_lies_beside_a_former_export_is_not_deleted(format: Format, tmp_path: Path) -> None:
    marker, *others = LAYOUTS[format].marker, *LAYOUTS[format].others, "summary.json"
    for name in (marker, *others):
        (tmp_path / name).touch()
    check_replaceable(tmp_path, LAYOUTS[format])
    for name in FOREIGN:
        (tmp_path / name).touch()
    with pytest.raises(
        InputError, match=r"holds \.git, pytorch_model\.bin beside the model, .* Move it, or name"
    ):
        write_folder(tmp_path, LAYOUTS[format], lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {marker, *others, *FOREIGN}
