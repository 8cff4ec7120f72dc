"""A folder of shards that exists as counts alone: what it holds is made when somebody asks for it.

It answers as the folder of an ingest does, at once and from memory. What is timed over it is what our own
side does for each shard; the answers of a store come on top.
"""

import json
import posixpath
import re
from typing import Any

import numpy as np
from fsspec import AbstractFileSystem, register_implementation

from beamclip.data.index import INDEX_SUFFIX, version_of
from beamclip.data.listing import STATS_SUFFIX
from beamclip.data.order import PIECE

PROTOCOL = "counted"
BYTES_PER_SAMPLE = 25_000
"""Distance of two samples in a tar: it says how large the numbers of an index are, and nothing else."""
_STAMP = "2026-11-28T00:00:00"
_NAME = re.compile(r"(\d+)(_stats\.json|\.index|\.tar)")


class CountedFolder(AbstractFileSystem):
    """The file system of one such folder: `counted://SHARDS-ROWS`, so many shards of so many samples each."""

    protocol = PROTOCOL
    cachable = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.written: dict[str, bytes] = {}
        """What our side has written, by path."""

    def isdir(self, path: str) -> bool:
        """Whether this is the folder, and not a file in it."""
        return "/" not in self._strip_protocol(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List the folder: of each shard its tar, its statistics and its index, as an ingest leaves them."""
        root = self._strip_protocol(path)
        shards, _rows = counts_in(root)
        suffixes = (".tar", STATS_SUFFIX, INDEX_SUFFIX)
        entries = [_entry(f"{root}/{number:08d}{suffix}") for number in range(shards) for suffix in suffixes]
        entries += [_entry(path) for path in self.written]
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Read a file."""
        path = self._strip_protocol(path)
        found = _NAME.fullmatch(posixpath.basename(path))
        if found is None:
            if path not in self.written:
                raise FileNotFoundError(path)
            return self.written[path]
        _shards, rows = counts_in(posixpath.dirname(path))
        if found[2] == STATS_SUFFIX:
            return json.dumps({"successes": rows}).encode()
        tar = path.removesuffix(INDEX_SUFFIX) + ".tar"
        return json.dumps(
            {
                "version": version_of(_entry(tar)),
                "samples": rows,
                "every": PIECE,
                "places": _places(rows, seed=int(found[1])),
            }
        ).encode()

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        """Keep a file in memory."""
        self.written[self._strip_protocol(path)] = value


def counts_in(name: str) -> tuple[int, int]:
    """Return the shards of a folder and the samples of each, as its name says."""
    shards, rows = name.split("-")
    return int(shards), int(rows)


def counted_folder(shards: int, rows: int) -> str:
    """Return the address of a folder of so many shards of so many samples each."""
    register_implementation(PROTOCOL, CountedFolder, clobber=True)
    return f"{PROTOCOL}://{shards}-{rows}"


def _entry(path: str) -> dict[str, Any]:
    return {"name": path, "size": BYTES_PER_SAMPLE, "type": "file", "LastModified": _STAMP}


def _places(rows: int, seed: int) -> list[int]:
    # Pieces differ in size, or the places would compress to nothing.
    sizes = np.random.default_rng(seed).integers(
        PIECE * BYTES_PER_SAMPLE // 2, PIECE * BYTES_PER_SAMPLE, -(-rows // PIECE)
    )
    return [0, *np.cumsum(sizes).tolist()]
