"""Anchors: prompts embedded once by the teacher's text tower and kept on disk.

The anchors of BeamCLIP (https://arxiv.org/abs/2301.02903). How they are made is this project's choice: the
prompts of a class are templates x name x contexts; its anchor is the unit mean of their unit embeddings, or
each prompt stays an anchor of its own.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from beamclip.files import write_whole
from beamclip.prompts.config import AnchorReduce

TextEncoder = Callable[[list[str]], Tensor]
"""Maps n texts to embeddings [n, D] of any norm, floating type and device."""


@dataclass(frozen=True)
class Anchors:
    """Points in the teacher's embedding space that stand for classes or captions."""

    embeddings: Tensor
    """[M, D] float32, unit length, on the CPU."""
    class_index: Tensor
    """[M] int64: the class, or caption, each anchor belongs to."""


def encode_anchors(
    prompts: Sequence[Sequence[str]],
    encode_text: TextEncoder,
    reduce: AnchorReduce,
    *,
    cache_dir: Path | None,
    encoder_fingerprint: str,
    batch_size: int = 256,
) -> Anchors:
    """Embed the prompts of K classes, each distinct prompt once, and make anchors of them.

    Args:
        prompts: one list a class, none empty.
        encode_text: called without gradients, with `batch_size` texts at most; not called on a cache hit.
        reduce: `mean` gives M = K anchors, `separate` one for each prompt, classes in order.
        cache_dir: where the embeddings of the distinct prompts are kept; None keeps nothing.
        encoder_fingerprint: changes whenever the encoder's weights or its tokenizer do.
        batch_size: prompts encoded at a time.

    Raises:
        ValueError: there is no class or a class has no prompt, or the encoder returns embeddings of a wrong
            shape or that are not finite.
    """
    empty = [index for index, of_class in enumerate(prompts) if not of_class]
    if not prompts or empty:
        raise ValueError(f"no prompt for class {empty[0]}." if empty else "no classes to make anchors of.")
    flat = [prompt for of_class in prompts for prompt in of_class]
    row = {prompt: index for index, prompt in enumerate(dict.fromkeys(flat))}
    units = _cached_units(list(row), encode_text, cache_dir, encoder_fingerprint, batch_size)
    embeddings = units[[row[prompt] for prompt in flat]]
    class_index = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(p) for p in prompts]))
    # With one prompt a class, the means are the prompts, to the last bit.
    if reduce == "separate" or len(flat) == len(prompts):
        return Anchors(embeddings, class_index)
    sums = embeddings.new_zeros(len(prompts), embeddings.shape[1]).index_add_(0, class_index, embeddings)
    return Anchors(F.normalize(sums, dim=1), torch.arange(len(prompts)))


def caption_anchors(
    captions: Sequence[str],
    encode_text: TextEncoder,
    *,
    cache_dir: Path | None,
    encoder_fingerprint: str,
    batch_size: int = 256,
) -> Anchors:
    """Make one anchor a caption, in order, without classes; arguments and errors as in `encode_anchors`."""
    return encode_anchors(
        [[caption] for caption in captions],
        encode_text,
        "separate",
        cache_dir=cache_dir,
        encoder_fingerprint=encoder_fingerprint,
        batch_size=batch_size,
    )


def truncated_prompts(
    prompts: Sequence[Sequence[str]], tokenizer: Callable[..., Tensor], context_length: int
) -> list[tuple[int, str]]:
    """Find the prompts that the tokenizer would silently cut, each with the index of its class.

    Args:
        prompts: one list a class.
        tokenizer: open_clip's: `tokenizer(texts, context_length=n)` -> int64 [len(texts), n].
        context_length: tokens the text tower reads.
    """
    flat = [(index, prompt) for index, of_class in enumerate(prompts) for prompt in of_class]
    distinct = dict.fromkeys(prompt for _, prompt in flat)
    long = [prompt for prompt in distinct if _may_be_cut(prompt, context_length)]
    cut: set[str] = set()
    for start in range(0, len(long), 1024):
        texts = long[start : start + 1024]
        # Given more room, an uncut prompt begins with the same tokens; a cut one differs where it was cut.
        # Unlike a check of the last token, this needs no knowledge of the vocabulary.
        given = tokenizer(texts, context_length=context_length)
        roomy = tokenizer(texts, context_length=2 * context_length)[:, :context_length]
        differs = (given != roomy).any(dim=1)
        cut.update(texts[row] for row in differs.nonzero()[:, 0].tolist())
    return [(index, prompt) for index, prompt in flat if prompt in cut]


def _may_be_cut(prompt: str, context_length: int) -> bool:
    # An ASCII character is one token at most, and no tokenizer adds as many as 8. This saves nearly
    # all the work: tokenizing 100,000 prompts takes ten seconds and more.
    return not prompt.isascii() or len(prompt) + 8 > context_length


def _cached_units(
    prompts: list[str], encode_text: TextEncoder, cache_dir: Path | None, fingerprint: str, batch_size: int
) -> Tensor:
    if cache_dir is None:
        return _encode_units(prompts, encode_text, batch_size)
    # JSON keeps prompts apart: ["ab", "c"] and ["a", "bc"] are different keys.
    key = hashlib.sha256(json.dumps([fingerprint, prompts]).encode()).hexdigest()
    path = cache_dir / f"{key}.safetensors"
    units = _read_units(path, len(prompts))
    if units is None:
        units = _encode_units(prompts, encode_text, batch_size)
        _write_units(path, units)
    return units


def _encode_units(prompts: list[str], encode_text: TextEncoder, batch_size: int) -> Tensor:
    """[P, D] float32 unit embeddings on the CPU."""
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    with torch.no_grad():
        parts = [encode_text(batch).float().cpu() for batch in batches]
    for batch, part in zip(batches, parts, strict=True):
        if part.ndim != 2 or len(part) != len(batch):
            raise ValueError(
                f"encode_text gave {list(part.shape)} for {len(batch)} texts, not [{len(batch)}, D]."
            )
        finite = part.isfinite().all(dim=1)
        if not finite.all():
            prompt = batch[int(finite.int().argmin())]
            raise ValueError(f"encode_text gave a value that is not finite for {prompt!r}.")
    return F.normalize(torch.cat(parts), dim=1)


def _read_units(path: Path, count: int) -> Tensor | None:
    """Read the embeddings cached at `path`; None if there are none, or none usable."""
    try:
        units = load_file(path)["units"]
    except (OSError, SafetensorError, KeyError):
        return None
    return units if len(units) == count else None


def _write_units(path: Path, units: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several workers may write at once: the last to finish wins.
    write_whole(path, lambda draft: save_file({"units": units}, draft))
