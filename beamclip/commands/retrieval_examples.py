"""Examples of retrieval for a report: a few queries of both directions, with what they find."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from beamclip.data.listing import list_labelled, list_shards
from beamclip.data.shards import Columns, iterate_rows
from beamclip.data.transforms import load_evaluation_image
from beamclip.evaluation.results import Ints
from beamclip.plots.retrieval import FoundImage, FoundText, ImageQuery, RetrievalExamples, TextQuery
from beamclip.plots.sheet import webp

QUERIES = 6
"""Queries of each direction."""
FOUND = 3
"""Nearest captions, or images, shown for each."""
SIDE = 96
"""Side of the images, pixels."""
MOST_LOST = 256
"""Rows that may lie between where an image would be if none was lost, and where it is."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Found:
    """A query, what it finds (nearest first) with cosines, and the rank of the first right one."""

    query: int
    nearest: list[int]
    cosines: list[float]
    rank: int


def retrieval_examples(
    images: Tensor,
    texts: Tensor,
    captions: Sequence[str],
    owners: Sequence[int],
    ranks: tuple[Ints, Ints],
    load: Callable[[Sequence[int]], Mapping[int, Pixels]],
) -> RetrievalExamples:
    """Look up evenly spaced images among all captions, and evenly spaced captions among all images.

    Args:
        images: [N, D] embeddings, unit length.
        texts: [M, D] embeddings of the captions, unit length.
        captions: M texts.
        owners: M indices, the image that each caption belongs to.
        ranks: [N], captions ahead of each image's best own one, and [M], images ahead of each caption's own.
        load: returns the pixels, uint8 [H, W, 3], of those of the given images that can be read; a query
            whose images cannot be is left out.
    """
    owner = np.asarray(owners)
    own_images = sorted(set(owner.tolist()))
    by_image = [_look_up(i, images[i], texts, ranks[0]) for i in _spaced(own_images)]
    by_text = [_look_up(m, texts[m], images, ranks[1]) for m in _spaced(range(len(owner)))]
    wanted = {each.query for each in by_image} | {i for each in by_text for i in each.nearest}
    pictures = {i: webp(pixels) for i, pixels in load(sorted(wanted)).items()}
    return RetrievalExamples(
        len(images),
        len(texts),
        tuple(_image_query(each, pictures, captions, owner) for each in by_image if each.query in pictures),
        tuple(
            _text_query(each, pictures, captions, owner)
            for each in by_text
            if set(each.nearest) <= set(pictures)
        ),
    )


def _image_query(
    found: _Found, pictures: Mapping[int, str], captions: Sequence[str], owner: npt.NDArray[np.int64]
) -> ImageQuery:
    texts = (
        FoundText(captions[m], cosine, bool(owner[m] == found.query))
        for m, cosine in zip(found.nearest, found.cosines, strict=True)
    )
    own = tuple(captions[m] for m in np.flatnonzero(owner == found.query).tolist())
    return ImageQuery(pictures[found.query], own, found.rank, tuple(texts))


def _text_query(
    found: _Found, pictures: Mapping[int, str], captions: Sequence[str], owner: npt.NDArray[np.int64]
) -> TextQuery:
    images = (
        FoundImage(pictures[i], cosine, bool(owner[found.query] == i))
        for i, cosine in zip(found.nearest, found.cosines, strict=True)
    )
    return TextQuery(captions[found.query], found.rank, tuple(images))


def read_images(
    address: str, keys: Sequence[str], rows: Sequence[int], *, labelled: bool, allow_missing: bool = False
) -> dict[int, Pixels]:
    """Read some images of a data set again, as pictures.

    Args:
        address: the data set.
        keys: names of all images that were encoded, in the order of the data; what was lost is missing.
        rows: places in `keys`.
        labelled: whether the address names labelled images, which may be class folders.

    Returns:
        Pixels, uint8 [SIDE, SIDE, 3], of the images that were found again.
    """
    shards = (list_labelled if labelled else list_shards)(address, allow_missing=allow_missing)
    total = sum(shard.samples for shard in shards)
    lost = min(total - len(keys), MOST_LOST)
    found = {}
    for row in rows:
        first = 0
        for shard in shards:
            here = range(max(row - first, 0), min(row - first + lost + 1, shard.samples))
            first += shard.samples
            if row in found or not len(here):
                continue
            for each in iterate_rows(shard, Columns(), here):
                if not each["problem"] and _names(keys[row], each["key"]):
                    found[row] = load_evaluation_image(each["image"], SIDE)
                    break
    return found


def _names(name: str, key: str) -> bool:
    """Whether a name of an image is its key, perhaps with the shard before it and a number after it."""
    own = {name, re.sub(r" \(\d+\)$", "", name)}
    return name == key or any(each.endswith(f"/{key}") for each in own)


def _spaced(places: Sequence[int]) -> list[int]:
    count = min(QUERIES, len(places))
    return [places[len(places) * (2 * i + 1) // (2 * count)] for i in range(count)]


def _look_up(query: int, embedding: Tensor, others: Tensor, ranks: Ints) -> _Found:
    cosines = (others @ embedding).double().cpu().numpy()
    nearest = np.argsort(-cosines, kind="stable")[:FOUND]
    return _Found(query, nearest.tolist(), cosines[nearest].tolist(), 1 + int(ranks[query]))
