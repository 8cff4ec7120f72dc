"""What beamclip uses of open_clip and timm, imported without wandb.

timm imports wandb if it is installed, as it is with img2dataset. That takes half a second and 20 MB in each
process, and leaves a temporary folder behind; only timm's training script would use it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = [
    "CLIP",
    "CustomTextCLIP",
    "HFTokenizer",
    "LayerNorm",
    "PreprocessCfg",
    "QuickGELU",
    "TimmModel",
    "Transformer",
    "VisionTransformer",
    "convert_state_dict",
    "convert_to_custom_text_state_dict",
    "merge_preprocess_dict",
    "open_clip",
    "resize_pos_embed",
    "resize_text_pos_embed",
    "timm",
]


@contextmanager
def _not_to_be_found(name: str) -> Iterator[None]:
    """Make importing a module fail inside, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    modules[name] = None  # Python's own mark for a module that does not exist
    try:
        yield
    finally:
        del modules[name]


with _not_to_be_found("wandb"):
    import open_clip
    import timm
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        VisionTransformer,
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )
    from open_clip.timm_model import TimmModel
    from open_clip.tokenizer import HFTokenizer
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict
    from open_clip.transformer import LayerNorm, QuickGELU, Transformer
