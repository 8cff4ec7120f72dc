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
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Pictures of other formats are refused."""
MOST_PIXELS, MOST_RATIO = 50_000_000, 50
"""Pictures of more pixels, or whose longer side is more times the shorter one, are refused before they are
decoded: resized to a model's input, a narrow strip would be gigabytes long."""


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
        """Decode a picture, and resize and crop it as open_clip does: uint8 [3, size, size]."""
        try:
            picture = _decoded(content)
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


def _decoded(content: bytes) -> Image.Image:
    """Decode a picture as training and evaluation do: to RGB, upright, on white."""
    opened = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = opened.size
    if width * height > MOST_PIXELS or max(width, height) > MOST_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels")
    depth = content[24] if opened.format == "PNG" else 8
    picture = _eight_bits(ImageOps.exif_transpose(opened), depth)
    if picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image, depth: int) -> Image.Image:
    """Bring a picture, and its transparent colour if it has one, to eight bits a sample.

    Args:
        depth: bits of a sample in the file.
    """
    key = picture.info.get("transparency")
    if picture.mode.startswith("I"):  # a grey PNG of 16 bits
        samples = np.asarray(picture)
        levels = np.rint(samples.astype(np.float32) * np.float32(255 / 65535))
        scaled = Image.fromarray(levels.astype(np.uint8))
        if isinstance(key, int):
            scaled.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
        return scaled
    # Pillow scales the samples of a PNG, but not the colour that is transparent.
    if depth in (2, 4) and isinstance(key, int) and picture.mode == "L":
        picture.info["transparency"] = key * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(key, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    return picture


def _centred(edge: int, size: int) -> int:
    """Where an edge begins on the canvas; negative where it is cut."""
    return -round((edge - size) / 2.0) if edge > size else (size - edge) // 2


mlflow.models.set_model(PictureClassifier())
