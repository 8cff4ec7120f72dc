"""How class names become text anchors, as options: reading a configuration must not import torch."""

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
    """auto: those that fit the teacher's captions. Or sets (name, photo, ensemble, symbol, openai7, openai80)
    and texts with {} for the class, which stay as they are; "a(n) {}" bends to the class: an owl."""
    context_source: str = "none"
    """Where contexts come from: the class list's `contexts` (file) or `parents` (hierarchy), the lexicon
    (wordnet) by its `synset`, words beside the name in the shards' captions (captions), or several of these,
    as hierarchy+captions, in turn."""
    num_contexts: Natural = 0
    """Contexts a class, first ones first, one prompt each; 0 leaves the bare name."""
    context_data: PathOrAddress = None
    """Shards whose captions context_source captions reads; by default the ones of --data."""
    context_columns: tuple[str, ...] = ()
    """Fields of a sample's JSON with further texts that context_source captions reads, such as tags."""
    wordnet: LocalPath = None
    """Princeton's dict folder of WordNet, for context_source wordnet; by default what nltk has installed."""
    anchor_reduce: AnchorReduce = "mean"
    """mean: one anchor a class, the unit mean of its prompts. separate: one anchor a prompt."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_templates(self.templates)
