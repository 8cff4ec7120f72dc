"""Write a model as a directory of open_clip, in the layout that the Hugging Face hub uses."""

import json
from pathlib import Path

from beamclip.export.card import Card, card_text
from beamclip.export.folder import Layout, save_weights, write_folder
from beamclip.files import write_whole
from beamclip.models.clip import CONFIG_FILE, LoadedClip
from beamclip.models.msclip import split_msclip
from beamclip.openclip import HFTokenizer
from beamclip.prompts.fitting import FITTING_FILE, write_fitting

WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "README.md"
LAYOUT = Layout(
    CONFIG_FILE,
    (
        *(WEIGHTS_FILE, CARD_FILE, FITTING_FILE),
        # What tokenizers of transformers write.
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"),
        *("sentencepiece.bpe.model", "chat_template.jinja"),
    ),
)


def write_open_clip_dir(clip: LoadedClip, out: Path, card: Card | None = None) -> Path:
    """Write an open_clip directory: config, weights as safetensors, model card, fitting templates.

    The directory appears whole or not at all, and replaces one that was written before.

    Args:
        card: what the README says about the model.

    Returns:
        out.

    Raises:
        InputError: out is a file, or a directory that holds something other than a model.
    """
    return write_folder(out, LAYOUT, lambda directory: fill_open_clip_dir(clip, directory, card))


def fill_open_clip_dir(clip: LoadedClip, directory: Path, card: Card | None = None) -> None:
    """Write the files of an open_clip directory into a directory; see write_open_clip_dir."""
    model_cfg, beside = split_msclip(clip.model_cfg)
    config = {"model_cfg": model_cfg, "preprocess_cfg": clip.preprocess_cfg, **beside}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(clip.model, directory / WEIGHTS_FILE)
    # open_clip looks for such a tokenizer in the directory itself; CLIP's own is part of its package.
    if isinstance(clip.tokenizer, HFTokenizer):
        clip.tokenizer.save_pretrained(directory)
    if clip.fitting is not None:
        write_fitting(clip.fitting, directory)
    write_card(clip, directory, card)


def write_card(clip: LoadedClip, directory: Path, card: Card | None = None) -> None:
    """Replace the README of an exported model, in one step."""
    write_whole(directory / CARD_FILE, card_text(clip, card or Card()))
