"""The MLflow model: pictures in, labels out, by MLflow's own scoring server, from the registry too."""

import base64
import io
import json
import os
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient, fluent
from packaging.requirements import Requirement
from PIL import Image
from ports import free_port

from beamclip.errors import FailedRunError, InputError
from beamclip.export.formats import Exported, Parities
from beamclip.export.mlflow_model import (
    Registration,
    _requirements,
    check_registration,
    png_bytes,
    predictor,
    register_model,
    save_mlflow_model,
)
from beamclip.tracking.logged_models import own_model


@pytest.fixture(scope="module")
def saved(onnx_export: tuple[Path, Parities], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved model."""
    out = tmp_path_factory.mktemp("mlflow") / "model"
    save_mlflow_model(onnx_export[0], out)
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


def test_the_versions_are_those_of_the_modules_whatever_distribution_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)  # as where onnxruntime-gpu and mlflow-skinny are installed
    required = [Requirement(each) for each in _requirements()]
    assert [each.name for each in required] == ["mlflow", "numpy", "onnxruntime", "pandas", "pillow"]
    assert onnxruntime.__version__ in required[2].specifier


def test_the_registry_holds_no_image_of_the_user(saved: Path, exported: Exported) -> None:
    record = json.loads((saved / "input_example.json").read_text())
    [[content]] = record["data"]
    example = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert example.shape == (64, 64, 3)
    assert example.std() > 0


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store with an experiment whose artifacts lie in the test's folder."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(uri).create_experiment("birds", artifact_location=(tmp_path / "artifacts").as_uri())
    return uri


def experiment_of(uri: str) -> str:
    return MlflowClient(uri).get_experiment_by_name("birds").experiment_id


@pytest.mark.slow
def test_a_registered_model_is_found_by_its_alias_and_its_run_stays_as_it_was(
    saved: Path, exported: Exported, uri: str
) -> None:
    client = MlflowClient(uri)
    run = client.create_run(experiment_of(uri)).info.run_id
    client.set_terminated(run, "FAILED", end_time=1_700_000_000_000)
    before = client.get_run(run).info
    for version in (1, 2):
        place = Registration(uri, "birds", "champion", run)
        check_registration(place)
        assert register_model(saved, place) == version
    assert "MLFLOW_TRACKING_URI" not in os.environ
    champion = client.get_model_version_by_alias("birds", "champion")
    assert (int(champion.version), champion.run_id) == (2, run)
    assert client.get_run(run).info == before
    # Whoever asks for the run's own model must not get this one.
    assert own_model(client, run) is None
    mlflow.set_tracking_uri(uri)
    try:
        served = mlflow.pyfunc.load_model("models:/birds@champion")
        rows = served.predict(pd.DataFrame({"image": [png_bytes(exported.pixels[0])]}))
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    assert rows["id"].tolist() == [f"n{int(exported.probabilities[0].argmax())}"]


@pytest.mark.slow
def test_a_model_is_registered_beside_an_active_run_of_another_experiment(
    saved: Path, uri: str, tmp_path: Path
) -> None:
    client = MlflowClient(uri)
    past = client.create_run(experiment_of(uri)).info.run_id
    mlflow.set_tracking_uri(uri)
    try:
        mlflow.set_experiment(experiment_id=client.create_experiment("a notebook's"))
        with mlflow.start_run() as active:
            assert register_model(saved, Registration(uri, "birds", "champion", past)) == 1
            assert mlflow.active_run().info.run_id == active.info.run_id
        assert mlflow.start_run().info.experiment_id == active.info.experiment_id
        mlflow.end_run()
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        fluent._active_experiment_id = None
        # MLflow writes it there.
        del os.environ["MLFLOW_EXPERIMENT_ID"]


@pytest.mark.parametrize(
    ("name", "alias"), [("birds", "v2"), ("birds", "Latest"), ("a/b", "best"), ("a", "")]
)
def test_a_name_or_an_alias_that_mlflow_reserves_is_refused_before_anything_is_logged(
    name: str, alias: str
) -> None:
    with pytest.raises(InputError, match=r"MLflow (takes|keeps) .*Give another one\."):
        check_registration(Registration("sqlite:///nowhere.db", name, alias, None))


def test_a_store_that_refuses_is_named_and_the_model_stays(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    nowhere = (tmp_path / "file" / "artifacts").as_uri()
    MlflowClient(uri).create_experiment("beamclip", artifact_location=nowhere)
    with pytest.raises(FailedRunError, match=rf"refuses \(.*The model is in {saved}"):
        register_model(saved, Registration(uri, "birds", "champion", None))
    assert MlflowClient(uri).search_registered_models() == []
    assert (saved / "MLmodel").exists()


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_named() -> None:
    place = Registration(f"http://127.0.0.1:{free_port()}", "birds", "champion", None)
    with pytest.raises(InputError, match=r"--register: the MLflow store at http://.* does not answer"):
        check_registration(place)
