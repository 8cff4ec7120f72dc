"""Decoded rows: views of memory in which they lie side by side, and from which they are copied into a batch.

Free of torch: every process that runs a read task may import this module.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.sample_rows import ROW_SCHEMA, Row

_PIXELS, _DRAWS, _EMBEDDING = "pixels", "draws", "embedding."
_PLAIN = pa.schema(
    [ROW_SCHEMA.field(name) for name in ("key", "texts", "label", "epoch", "problem", "detail", "shard")]
)


@dataclass(frozen=True, eq=False)
class Crops:
    """Some decoded rows."""

    pixels: NDArray[np.uint8]
    """[rows, side, side, 3]."""
    draws: NDArray[np.float32]
    """[rows, DRAWS], the random numbers of each."""
    embeddings: tuple[NDArray[np.float16], ...]
    """From a teacher cache: [rows, D] for each teacher."""
    keys: list[str]
    epochs: list[int]
    texts: list[list[str] | None]
    labels: list[str | None]
    """Null where none was asked for."""
    lost: dict[int, Row]
    """The rows without a usable image, by their places; what the arrays hold for them means nothing."""


Decoded = tuple[Crops, int]
"""A decoded row: its place among others."""


def decoded_table(rows: list[Row], crops: Crops) -> pa.Table:
    """Lay decoded rows into a table; `decoded_rows` is the inverse."""
    table = pa.Table.from_pylist(rows, _PLAIN).append_column(_PIXELS, fixed_column(crops.pixels))
    table = table.append_column(_DRAWS, fixed_column(crops.draws))
    for number, of_teacher in enumerate(crops.embeddings):
        table = table.append_column(f"{_EMBEDDING}{number}", fixed_column(of_teacher))
    return table


def is_decoded(table: pa.Table) -> bool:
    """Return whether `decoded_table` made a table."""
    return _PIXELS in table.column_names


def decoded_rows(table: pa.Table) -> list[Decoded]:
    """The rows of a table, in the memory of its arrays."""
    rows: list[Decoded] = []
    for batch in table.to_batches():
        crops = _crops(batch)
        rows += [(crops, place) for place in range(batch.num_rows)]
    return rows


def _crops(batch: pa.RecordBatch) -> Crops:
    lost = np.flatnonzero(batch.column("problem").is_valid().to_numpy(zero_copy_only=False)).tolist()
    side = math.isqrt(batch.schema.field(_PIXELS).type.byte_width // 3)
    names = [name for name in batch.schema.names if name.startswith(_EMBEDDING)]
    return Crops(
        array_of(batch.column(_PIXELS), np.uint8).reshape(-1, side, side, 3),
        array_of(batch.column(_DRAWS), "<f4"),
        tuple(array_of(batch.column(name), "<f2") for name in names),
        batch.column("key").to_pylist(),
        batch.column("epoch").to_pylist(),
        batch.column("texts").to_pylist(),
        batch.column("label").to_pylist(),
        dict(zip(lost, batch.select(_PLAIN.names).take(lost).to_pylist(), strict=True)) if lost else {},
    )


def fixed_column(values: NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """One binary value for each row of an array, in its memory."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    kind = pa.binary(flat.itemsize * flat.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])


def array_of(column: pa.FixedSizeBinaryArray, dtype: str | type) -> NDArray[Any]:
    """[rows, numbers], the inverse of `fixed_column`, in the memory of the column."""
    width = column.type.byte_width
    held = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return held.view(dtype).reshape(len(column), -1)
