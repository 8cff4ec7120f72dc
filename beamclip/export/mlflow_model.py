"""Write a classifier as an MLflow model, and register it."""

import io
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from beamclip.addresses import without_secrets
from beamclip.errors import InputError
from beamclip.export.onnx_model import CLASSIFIER, LABELS_FILE
from beamclip.tracking.store import Store, first_line

CODE = Path(__file__).with_name("mlflow_code.py")
MARKER = "MLmodel"
_REQUIRED = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


def save_mlflow_model(source: Path, example: Tensor, out: Path) -> None:
    """Save a classifier as a pyfunc model, whose code and data need no part of beamclip.

    Args:
        source: folder with classifier.onnx and labels.json.
        example: one image for the model's input example, uint8 [3, S, S].
        out: a folder that does not exist yet or is empty.
    """
    import mlflow

    _quiet()
    mlflow.pyfunc.save_model(str(out), **_content(source, example))


def check_store(uri: str) -> None:
    """Ask an MLflow store for its registered models, which takes seconds if it does not answer.

    Raises:
        InputError: it cannot be reached, or keeps no registered models.
    """
    try:
        # Sets the time limits of MLflow's requests, which are minutes otherwise.
        Store(uri)
        from mlflow.tracking import MlflowClient

        MlflowClient(uri).search_registered_models(max_results=1)
    except Exception as error:
        raise InputError(
            without_secrets(
                f"--register: the MLflow store at {uri} does not answer ({first_line(error)}). "
                "Start its server, correct MLFLOW_TRACKING_URI, or leave --register out."
            )
        ) from error


def register_model(source: Path, example: Tensor, uri: str, name: str, alias: str, run_id: str | None) -> int:
    """Log a classifier to an MLflow store, register it and give the new version an alias.

    Args:
        source, example: see save_mlflow_model.
        uri: of the store.
        run_id: run of the store to log to; None makes a new one.

    Returns:
        The number of the new version.

    Raises:
        InputError: the store refuses the name or the alias.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    _quiet()
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        run_id = _known_run(MlflowClient(uri), run_id)
        if run_id is None:
            mlflow.set_experiment("beamclip")
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="classifier", registered_model_name=name, **_content(source, example)
            )
        version = logged.registered_model_version
        MlflowClient(uri).set_registered_model_alias(name, alias, str(version))
    except mlflow.MlflowException as error:
        raise InputError(
            f"--register {name} --alias {alias}: MLflow refuses ({first_line(error)}). Give another name or "
            "alias."
        ) from error
    finally:
        # MLflow keeps the address in the environment, where every later run would find it.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
    return int(version)


def predictor(folder: Path) -> Callable[[list[bytes]], list[dict[str, Any]]]:
    """Return a function that classifies pictures, bytes of image files, by a saved MLflow model."""
    import mlflow
    import pandas as pd

    _quiet()
    model = mlflow.pyfunc.load_model(str(folder))

    def predict(pictures: list[bytes]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = model.predict(pd.DataFrame({"image": pictures})).to_dict("records")
        return rows

    return predict


def png_bytes(pixels: Tensor) -> bytes:
    """Encode an image, uint8 [3, H, W], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(buffer, "PNG")
    return buffer.getvalue()


def _content(source: Path, example: Tensor) -> dict[str, Any]:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    outputs: list[Any] = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.string, "id"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.string), "labels"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )
    return {
        "python_model": str(CODE),
        "artifacts": {"classifier": str(source / CLASSIFIER), "labels": str(source / LABELS_FILE)},
        "signature": signature,
        "input_example": pd.DataFrame({"image": [png_bytes(example)]}),
        # Without it, MLflow would run the model in another process to see what it imports.
        "pip_requirements": [f"{name}=={metadata.version(name)}" for name in _REQUIRED],
    }


def _known_run(client: Any, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    try:
        client.get_run(run_id)
    except Exception:  # the store has no such run: it may be another than the run was tracked in
        return None
    return run_id


def _quiet() -> None:
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
