"""Choose the text that a sample is trained with if it has several: captions, tags, translations.

As with augmentation, the choice is a function of (seed, epoch, sample key): see data.transforms.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from beamclip.data.config import CaptionConfig

CAPTION_CHARACTERS = 2048
"""Longest text that is kept, far more than text towers read: tokenizers take quadratic time."""

MOST_TEXTS = 256
"""Largest number of texts that are read from one sample."""

CAPTION_FIELDS = ("caption", "text")
"""Fields that hold the caption of a sample which has no text of its own, in order: the first that is there.

What others write: `caption` is img2dataset's, `text` is that of Hugging Face datasets. Fields of other names,
as the `title` of open_clip's CSV files, are texts if `--caption-columns` names them."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON may hold half of a surrogate pair; neither Arrow nor tokenizers accept it."""


def choose_caption(texts: Sequence[str], draw: float, config: CaptionConfig) -> str:
    """Choose or join the texts of one sample for one epoch.

    Args:
        texts: of the sample, at least one.
        draw: the sample's random number in [0, 1), which decides everything.
    """
    if len(texts) == 1:
        return texts[0]
    generator = np.random.default_rng(int(draw * 2**24))
    order = generator.permutation(len(texts))
    # If every text would be dropped, the first of the order stays: an image needs a text.
    staying = generator.random(len(texts)) >= config.caption_dropout
    kept = [texts[i] for place, i in enumerate(order) if staying[i] or not (place or staying.any())]
    return kept[0] if config.caption_join == "sample" else ", ".join(kept)[:CAPTION_CHARACTERS]


def texts_of(values: Sequence[Any]) -> list[str]:
    """Turn a sample's fields into texts: lists are flattened; nulls, blanks and duplicates are left out.

    Raises:
        TypeError: a field, or an item of its list, is a dictionary; or an item is a list.
    """
    flat = (item for value in values for item in (value if isinstance(value, list | tuple) else [value]))
    texts = [clean_text(item) for item in islice(flat, MOST_TEXTS) if not is_missing(item)]
    return list(dict.fromkeys(text for text in texts if text))


def caption_of(fields: Mapping[str, Any]) -> Any:
    """The caption among the fields of a sample, which may be a list of them; None if there is none."""
    found = (fields[name] for name in CAPTION_FIELDS if not is_missing(fields.get(name)))
    return next(found, None)


def clean_text(value: Any) -> str:
    """Turn a value into text: stripped, cut to CAPTION_CHARACTERS, with half surrogate pairs replaced.

    Raises:
        TypeError: the value is a dictionary or a list.
    """
    if isinstance(value, bytes):
        value = value[: 4 * CAPTION_CHARACTERS].decode("utf-8", "replace")
    if isinstance(value, dict | list | tuple):
        raise TypeError(f"a {type(value).__name__} where a text is expected")
    return _SURROGATE.sub("\ufffd", str(value).strip()[:CAPTION_CHARACTERS]).rstrip()


def is_missing(value: Any) -> bool:
    """Whether a field is null; some JSON writers write NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))
