"""Rows of a parquet file by their numbers, without reading row groups that have none of them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROWS_PER_BATCH = 256


def picked_rows(
    parquet: pq.ParquetFile, names: list[str], asked: NDArray[np.int64]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """What gives each row with one of these numbers, as far as there are such.

    Args:
        names: columns to read.
        asked: int64 [rows], ascending.
    """
    sizes = np.array(
        [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)], np.int64
    )
    ends = np.cumsum(sizes)
    asked = asked[asked < sizes.sum()]
    of_group = np.searchsorted(ends, asked, "right")
    groups = np.unique(of_group)
    # Where each group begins in the file, and where in what is read of it.
    begins = (ends - sizes)[groups]
    read_before = np.cumsum(sizes[groups]) - sizes[groups]
    places = asked + (read_before - begins)[np.searchsorted(groups, of_group)]
    read = 0
    # One by one: of several groups at once pyarrow reads the last before it gives the first, and one that is
    # damaged would cost the rows before it.
    for group in groups.tolist():
        for batch in parquet.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=names):
            here = places[slice(*np.searchsorted(places, [read, read + batch.num_rows]))]
            yield from _each(batch.take(here - read))
            read += batch.num_rows


def _each(batch: pa.RecordBatch) -> list[Callable[[], dict[str, Any]]]:
    """One for each row: what Python cannot hold, such as text that is not UTF-8, costs its own row only."""
    try:
        return [partial(dict, row) for row in batch.to_pylist()]
    except Exception:
        return [partial(_only_row, batch.slice(i, 1)) for i in range(batch.num_rows)]


def _only_row(batch: pa.RecordBatch) -> dict[str, Any]:
    row: dict[str, Any] = batch.to_pylist()[0]
    return row
