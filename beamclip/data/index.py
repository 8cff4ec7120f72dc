"""The index of a shard: where its samples begin, so that some of them can be read without the others.

A file beside each tar holds the byte at which every PIECE-th sample begins. `beamclip ingest` writes it; for
the tars of others it is made when a training first meets them, and kept beside them if that place can be
written to. Parquet files, and with them caches, have their own.

Free of torch: the processes that read shards import this module.
"""

import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import fsspec
import numpy as np
from numpy.typing import NDArray

from beamclip.data.order import PIECE
from beamclip.data.shard_file import ShardFile, StoreError, open_shard
from beamclip.data.shards import Shard
from beamclip.data.tar_samples import BEGINNING, Entry, sample_starts

INDEX_SUFFIX = ".index"

_READERS = 16
"""Shards that are looked at together."""


def read_starts(shards: Sequence[Shard]) -> tuple[list[NDArray[np.int64]], int]:
    """Read where the samples of each shard begin, or look for it where no index says so.

    Returns:
        For each shard, int64 [pieces], the byte at which every PIECE-th sample begins: fewer where the tar
        breaks off, none where it cannot be opened or is no tar. And how many shards had no index.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_starts, shards))
    return [starts for starts, _ in found], sum(made for _, made in found)


def entry_of(starts: NDArray[np.int64], row: int) -> Entry:
    """Where to begin reading for a row of a shard."""
    if len(starts) == 0:
        return BEGINNING
    piece = min(row // PIECE, len(starts) - 1)
    return Entry(piece * PIECE, int(starts[piece]))


def write_index(path: str) -> None:
    """Find where the samples of a tar begin, and write its index.

    Raises:
        StoreError: the tar cannot be read.
        OSError: the index cannot be written.
    """
    with open_shard(path) as file:
        _write(path, file.size, _found(file))


def _write(path: str, size: int, starts: NDArray[np.int64]) -> None:
    content = json.dumps({"bytes": size, "every": PIECE, "starts": starts.tolist()})
    fs, place = fsspec.core.url_to_fs(_index_of(path))
    fs.pipe_file(place, content.encode())


def _starts(shard: Shard) -> tuple[NDArray[np.int64], bool]:
    if shard.format != "tar":
        return np.empty(0, np.int64), False
    try:
        with open_shard(shard.path) as file:
            kept = _kept(shard.path, file.size)
            if kept is not None:
                return kept, False
            starts = _found(file)
            # Data that belong to somebody else may be read-only: then every training looks again.
            with contextlib.suppress(OSError):
                _write(shard.path, file.size, starts)
    except StoreError:
        # Whoever reads the shard says what is wrong with it.
        return np.empty(0, np.int64), False
    return starts, True


def _kept(path: str, size: int) -> NDArray[np.int64] | None:
    """What the index of a tar says; None if there is none, or none of a tar of this size."""
    fs, place = fsspec.core.url_to_fs(_index_of(path))
    try:
        content = json.loads(fs.cat_file(place))
        starts = np.array(content["starts"], np.int64)
        fits = (content["bytes"], content["every"]) == (size, PIECE) and _ascending(starts, size)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return starts if fits else None


def _ascending(starts: NDArray[np.int64], size: int) -> bool:
    return starts.ndim == 1 and bool((np.diff(starts, prepend=-1, append=size) > 0).all())


def _found(file: ShardFile) -> NDArray[np.int64]:
    found = []
    # Of a damaged tar, the samples before the break; the readers count the others as lost.
    with contextlib.suppress(Exception):
        for start in islice(sample_starts(file), 0, None, PIECE):
            found.append(start)
    return np.array(found, np.int64)


def _index_of(path: str) -> str:
    return path.removesuffix(".tar") + INDEX_SUFFIX
