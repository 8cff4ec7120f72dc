"""ONNX files, run by ONNX Runtime alone."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from beamclip.errors import InputError
from beamclip.export.formats import Exported, Parities
from beamclip.export.int8 import is_convolutional, to_int8
from beamclip.export.onnx_model import run_onnx, to_onnx
from beamclip.export.parity import check_similar, compare


@pytest.mark.slow
def test_pixels_go_in_and_probabilities_come_out(
    onnx_export: tuple[Path, Parities], exported: Exported
) -> None:
    folder, parities = onnx_export
    session = onnxruntime.InferenceSession(folder / "classifier.onnx")
    assert [(each.name, each.type, each.shape[1:]) for each in session.get_inputs()] == [
        ("pixels", "tensor(uint8)", [3, 32, 32])
    ]
    for rows in (1, 5):  # any batch
        (found,) = session.run(["probabilities"], {"pixels": exported.pixels[:rows].numpy()})
        np.testing.assert_allclose(found, exported.probabilities[:rows], atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads((folder / "labels.json").read_text()) == json.loads(facts["classes"])
    assert [each["name"] for each in json.loads(facts["classes"])] == ["crane", "owl", "heron", "kite"]
    scale = float(exported.clip.model.logit_scale.exp())
    assert float(facts["temperature"]) == pytest.approx(1 / scale)
    assert parities["classifier"].same_top1 == 1
    assert parities["image_encoder"].largest < 1e-5


@pytest.mark.slow
def test_int8_is_a_quarter_of_the_size_and_stays_close(
    onnx_export: tuple[Path, Parities], exported: Exported, tmp_path: Path
) -> None:
    source = onnx_export[0] / "image_encoder.onnx"
    model = to_int8(onnx.load(source), lambda: exported.pixels)
    onnx.save(model, tmp_path / "int8.onnx")
    weights = [each for each in model.graph.initializer if len(each.dims) == 4 and each.dims[0] > 1]
    assert {each.data_type for each in weights} == {onnx.TensorProto.INT8}
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * source.stat().st_size
    found = run_onnx(tmp_path / "int8.onnx", exported.pixels)
    assert check_similar(compare("embeddings", found, exported.embeddings)).distance > 0


def test_int8_without_images_to_calibrate_on_is_refused(onnx_export: tuple[Path, Parities]) -> None:
    model = onnx.load(onnx_export[0] / "image_encoder.onnx")
    assert is_convolutional(model)
    for images in (None, torch.zeros(0, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(InputError, match="Give --calibration-data"):
            to_int8(model, lambda images=images: images)


@pytest.mark.slow
def test_a_transformer_is_quantised_without_calibration(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
    values = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))

    def no_images() -> None:
        raise AssertionError("images that nothing needs are read and decoded")

    model = to_int8(to_onnx(network, values[:2], ("input", "output"), 18), no_images)
    onnx.save(model, tmp_path / "int8.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert "DynamicQuantizeLinear" in kinds
    found = run_onnx(tmp_path / "int8.onnx", values)
    with torch.no_grad():
        assert compare("embeddings", found, network(values)).distance < 0.01
