"""Shards that img2dataset wrote: which there are, how many samples they hold, how to read their rows.

A shard counts as finished when its `<name>_stats.json` lies beside it; the file also holds the exact
number of samples (`successes`). Every claimed sample leaves the reader exactly once: as a row that can be
used, or as one that names the problem. Nothing is lost silently, and row numbers mean the same each time.
"""

import hashlib
import json
import posixpath
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import fsspec

from beamclip.addresses import reachable
from beamclip.data.cache import CACHE_FILE
from beamclip.data.class_folders import OUTSIDE, class_folders, folder_entries, read_entry
from beamclip.data.lost_samples import in_words
from beamclip.data.sample_rows import (
    IMAGE_SUFFIXES,
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
from beamclip.data.shard_file import MissingShardError, Rows, StoreError, UnansweredShardError, open_shard
from beamclip.data.tar_samples import BEGINNING, Entry
from beamclip.errors import InputError

__all__ = [
    "BROKEN_SHARD",
    "IMAGE_SUFFIXES",
    "MISSING_CAPTION",
    "MISSING_IMAGE",
    "MISSING_LABEL",
    "MISSING_SHARD",
    "ROWS_PER_BLOCK",
    "ROW_SCHEMA",
    "STATS_SUFFIX",
    "TOO_LARGE",
    "UNREADABLE",
    "Columns",
    "Row",
    "Shard",
    "check_texts",
    "fingerprint",
    "iterate_rows",
    "list_labelled",
    "list_shards",
]

STATS_SUFFIX = "_stats.json"
ROWS_PER_BLOCK = 256

BROKEN_SHARD = "broken shard"
MISSING_SHARD = "missing shard"

MOST_STATS_BYTES = 4 << 20
"""Of a statistics file that are read."""
MOST_SAMPLES = 100_000_000
"""That statistics may claim of one shard."""

RETRY_PAUSES = (1.0, 5.0, 15.0)
"""Seconds before a shard is opened again whose store did not answer, or answered that it is busy."""


@dataclass(frozen=True)
class Shard:
    """One file of samples, or one folder of a folder-per-class data set."""

    path: str
    """fsspec address of the file (or folder)."""
    samples: int
    """Samples it holds, from its statistics file (or the number of image files)."""
    format: Literal["tar", "parquet", "folder", "loose", "cache"]
    """`folder`: one class of a folder of class folders; `loose`: the files beside those."""
    may_be_missing: bool = False
    """Whether its samples just count as lost where it cannot be opened."""

    @property
    def name(self) -> str:
        """Of the file (or folder), as a text that tables and messages can hold."""
        return _as_text(posixpath.basename(self.path.rstrip("/")))


def _as_text(name: str) -> str:
    """Names of files and of members need not be UTF-8; what a table cannot hold would end the whole run."""
    return name.encode("utf-8", "backslashreplace").decode()


def list_shards(address: str, *, allow_missing: bool = False) -> list[Shard]:
    """Finished shards below an address, sorted by name.

    Args:
        address: folder of img2dataset output; a local path or any fsspec address (s3://, gs://, memory://).
        allow_missing: whether shards may be missing, here or on the node that reads them.

    Raises:
        InputError: the folder is missing, holds no finished shard, or lacks one that has statistics.
    """
    fs, root = _open_folder(address, "Give the folder that `beamclip ingest --out` wrote.")
    files = {posixpath.basename(path): path for path in fs.ls(root, detail=False)}
    stats = sorted(name for name in files if name.endswith(STATS_SUFFIX))
    if not stats:
        raise InputError(
            f"{address}: no finished shard (no *{STATS_SUFFIX} among {len(files)} files). "
            "Run beamclip ingest, or give the folder that holds its shards."
        )
    tars = any(f"{name.removesuffix(STATS_SUFFIX)}.tar" in files for name in stats)
    with ThreadPoolExecutor(32) as pool:
        counts = pool.map(partial(_claimed_samples, fs), [files[name] for name in stats])
        found = [
            replace(_shard(fs, files, name, samples, tars=tars), may_be_missing=allow_missing)
            for name, samples in zip(stats, counts, strict=True)
        ]
    shards = [shard for shard in found if shard.samples > 0]
    if not shards:
        raise InputError(
            f"{address}: all {len(stats)} shards are empty. See the summary of the ingest for the reasons."
        )
    gone = [] if allow_missing else [each for each in shards if posixpath.basename(each.path) not in files]
    missing = [shard.name for shard in gone]
    if missing:
        raise InputError(
            f"{address}: {len(missing)} of {len(shards)} shards have statistics and no data: "
            f"{', '.join(missing[:3])}{', ...' if missing[3:] else ''}. Bring them back, or give "
            "--allow-missing-shards to count their samples as lost."
        )
    return shards


def fingerprint(shards: list[Shard]) -> str:
    """Names a data set by what positions in it depend on: the names of its shards and their counts."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.name} {shard.samples}\n".encode())
    samples = sum(shard.samples for shard in shards)
    return f"{len(shards)} shards, {samples} samples, {digest.hexdigest()[:16]}"


def check_texts(shards: list[Shard], columns: Columns, address: str) -> None:
    """Refuse data whose first samples, up to a block of rows, all lack a text, or one of the fields for more.

    Raises:
        InputError: with the field that was looked for.
    """
    first, count = shards[0], min(shards[0].samples, ROWS_PER_BLOCK)

    def all_lack(asked: Columns) -> bool:
        rows = iterate_rows(first, asked, range(count))
        # A broken shard says nothing of the others: its loss is counted when it is read.
        whole = [row for row in rows if row["problem"] in (None, MISSING_CAPTION)]
        return bool(whole) and not any(row.get("texts") for row in whole)

    where = f"{address}: none of the first {count} samples in {first.path} has"
    for name in columns.more_texts:
        if all_lack(Columns(more_texts=(name,))):
            raise InputError(f"{where} a text in {name}. Ingest with --keep-columns {name}, or leave it out.")
    if all_lack(columns):
        raise InputError(f"{where} a caption. Ingest with --caption-column, from a column that is not empty.")


def _open_folder(address: str, advice: str) -> tuple[Any, str]:
    with reachable(address, advice):
        fs, root = fsspec.core.url_to_fs(str(address))
        is_folder = fs.isdir(root)
    if not is_folder:
        raise InputError(f"{address}: no such folder. {advice}")
    return fs, root


def _claimed_samples(fs: Any, path: str) -> int:
    """How many samples a shard's statistics claim."""
    try:
        samples = int(json.loads(fs.cat_file(path, end=MOST_STATS_BYTES))["successes"])
    except Exception as error:  # of the store, of JSON, or because it is no count
        raise InputError(
            f"{path}: no count of `successes` in it ({in_words(error)}). Ingest this shard again."
        ) from error
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"{path}: {samples} `successes` are no count. Ingest this shard again.")
    return samples


def _shard(fs: Any, files: dict[str, str], stats: str, samples: int, *, tars: bool) -> Shard:
    """Args:
    tars: whether there are tars; then a parquet file alone is what lay beside a tar that is gone.
    """
    stem = stats.removesuffix(STATS_SUFFIX)
    is_tar = tars or f"{stem}.parquet" not in files
    name = f"{stem}.tar" if is_tar else f"{stem}.parquet"
    path = files.get(name) or posixpath.join(posixpath.dirname(files[stats]), name)
    table_format: Literal["parquet", "cache"] = "cache" if CACHE_FILE in files else "parquet"
    return Shard(fs.unstrip_protocol(path), samples, "tar" if is_tar else table_format)


def list_labelled(address: str, *, allow_missing: bool = False) -> list[Shard]:
    """Shards of a labelled data set: finished shards, or a folder with one folder of images per class.

    Args:
        allow_missing: see `list_shards`.

    Raises:
        InputError: it is neither; see `list_shards`.
    """
    fs, root = _open_folder(address, "Give shards with a label column, or a folder of class folders.")
    if any(path.endswith(STATS_SUFFIX) for path in fs.ls(root, detail=False)):
        return list_shards(address, allow_missing=allow_missing)
    folders, files = class_folders(fs, root)
    entries = {folder: folder_entries(fs, folder) for folder in folders}
    if not any(problem is None for found in entries.values() for _, problem in found):
        raise InputError(f"{address}: neither finished shards nor class folders with images in it.")
    shards = [
        Shard(fs.unstrip_protocol(folder), len(found), "folder") for folder, found in entries.items() if found
    ]
    return [*shards, Shard(fs.unstrip_protocol(root), len(files), "loose")] if files else shards


def iterate_rows(
    shard: Shard, columns: Columns, rows: Rows, epoch: int = 0, *, entry: Entry = BEGINNING
) -> Iterator[Row]:
    """The rows of a shard with these numbers, one each (see ROW_SCHEMA), whatever became of the shard.

    A shard that breaks off gives all rows before the break, and for each one after it a row with `problem`.

    Args:
        entry: where reading a tar begins; no row before it is asked for.

    Raises:
        MissingShardError: it cannot be opened, and `shard.may_be_missing` is not set.
        UnansweredShardError: the same of a store that failed again after each of RETRY_PAUSES.
    """
    given, pauses = 0, iter(RETRY_PAUSES)
    problem, detail = BROKEN_SHARD, "it holds fewer samples than its statistics say"
    while given < len(rows):
        try:
            for key, build in _rows_of(shard, columns, rows[given:], epoch, entry):
                given += 1
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


def _rows_of(shard: Shard, columns: Columns, rows: Rows, epoch: int, entry: Entry) -> Iterator[Pending]:
    if shard.format in ("folder", "loose"):
        yield from (_read_folder if shard.format == "folder" else _read_loose)(shard, rows)
        return
    with open_shard(shard.path) as file:
        if shard.format == "tar":
            yield from read_tar(file, columns, rows, entry)
        elif shard.format == "parquet":
            yield from read_parquet(file, columns, rows)
        else:
            yield from read_cache(file, columns, rows, epoch)


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
    return {"key": key, "epoch": epoch, "problem": problem, "detail": detail, "shard": shard.name}


def _read_folder(shard: Shard, rows: Rows) -> Iterator[Pending]:
    fs, root = fsspec.core.url_to_fs(shard.path)
    label = _as_text(posixpath.basename(root.rstrip("/")))
    entries = folder_entries(fs, root)
    # Files that are gone since they were counted are counted as lost.
    for path, problem in (entries[number] for number in rows if number < len(entries)):
        key = f"{label}/{posixpath.relpath(path, root)}"
        yield key, partial(_file_row, fs, path, key, label, problem)


def _file_row(fs: Any, path: str, key: str, label: str, problem: str | None) -> Row:
    content, problem = (None, problem) if problem else read_entry(fs, path)
    return {"key": key, "image": content, "caption": None, "texts": [], "label": label, "problem": problem}


def _read_loose(shard: Shard, rows: Rows) -> Iterator[Pending]:
    fs, root = fsspec.core.url_to_fs(shard.path)
    _, files = class_folders(fs, root)
    for path in (files[number] for number in rows if number < len(files)):
        key = posixpath.basename(path)
        yield key, partial(dict, key=key, problem=OUTSIDE)
