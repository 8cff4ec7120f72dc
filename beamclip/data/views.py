"""Several crops of each image, from which a teacher cache is made: by threads, or by tasks of Ray Data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.config import Augmentation
from beamclip.data.crops import array_of, fixed_column
from beamclip.data.decoding import decode_into
from beamclip.data.sample_rows import ROW_SCHEMA, Row
from beamclip.data.shards import ROWS_PER_BLOCK
from beamclip.data.transforms import DRAWS, sample_uniforms

Views = NDArray[np.uint8]
"""uint8 [views, side, side, 3], the crops of one image."""

_VIEWS, _DRAWS = "views", "draws of views"


@dataclass(frozen=True)
class ViewDecoding:
    """How rows become crops of all their views."""

    image_size: int
    """Height and width of the crops."""
    augment: Augmentation
    views: int
    """Views of each image."""
    seed: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the crops of a row."""
        return self.views * 3 * self.image_size**2

    @property
    def rows_per_table(self) -> int:
        """Rows that a task hands over together."""
        return max(1, ROWS_PER_BLOCK // self.views)

    def draws(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The random numbers that training without a cache uses in its first epochs, [rows, views, DRAWS]."""
        keys = [row["key"] for row in rows]
        return np.stack([sample_uniforms(self.seed, view, keys) for view in range(self.views)], axis=1)

    def crops(self, row: Row, draws: NDArray[np.float32]) -> Views | None:
        """Decode and crop the image of a row; None, with the row's problem set, if it has no usable one.

        Args:
            draws: [views, DRAWS].
        """
        crops = np.empty((self.views, self.image_size, self.image_size, 3), np.uint8)
        return crops if decode_into(crops, row, draws, self.augment) else None

    def table(self, rows: list[Row]) -> pa.Table:
        """Decode rows in the calling thread, into a table that `rows_with_views` takes apart."""
        draws = self.draws(rows)
        crops = np.zeros((len(rows), self.views, self.image_size, self.image_size, 3), np.uint8)
        for row, own, place in zip(rows, draws, crops, strict=True):
            decode_into(place, row, own, self.augment)
        table = pa.Table.from_pylist(rows, ROW_SCHEMA)
        return table.append_column(_VIEWS, fixed_column(crops)).append_column(_DRAWS, fixed_column(draws))


def rows_with_views(
    table: pa.Table, decoding: ViewDecoding
) -> Iterator[tuple[Row, NDArray[np.float32], Views | None]]:
    """Each row of a table, its random numbers [views, DRAWS], and its crops where they lie in the table."""
    side = decoding.image_size
    for batch in table.to_batches():
        rows = batch.select(ROW_SCHEMA.names).to_pylist()
        draws = array_of(batch.column(_DRAWS), "<f4").reshape(-1, decoding.views, DRAWS)
        crops = array_of(batch.column(_VIEWS), np.uint8).reshape(-1, decoding.views, side, side, 3)
        for row, own, views in zip(rows, draws, crops, strict=True):
            yield row, own, None if row["problem"] else views
