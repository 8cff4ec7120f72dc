"""Check the class list and the contexts of a command; the sources that its contexts come from.

Free of torch: all of this is checked before a model is loaded.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from beamclip.cluster.session import ray_session
from beamclip.commands.console import plural, print_stage
from beamclip.data.cooccurrence import caption_words
from beamclip.data.listing import check_texts, fingerprint, list_shards
from beamclip.data.shards import Columns, Shard
from beamclip.errors import InputError
from beamclip.files import write_whole
from beamclip.prompts.class_prompts import class_prompts, count_alike
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.contexts import CAPTIONS, NONE, WORDNET, ContextSource, class_contexts, source_names
from beamclip.prompts.wordnet import wordnet_contexts

MOST_WORDS = 16
"""Words kept for each class name, so that more contexts need no further pass over the captions."""

ONE_ANCHOR = "With one anchor there is nothing to learn or to score"
CONTEXTS_ADVICE = "Contexts tell classes of one name apart (--context-source, --num-contexts)"


def refuse_one_class(classes: Sequence[ClassEntry]) -> None:
    """Raise InputError for a class list of one class: every image would be nearest to its anchor."""
    if len(classes) == 1:
        name = classes[0].name
        advice = " In a text list each class has a line of its own." if "," in name else ""
        raise InputError(
            f"--classes: holds one class, {name[:60]!r}. {ONE_ANCHOR}: give two classes or more.{advice}"
        )


def refuse_alike(prompts: Sequence[Sequence[str]]) -> int:
    """Return how many classes share their prompts with another class.

    Raises:
        InputError: all classes have the same prompts.
    """
    distinct, alike = count_alike(prompts)
    if distinct < 2:
        raise InputError(
            f"--classes: all {plural(len(prompts), 'class')} have the same prompts, first: "
            f"{prompts[0][0][:60]!r}. {ONE_ANCHOR}. {CONTEXTS_ADVICE}."
        )
    return alike


def check_contexts(
    classes: Sequence[ClassEntry], config: PromptConfig, data: Sequence[str], *, allow_missing: bool = False
) -> None:
    """Refuse contexts that no source can give, before anything is started; captions are not counted yet.

    Args:
        classes: empty where the command was given no class list.
        data: addresses of the command's shards, if it has any.
        allow_missing: see `list_shards`.

    Raises:
        InputError: as `class_contexts`; there are no captions to read; or all classes have the same prompts.
    """
    names = source_names(config.context_source)
    lexicon = _lexicon(config)
    for name in (names or (NONE,)) if config.num_contexts else ():
        if name == CAPTIONS:
            for address in _addresses(config, data):
                shards = list_shards(address, allow_missing=allow_missing)
                check_texts(shards, _columns(config), address)
        else:
            class_contexts(classes, name, config.num_contexts, lexicon)
    if classes:
        refuse_one_class(classes)
        if not (config.num_contexts and CAPTIONS in names):
            # Templates cannot tell classes apart: any will do.
            refuse_alike(class_prompts(classes, replace(config, templates=("name",)), lexicon))


def context_sources(
    classes: Sequence[ClassEntry],
    config: PromptConfig,
    data: Sequence[str],
    cache_dir: Path,
    *,
    allow_missing: bool = False,
) -> dict[str, ContextSource]:
    """Return the context sources that need more than the class list: the lexicon, and words from captions.

    Only those that the configuration asks for, by name; captions are read on Ray.

    Args:
        data: addresses of the command's shards, if it has any.
        cache_dir: folder in which the words found in captions are kept.
        allow_missing: see `list_shards`.
    """
    sources = _lexicon(config)
    if config.num_contexts and CAPTIONS in source_names(config.context_source):
        addresses = _addresses(config, data)
        shards = [each for address in addresses for each in list_shards(address, allow_missing=allow_missing)]
        words = _words(sorted({entry.name for entry in classes}), config, shards, cache_dir)
        sources[CAPTIONS] = lambda entry: words[entry.name]
    return sources


def _addresses(config: PromptConfig, data: Sequence[str]) -> Sequence[str]:
    addresses = [config.context_data] if config.context_data else data
    if not addresses:
        raise InputError("context_source captions reads the captions of shards. Give --data SHARDS.")
    return addresses


def _columns(config: PromptConfig) -> Columns:
    return Columns(caption=True, more_texts=config.context_columns)


def _lexicon(config: PromptConfig) -> dict[str, ContextSource]:
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
        write_whole(path, json.dumps(found))
        note = "counted"
    words = {name: tuple(own) for name, own in json.loads(path.read_text()).items()}
    telling = sum(bool(own) for own in words.values())
    print_stage("contexts", f"words beside {telling:,} of {plural(len(names), 'name')} in captions", note)
    return words
