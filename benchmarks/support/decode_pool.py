"""A pool of local processes that read and decode bundles: what Ray Data's tasks do, without Ray."""

import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import torch

from beamclip.data.bundles import Bundle, RowReader, read_bundle, rows_of
from beamclip.data.decoding import Decoding
from beamclip.data.shards import Columns, Row

AHEAD = 2
"""Bundles for each process that are read ahead."""


@contextmanager
def decode_pool(processes: int, folder: Path) -> Iterator[RowReader]:
    """Yield a reader whose processes hand tables over as files, which the caller maps without copying them.

    Args:
        processes: that read and decode, one thread each.
        folder: on a file system in memory.
    """
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="decoded-") as scratch,
        ProcessPoolExecutor(
            processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        numbers = count()

        def read(
            bundles: Iterable[Bundle], columns: Columns, decoding: Decoding | None
        ) -> Generator[Row, None, None]:
            source, ahead = iter(bundles), deque[Future[list[Path]]]()
            try:
                while True:
                    while len(ahead) < AHEAD * processes and (bundle := next(source, None)) is not None:
                        ahead.append(
                            pool.submit(_files, bundle, columns, decoding, Path(scratch, str(next(numbers))))
                        )
                    if not ahead:
                        return
                    for file in ahead.popleft().result():
                        yield from rows_of(_mapped(file))
            finally:
                for future in ahead:
                    future.cancel()

        yield read


def _files(bundle: Bundle, columns: Columns, decoding: Decoding | None, stem: Path) -> list[Path]:
    """Write each table of a bundle to a file."""
    files = []
    for number, table in enumerate(read_bundle(bundle, columns, decoding)):
        file = stem.with_suffix(f".{number}")
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        files.append(file)
    return files


def _mapped(file: Path) -> pa.Table:
    """Return the table of a file, in its memory, which is freed with the last row that refers to it."""
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    file.unlink()
    return table
