"""Read rows of a parquet file by number, skipping row groups that have none of them."""

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
    """Yield, for each of these rows that exists, a function that returns it or raises.

    Args:
        names: columns to read.
        asked: row numbers, int64 [rows], ascending.
    """
    sizes = np.array(
        [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)], np.int64
    )
    ends = np.cumsum(sizes)
    asked = asked[asked < sizes.sum()]
    of_group = np.searchsorted(ends, asked, "right")
    groups = np.unique(of_group)
    # Where each group begins in the file, and where among the rows that are read.
    begins = (ends - sizes)[groups]
    read_before = np.cumsum(sizes[groups]) - sizes[groups]
    places = asked + (read_before - begins)[np.searchsorted(groups, of_group)]
    read = 0
    # One by one: given several groups, pyarrow reads the last before it yields the first, and a damaged one
    # would cost the rows before it.
    for group in groups.tolist():
        for batch in parquet.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=names):
            here = places[slice(*np.searchsorted(places, [read, read + batch.num_rows]))]
            yield from _each(batch.take(here - read))
            read += batch.num_rows


def _each(batch: pa.RecordBatch) -> list[Callable[[], dict[str, Any]]]:
    """A function for each row: what Python cannot hold, say text that is not UTF-8, costs only its row."""
    try:
        return [partial(dict, row) for row in batch.to_pylist()]
    except Exception:
        return [partial(_only_row, batch.slice(i, 1)) for i in range(batch.num_rows)]


def _only_row(batch: pa.RecordBatch) -> dict[str, Any]:
    row: dict[str, Any] = batch.to_pylist()[0]
    return row
