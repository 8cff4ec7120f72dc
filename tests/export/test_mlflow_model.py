"""The MLflow model: pictures in, labels out, by MLflow's own scoring server, from the registry too."""

import base64
import json
import os
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from ports import free_port

from beamclip.errors import InputError
from beamclip.export.formats import Exported, Parities
from beamclip.export.mlflow_model import check_store, png_bytes, predictor, register_model, save_mlflow_model


@pytest.fixture(scope="module")
def saved(
    onnx_export: tuple[Path, Parities], exported: Exported, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The saved model."""
    out = tmp_path_factory.mktemp("mlflow") / "model"
    save_mlflow_model(onnx_export[0], exported.pixels[0], out)
    return out


@pytest.mark.slow
def test_pictures_get_labels_with_probabilities(saved: Path, exported: Exported) -> None:
    rows = predictor(saved)([png_bytes(image) for image in exported.pixels[:4]])
    for row, expected in zip(rows, exported.probabilities, strict=False):
        best = expected.argsort(descending=True, stable=True).tolist()
        assert row["labels"] == [["crane", "owl", "heron", "kite"][place] for place in best]
        assert row["id"] == f"n{best[0]}"
        assert row["probabilities"] == pytest.approx(expected[best].tolist(), abs=1e-5)
        assert (row["label"], row["probability"]) == (row["labels"][0], row["probabilities"][0])


@pytest.mark.slow
def test_the_scoring_server_takes_base64_and_says_what_is_no_picture(saved: Path, exported: Exported) -> None:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    client = TestClient(init(mlflow.pyfunc.load_model(str(saved))))

    def ask(content: bytes) -> tuple[int, dict]:
        record = {"image": base64.b64encode(content).decode()}
        answer = client.post("/invocations", json={"dataframe_records": [record], "params": {"top": 2}})
        return answer.status_code, answer.json()

    status, answer = ask(png_bytes(exported.pixels[0]))
    assert status == 200
    assert len(answer["predictions"][0]["labels"]) == 2
    assert answer["predictions"][0]["id"] == f"n{int(exported.probabilities[0].argmax())}"
    status, answer = ask(b"hello")
    assert status == 400
    assert "5 bytes that cannot be read as a picture (no known format). Send" in answer["message"]


def test_the_model_needs_nothing_of_beamclip(saved: Path) -> None:
    assert "beamclip" not in (saved / "requirements.txt").read_text()
    assert "import beamclip" not in (saved / "mlflow_code.py").read_text()
    example = json.loads((saved / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["columns"] == ["image"]
    assert not list(saved.rglob("*.pkl"))


@pytest.mark.slow
def test_a_registered_model_is_found_by_its_alias(
    onnx_export: tuple[Path, Parities], exported: Exported, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    check_store(uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("birds", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    assert register_model(onnx_export[0], exported.pixels[0], uri, "birds", "champion", run) == 1
    assert "MLFLOW_TRACKING_URI" not in os.environ
    champion = client.get_model_version_by_alias("birds", "champion")
    assert (int(champion.version), champion.run_id) == (1, run)
    assert client.get_run(run).info.status == "FINISHED"


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_named() -> None:
    with pytest.raises(InputError, match=r"--register: the MLflow store at http://.* does not answer"):
        check_store(f"http://127.0.0.1:{free_port()}")
