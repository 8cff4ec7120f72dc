"""Which text a sample is trained with, where it has several: captions, tags, translations.

As with augmentation, the choice is a function of (seed, epoch, sample key): see data.transforms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from beamclip.errors import InputError


@dataclass(frozen=True)
class CaptionConfig:
    """The text that an image is paired with each time it is seen."""

    caption_columns: tuple[str, ...] = ()
    """Fields of a sample's JSON with further texts beside its caption: a text each, or a list of tags."""
    caption_join: Literal["sample", "concat"] = "sample"
    """sample: one of the sample's texts. concat: all of them, in a new order each time, with commas."""
    caption_dropout: float = 0.0
    """Probability of leaving out each of a sample's texts, 0..1; one always stays."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.caption_dropout <= 1.0:
            raise InputError(f"caption_dropout is {self.caption_dropout}: give a probability from 0 to 1.")


def choose_caption(texts: Sequence[str], draw: float, config: CaptionConfig) -> str:
    """The text of one sample for one epoch.

    Args:
        texts: of the sample, at least one.
        draw: in [0, 1), the sample's random number; all choices follow from it.
    """
    if len(texts) == 1:
        return texts[0]
    generator = np.random.default_rng(int(draw * 2**24))
    order = generator.permutation(len(texts))
    # The first of the order stays whatever its number says: an image needs a text.
    staying = generator.random(len(texts)) >= config.caption_dropout
    kept = [texts[i] for place, i in enumerate(order) if staying[i] or not (place or staying.any())]
    return kept[0] if config.caption_join == "sample" else ", ".join(kept)


def texts_of(values: Sequence[Any]) -> list[str]:
    """Fields of a sample as texts: lists are taken apart, null and blank ones left out, doubles too."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    texts = [str(item).strip() for item in flat if item is not None]
    return list(dict.fromkeys(text for text in texts if text))
