"""`beamclip export`, from its options to the files it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from ports import free_port

from beamclip.commands.main import main
from beamclip.summary import read_summary

FORMATS = ["open_clip", "timm", "onnx", "torch", "mlflow"]


def export(model: Path | str, out: Path, *options: str) -> int:
    return main(["export", "--model", str(model), "--out", str(out), *options])


@pytest.mark.slow
def test_a_run_becomes_an_onnx_classifier_with_its_own_classes_and_prompts(teacher, corpus, tmp_path, capsys):
    import onnxruntime

    assert export(teacher[0], tmp_path / "onnx", "--format", "onnx", "--text-encoder") == 0
    printed = capsys.readouterr().out
    assert f"images    60 images of {corpus.test}" in printed
    assert "same top-1 100.0 %" in printed
    labels = json.loads((tmp_path / "onnx" / "labels.json").read_text())
    assert [each["id"] for each in labels] == [
        each["id"] for each in yaml.safe_load(corpus.classes.read_text())
    ]
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "classifier.onnx")
    pixels = np.zeros((2, 3, 32, 32), np.uint8)
    assert session.run(None, {"pixels": pixels})[0].shape == (2, len(labels))
    prompts = yaml.safe_load((teacher[0] / "config.yaml").read_text())["prompts"]["templates"]
    assert prompts != ["auto"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["templates"]) != []
    summary = read_summary(tmp_path / "onnx")
    assert summary.metrics["classifier_same_top1"] == 1
    assert summary.metrics["text_encoder_difference"] < 1e-4
    assert summary.paths["classifier"] == "classifier.onnx"


def test_the_card_of_a_run_has_its_figures_and_its_license(teacher, tmp_path):
    out = tmp_path / "model"
    assert export(teacher[0], out, "--format", "open_clip", "--license", "apache-2.0") == 0
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert f"| zeroshot_top1 | {teacher[1].metrics['zeroshot_top1']:.4g} |" in card
    assert "- objective: clip" in card
    assert "- classes: " in card


def refused(capsys, *options: str) -> str:
    assert main(["export", *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


def test_a_missing_or_useless_option_is_refused(teacher, tmp_path, capsys):
    run, out = str(teacher[0]), str(tmp_path / "out")
    assert "--format and --out are required" in refused(capsys, "--model", run)
    given = ["--model", run, "--out", out]
    for format, *options in (
        ("timm", "--opset", "19"),
        ("torch", "--precision", "int8"),
        ("onnx", "--license", "mit"),
        ("onnx", "--push", "team/birds"),
        ("open_clip", "--register", "birds"),
        ("timm", "--classes", "classes.yaml"),
        ("timm", "--templates", "photo"),
    ):
        message = refused(capsys, *given, "--format", format, *options)
        assert f"{options[0]}: has no effect with --format {format}, only with" in message
    assert "--public: has no effect without --push" in refused(
        capsys, *given, "--format", "open_clip", "--public"
    )
    assert "--alias: has no effect without --register" in refused(
        capsys, *given, "--format", "mlflow", "--alias", "best"
    )
    assert "--calibration-data: has no effect without --precision int8" in refused(
        capsys, *given, "--format", "onnx", "--calibration-data", "images"
    )
    assert "opset is 9: give a number from 18 to 23" in refused(
        capsys, *given, "--format", "onnx", "--opset", "9"
    )
    assert not Path(out).exists()


def test_a_folder_that_is_no_model_and_one_that_holds_something_else_are_refused(teacher, tmp_path, capsys):
    message = refused(capsys, "--model", str(tmp_path), "--format", "onnx", "--out", str(tmp_path / "out"))
    assert "neither a model directory nor a finished run" in message
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    for format in FORMATS:
        message = refused(
            capsys, "--model", str(teacher[0]), "--format", format, "--out", str(tmp_path / "thesis")
        )
        assert "thesis: exists and is not an exported model" in message
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_a_transformer_has_no_timm_export(teacher, tmp_path, capsys):
    message = refused(capsys, "--model", str(teacher[0]), "--format", "timm", "--out", str(tmp_path / "out"))
    assert "its image tower is open_clip's own VisionTransformer, not a timm network" in message


def test_mlflow_without_a_server_or_without_classes_is_refused(
    teacher, model_file, tmp_path, capsys, monkeypatch
):
    out = str(tmp_path / "out")
    message = refused(capsys, "--model", str(teacher[0] / "model"), "--format", "mlflow", "--out", out)
    assert "a classifier needs classes. Give --classes FILE" in message
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    message = refused(
        capsys, "--model", str(teacher[0]), "--format", "mlflow", "--out", out, "--register", "birds"
    )
    assert "does not answer" in message
    assert "correct MLFLOW_TRACKING_URI" in message
    registered = ["--register", "birds", "--alias", "v2"]
    message = refused(capsys, "--model", str(teacher[0]), "--format", "mlflow", "--out", out, *registered)
    assert "--alias 'v2': MLflow takes letters" in message
    assert not Path(out).exists()


def test_images_that_were_asked_for_and_are_not_there_are_refused(teacher, tmp_path, capsys):
    message = refused(
        capsys,
        *("--model", str(teacher[0]), "--format", "open_clip", "--out", str(tmp_path / "out")),
        *("--check-data", str(tmp_path / "nothing")),
    )
    assert "nothing" in message
