"""Retrieval: find an image's caption among all captions, and a caption's image among all images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from beamclip.evaluation.zeroshot import CHUNK_ELEMENTS, label_ranks
from beamclip.losses.similarity import similarities


def retrieval_metrics(
    images: Tensor, texts: Tensor, image_of_text: Tensor, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Compute recall in both directions, as it is counted on Flickr30k and COCO (arXiv 1504.00325).

    An image counts as found when one of its own captions is among the k nearest of all captions; a caption
    when its image is among the k nearest of all images. Of equal similarities, the lower index is ahead.

    Args:
        images: [N, D] image embeddings, unit length.
        texts: [M, D] caption embeddings by the same model, unit length.
        image_of_text: [M] integers in 0..N-1, the image that each caption belongs to; every image has one.
        ks: the k values, each >= 1.

    Returns:
        `retrieval_i2t_r<k>` and `retrieval_t2i_r<k>` for each k, fractions in 0..1.

    Raises:
        ValueError: shapes that do not fit, an image without a caption, or a k below 1.
    """
    _check(images, texts, image_of_text, ks)
    owners = image_of_text.to(images.device, torch.long)
    found = {"i2t": _ranks_of_texts(images, texts, owners), "t2i": _ranks_of_images(images, texts, owners)}
    return {
        f"retrieval_{direction}_r{k}": int((ranks < k).sum()) / len(ranks)
        for direction, ranks in found.items()
        for k in ks
    }


def _ranks_of_texts(images: Tensor, texts: Tensor, owners: Tensor) -> Tensor:
    """[N]: how many captions are ahead of each image's best own one."""
    ranks = []
    rows = max(1, CHUNK_ELEMENTS // len(texts))
    for start in range(0, len(images), rows):
        scores = similarities(images[start : start + rows].float(), texts.float())
        index = torch.arange(start, start + len(scores), device=scores.device)
        best = scores.masked_fill(owners != index[:, None], -torch.inf).argmax(dim=1)
        ranks.append(label_ranks(scores, best))
    return torch.cat(ranks)


def _ranks_of_images(images: Tensor, texts: Tensor, owners: Tensor) -> Tensor:
    """[M]: how many images are ahead of each caption's own."""
    rows = max(1, CHUNK_ELEMENTS // len(images))
    return torch.cat(
        [
            label_ranks(
                similarities(texts[start : start + rows].float(), images.float()),
                owners[start : start + rows],
            )
            for start in range(0, len(texts), rows)
        ]
    )


def _check(images: Tensor, texts: Tensor, owners: Tensor, ks: Sequence[int]) -> None:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"retrieval_metrics: images are {list(images.shape)}, texts {list(texts.shape)}; both must be "
            "rows of one width, from one model"
        )
    if owners.shape != (len(texts),) or len(owners) == 0 or int(owners.min()) < 0:
        raise ValueError(f"retrieval_metrics: image_of_text must name an image for each of {len(texts)}")
    counts = torch.bincount(owners.to(torch.long), minlength=len(images))
    if len(counts) > len(images) or int(counts.min()) == 0:
        raise ValueError(
            f"retrieval_metrics: image_of_text must name each of the {len(images)} images at least once, and "
            "no other"
        )
    if min(ks, default=1) < 1:
        raise ValueError(f"retrieval_metrics: ks is {tuple(ks)}, every k must be at least 1")
