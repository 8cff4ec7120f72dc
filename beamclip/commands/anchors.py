"""Text anchors of a run, made from a class list, the shards' captions or both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.console import plural, print_stage
from beamclip.commands.contexts import CONTEXTS_ADVICE, ONE_ANCHOR, refuse_alike, refuse_one_class
from beamclip.data.lost_samples import FirstLost, lost_sample
from beamclip.data.shards import MISSING_CAPTION, Columns, Shard, iterate_rows
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import (
    Anchors,
    caption_anchors,
    encode_anchors,
    truncated_prompts,
)
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import AnchorReduce, PromptConfig
from beamclip.prompts.contexts import ContextSource


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
        print_stage("warning", f"{text}: no image can tell these apart. {CONTEXTS_ADVICE}")
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


def encoded_texts(texts: list[str], clip: LoadedClip, workers: WorkersConfig) -> torch.Tensor:
    """Return the embeddings of texts, float32 [n, D] of unit length, which are not kept."""
    return _EncodeOnce(clip, workers)(texts)


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
        shard = replace(shards[index], views=None)
        for row in iterate_rows(shard, Columns(caption=True), range(shard.samples)):
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
            f"--anchors captions: one caption was drawn, {drawn[0][:60]!r}. {ONE_ANCHOR}: give captions "
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
        self.gpus = workers.worker_gpus
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

        return ray.remote(num_gpus=self.gpus, num_cpus=0)(TextTower).remote(self.clip)


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
