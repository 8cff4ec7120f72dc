"""Tars without an index, read for it once: here if they are few, else by tasks of Ray on all nodes."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from beamclip.cluster.session import ray_session
from beamclip.data.index import Index, find_index, index_from
from beamclip.data.rows import prepared_dataset
from beamclip.data.shard_file import StoreError

log = logging.getLogger(__name__)

BYTES_HERE = 4 << 30
"""Bytes of tars that are read in threads of this process; starting Ray would take as long."""

_THREADS = 16
_TARS_PER_TASK = 8
"""Read at the same time: each holds up to 16 MiB of a tar."""
_SECONDS_BETWEEN_MESSAGES = 15.0


def find_indexes(tars: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Index | str]]:
    """Read tars for where their samples begin, and say so in the log.

    Args:
        tars: address and bytes of each.

    Yields:
        The address of each tar, in the order given, and its index, or why it cannot be read.
    """
    size = sum(size for _, size in tars)
    if tars:
        log.info("reading %d tars, %.1f GB, once for where their samples begin", len(tars), size / 1e9)
    began = said = time.monotonic()
    paths = [path for path, _ in tars]
    for number, found in enumerate(_here(paths) if size <= BYTES_HERE else _on_ray(paths), 1):
        now = time.monotonic()
        if now - said > _SECONDS_BETWEEN_MESSAGES:
            left = (now - began) / number * (len(tars) - number)
            log.info("%d of %d tars, %.0f s to go", number, len(tars), left)
            said = now
        yield found


def _here(paths: list[str]) -> Iterator[tuple[str, Index | str]]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(paths, pool.map(_found, paths), strict=True)


def _found(path: str) -> Index | str:
    try:
        return find_index(path)
    except StoreError as error:
        return str(error)


def _on_ray(paths: list[str]) -> Iterator[tuple[str, Index | str]]:
    import ray.data

    with ray_session():
        tars = ray.data.from_items(
            [{"path": path} for path in paths], override_num_blocks=-(-len(paths) // _TARS_PER_TASK)
        )
        # A block is a task's.
        dataset = prepared_dataset(tars.map_batches(_found_in, batch_size=None, batch_format="pyarrow"))
        dataset.context.execution_options.preserve_order = True
        for row in dataset.iter_rows():
            index = Index(row["samples"], np.frombuffer(row["places"], np.int64))
            yield row["path"], row["problem"] or index


def _found_in(tars: pa.Table) -> pa.Table:
    rows = list[dict[str, Any]]()
    for path, found in _here(tars["path"].to_pylist()):
        problem = found if isinstance(found, str) else ""
        index = found if isinstance(found, Index) else index_from([], 0)
        rows.append(
            {"path": path, "samples": index.samples, "places": index.places.tobytes(), "problem": problem}
        )
    return pa.Table.from_pylist(rows)
