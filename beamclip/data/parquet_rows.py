"""Read rows of a parquet file by number, skipping row groups that have none of them."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beamclip.data.shard_file import ShardFile

ROWS_PER_BATCH = 256

_MAGIC = b"PAR1"


def open_parquet(file: ShardFile) -> pq.ParquetFile:
    """Open a parquet file, of which a few rows may be wanted: parsing its footer would take longer than them.

    Raises:
        ValueError: it does not end like a parquet file.
        Exception: of pyarrow.
    """
    file.seek(-8, 2)
    end = file.read()
    if end[4:] != _MAGIC:
        raise ValueError("its end is not that of a parquet file")
    size = int.from_bytes(end[:4], "little")
    file.seek(-8 - size, 2)
    return pq.ParquetFile(file, metadata=_parsed(file.read(size)))


@lru_cache(maxsize=64)
def _parsed(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(BytesIO(_MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC))


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
    # would cost the rows before it. Without threads, which take longer to start than so few rows to read.
    for group in groups.tolist():
        for batch in parquet.iter_batches(
            ROWS_PER_BATCH, row_groups=[group], columns=names, use_threads=False
        ):
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
