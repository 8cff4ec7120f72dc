"""What MLflow serves: pictures in, labels with probabilities out.

MLflow copies this file into the model ("models from code"), and runs the copy: it imports nothing of
beamclip, and needs mlflow, numpy, onnxruntime, pandas and pillow alone.
"""

import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
from mlflow.pyfunc import PythonModel
from PIL import Image, UnidentifiedImageError

MOST_PIXELS = 64 << 20
"""Pictures with more pixels are refused before they are decoded."""


class PictureClassifier(PythonModel):
    """Classifies pictures by an ONNX model with the class prompts inside."""

    def load_context(self, context: Any) -> None:
        """Open the ONNX model and its labels."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            context.artifacts["classifier"], options, providers=["CPUExecutionProvider"]
        )
        facts = self.session.get_modelmeta().custom_metadata_map
        self.preprocessing = json.loads(facts["preprocessing"])
        labels = json.loads(Path(context.artifacts["labels"]).read_text(encoding="utf-8"))
        self.ids = [label["id"] for label in labels]
        self.names = [label["name"] for label in labels]

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the pictures in the column `image`: bytes of a PNG, JPEG, WebP or GIF file each.

        Args:
            params: `top`, the number of classes to return for each picture.

        Returns:
            A row for each picture: `label`, `id` and `probability` of the most probable class; `labels` and
            `probabilities` of the `top` most probable ones, best first.
        """
        top = max(1, min(int((params or {}).get("top", 5)), len(self.names)))
        rows = []
        for content in model_input["image"]:
            probabilities = self.session.run(None, {"pixels": self.pixels(content)[None]})[0][0]
            order = np.argsort(-probabilities, kind="stable")[:top]
            rows.append(
                {
                    "label": self.names[order[0]],
                    "id": self.ids[order[0]],
                    "probability": float(probabilities[order[0]]),
                    "labels": [self.names[place] for place in order],
                    "probabilities": [float(probabilities[place]) for place in order],
                }
            )
        return pd.DataFrame(rows)

    def pixels(self, content: bytes) -> Any:
        """Decode, resize and crop a picture as open_clip does: uint8 [3, size, size]."""
        try:
            opened = Image.open(io.BytesIO(content))
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels")
            picture = opened.convert("RGB")
        except Exception as error:
            reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
            raise mlflow.MlflowException.invalid_parameter_value(
                f"image: {len(content):,} bytes that cannot be read as a picture ({reason}). Send the bytes "
                "of a PNG, JPEG, WebP or GIF file; in JSON, as base64."
            ) from error
        size = self.preprocessing["size"]
        bilinear = self.preprocessing["interpolation"] == "bilinear"
        resampling = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        picture = picture.resize(self._resized(picture.width, picture.height), resampling)
        canvas = Image.new("RGB", (size, size), (self.preprocessing["fill_color"],) * 3)
        canvas.paste(picture, (_centred(picture.width, size), _centred(picture.height, size)))
        return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        size, mode = self.preprocessing["size"], self.preprocessing["resize_mode"]
        if mode == "squash":
            return size, size
        if mode == "longest":
            ratio = max(width, height) / size
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        side = min(width, height)
        return int(size * width / side), int(size * height / side)


def _centred(edge: int, size: int) -> int:
    """Where an edge begins on the canvas; negative where it is cut."""
    return -round((edge - size) / 2.0) if edge > size else (size - edge) // 2


mlflow.models.set_model(PictureClassifier())
