"""Encoded rows -> crops: the same bits from the threads of a worker and from tasks of Ray Data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.crops import Crops, decoded_table
from beamclip.data.image_limits import refusal_reason
from beamclip.data.lost_samples import in_words
from beamclip.data.sample_rows import Row
from beamclip.data.shards import ROWS_PER_BLOCK
from beamclip.data.transforms import DRAWS, load_training_views, sample_uniforms


@dataclass(frozen=True)
class Decoding:
    """How rows become pixels and texts."""

    image_size: int
    """Height and width of the pixels."""
    augment: Augmentation
    captions: CaptionConfig
    seed: int
    embedding_bytes: tuple[int, ...] = ()
    """Bytes of each teacher's embedding of a view in a cache; empty without one."""
    pinned: bool = False
    """Whether pixels of a batch lie in page-locked memory, from which a GPU copies beside its other work."""

    @property
    def row_bytes(self) -> int:
        """Bytes of the crop of a row."""
        return 3 * self.image_size**2

    @property
    def rows_per_table(self) -> int:
        """Rows that a task hands over together."""
        return ROWS_PER_BLOCK

    def crops(self, rows: Sequence[Row]) -> Crops:
        """Decode rows in the calling thread."""
        side, draws = self.image_size, row_draws(rows, self.seed)
        pixels = np.zeros((len(rows), side, side, 3), np.uint8)
        for row, own, place in zip(rows, draws, pixels, strict=True):
            decode_into(place[None], row, own[None], self.augment)
        embeddings = []
        for number, width in enumerate(self.embedding_bytes):
            of_rows = (row.get("embeddings") for row in rows)
            joined = b"".join(each[number] if each else bytes(width) for each in of_rows)
            embeddings.append(np.frombuffer(joined, "<f2").reshape(len(rows), -1))
        return Crops(
            pixels,
            np.stack(draws),
            tuple(embeddings),
            [row["key"] for row in rows],
            [row["epoch"] for row in rows],
            [row.get("texts") for row in rows],
            [row.get("label") for row in rows],
            {place: row for place, row in enumerate(rows) if row["problem"]},
        )

    def table(self, rows: list[Row]) -> pa.Table:
        """Decode rows in the calling thread, into a table of crops.decoded_table."""
        return decoded_table(rows, self.crops(rows))


def row_draws(rows: Sequence[Row], seed: int) -> list[NDArray[np.float32]]:
    """The random numbers of each row: those that it carries, else drawn at once for an epoch's rows."""
    kept = [row.get("draws") for row in rows]
    if any(kept):
        # A row that was lost has none, and needs none.
        return [np.frombuffer(each or bytes(4 * DRAWS), "<f4") for each in kept]
    draws = [np.empty(0, np.float32)] * len(rows)
    for epoch in {row["epoch"] for row in rows}:
        places = [place for place, row in enumerate(rows) if row["epoch"] == epoch]
        own = sample_uniforms(seed, epoch, [rows[place]["key"] for place in places])
        for place, drawn in zip(places, own, strict=True):
            draws[place] = drawn
    return draws


def decode_into(
    crops: NDArray[np.uint8], row: Row, draws: NDArray[np.float32], augment: Augmentation
) -> bool:
    """Decode the image of a row and crop it by each of draws.

    Args:
        crops: [crops, side, side, 3], which are written.
        draws: [crops, DRAWS].

    Returns:
        False, with the row's problem set, if it has no usable image.
    """
    if row["problem"]:
        return False
    try:
        load_training_views(row["image"], draws, augment, crops)
    except Exception as error:  # whatever a decoder met, a lack of memory too, is this sample's problem
        row.update(problem=refusal_reason(error), detail=in_words(error))
        return False
    return True
