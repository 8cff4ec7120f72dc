"""The sources of contexts that need more than a class list, made ready for one command."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from beamclip.cluster import ray_session
from beamclip.commands.anchoring import refuse_alike, refuse_one_class
from beamclip.commands.console import count, stage
from beamclip.data.cooccurrence import caption_words
from beamclip.data.shards import Columns, Shard, check_texts, fingerprint, list_shards
from beamclip.errors import InputError
from beamclip.prompts.anchors import class_prompts
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.contexts import CAPTIONS, NONE, WORDNET, Source, class_contexts, source_names
from beamclip.prompts.wordnet import wordnet_contexts

MOST_WORDS = 16
"""Kept of each class: another number of contexts asks for no other pass over the captions."""


def check_contexts(
    classes: Sequence[ClassEntry], config: PromptConfig, data: str | None, *, allow_missing: bool = False
) -> None:
    """Refuse what cannot be had, before anything is started; captions are not counted yet.

    Args:
        classes: may be empty, where a command needs none.
        data: address of the command's shards, if it has any.
        allow_missing: see `list_shards`.

    Raises:
        InputError: see `class_contexts`; there are no captions to read; or fewer than two classes differ.
    """
    names = source_names(config.context_source)
    lexicon = _lexicon(config)
    for name in (names or (NONE,)) if config.num_contexts else ():
        if name == CAPTIONS:
            address = _address(config, data)
            shards = list_shards(address, allow_missing=allow_missing)
            check_texts(shards, _columns(config), address)
        else:
            class_contexts(classes, name, config.num_contexts, lexicon)
    if classes:
        refuse_one_class(classes)
        if not (config.num_contexts and CAPTIONS in names):
            # Templates part no classes: any will do.
            refuse_alike(class_prompts(classes, replace(config, templates=("name",)), lexicon))


def context_sources(
    classes: Sequence[ClassEntry],
    config: PromptConfig,
    data: str | None,
    cache_dir: Path,
    *,
    allow_missing: bool = False,
) -> dict[str, Source]:
    """The lexicon and the captions, as far as the configuration asks for them; captions are read on Ray.

    Args:
        data: address of the command's shards, if it has any.
        cache_dir: where the words of captions are kept.
        allow_missing: see `list_shards`.
    """
    sources = _lexicon(config)
    if config.num_contexts and CAPTIONS in source_names(config.context_source):
        shards = list_shards(_address(config, data), allow_missing=allow_missing)
        words = _words(sorted({entry.name for entry in classes}), config, shards, cache_dir)
        sources[CAPTIONS] = lambda entry: words[entry.name]
    return sources


def _address(config: PromptConfig, data: str | None) -> str:
    address = config.context_data or data
    if address is None:
        raise InputError("context_source captions reads the captions of shards. Give --data SHARDS.")
    return address


def _columns(config: PromptConfig) -> Columns:
    return Columns(caption=True, more_texts=config.context_columns)


def _lexicon(config: PromptConfig) -> dict[str, Source]:
    if config.num_contexts and WORDNET in source_names(config.context_source):
        return {WORDNET: wordnet_contexts(config.wordnet)}
    return {}


def _words(
    names: list[str], config: PromptConfig, shards: list[Shard], cache_dir: Path
) -> dict[str, tuple[str, ...]]:
    most = max(MOST_WORDS, config.num_contexts)
    paths = [shard.path for shard in shards]
    key = json.dumps([paths, fingerprint(shards), config.context_columns, most, names])
    path = cache_dir / f"words-{hashlib.sha256(key.encode()).hexdigest()}.json"
    note = "cached"
    if not path.exists():
        with ray_session():
            found = caption_words(shards, names, _columns(config), most)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{uuid4().hex}.part")
        draft.write_text(json.dumps(found))
        draft.replace(path)
        note = "counted"
    words = {name: tuple(own) for name, own in json.loads(path.read_text()).items()}
    telling = sum(bool(own) for own in words.values())
    stage("contexts", f"words beside {telling:,} of {count(len(names), 'name')} in captions", note)
    return words
