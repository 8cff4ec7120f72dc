"""Which text a sample is trained with, where it has several: captions, tags, translations.

As with augmentation, the choice is a function of (seed, epoch, sample key): see data.transforms.
"""

import math
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from beamclip.data.config import CaptionConfig

CAPTION_CHARACTERS = 2048
"""Of a text, at most: far more than text towers read. What tokenizers do first takes quadratic time."""

MOST_TEXTS = 256
"""Of one sample."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON may hold half of a pair; neither tables nor tokenizers take it."""


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
    return kept[0] if config.caption_join == "sample" else ", ".join(kept)[:CAPTION_CHARACTERS]


def texts_of(values: Sequence[Any]) -> list[str]:
    """Fields of a sample as texts, cut: lists are taken apart, null and blank ones left out, doubles too.

    Raises:
        TypeError: a field is, or its list holds, neither text nor a number.
    """
    flat = (item for value in values for item in (value if isinstance(value, list | tuple) else [value]))
    texts = [clean_text(item) for item in islice(flat, MOST_TEXTS) if not is_missing(item)]
    return list(dict.fromkeys(text for text in texts if text))


def clean_text(value: Any) -> str:
    """One text as it is trained with: the first CAPTION_CHARACTERS, with nothing in it that is no character.

    Raises:
        TypeError: the value is neither text nor a number.
    """
    if isinstance(value, bytes):
        value = value[: 4 * CAPTION_CHARACTERS].decode("utf-8", "replace")
    if isinstance(value, dict | list | tuple):
        raise TypeError(f"a {type(value).__name__} where a text is expected")
    return _SURROGATE.sub("\ufffd", str(value).strip()[:CAPTION_CHARACTERS]).rstrip()


def is_missing(value: Any) -> bool:
    """Whether a field is null; some writers of JSON say NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))
