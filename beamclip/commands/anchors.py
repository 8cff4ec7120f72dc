"""Text anchors of a run, made from a class list, the shards' captions or both; the sources of contexts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beamclip.cluster import WorkersConfig, ray_session
from beamclip.commands.console import plural, print_stage
from beamclip.data.cooccurrence import caption_words
from beamclip.data.lost_samples import FirstLost, lost_sample
from beamclip.data.shards import (
    MISSING_CAPTION,
    Columns,
    Shard,
    check_texts,
    fingerprint,
    iterate_rows,
    list_shards,
)
from beamclip.errors import InputError
from beamclip.files import write_whole
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import (
    Anchors,
    caption_anchors,
    class_prompts,
    count_alike,
    encode_anchors,
    truncated_prompts,
)
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import AnchorReduce, PromptConfig
from beamclip.prompts.contexts import CAPTIONS, NONE, WORDNET, ContextSource, class_contexts, source_names
from beamclip.prompts.wordnet import wordnet_contexts

_ONE_ANCHOR = "With one anchor there is nothing to learn or to score"
_CONTEXTS = "Contexts tell classes of one name apart (--context-source, --num-contexts)"


def class_anchors(
    classes: list[ClassEntry],
    config: PromptConfig,
    external_sources: Mapping[str, ContextSource],
    clip: LoadedClip,
    workers: WorkersConfig,
    cache_dir: Path,
) -> Anchors:
    """Return the anchors of a class list, encoded once for each text tower and set of prompts.

    Warns of classes that share their prompts, and of prompts that are longer than the text tower reads.

    Args:
        external_sources: as returned by `context_sources`.
        cache_dir: folder in which encoded prompts are kept.

    Raises:
        InputError: the list holds one class, all classes have the same prompts, or a context source knows
            none of the classes.
    """
    prompts = class_prompts(classes, config, external_sources)
    refuse_one_class(classes)
    alike = refuse_alike(prompts)
    if alike:
        text = f"{alike:,} of {plural(len(classes), 'class')} share their prompts with another one"
        print_stage("warning", f"{text}: no image can tell these apart. {_CONTEXTS}")
    _warn_of_cuts(prompts, classes, clip)
    anchors, encoded = encoded_prompts(prompts, config.anchor_reduce, clip, workers, cache_dir)
    text = f"{plural(len(classes), 'class')}, {plural(sum(map(len, prompts)), 'prompt')}"
    print_stage("anchors", text, "encoded" if encoded else "cached")
    return anchors


def encoded_prompts(
    prompts: list[list[str]],
    reduce: AnchorReduce,
    clip: LoadedClip,
    workers: WorkersConfig,
    cache_dir: Path,
) -> tuple[Anchors, bool]:
    """Return the anchors of each class's prompts, and whether any had to be encoded; see `encode_anchors`."""
    missing = _EncodeOnce(clip, workers)
    anchors = encode_anchors(
        prompts, missing, reduce, cache_dir=cache_dir, encoder_fingerprint=clip.fingerprint
    )
    return anchors, missing.called


def refuse_one_class(classes: Sequence[ClassEntry]) -> None:
    """Raise InputError for a class list of one class: every image would be nearest to its anchor."""
    if len(classes) == 1:
        name = classes[0].name
        advice = " In a text list each class has a line of its own." if "," in name else ""
        raise InputError(
            f"--classes: holds one class, {name[:60]!r}. {_ONE_ANCHOR}: give two classes or more.{advice}"
        )


def captions_as_anchors(
    shards: list[Shard], number: int, seed: int, clip: LoadedClip, workers: WorkersConfig, cache_dir: Path
) -> Anchors:
    """Return the anchors of at most `number` distinct captions, drawn at random from shards read whole.

    Raises:
        InputError: the shards hold no captions, only one was drawn, or a shard is missing.
    """
    captions: dict[str, None] = {}
    lost = FirstLost()
    for index in np.random.default_rng(seed).permutation(len(shards)):
        for row in iterate_rows(shards[index], Columns(caption=True), range(shards[index].samples)):
            if row.get("caption"):
                captions[row["caption"]] = None
            elif row["problem"] != MISSING_CAPTION:
                for _, text in lost.new([lost_sample(row)]):
                    print_stage("skipped", text)
        # Twice as many as needed: the draw below then mixes several shards.
        if len(captions) >= 2 * number:
            break
    if not captions:
        raise InputError(
            "--anchors captions: the shards hold no captions. Use --anchors classes with --classes FILE."
        )
    drawn = np.random.default_rng(seed).permutation(sorted(captions))[:number].tolist()
    if len(drawn) < 2:
        raise InputError(
            f"--anchors captions: one caption was drawn, {drawn[0][:60]!r}. {_ONE_ANCHOR}: give captions "
            "that differ, or --caption-anchors above 1."
        )
    missing = _EncodeOnce(clip, workers)
    anchors = caption_anchors(drawn, missing, cache_dir=cache_dir, encoder_fingerprint=clip.fingerprint)
    print_stage("anchors", plural(len(drawn), "caption"), "encoded" if missing.called else "cached")
    return anchors


def joined(parts: list[Anchors]) -> Anchors:
    """Join sets of anchors into one; the class indices of later sets follow those of earlier ones."""
    offset, indices = 0, []
    for part in parts:
        indices.append(part.class_index + offset)
        offset += int(part.class_index.max()) + 1
    return Anchors(torch.cat([part.embeddings for part in parts]), torch.cat(indices))


class _EncodeOnce:
    """A text encoder that is set up at its first call: a cached set of anchors needs none.

    With --use-gpu a GPU of the cluster encodes the texts, wherever the command itself runs.
    """

    def __init__(self, clip: LoadedClip, workers: WorkersConfig) -> None:
        self.clip = clip
        self.device = "cuda" if workers.use_gpu else "cpu"
        self.remote = workers.use_gpu and not workers.without_ray
        self.called = False
        self._encoder: Any = None

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.called = True
        if self._encoder is None:
            self._encoder = self._remote() if self.remote else Teacher(self.clip).to(self.device)
        if not self.remote:
            return self._encoder.encode_text(texts).cpu()
        import ray

        return torch.from_numpy(ray.get(self._encoder.encode.remote(texts)))

    def _remote(self) -> Any:
        import ray

        class TextTower:
            def __init__(self, clip: LoadedClip) -> None:
                self.teacher = Teacher(clip).to("cuda")

            def encode(self, texts: list[str]) -> Any:
                return self.teacher.encode_text(texts).cpu().numpy()

        return ray.remote(num_gpus=1, num_cpus=0)(TextTower).remote(self.clip)


def refuse_alike(prompts: Sequence[Sequence[str]]) -> int:
    """Return how many classes share their prompts with another class.

    Raises:
        InputError: all classes have the same prompts.
    """
    distinct, alike = count_alike(prompts)
    if distinct < 2:
        raise InputError(
            f"--classes: all {plural(len(prompts), 'class')} have the same prompts, first: "
            f"{prompts[0][0][:60]!r}. {_ONE_ANCHOR}. {_CONTEXTS}."
        )
    return alike


def _warn_of_cuts(prompts: list[list[str]], classes: list[ClassEntry], clip: LoadedClip) -> None:
    length = clip.model_cfg["text_cfg"].get("context_length", 77)
    cut = truncated_prompts(prompts, clip.tokenizer, length)
    if cut:
        index, prompt = cut[0]
        print_stage(
            "warning",
            f"{plural(len(cut), 'prompt')} longer than the teacher's {length} tokens, the end is lost; "
            f'first: class {classes[index].id} ("{prompt}")',
        )


MOST_WORDS = 16
"""Words kept for each class name, so that more contexts need no further pass over the captions."""


def check_contexts(
    classes: Sequence[ClassEntry], config: PromptConfig, data: str | None, *, allow_missing: bool = False
) -> None:
    """Refuse contexts that no source can give, before anything is started; captions are not counted yet.

    Args:
        classes: empty where the command was given no class list.
        data: address of the command's shards, if it has any.
        allow_missing: see `list_shards`.

    Raises:
        InputError: as `class_contexts`; there are no captions to read; or all classes have the same prompts.
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
            # Templates cannot tell classes apart: any will do.
            refuse_alike(class_prompts(classes, replace(config, templates=("name",)), lexicon))


def context_sources(
    classes: Sequence[ClassEntry],
    config: PromptConfig,
    data: str | None,
    cache_dir: Path,
    *,
    allow_missing: bool = False,
) -> dict[str, ContextSource]:
    """Return the context sources that need more than the class list: the lexicon, and words from captions.

    Only those that the configuration asks for, by name; captions are read on Ray.

    Args:
        data: address of the command's shards, if it has any.
        cache_dir: folder in which the words found in captions are kept.
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
