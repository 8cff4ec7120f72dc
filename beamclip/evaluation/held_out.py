"""Read a few labelled images of a data set, at even distances, to score a model on again and again."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.bundles import Bundle, Segment, read_bundle
from beamclip.data.image_limits import refusal_reason
from beamclip.data.listing import list_labelled
from beamclip.data.lost_samples import FirstLost, in_words, lost_sample
from beamclip.data.shards import Columns, Row, Shard
from beamclip.data.starts import read_starts
from beamclip.data.tar_samples import WHOLE
from beamclip.data.transforms import load_evaluation_image
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip
from beamclip.prompts.texts import nfc

log = logging.getLogger(__name__)

UNKNOWN_LABEL = "label not in the class list"
_DECODE_THREADS = 2


@dataclass(frozen=True)
class HeldOutRows:
    """Labelled images as they are stored."""

    rows: list[Row]
    """Rows of shards, each with an `image` that can be decoded, and a `caption` or None."""
    images: NDArray[np.uint8]
    """[N, size, size, 3], decoded as the model takes them that they were read for."""
    labels: NDArray[np.int64]
    """[N], indices into the class list."""
    skipped: dict[str, int]
    """Samples left out, by reason."""

    def pixels(self, clip: LoadedClip) -> Tensor:
        """Decode all images once more, as another model takes them: uint8 [N, 3, size, size]."""
        with ThreadPoolExecutor(_DECODE_THREADS) as pool:
            images = list(pool.map(partial(_decoded, clip=clip), self.rows))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def read_held_out(
    address: str,
    class_ids: Sequence[str],
    label_column: str,
    most: int,
    clip: LoadedClip,
    *,
    allow_missing: bool = False,
) -> HeldOutRows:
    """Read evenly spaced samples of a labelled data set, in this process.

    Args:
        address: see `list_labelled`.
        class_ids: labels in the order of the class list, NFC; labels of the data are normalised to NFC.
        label_column: name of the column of labels.
        most: number of samples to read; those that cannot be used are not replaced.
        clip: the model that the images are decoded for.
        allow_missing: whether the samples of a shard that cannot be opened count as lost, instead of raising.

    Raises:
        InputError: there is no such data, or no usable image has a label in the class list.
    """
    shards = list_labelled(address, allow_missing=allow_missing)
    index = {class_id: place for place, class_id in enumerate(class_ids)}
    skipped, kept, images, seen = Counter[str](), list[Row](), list[NDArray[np.uint8]](), set[str]()
    first_lost = FirstLost()
    for row, image in _decoded_rows(
        _spread(shards, most), Columns(label=label_column, everything=True), clip
    ):
        if image is None:
            skipped[row["problem"]] += 1
            for _, text in first_lost.new([lost_sample(row)]):
                log.warning("%s", text)
        elif nfc(row["label"]) in index:
            kept.append(row)
            images.append(image)
        else:
            skipped[UNKNOWN_LABEL] += 1
            seen.add(row["label"])
    if not kept:
        raise InputError(
            f"{address}: no image to validate on; skipped: {dict(skipped)}. "
            f"The labels (column {label_column!r}) must be ids of the class list. "
            f"Found: {', '.join(sorted(seen)[:3]) or 'none'}; the list has {', '.join(class_ids[:3])}, ..."
        )
    labels = np.array([index[nfc(row["label"])] for row in kept])
    return HeldOutRows(kept, np.stack(images), labels, dict(skipped))


def _decoded_rows(
    bundle: Bundle, columns: Columns, clip: LoadedClip
) -> Iterator[tuple[Row, NDArray[np.uint8] | None]]:
    """Yield each row with its image; with None, and the row's problem set, if it has no usable one."""

    def decode(row: Row) -> tuple[Row, NDArray[np.uint8] | None]:
        if row["problem"]:
            return row, None
        try:
            return row, _decoded(row, clip)
        except Exception as error:  # whatever a decoder met, a lack of memory too, is this sample's problem
            row.update(problem=refusal_reason(error), detail=in_words(error))
            return row, None

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        for table in read_bundle(bundle, columns):
            yield from pool.map(decode, table.to_pylist())


def _decoded(row: Row, clip: LoadedClip) -> NDArray[np.uint8]:
    preprocess = clip.preprocess_cfg
    return load_evaluation_image(
        row["image"],
        clip.preprocessing.size,
        resize_mode=preprocess["resize_mode"],
        interpolation=preprocess["interpolation"],
        fill_color=preprocess["fill_color"],
    )


def _spread(shards: list[Shard], count: int) -> Bundle:
    """A bundle of evenly spaced rows of all shards, in order."""
    starts = read_starts(shards)
    ends = np.cumsum([shard.samples for shard in shards])
    count = min(count, int(ends[-1]))
    wanted = int(ends[-1]) * (2 * np.arange(count) + 1) // (2 * count)
    numbers = np.searchsorted(ends, wanted, side="right").tolist()
    rows = (wanted - (ends - [shard.samples for shard in shards])[numbers]).tolist()
    segments: list[Segment] = []
    for number, own in groupby(zip(numbers, rows, strict=True), key=itemgetter(0)):
        places = np.array([row for _, row in own])
        # Of a tar with an index, only the bytes around each row are read.
        whole = shards[number].format != "tar" or starts.span(number, places) == WHOLE
        parts = [places] if whole else np.split(places, len(places))
        segments += [Segment(shards[number], part, starts.span(number, part)) for part in parts]
    return Bundle(tuple(segments), turns=np.arange(count))
