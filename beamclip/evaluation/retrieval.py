"""Retrieval: find an image's caption among all captions, and a caption's image among all images.

The matrix of all similarities never exists: it is computed in blocks, twice where a block holds a caption
together with its own image, and each block is reduced to counts.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from beamclip.losses.similarity import similarities

BLOCK = 4096
"""Images and captions of a block, 64 MiB of similarities."""

Block = tuple[slice, slice]


def retrieval_metrics(
    images: Tensor, texts: Tensor, image_of_text: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute recall in both directions, as it is counted on Flickr30k and COCO (arXiv 1504.00325).

    Args:
        images, texts, image_of_text: see `retrieval_ranks`.
        ks: the k values, each >= 1.

    Returns:
        `retrieval_i2t_r<k>` and `retrieval_t2i_r<k>` for each k, fractions in 0..1.

    Raises:
        ValueError: as `retrieval_ranks`, or a k is below 1.
    """
    if min(ks, default=1) < 1:
        raise ValueError(f"retrieval_metrics: ks is {tuple(ks)}, every k must be at least 1")
    of_images, of_texts = retrieval_ranks(images, texts, image_of_text)
    return {
        f"retrieval_{direction}_r{k}": int((ranks < k).sum()) / len(ranks)
        for direction, ranks in (("i2t", of_images), ("t2i", of_texts))
        for k in ks
    }


def retrieval_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor) -> tuple[Tensor, Tensor]:
    """Count what is ahead of each image's best own caption, and of each caption's own image.

    An image is found at k if fewer than k captions are ahead of the best of its own; a caption, if fewer than
    k images are ahead of its image. Of equal similarities, the lower index is ahead. What has a
    NaN is no hit at any k.

    Args:
        images: [N, D] image embeddings, unit length.
        texts: [M, D] caption embeddings by the same model, unit length, on the same device.
        image_of_text: [M] integers in 0..N-1, the image that each caption belongs to; every image has one.

    Returns:
        int64 [N] and int64 [M], on the CPU; the largest int64 where the own similarity is NaN.

    Raises:
        ValueError: shapes that do not fit, or an image without a caption.
    """
    _check(images, texts, image_of_text)
    images, texts = images.float(), texts.float()
    owners = image_of_text.to(images.device, torch.long)
    own = _own_similarities(images, texts, owners)
    best, best_text = _best_of_image(own, owners, len(images))
    image_ranks = torch.zeros(len(images), dtype=torch.long, device=images.device)
    text_ranks = torch.zeros(len(texts), dtype=torch.long, device=images.device)
    for rows, columns in _blocks(len(images), len(texts)):
        block = similarities(images[rows], texts[columns])
        row = torch.arange(rows.start, rows.start + len(block), device=block.device)[:, None]
        column = torch.arange(columns.start, columns.start + block.shape[1], device=block.device)
        level, first = best[rows, None], best_text[rows, None]
        image_ranks[rows] += ((block > level) | ((block == level) & (column < first))).sum(dim=1)
        level, first = own[columns], owners[columns]
        text_ranks[columns] += ((block > level) | ((block == level) & (row < first))).sum(dim=0)
    missed = torch.iinfo(torch.long).max
    image_ranks = image_ranks.masked_fill(best.isnan(), missed)
    return image_ranks.cpu(), text_ranks.masked_fill(own.isnan(), missed).cpu()


def _blocks(images: int, texts: int) -> Iterator[Block]:
    for row in range(0, images, BLOCK):
        for column in range(0, texts, BLOCK):
            yield slice(row, row + BLOCK), slice(column, column + BLOCK)


def _own_similarities(images: Tensor, texts: Tensor, owners: Tensor) -> Tensor:
    """[M]: similarity of each caption and its image, to the bit as in the block that holds both."""
    own = images.new_empty(len(texts))
    for rows, columns in _blocks(len(images), len(texts)):
        inside = owners[columns]
        here = torch.nonzero((inside >= rows.start) & (inside < rows.stop))[:, 0]
        if len(here):
            block = similarities(images[rows], texts[columns])
            own[columns.start + here] = block[inside[here] - rows.start, here]
    return own


def _best_of_image(own: Tensor, owners: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Of each image the similarity and the index of its nearest own caption; the first of equal ones."""
    best = own.new_full((images,), -torch.inf).scatter_reduce(0, owners, own, "amax")
    index = torch.arange(len(own), device=own.device)
    last = torch.full_like(index, len(own))
    candidates = torch.where(own == best[owners], index, last)
    first = torch.full((images,), len(own), device=own.device)
    return best, first.scatter_reduce(0, owners, candidates, "amin")


def _check(images: Tensor, texts: Tensor, owners: Tensor) -> None:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"retrieval: images are {list(images.shape)}, texts {list(texts.shape)}; both must be rows of "
            "one width, from one model"
        )
    if owners.shape != (len(texts),) or len(owners) == 0 or int(owners.min()) < 0:
        raise ValueError(f"retrieval: image_of_text must name an image for each of {len(texts)} texts")
    counts = torch.bincount(owners.to(torch.long), minlength=len(images))
    if len(counts) > len(images) or int(counts.min()) == 0:
        raise ValueError(
            f"retrieval: image_of_text must name each of the {len(images)} images at least once, and no other"
        )
