"""A model in the formats of other tools, for use without beamclip: open_clip, timm, ONNX, torch, MLflow."""

from beamclip.callable_room import make_callable

make_callable(__name__)
