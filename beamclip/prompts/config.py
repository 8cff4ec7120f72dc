"""Options of how class names become text anchors; parsing options must not import torch."""

from dataclasses import dataclass
from typing import Literal

from beamclip.places import LocalPath, PathOrAddress
from beamclip.prompts.templates import AUTO, check_templates
from beamclip.ranges import Natural, check_ranges

AnchorReduce = Literal["mean", "separate"]


@dataclass(frozen=True)
class PromptConfig:
    """How class names become text anchors."""

    templates: tuple[str, ...] = (AUTO,)
    """auto: those that come with the data to evaluate on, else those that fit the teacher's captions. Or sets
    (name, photo, ensemble, symbol, openai7, openai80) and texts with {} for the class, used as they are;
    "a(n) {}" becomes "a" or "an": an owl."""
    context_source: str = "none"
    """Where contexts come from: the class list's `contexts` (file) or `parents` (hierarchy), WordNet by its
    `synset` (wordnet), words beside the name in the shards' captions (captions), or several of these in turn
    (hierarchy+captions)."""
    num_contexts: Natural = 0
    """Contexts of a class to use, in order, each in prompts of its own; 0 uses the bare name."""
    context_data: PathOrAddress = None
    """Shards with the captions for context_source captions; by default those of --data."""
    context_columns: tuple[str, ...] = ()
    """Fields of a sample's JSON with further texts for context_source captions, such as tags."""
    wordnet: LocalPath = None
    """The dict folder of Princeton's WordNet, for context_source wordnet; by default the one nltk has."""
    anchor_reduce: AnchorReduce = "mean"
    """mean: one anchor a class, the unit mean of its prompts. separate: one anchor a prompt."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_templates(self.templates)
