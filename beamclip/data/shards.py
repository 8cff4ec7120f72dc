"""Shards, and how to read their rows.

Every claimed sample leaves the reader exactly once: as a row that can be used, or as one that names the
problem. Nothing is lost silently, and row numbers mean the same each time.
"""

import posixpath
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import fsspec

from beamclip.data.cache import CachedViews
from beamclip.data.class_folders import OUTSIDE, class_folders
from beamclip.data.folder_rows import read_folder
from beamclip.data.lost_samples import in_words
from beamclip.data.sample_rows import (
    MISSING_CAPTION,
    MISSING_IMAGE,
    MISSING_LABEL,
    MOST_KEY_CHARACTERS,
    ROW_SCHEMA,
    TOO_LARGE,
    UNREADABLE,
    Columns,
    Pending,
    Row,
    problem_of,
    read_cache,
    read_parquet,
    read_tar,
)
from beamclip.data.shard_file import (
    MissingShardError,
    Rows,
    StoreError,
    UnansweredShardError,
    open_ranges,
    open_shard,
    read_part,
)
from beamclip.data.tar_samples import WHOLE, Span
from beamclip.data.torchvision_sets import read_set
from beamclip.places import TORCHVISION

__all__ = [
    "BROKEN_SHARD",
    "MISSING_CAPTION",
    "MISSING_IMAGE",
    "MISSING_LABEL",
    "MISSING_SHARD",
    "ROWS_PER_BLOCK",
    "ROW_SCHEMA",
    "TOO_LARGE",
    "UNREADABLE",
    "Columns",
    "Row",
    "Shard",
    "iterate_rows",
]

ROWS_PER_BLOCK = 256

BROKEN_SHARD = "broken shard"
MISSING_SHARD = "missing shard"

MOST_PART_BYTES = 64 << 20
"""Bytes of a tar that are held in memory at a time; more than that is read member by member."""

RETRY_PAUSES = (1.0, 5.0, 15.0)
"""Seconds before a shard is opened again whose store did not answer, or answered that it is busy."""


@dataclass(frozen=True)
class Shard:
    """One file of samples, or one folder of images."""

    path: str
    """fsspec address of the file (or folder)."""
    samples: int
    """Samples it holds, from its statistics file (or the number of image files)."""
    format: Literal["tar", "parquet", "folder", "images", "loose", "cache", "torchvision"]
    """`folder`: one class of a folder of class folders; `loose`: the files beside those; `images`: a folder
    of images whose name is no class; `torchvision`: some rows of a data set of torchvision."""
    may_be_missing: bool = False
    """Whether its samples just count as lost where it cannot be opened."""
    source: int = 0
    """Place of its data set among those that a training draws from."""
    views: CachedViews | None = None
    """What to read from it if it is of a teacher cache; None reads it as plain images."""
    version: str = ""
    """Changes whenever its files do, as far as their store tells (of a folder: with its listing)."""
    size: int = 0
    """Bytes of the file."""
    caption_lines: bool = False
    """Whether each line of a sample's text in a tar is a caption of its own."""
    first_row: int = 0
    """Number in a data set of torchvision of its first row."""

    @property
    def name(self) -> str:
        """Name of the file (or folder), as a text that tables and messages can hold."""
        if self.format == "torchvision":
            # A name that a file may have: caches are named after their shards, and sort like them.
            title = self.path.removeprefix(TORCHVISION).partition("?")[0]
            return f"{title.replace('/', '-')}-{self.first_row:08d}"
        return _as_text(posixpath.basename(self.path.rstrip("/")))

    @property
    def key(self) -> tuple[str, str]:
        """What known_shards knows it by."""
        return self.name, self.version


def _as_text(name: str) -> str:
    """Names of files and of members need not be UTF-8; what a table cannot hold would end the whole run."""
    return name.encode("utf-8", "backslashreplace").decode()


def iterate_rows(
    shard: Shard, columns: Columns, rows: Rows, epoch: int = 0, *, span: Span = WHOLE
) -> Iterator[Row]:
    """The rows of a shard with these numbers, one each (see ROW_SCHEMA), whatever became of the shard.

    A shard that breaks off gives all rows before the break, and for each one after it a row with `problem`.

    Args:
        span: what of a tar is read; no row outside is asked for.

    Raises:
        MissingShardError: it cannot be opened, and `shard.may_be_missing` is not set.
        UnansweredShardError: the same of a store that failed again after each of RETRY_PAUSES.
    """
    given, pauses = 0, iter(RETRY_PAUSES)
    problem, detail = BROKEN_SHARD, "it holds fewer samples than its statistics say"
    while given < len(rows):
        try:
            for key, build in _rows_of(shard, columns, rows[given:], epoch, span):
                given, pauses = given + 1, iter(RETRY_PAUSES)
                yield _row(key, build, columns, shard, epoch)
            break
        except StoreError as error:
            pause = None if error.is_final else next(pauses, None)
            if pause is not None:
                time.sleep(pause)
                continue
            if not shard.may_be_missing:
                raise _unread(shard, error) from error
            problem, detail = MISSING_SHARD, str(error)
            break
        except Exception as error:  # of tarfile, pyarrow or ours, for which the file's content is to blame
            detail = in_words(error)
            break
    for _ in range(len(rows) - given):
        yield _lost(shard.name, problem, detail, shard, epoch)


def _unread(shard: Shard, error: StoreError) -> MissingShardError | UnansweredShardError:
    import ray

    where = f"{shard.path}: cannot be read on node {ray.util.get_node_ip_address()} ({error})"
    if not error.is_final:
        return UnansweredShardError(f"{where}, after {len(RETRY_PAUSES)} more tries.")
    return MissingShardError(
        f"{where}. Make it readable on all nodes, or give --allow-missing-shards to count the samples "
        "of such shards as lost."
    )


def _rows_of(shard: Shard, columns: Columns, rows: Rows, epoch: int, span: Span) -> Iterator[Pending]:
    if shard.format == "loose":
        yield from _read_loose(shard, rows)
        return
    if shard.format in ("folder", "images"):
        label = shard.name if shard.format == "folder" else None
        yield from read_folder(shard.path, shard.version, columns, rows, label)
        return
    if shard.format == "torchvision":
        yield from read_set(shard.path, shard.first_row, columns, rows)
        return
    lines = shard.caption_lines
    if span.stop is not None and span.stop - span.first <= MOST_PART_BYTES:
        part = read_part(shard.path, span.first, span.stop)
        yield from read_tar(part, columns, rows, span, caption_lines=lines)
        return
    if shard.format == "tar":
        with open_shard(shard.path) as file:
            yield from read_tar(file, columns, rows, span, caption_lines=lines)
        return
    with open_ranges(shard.path, shard.version, shard.size) as file:
        if shard.format == "parquet":
            yield from read_parquet(file, columns, rows, shard.name)
        else:
            yield from read_cache(file, columns, rows, shard.views, epoch)


def _row(key: str, build: Callable[[], Row], columns: Columns, shard: Shard, epoch: int) -> Row:
    """One row; whatever goes wrong in making it is a problem of this sample alone."""
    try:
        row = build()
        key = row["key"]
        problem, detail = row.get("problem") or problem_of(row, columns), row.get("detail")
    except Exception as error:
        row, problem, detail = {}, UNREADABLE, in_words(error)
    key = _as_text(key[:MOST_KEY_CHARACTERS])
    if problem:
        return _lost(key, problem, detail, shard, epoch)
    return {**row, "key": key, "epoch": epoch, "problem": None, "shard": shard.name}


def _lost(key: str, problem: str, detail: str | None, shard: Shard, epoch: int) -> Row:
    detail = None if detail is None else _as_text(detail)
    return {"key": key, "epoch": epoch, "problem": problem, "detail": detail, "shard": shard.name}


def _read_loose(shard: Shard, rows: Rows) -> Iterator[Pending]:
    fs, root = fsspec.core.url_to_fs(shard.path)
    _, files = class_folders(fs, root)
    for path in (files[number] for number in rows if number < len(files)):
        key = posixpath.basename(path)
        yield key, partial(dict, key=key, problem=OUTSIDE)
