"""The index of a shard: where its samples begin, so that some of them can be read without the others.

A file beside each tar holds the byte at which every PIECE-th sample begins. `beamclip ingest` writes it; for
the tars of others it is made when a training first meets them, and kept beside them if that place can be
written to. Parquet files, and with them caches, have their own.

Free of torch: the processes that read shards import this module.
"""

import contextlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import fsspec
import numpy as np
from numpy.typing import NDArray

from beamclip.data.order import PIECE
from beamclip.data.shard_file import ShardFile, StoreError, open_shard
from beamclip.data.shards import Shard
from beamclip.data.tar_samples import BEGINNING, ReadStart, sample_starts
from beamclip.errors import InputError

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"

_READERS = 16
"""Shards that are looked at together."""


@dataclass(frozen=True)
class _Index:
    """What is known of a tar."""

    samples: int
    starts: NDArray[np.int64]
    """[pieces], the byte at which every PIECE-th sample begins."""


_NOTHING = _Index(0, np.empty(0, np.int64))


def read_starts(shards: Sequence[Shard]) -> tuple[list[NDArray[np.int64]], int]:
    """Read where the samples of each shard begin, or look for it where no index says so.

    Returns:
        For each shard, int64 [pieces], the byte at which every PIECE-th sample begins: fewer where the tar
        breaks off, none where it cannot be opened or is no tar. And how many shards had no index.
    """
    tars = [shard.path for shard in shards if shard.format == "tar"]
    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(tars, pool.map(_indexed_if_there, tars), strict=True))
    starts = [found.get(shard.path, (_NOTHING, False))[0].starts for shard in shards]
    return starts, sum(made for _, made in found.values())


def count_samples(paths: Sequence[str]) -> dict[str, int]:
    """Count the samples of tars, from their indexes or by reading them.

    Returns:
        The count of each path, in order.

    Raises:
        InputError: one cannot be read.
    """
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(_indexed, paths))
    except StoreError as error:
        raise InputError(
            f"a tar cannot be read ({error}). Make it readable, or move it elsewhere."
        ) from error
    return {path: index.samples for path, (index, _) in zip(paths, found, strict=True)}


def entry_of(starts: NDArray[np.int64], row: int) -> ReadStart:
    """Where to begin reading for a row of a shard."""
    if len(starts) == 0:
        return BEGINNING
    piece = min(row // PIECE, len(starts) - 1)
    return ReadStart(piece * PIECE, int(starts[piece]))


def write_index(path: str) -> None:
    """Find where the samples of a tar begin, and write its index.

    Raises:
        StoreError: the tar cannot be read.
        OSError: the index cannot be written.
    """
    with open_shard(path) as file:
        _write(path, _version(path, file.size), _found(file))


def _write(path: str, version: str, index: _Index) -> None:
    known = {"version": version, "samples": index.samples, "every": PIECE, "starts": index.starts.tolist()}
    fs, place = fsspec.core.url_to_fs(_index_of(path))
    fs.pipe_file(place, json.dumps(known).encode())


def _version(path: str, size: int) -> str:
    """What changes whenever a file is written: its size, and what its store says of it."""
    fs, place = fsspec.core.url_to_fs(path)
    try:
        info = fs.info(place)
    except Exception as error:
        raise StoreError(error) from error
    marks = [
        str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified", "updated") if info.get(name)
    ]
    return f"{size} {' '.join(marks[:1])}"


def _indexed_if_there(path: str) -> tuple[_Index, bool]:
    try:
        return _indexed(path)
    except StoreError:
        # Whoever reads the shard says what is wrong with it.
        return _NOTHING, False


def _indexed(path: str) -> tuple[_Index, bool]:
    """Return the index of a tar, and whether it had to be made.

    Raises:
        StoreError: the tar cannot be read.
    """
    with open_shard(path) as file:
        version = _version(path, file.size)
        kept = _kept(path, version, file.size)
        if kept is not None:
            return kept, False
        index = _found(file)
        # Data that belong to somebody else may be read-only: then every training looks again.
        with contextlib.suppress(OSError):
            _write(path, version, index)
    return index, True


def _kept(path: str, version: str, size: int) -> _Index | None:
    """What the index of a tar says; None if there is none, or none of this version of the tar."""
    fs, place = fsspec.core.url_to_fs(_index_of(path))
    try:
        content = json.loads(fs.cat_file(place))
        starts, samples = np.array(content["starts"], np.int64), content["samples"]
        fits = (content["version"], content["every"]) == (version, PIECE) and _fitting(starts, samples, size)
    except Exception:  # of the store, where there is none; of JSON; or because it has another shape
        return None
    return _Index(samples, starts) if fits else None


def _fitting(starts: NDArray[np.int64], samples: int, size: int) -> bool:
    ascending = starts.ndim == 1 and bool((np.diff(starts, prepend=-1, append=size) > 0).all())
    return ascending and len(starts) == -(-samples // PIECE)


def _found(file: ShardFile) -> _Index:
    starts, samples = [], 0
    try:
        for start in sample_starts(file):
            if samples % PIECE == 0:
                starts.append(start)
            samples += 1
    except StoreError:
        raise
    except Exception as error:  # of a damaged tar: the readers count what comes after the break as lost
        log.debug("%d samples before a break: %s", samples, error)
    return _Index(samples, np.array(starts, np.int64))


def _index_of(path: str) -> str:
    return path.removesuffix(".tar") + INDEX_SUFFIX
