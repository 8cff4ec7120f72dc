"""The index of a tar: where its samples begin, so that some of them can be read without the others.

It holds the byte at which every PIECE-th sample begins. `beamclip ingest` writes one beside each of its tars;
those of others are read for it once (see index_pass). Of all shards of a data set, known_shards keeps what is
known in one file. Parquet files, and with them caches, have their own.

Free of torch: the processes that read shards import this module.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from beamclip.data.order import PIECE
from beamclip.data.shard_file import Rows, StoreError, open_shard
from beamclip.data.tar_samples import WHOLE, Span, sample_starts

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"


@dataclass(frozen=True)
class Index:
    """What is known of a tar."""

    samples: int
    places: NDArray[np.int64]
    """[pieces + 1], the byte at which every PIECE-th sample begins, and at which the last one ends: 0 for
    that where the tar breaks off before."""


NO_PLACES = np.zeros(1, np.int64)
"""Those of a file that is no tar, or of one that cannot be read."""


@dataclass(frozen=True)
class Starts:
    """Where the pieces of all shards begin: two arrays, which processes of a node share in Ray's store."""

    places: NDArray[np.int64]
    """The places of one shard after the other; see Index."""
    ends: NDArray[np.int64]
    """[shards], number of the places of each shard and those before it."""

    def span(self, shard: int, rows: Rows) -> Span:
        """What of a shard, counted from 0, is read for neighbouring rows; WHOLE if it has no index."""
        begin = int(self.ends[shard - 1]) if shard else 0
        last_piece = int(self.ends[shard]) - begin - 2
        if last_piece < 0:
            return WHOLE
        first, last = (min(int(row) // PIECE, last_piece) for row in (rows[0], rows[-1]))
        stop = int(self.places[begin + last + 1])
        return Span(first * PIECE, int(self.places[begin + first]), stop or None)


NO_STARTS = Starts(np.zeros(0, np.int64), np.zeros(0, np.int64))
"""Those of no shard."""


def starts_of(places: Sequence[NDArray[np.int64]]) -> Starts:
    """Lay the places of all shards end to end."""
    if not places:
        return NO_STARTS
    return Starts(np.concatenate(places), np.cumsum([len(each) for each in places]))


def find_index(path: str) -> Index:
    """Read a tar, header by header, for where its samples begin.

    Raises:
        StoreError: it cannot be read.
    """
    starts = list[int]()
    with open_shard(path) as file:
        try:
            starts.extend(sample_starts(file))
        except StoreError:
            raise
        except Exception as error:  # of a damaged tar: the readers count what comes after the break as lost
            log.debug("%s: %d samples before a break: %s", path, len(starts), error)
            starts.append(0)
    return index_from(starts[:-1], starts[-1])


def index_from(starts: Sequence[int], end: int) -> Index:
    """The index of a tar whose samples begin at these bytes and end at that one, or at 0 for a broken tar."""
    return Index(len(starts), np.array([*starts[::PIECE], end], np.int64))


def write_index(path: str, index: Index) -> None:
    """Write the index of a tar beside it.

    Raises:
        Exception: of the store.
    """
    fs, place = fsspec.core.url_to_fs(path)
    known = {
        "version": version_of(fs.info(place)),
        "samples": index.samples,
        "every": PIECE,
        "places": index.places.tolist(),
    }
    fs.pipe_file(index_of(place), json.dumps(known).encode())


def read_index(path: str, version: str) -> Index | None:
    """The index beside a tar; None if there is none, or none of this version of the tar."""
    try:
        fs, place = fsspec.core.url_to_fs(index_of(path))
        content = json.loads(fs.cat_file(place))
        index = Index(content["samples"], np.array(content["places"], np.int64))
        fits = (content["version"], content["every"]) == (version, PIECE)
        return index if fits and len(index.places) == 1 - (-index.samples // PIECE) else None
    except Exception:  # of the store, where there is none; of JSON; or because it has another shape
        return None


def index_of(path: str) -> str:
    """The name of a tar's index."""
    return path.removesuffix(".tar") + INDEX_SUFFIX


def version_of(info: Mapping[str, Any]) -> str:
    """What changes whenever a file is written: its size, and what its store's listing says of it."""
    names = ("ETag", "etag", "mtime", "LastModified", "updated")
    mark = next((str(info[name]) for name in names if info.get(name)), "")
    return f"{info.get('size')} {mark}"
