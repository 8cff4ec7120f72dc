"""Options of `beamclip export`; parsing options must not import torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from beamclip.places import LocalPath, PathOrAddress
from beamclip.prompts.config import PromptConfig
from beamclip.ranges import Range, check_ranges

Format = Literal["open_clip", "timm", "onnx", "torch", "mlflow"]
Precision = Literal["fp32", "int8"]

OLDEST_OPSET, NEWEST_OPSET = 18, 23
"""Opsets that torch's exporter writes."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a model in the format of another tool, and check it against PyTorch."""

    model: str | None = None
    """Required. A run, a local open_clip directory or checkpoint, open_clip:NAME/TAG, hf-hub:ORG/NAME, or
    open_clip:NAME/FILE."""
    format: Format | None = None
    """Required. open_clip: directory for open_clip and the hub. timm: the backbone alone. onnx: image encoder
    and classifier, from pixels. torch: the same as torch.export programs. mlflow: a classifier of pictures
    that mlflow serves."""
    out: LocalPath = None
    """Required. Folder of the export; a former export of the same format in it is replaced."""
    classes: LocalPath = None
    """Class list (text, YAML or JSON) of the classifier in onnx, torch and mlflow; by default that of the
    run, with the run's prompts unless others are given."""
    precision: Precision = "fp32"
    """Arithmetic of onnx and mlflow. int8: a quarter of the size, and several times as fast on CPUs with
    VNNI."""
    calibration_data: PathOrAddress = None
    """Images (shards or a folder; no labels needed) on which the ranges of int8 activations are measured; by
    default the training data of the run. A few hundred are enough."""
    check_data: PathOrAddress = None
    """Images (shards or a folder) on which the export is compared with PyTorch; by default the labelled or
    else the training data of the run, and noise without any."""
    opset: Annotated[int, Range(OLDEST_OPSET, NEWEST_OPSET)] = OLDEST_OPSET
    """ONNX opset, with onnx and mlflow; ONNX Runtime reads 18 since its version 1.14."""
    any_size: bool = False
    """With onnx: resize and crop inside; the input is a picture of any size, as Pillow decodes it."""
    text_encoder: bool = False
    """With onnx: write the text encoder too, which embeds the tokens of any new class."""
    license: str | None = None
    """With open_clip: identifier of the license in the model card, such as apache-2.0 or cc-by-4.0."""
    push: str | None = None
    """With open_clip: upload to this repository (ORG/NAME) of the Hugging Face hub, with the token of `hf
    auth login` or of HF_TOKEN."""
    public: bool = False
    """With --push: make a new repository public, not private."""
    register: str | None = None
    """With mlflow: log the model to the run's MLflow store, too, and register it under this name."""
    alias: str = "champion"
    """With --register: the alias that the new version gets; models:/NAME@ALIAS then loads it."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
