"""Which rows of which shards are read together, and how they are read, by whatever process.

Free of torch: every process that runs a read task imports this module, and torch alone takes it seconds.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.crops import Decoded, decoded_rows, is_decoded
from beamclip.data.index import Starts
from beamclip.data.order import PIECE, Window
from beamclip.data.shard_file import Rows
from beamclip.data.shards import ROW_SCHEMA, ROWS_PER_BLOCK, Columns, Row, Shard, iterate_rows
from beamclip.data.tar_samples import WHOLE, Span
from beamclip.places import TORCHVISION

ROWS_PER_TASK = 256
"""Rows that a read task aims at: a task costs Ray some milliseconds, whatever it reads."""

SEGMENTS_TOGETHER = 8
"""Segments of a bundle that are read at a time from a store."""

BLOCK_BYTES = 8 << 20
"""Bytes of encoded samples that a read task hands over at a time."""


@dataclass(frozen=True)
class Segment:
    """Rows of one shard that are read together."""

    shard: Shard
    rows: Rows
    span: Span = WHOLE
    """What of a tar is read for them."""


@dataclass(frozen=True)
class Bundle:
    """Segments that are read together, in one epoch."""

    segments: tuple[Segment, ...]
    epoch: int = 0
    turns: NDArray[np.int64] | None = None
    """[rows], places of the rows in the segments laid end to end, in the order in which they are handed over;
    by default as they lie."""

    @property
    def rows(self) -> int:
        """Number of rows in the bundle."""
        return sum(len(segment.rows) for segment in self.segments)


def bundles_of(window: Window, shards: list[Shard], starts: Starts) -> list[Bundle]:
    """Divide the rows of a worker's window into bundles of neighbouring lanes, about ROWS_PER_TASK rows each.

    A lane's rows lie in one or two pieces, so no piece is read for more than two bundles. A segment holds all
    rows of a piece that its bundle wants, neighbours or not, so a bundle reads each piece once.

    Args:
        starts: of the shards.

    Returns:
        Bundles whose turns follow the window's order.
    """
    number = bundle_numbers(window)
    bundles = []
    for each in range(int(number.max(initial=-1)) + 1):
        mine = np.flatnonzero(number == each)
        shard, row = window.shard[mine], window.row[mine]
        lying = np.lexsort((row, shard))
        shard, row = shard[lying], row[lying]
        cuts = np.flatnonzero((np.diff(shard) != 0) | (np.diff(row // PIECE) != 0)) + 1
        segments = tuple(
            Segment(shards[int(own[0])], rows, starts.span(int(own[0]), rows))
            for own, rows in zip(np.split(shard, cuts), np.split(row, cuts), strict=True)
        )
        bundles.append(Bundle(segments, window.epoch, np.argsort(lying)))
    return bundles


def bundles_in_line(shards: Iterable[tuple[int, Shard]], starts: Starts) -> Iterator[Bundle]:
    """Bundles of neighbouring rows, of one shard after the other as they lie.

    Args:
        shards: each with its place among those that `starts` knows.
    """
    for number, shard in shards:
        # Of the parquet files of others whole row groups are read, and these may be large.
        together = max(1, shard.samples) if shard.format == "parquet" else ROWS_PER_TASK
        for first in range(0, shard.samples, together):
            rows = range(first, min(first + together, shard.samples))
            yield Bundle((Segment(shard, rows, starts.span(number, rows)),))


def bundle_numbers(window: Window) -> NDArray[np.int64]:
    """int64 [rows], the bundle that each row of a worker's window is read in."""
    lanes, lane = np.unique(window.lane, return_inverse=True)
    bundles = max(1, round(len(lane) / ROWS_PER_TASK))
    return lane * bundles // max(1, len(lanes))


class Decoder(Protocol):
    """How read tasks decode rows. What implements it needs torch; a process that only reads does without."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row, about."""

    @property
    def rows_per_table(self) -> int:
        """Rows that a task hands over together."""

    def table(self, rows: list[Row]) -> pa.Table:
        """Decode rows."""


def read_bundle(bundle: Bundle, columns: Columns, decoder: Decoder | None = None) -> Iterator[pa.Table]:
    """The rows of a bundle, as tables of ROWS_PER_BLOCK rows or BLOCK_BYTES of encoded images each.

    Args:
        decoder: how the images are decoded here; None: not at all.

    Returns:
        Tables of ROW_SCHEMA, or as the decoder makes them.
    """
    made: Callable[[list[Row]], pa.Table] = partial(pa.Table.from_pylist, schema=ROW_SCHEMA)
    most = ROWS_PER_BLOCK
    if decoder is not None:
        made, most = decoder.table, decoder.rows_per_table
    rows, size = list[Row](), 0
    for row in _in_turns(bundle, columns):
        rows.append(row)
        size += len(row.get("image") or b"")
        if len(rows) == most or size >= BLOCK_BYTES:
            yield made(rows)
            rows, size = [], 0
    if rows:
        yield made(rows)


def _in_turns(bundle: Bundle, columns: Columns) -> Iterable[Row]:
    segments = [
        partial(iterate_rows, each.shard, columns, each.rows, bundle.epoch, span=each.span)
        for each in bundle.segments
    ]
    if bundle.turns is None:
        return chain.from_iterable(read() for read in segments)
    if all(each.shard.path.startswith(("file://", TORCHVISION)) for each in bundle.segments):
        lying = list(chain.from_iterable(read() for read in segments))
    else:
        # Each segment is a request to a store; for files, threads would take longer than the reading.
        with ThreadPoolExecutor(SEGMENTS_TOGETHER) as pool:
            lying = list(chain.from_iterable(pool.map(lambda read: list(read()), segments)))
    return [lying[place] for place in bundle.turns.tolist()]


RowReader = Callable[[Iterable[Bundle], Columns, Decoder | None], Generator[Row | Decoded, None, None]]
"""Streams the rows of any number of bundles, in the order given, decoded or not."""


def read_rows_here(
    bundles: Iterable[Bundle], columns: Columns, decoder: Decoder | None = None
) -> Generator[Row | Decoded, None, None]:
    """The rows of bundles, read and decoded in the calling thread; see RowReader."""
    for bundle in bundles:
        for table in read_bundle(bundle, columns, decoder):
            yield from rows_of(table)


def rows_of(table: pa.Table) -> list[Row] | list[Decoded]:
    """The rows of a table, as they are encoded or decoded."""
    return decoded_rows(table) if is_decoded(table) else table.to_pylist()


def read_batches_here(tasks: Iterable[list[Bundle]], columns: Columns, batch_size: int) -> Iterator[pa.Table]:
    """The rows of read tasks, read in the calling thread, in tables of so many; the last may be shorter."""
    held = ROW_SCHEMA.empty_table()
    for table in chain.from_iterable(read_bundle(bundle, columns) for task in tasks for bundle in task):
        held = pa.concat_tables([held, table])
        while len(held) >= batch_size:
            yield held.slice(0, batch_size)
            held = held.slice(batch_size)
    if len(held):
        yield held


def tasks_of(bundles: Iterable[Bundle]) -> Iterator[list[Bundle]]:
    """Neighbours together, one list a read task."""
    task: list[Bundle] = []
    rows = 0
    for bundle in bundles:
        task.append(bundle)
        rows += bundle.rows
        if rows >= ROWS_PER_TASK:
            yield task
            task, rows = [], 0
    if task:
        yield task
