"""What is known of the shards of a data set, in one file: opening it is one request, however many they are.

The file lies among the shards, or in the user's folder for caches where they are somebody else's. Only the
command reads it. What it says of a shard counts as long as the listing shows the same version of the shard.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beamclip.data.order import PIECE
from beamclip.places import Folder

log = logging.getLogger(__name__)

KNOWN_FILE = ".shards"

MOST_SAMPLES = 100_000_000
"""That may be claimed of one shard."""

SECONDS_BETWEEN_WRITES = 30.0
"""While shards are looked at: what a command that is interrupted has to find out again."""

Key = tuple[str, str]
"""Name and version of a shard's files."""


@dataclass(frozen=True)
class Known:
    """What is known of a shard."""

    key: Key
    samples: int | None
    """None: it holds no images."""
    places: NDArray[np.int64] | None = None
    """Where its pieces begin, see Index; None: nobody looked."""


_PLACES = f"places of every {PIECE}"

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("version", pa.string()),
        ("samples", pa.int64()),
        (_PLACES, pa.list_(pa.int64())),
    ]
)


def recall(
    folder: str,
    wanted: Sequence[Key],
    learn: Callable[[list[Key]], Iterable[Known]],
    *,
    with_places: bool = False,
) -> list[Known]:
    """What is known of shards, in the order in which they are wanted.

    Args:
        folder: address of the data set.
        learn: finds out what is not known yet, in any order. It is kept from time to time, and at the end
            even of a command that is interrupted.
        with_places: whether it must be known where their samples begin.
    """
    known = read_known(folder)
    new = [key for key in wanted if key not in known or (with_places and known[key].places is None)]
    written = time.monotonic()
    try:
        for each in learn(new) if new else ():
            known[each.key] = each
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                _write_known(folder, wanted, known)
                written = time.monotonic()
    finally:
        if new:
            _write_known(folder, wanted, known)
    return [known[key] for key in wanted]


def read_known(folder: str) -> dict[Key, Known]:
    """All that is known of the shards in a folder; nothing where the file is not what it should be."""
    known = dict[Key, Known]()
    for place, name in _files(folder):
        try:
            content = place.read(name)
            known.update(_parsed(content) if content is not None else {})
        except Exception as error:  # of the store, of pyarrow, or because it has another shape
            log.debug("%s/%s: %s", place.place, name, error)
    return known


def _parsed(content: bytes) -> dict[Key, Known]:
    table = pq.read_table(BytesIO(content), schema=_SCHEMA).combine_chunks()
    names, versions, samples = (table[name].to_pylist() for name in ("name", "version", "samples"))
    if any(each is not None and not 0 <= each <= MOST_SAMPLES for each in samples):
        raise ValueError("a number of samples that is none")
    if not len(table):
        return {}
    lists = table[_PLACES].chunk(0)
    numbers, edges = lists.values.to_numpy(), lists.offsets.to_numpy()
    looked_at = lists.is_valid().to_pylist()
    return {
        key: Known(key, samples[row], numbers[edges[row] : edges[row + 1]] if looked_at[row] else None)
        for row, key in enumerate(zip(names, versions, strict=True))
    }


def _write_known(folder: str, wanted: Sequence[Key], known: dict[Key, Known]) -> None:
    current = {name: (name, version) for name, version in wanted}
    # Others may be wanted by another pattern of names; of these, other versions are gone.
    rows = [each for key, each in known.items() if current.get(key[0], key) == key]
    table = pa.table(
        {
            "name": [each.key[0] for each in rows],
            "version": [each.key[1] for each in rows],
            "samples": [each.samples for each in rows],
            _PLACES: [each.places for each in rows],
        },
        _SCHEMA,
    )
    content = BytesIO()
    # Differences of neighbours take two or three bytes.
    pq.write_table(
        table,
        content,
        use_dictionary=False,
        column_encoding={f"{_PLACES}.list.element": "DELTA_BINARY_PACKED"},
    )
    for place, name in _files(folder):
        try:
            if place.is_local:
                # The folder of shards is there: only the one for caches may have to be made.
                Path(place.path("")).mkdir(parents=True, exist_ok=True)
            place.write(name, content.getvalue())
        except Exception as error:  # data of others may be read-only
            log.debug("%s/%s: %s", place.place, name, error)
            continue
        return


def _files(folder: str) -> list[tuple[Folder, str]]:
    """Where the file may lie, and its name there; the first that can be written to is written."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "beamclip" / "shards"
    return [
        (Folder(folder), KNOWN_FILE),
        (Folder(str(caches)), hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:32]),
    ]
