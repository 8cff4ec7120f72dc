"""A few images of a labelled data set, at even distances."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.listing import list_labelled
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.transforms import load_evaluation_image
from beamclip.prompts.texts import nfc

Integers = NDArray[np.int64]


def evenly_spaced(shards: Sequence[Shard], count: int) -> tuple[Integers, Integers]:
    """Return at most so many rows of shards at even distances, in order: [n] places of shards, [n] rows."""
    samples = np.array([shard.samples for shard in shards], np.int64)
    ends = samples.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    count = min(count, total)
    wanted = total * (2 * np.arange(count, dtype=np.int64) + 1) // max(2 * count, 1)
    places = np.searchsorted(ends, wanted, side="right")
    return places, wanted - (ends - samples)[places]


def sample_images(
    address: str,
    class_ids: Sequence[str],
    label_column: str,
    count: int,
    size: int,
    *,
    allow_missing: bool = False,
) -> tuple[Tensor, list[int]]:
    """Return evenly spaced images of a labelled data set, for pictures.

    Unusable images, and those whose label is not in the class list, are left out.

    Returns:
        uint8 [n, 3, size, size] with n <= count, and the class index of each.

    Raises:
        InputError: there is no such data.
    """
    shards = list_labelled(address, allow_missing=allow_missing)
    index = {class_id: i for i, class_id in enumerate(class_ids)}
    images, labels = list[NDArray[np.uint8]](), list[int]()
    for place, row in zip(*(each.tolist() for each in evenly_spaced(shards, count)), strict=True):
        found = next(iterate_rows(shards[place], Columns(label=label_column), range(row, row + 1)))
        if found["problem"] is None and nfc(found["label"]) in index:
            try:
                images.append(load_evaluation_image(found["image"], size))
            except Exception:  # counted where the data are scored
                continue
            labels.append(index[nfc(found["label"])])
    pixels = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels
