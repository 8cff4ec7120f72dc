"""Write a classifier as an MLflow model, and register it."""

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beamclip.addresses import without_secrets
from beamclip.errors import FailedRunError, InputError
from beamclip.export.folder import Layout
from beamclip.export.onnx_model import CLASSIFIER, LABELS_FILE
from beamclip.tracking.store import Store, first_line

CODE = Path(__file__).with_name("mlflow_code.py")
SERVED_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats of the pictures that the model takes, by Pillow's names."""
LAYOUT = Layout(
    "MLmodel",
    (
        *("conda.yaml", "python_env.yaml", "requirements.txt", CODE.name, "artifacts", "__pycache__"),
        *("input_example.json", "serving_input_example.json"),
    ),
)
_EXPERIMENT = "beamclip"
_URI = "MLFLOW_TRACKING_URI"
_ALIAS = re.compile(r"(?!latest$)(?!v\d+$)[\w-]{1,255}", re.ASCII | re.IGNORECASE)
_EXISTS = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True)
class Registration:
    """Where in MLflow a model is registered."""

    uri: str
    name: str
    alias: str
    run_id: str | None
    """Run of the store that the model comes from; None, or one that the store does not have, is no run."""


def save_mlflow_model(source: Path, out: Path) -> None:
    """Save a classifier as a pyfunc model, whose code and data need no part of beamclip.

    Args:
        source: folder with classifier.onnx and labels.json.
        out: a folder that does not exist yet or is empty.
    """
    import mlflow

    _quiet()
    mlflow.pyfunc.save_model(str(out), **_content(source))


def check_registration(place: Registration) -> None:
    """Ask an MLflow store for its registered models, which takes seconds if it does not answer.

    Raises:
        InputError: it cannot be reached or keeps no registered models, or MLflow takes no such name or alias.
    """
    if not place.name.strip() or {"/", ":"} & set(place.name):
        raise InputError(f"--register {place.name!r}: MLflow takes a name without / and :. Give another one.")
    if not _ALIAS.fullmatch(place.alias):
        raise InputError(
            f"--alias {place.alias!r}: MLflow takes letters, digits, - and _, and keeps latest, v1, v2, ... "
            "for itself. Give another one."
        )
    try:
        # Sets the time limits of MLflow's requests, which are minutes otherwise.
        Store(place.uri)
        from mlflow.tracking import MlflowClient

        MlflowClient(place.uri).search_registered_models(max_results=1)
    except Exception as error:
        raise InputError(
            without_secrets(
                f"--register: the MLflow store at {place.uri} does not answer ({first_line(error)}). "
                "Start its server, correct MLFLOW_TRACKING_URI, or leave --register out."
            )
        ) from error


def register_model(folder: Path, place: Registration) -> int:
    """Log a saved model to an MLflow store, register it and give the new version an alias.

    No run is opened or changed, so that neither the caller's active run nor the end of a past one matters.

    Args:
        folder: as save_mlflow_model wrote it.

    Returns:
        The number of the new version.

    Raises:
        FailedRunError: the store refuses; the folder is kept.
    """
    from mlflow.tracking import MlflowClient

    _quiet()
    try:
        client = MlflowClient(place.uri)
        run = _known_run(client, place.run_id)
        experiment = run.info.experiment_id if run else _experiment(client)
        # Without a source run: the model that a run itself made is found by that.
        model_id = client.create_logged_model(experiment, name="classifier").model_id
        client.log_model_artifacts(model_id, str(folder))
        client.finalize_logged_model(model_id, "READY")
        _make_registered_model(client, place.name)
        with _as_tracking_uri(place.uri):
            made = client.create_model_version(
                place.name, f"models:/{model_id}", run.info.run_id if run else None, model_id=model_id
            )
        client.set_registered_model_alias(place.name, place.alias, str(made.version))
    except Exception as error:  # of MLflow, its store, or the place of its artifacts
        raise FailedRunError(
            without_secrets(
                f"--register {place.name}: the MLflow store at {place.uri} refuses ({first_line(error)}). "
                f"The model is in {folder}. Check the store, then export again."
            )
        ) from error
    return int(made.version)


@contextmanager
def _as_tracking_uri(uri: str) -> Iterator[None]:
    """Make a store MLflow's own for a moment: a registry in SQL looks up there which model it is given."""
    import mlflow

    # Taken out of the environment: MLflow tells only then whether it was given an address of its own.
    in_environment = os.environ.pop(_URI, None)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
        # MLflow writes the address into the environment, where every later run would find it.
        os.environ.pop(_URI, None)
        if in_environment is not None:
            os.environ[_URI] = in_environment


def _experiment(client: Any) -> str:
    known = client.get_experiment_by_name(_EXPERIMENT)
    return str(known.experiment_id if known else client.create_experiment(_EXPERIMENT))


def _make_registered_model(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", None) != _EXISTS:
            raise


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


def _example() -> bytes:
    """Draw the picture of the model's input example: a gradient, since the user's own images stay private."""
    ramp = np.arange(64, dtype=np.uint8) * 4
    pixels = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], np.uint8(128)))
    return png_bytes(torch.from_numpy(pixels))


def _requirements() -> list[str]:
    """The packages that the model needs, whatever distribution (onnxruntime-gpu, mlflow-skinny) has them."""
    modules = {"mlflow": "mlflow", "numpy": "numpy", "onnxruntime": "onnxruntime", "pandas": "pandas"}
    modules["pillow"] = "PIL"
    return [f"{name}=={import_module(module).__version__}" for name, module in modules.items()]


def _content(source: Path) -> dict[str, Any]:
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
        "input_example": pd.DataFrame({"image": [_example()]}),
        # Without it, MLflow would run the model in another process to see what it imports.
        "pip_requirements": _requirements(),
    }


def _known_run(client: Any, run_id: str | None) -> Any:
    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except Exception:  # the store has no such run: it may be another than the run was tracked in
        return None


def _quiet() -> None:
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
