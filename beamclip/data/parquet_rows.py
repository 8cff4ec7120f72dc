"""Read rows of a parquet file by number, skipping row groups that have none of them.

The images are in a column that is named as img2dataset names it (jpg, png, ...), or in one as Hugging Face
datasets write it: a struct of `bytes` and `path`, or plain bytes, of the name `image` if there are several.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beamclip.data.shard_file import ShardFile, open_shard

ROWS_PER_BATCH = 256

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

_MAGIC = b"PAR1"
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class ImageColumn:
    """Where a parquet file has its images."""

    name: str
    part: str
    """What is read of it: the column itself, or its bytes."""

    @property
    def by_img2dataset(self) -> bool:
        """Whether the file is img2dataset's, which keeps a row for every URL, and the key of each sample."""
        return self.part in IMAGE_SUFFIXES


def image_column(schema: pa.Schema) -> ImageColumn | None:
    """Return the column of images; None if there is none, or several and none of them is named `image`."""
    structs = [field.name for field in schema if _has_bytes(field.type)]
    suffix = next((name for name in IMAGE_SUFFIXES if name in schema.names and name not in structs), None)
    if suffix is not None:
        return ImageColumn(suffix, suffix)
    found = structs or [field.name for field in schema if _is_bytes(field.type)]
    if len(found) != 1 and "image" not in found:
        return None
    name = "image" if "image" in found else found[0]
    return ImageColumn(name, f"{name}.bytes" if structs else name)


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether the values of a column are bytes, which JSON cannot hold."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(part.name == "bytes" and _is_bytes(part.type) for part in kind)


def successful_rows(parquet: pq.ParquetFile, image: ImageColumn) -> NDArray[np.int64] | None:
    """Return the numbers of the rows that are samples; None if all are.

    img2dataset keeps a row for every URL; only the successful ones count as samples.
    """
    if not image.by_img2dataset or "status" not in parquet.schema_arrow.names:
        return None
    status = parquet.read(columns=["status"])["status"]
    return np.flatnonzero(pc.equal(status, "success").to_numpy())


def count_rows(path: str) -> int | None:
    """Count the samples of a parquet file by its footer; None if it has no column of images.

    Raises:
        StoreError: the file cannot be opened.
        Exception: of pyarrow, or ValueError: it is damaged.
    """
    with open_shard(path) as file:
        parquet = open_parquet(file)
        image = image_column(parquet.file.schema_arrow)
        if image is None:
            return None
        samples = successful_rows(parquet.file, image)
        return int(parquet.ends.max(initial=0)) if samples is None else len(samples)


@dataclass(frozen=True)
class Parquet:
    """An open parquet file."""

    file: pq.ParquetFile
    ends: NDArray[np.int64]
    """[row groups], rows up to the end of each."""


def open_parquet(file: ShardFile) -> Parquet:
    """Open a parquet file, of which a few rows may be wanted: parsing its footer would take longer than them.

    Raises:
        ValueError: it does not end like a parquet file.
        Exception: of pyarrow.
    """
    metadata, ends = _kept_footer(_Asked(file.key, file)) if file.key else _parsed(_footer(file))
    # Over a store, the columns of a row group are read by one request.
    return Parquet(pq.ParquetFile(file, metadata=metadata, pre_buffer=file.key is not None), ends)


@dataclass(frozen=True)
class _Asked:
    key: tuple[str, str]
    file: ShardFile = field(compare=False)


_Footer = tuple[pq.FileMetaData, NDArray[np.int64]]


@lru_cache(maxsize=64)
def _kept_footer(asked: _Asked) -> _Footer:
    return _parsed(_footer(asked.file))


def _footer(file: ShardFile) -> bytes:
    # Of most files, the footer lies in what is read to know its size.
    file.seek(-min(file.size, _TAIL_BYTES), 2)
    tail = file.read()
    if tail[-4:] != _MAGIC:
        raise ValueError("its end is not that of a parquet file")
    size = int.from_bytes(tail[-8:-4], "little")
    if size + 8 > len(tail):
        file.seek(-8 - size, 2)
        tail = file.read()
    return tail[-8 - size : -8]


@lru_cache(maxsize=64)
def _parsed(footer: bytes) -> _Footer:
    metadata = pq.read_metadata(BytesIO(_MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC))
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return metadata, np.cumsum(np.array(sizes, np.int64))


def picked_rows(
    parquet: Parquet, names: list[str], asked: NDArray[np.int64]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield, for each of these rows that exists, a function that returns it or raises.

    Args:
        names: columns to read.
        asked: row numbers, int64 [rows], ascending.
    """
    ends, sizes = parquet.ends, np.diff(parquet.ends, prepend=0)
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
        for batch in parquet.file.iter_batches(
            ROWS_PER_BATCH, row_groups=[group], columns=names, use_threads=False
        ):
            here = places[slice(*np.searchsorted(places, [read, read + batch.num_rows]))]
            # A copy of the images, unless all of the batch are wanted.
            yield from _each(batch if len(here) == batch.num_rows else batch.take(here - read))
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
