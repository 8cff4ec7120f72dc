"""Tokenizers of CLIP models, from open_clip."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from beamclip.errors import InputError
from beamclip.openclip import open_clip

Tokenizer = Callable[[list[str]], Tensor]
"""Maps n texts to int64 tokens [n, context_length]; longer texts are cut."""

_BPE_VOCABULARY = 49408
"""Number of tokens in CLIP's own byte-pair encoding."""


def new_tokenizer(model_cfg: dict[str, Any], where: str) -> Tokenizer:
    """Make the tokenizer of a new model.

    Args:
        where: name or file of the config; for a name in open_clip's registry, open_clip picks the tokenizer.

    Raises:
        InputError: the config asks for a tokenizer that new models cannot have, or it cannot be loaded.
    """
    text_cfg = model_cfg["text_cfg"]
    if where in open_clip.list_models():
        return open_clip_tokenizer(where, where)
    if text_cfg.get("hf_tokenizer_name"):
        raise InputError(
            f"{where}: text_cfg.hf_tokenizer_name is {text_cfg['hf_tokenizer_name']!r}, but new models use "
            "CLIP's own tokenizer. Leave it out."
        )
    if text_cfg.get("vocab_size", _BPE_VOCABULARY) < _BPE_VOCABULARY:
        raise InputError(
            f"{where}: text_cfg.vocab_size is {text_cfg['vocab_size']}, too few for CLIP's tokenizer. "
            f"Make it {_BPE_VOCABULARY}."
        )
    context_length = text_cfg.get("context_length", open_clip.CLIPTextCfg.context_length)
    return open_clip.SimpleTokenizer(context_length=context_length, **text_cfg.get("tokenizer_kwargs", {}))


def open_clip_tokenizer(name: str, where: str) -> Tokenizer:
    """Load the tokenizer that open_clip has for a model's name or address.

    Raises:
        InputError: it cannot be loaded; `where` names the model.
    """
    try:
        return open_clip.get_tokenizer(name)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: its tokenizer cannot be loaded ({reason}). "
            "Tokenizers other than CLIP's own need their files and `pip install 'beamclip[transformers]'`."
        ) from error
