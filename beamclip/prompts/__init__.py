"""From a class list to text anchors: templates and contexts make prompts of it, a text tower embeds them."""

from beamclip.prompts.anchors import (
    Anchors,
    PromptConfig,
    caption_anchors,
    class_prompts,
    encode_anchors,
    truncated_prompts,
)
from beamclip.prompts.classes import ClassEntry, load_classes

__all__ = [
    "Anchors",
    "ClassEntry",
    "PromptConfig",
    "caption_anchors",
    "class_prompts",
    "encode_anchors",
    "load_classes",
    "truncated_prompts",
]
