"""A model in the formats of other tools, for use without beamclip: open_clip, timm, ONNX, torch, MLflow."""
