"""Which shards a data set has, and how many samples each holds.

A shard that img2dataset wrote counts as finished when its `<name>_stats.json` lies beside it, which also
holds the number of samples. Tars of others are read once for their samples (see index); a folder of images
is a data set too.
"""

import hashlib
import json
import logging
import mimetypes
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import fsspec

from beamclip.addresses import reachable
from beamclip.data.cache import CACHE_FILE
from beamclip.data.class_folders import Entry, class_folders, folder_entries
from beamclip.data.index import count_samples
from beamclip.data.lost_samples import in_words
from beamclip.data.sample_rows import MISSING_CAPTION, Columns
from beamclip.data.shards import ROWS_PER_BLOCK, Shard, iterate_rows
from beamclip.errors import InputError

log = logging.getLogger(__name__)

STATS_SUFFIX = "_stats.json"

MOST_STATS_BYTES = 4 << 20
"""Of a statistics file that are read."""
MOST_SAMPLES = 100_000_000
"""That statistics may claim of one shard."""

_INGEST = ".ingest"
"""A folder of this name lies where `beamclip ingest` writes: what has no statistics there is not finished."""


def list_shards(address: str, *, allow_missing: bool = False) -> list[Shard]:
    """Shards below an address, sorted by name.

    Args:
        address: folder of img2dataset output, of other tars of samples, or of images; a local path or any
            fsspec address (s3://, gs://, memory://).
        allow_missing: whether shards may be missing, here or on the node that reads them.

    Raises:
        InputError: the folder is missing, holds nothing of these, or lacks a shard that has statistics.
    """
    fs, root = _open_folder(address, "Give the folder that `beamclip ingest --out` wrote.")
    files = {posixpath.basename(path.rstrip("/")): path for path in fs.ls(root, detail=False)}
    stats = sorted(name for name in files if name.endswith(STATS_SUFFIX))
    if stats:
        return _finished_shards(address, fs, files, stats, allow_missing=allow_missing)
    shards = [] if _INGEST in files else _foreign_tars(fs, files) or _image_folders(fs, root)
    if not shards:
        raise InputError(
            f"{address}: no finished shard (no *{STATS_SUFFIX} among {len(files)} files), no tar of samples "
            "and no image. Run beamclip ingest, or give the folder that holds its shards."
        )
    return [replace(shard, may_be_missing=allow_missing) for shard in shards]


def _finished_shards(
    address: str, fs: Any, files: Mapping[str, str], stats: list[str], *, allow_missing: bool
) -> list[Shard]:
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


def _foreign_tars(fs: Any, files: Mapping[str, str]) -> list[Shard]:
    """Tars without statistics, which others wrote; those without a sample are left out."""
    paths = [fs.unstrip_protocol(files[name]) for name in sorted(files) if name.endswith(".tar")]
    if paths:
        log.info("counting the samples of %d tars without statistics", len(paths))
    return [Shard(path, samples, "tar") for path, samples in count_samples(paths).items() if samples]


def _image_folders(fs: Any, root: str) -> list[Shard]:
    """A folder of images, or of folders of images; empty if no file in them has the name of an image."""
    folders, files = class_folders(fs, root)
    entries = {folder: folder_entries(fs, folder) for folder in folders or [root]}
    names = [path for found in entries.values() for path, _ in found]
    if not any((mimetypes.guess_type(name)[0] or "").startswith("image/") for name in names):
        return []
    return _folder_shards(fs, root, entries, files if folders else [])


def _folder_shards(
    fs: Any, root: str, entries: Mapping[str, Sequence[Entry]], beside: Sequence[str]
) -> list[Shard]:
    """A shard for each folder that is not empty, and one for the files beside the folders."""
    shards = [
        Shard(fs.unstrip_protocol(folder), len(found), "folder") for folder, found in entries.items() if found
    ]
    return [*shards, Shard(fs.unstrip_protocol(root), len(beside), "loose")] if beside else shards


def list_labelled(address: str, *, allow_missing: bool = False) -> list[Shard]:
    """Shards of a labelled data set: finished shards, or a folder with one folder of images per class.

    Args:
        allow_missing: see `list_shards`.

    Raises:
        InputError: it is neither; see `list_shards`.
    """
    fs, root = _open_folder(address, "Give shards with a label column, or a folder of class folders.")
    folders, files = class_folders(fs, root)
    names = [posixpath.basename(path) for path in files]
    if any(name.endswith((STATS_SUFFIX, ".tar")) for name in names):
        return list_shards(address, allow_missing=allow_missing)
    entries = {folder: folder_entries(fs, folder) for folder in folders}
    if not any(problem is None for found in entries.values() for _, problem in found):
        raise InputError(f"{address}: neither finished shards nor class folders with images in it.")
    return _folder_shards(fs, root, entries, files)


def fingerprint(shards: list[Shard]) -> str:
    """Names a data set by what positions in it depend on: the names of its shards and their counts."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.source} {shard.name} {shard.samples}\n".encode())
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


def _shard(fs: Any, files: Mapping[str, str], stats: str, samples: int, *, tars: bool) -> Shard:
    """Args:
    tars: whether there are tars; then a parquet file alone is what lay beside a tar that is gone.
    """
    stem = stats.removesuffix(STATS_SUFFIX)
    is_tar = tars or f"{stem}.parquet" not in files
    name = f"{stem}.tar" if is_tar else f"{stem}.parquet"
    path = files.get(name) or posixpath.join(posixpath.dirname(files[stats]), name)
    table_format: Literal["parquet", "cache"] = "cache" if CACHE_FILE in files else "parquet"
    return Shard(fs.unstrip_protocol(path), samples, "tar" if is_tar else table_format)
