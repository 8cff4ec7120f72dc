"""Which shards a data set has, and how many samples each holds.

A shard that img2dataset wrote counts as finished when its `<name>_stats.json` lies beside it, which also
holds the number of samples. Tars of others are read once for their samples (see index_pass), parquet files
of others say it in their footers; what was found is kept (see known_shards). A folder of images is a data set
too (see image_folder).
"""

import hashlib
import json
import mimetypes
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import fsspec

from beamclip.addresses import reachable
from beamclip.data.benchmark_folder import SPLITS, find_split, has_caption_lines
from beamclip.data.cache import CACHE_FILE
from beamclip.data.captions import CAPTION_FIELDS
from beamclip.data.class_folders import class_folders
from beamclip.data.image_folder import Listing, list_folder
from beamclip.data.index import INDEX_SUFFIX, read_index, version_of
from beamclip.data.index_pass import find_indexes
from beamclip.data.known_shards import MOST_SAMPLES, Known, recall
from beamclip.data.lost_samples import in_words
from beamclip.data.metadata import METADATA_FILES
from beamclip.data.parquet_rows import count_rows
from beamclip.data.sample_rows import MISSING_CAPTION, Columns
from beamclip.data.shards import ROWS_PER_BLOCK, Shard, iterate_rows
from beamclip.data.torchvision_sets import (
    ROWS_PER_SHARD,
    count_rows_of_set,
    is_torchvision,
    parse_address,
)
from beamclip.errors import InputError

STATS_SUFFIX = "_stats.json"

MOST_STATS_BYTES = 4 << 20
"""Most bytes that are read of a statistics file."""

_THREADS = 32
"""Files whose statistics or footers are read together."""

_INGEST = ".ingest"
"""A folder of this name lies where `beamclip ingest` writes."""


_INGEST_ADVICE = "Ingest with --caption-column, from a column that is not empty."
_LABELLED_ADVICE = "Give shards with a label column, or a folder of class folders."
_CAPTION_NAMES = " or ".join(CAPTION_FIELDS)
_FOLDER_ADVICE = f"Put it into x.txt beside x.jpg, or into {METADATA_FILES[0]} as {_CAPTION_NAMES}."
_CAPTION_ADVICE = {
    "folder": _FOLDER_ADVICE,
    "images": _FOLDER_ADVICE,
    "torchvision": "Give shards or a folder of images with captions: torchvision's labels are no captions.",
    "parquet": f"Name its column {_CAPTION_NAMES}, or give --caption-columns.",
}


_ANY_NAME = "*"

_SPLIT_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
"""Names that Hugging Face datasets give to the files of a split."""


def list_shards(address: str, *, allow_missing: bool = False) -> list[Shard]:
    """Shards below an address, sorted by name.

    Args:
        address: folder of img2dataset output, of other tars or parquet files of samples, or of images; a
            local path or any fsspec address (s3://, gs://, memory://). Its last part may be a pattern for the
            names of shards, as in `data/train-*`. Or a data set of torchvision (see torchvision_sets).
        allow_missing: whether shards may be missing, here or on the node that reads them.

    Raises:
        InputError: the folder is missing, holds nothing of these, or lacks a shard that has statistics.
    """
    if is_torchvision(address):
        return _torchvision_shards(address, allow_missing=allow_missing)
    fs, root, pattern = _open_folder(address, "Give the folder that `beamclip ingest --out` wrote.")
    entries = {posixpath.basename(entry["name"].rstrip("/")): entry for entry in fs.ls(root, detail=True)}
    files = {name: entry for name, entry in entries.items() if fnmatchcase(name, pattern)}
    folder = _Folder(address, fs, root, files)
    if any(name.endswith(STATS_SUFFIX) for name in files):
        return _finished_shards(folder, allow_missing=allow_missing)
    # What has no statistics beside what ingest or embed wrote is not finished.
    ours = _INGEST in entries or CACHE_FILE in entries
    shards = [] if ours else _foreign_tars(folder) or _foreign_parquets(folder)
    if not shards and not ours and pattern == _ANY_NAME:
        shards = _images(fs, root)
    if not shards:
        raise InputError(
            f"{address}: no finished shard (no *{STATS_SUFFIX} among {len(files)} files), no tar of samples, "
            f"no parquet file of images and no image. {_advice(fs, root)}"
        )
    return [replace(shard, may_be_missing=allow_missing) for shard in shards]


@dataclass(frozen=True)
class _Folder:
    """A folder as its store lists it."""

    address: str
    fs: Any
    root: str
    files: Mapping[str, Mapping[str, Any]]
    """What the store says of each file, by name."""

    def shard(self, name: str, format: Literal["tar", "parquet", "cache"], *beside: str) -> Shard:
        """A shard whose samples are not counted yet.

        Args:
            name: of its file, which may be missing.
            beside: names of files that say something of it.
        """
        place = self.files[name]["name"] if name in self.files else posixpath.join(self.root, name)
        versions = [version_of(self.files[each]) for each in (name, *beside) if each in self.files]
        size = int(self.files.get(name, {}).get("size") or 0)
        return Shard(self.fs.unstrip_protocol(place), 0, format, version="; ".join(versions), size=size)

    def has(self, shard: Shard) -> bool:
        """Whether the file of a shard is there."""
        return posixpath.basename(shard.path) in self.files

    def counts(
        self, shards: Sequence[Shard], learn: Callable[[list[Shard]], Iterable[Known]]
    ) -> list[int | None]:
        """The samples of each shard, as known or learnt; None for a file without images."""
        by_key = {shard.key: shard for shard in shards}
        place = self.fs.unstrip_protocol(self.root)
        known = recall(place, list(by_key), lambda keys: learn([by_key[key] for key in keys]))
        return [each.samples for each in known]


def _counted(shards: Sequence[Shard], counts: Sequence[int | None]) -> list[Shard]:
    """The shards with their numbers of samples, without those that are empty."""
    return [replace(shard, samples=count) for shard, count in zip(shards, counts, strict=True) if count]


def _finished_shards(folder: _Folder, *, allow_missing: bool) -> list[Shard]:
    stats = sorted(name for name in folder.files if name.endswith(STATS_SUFFIX))
    stems = [name.removesuffix(STATS_SUFFIX) for name in stats]
    # Where there are tars, a parquet file alone is what lay beside a tar that is gone.
    tars = any(f"{stem}.tar" in folder.files for stem in stems)
    table: Literal["parquet", "cache"] = "cache" if CACHE_FILE in folder.files else "parquet"
    listed = [
        folder.shard(f"{stem}.tar", "tar", name)
        if tars or f"{stem}.parquet" not in folder.files
        else folder.shard(f"{stem}.parquet", table, name)
        for stem, name in zip(stems, stats, strict=True)
    ]

    def learn(shards: list[Shard]) -> Iterator[Known]:
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(partial(_of_ingest, folder), shards)

    shards = _counted(listed, folder.counts(listed, learn))
    if not shards:
        raise InputError(
            f"{folder.address}: all {len(stats)} shards are empty. See the summary of the ingest for the "
            "reasons."
        )
    gone = [] if allow_missing else [each for each in shards if not folder.has(each)]
    missing = [shard.name for shard in gone]
    if missing:
        raise InputError(
            f"{folder.address}: {len(missing)} of {len(shards)} shards have statistics and no data: "
            f"{', '.join(missing[:3])}{', ...' if missing[3:] else ''}. Bring them back, or give "
            "--allow-missing-shards to count their samples as lost."
        )
    return [replace(shard, may_be_missing=allow_missing) for shard in shards]


def _of_ingest(folder: _Folder, shard: Shard) -> Known:
    """What the statistics of a shard claim, and its index says."""
    stem = posixpath.splitext(posixpath.basename(shard.path))[0]
    samples = _claimed_samples(folder.fs, folder.files[stem + STATS_SUFFIX]["name"])
    has_index = stem + INDEX_SUFFIX in folder.files and f"{stem}.tar" in folder.files
    index = read_index(shard.path, version_of(folder.files[f"{stem}.tar"])) if has_index else None
    return Known(shard.key, samples, index.places if index else None)


def _images(fs: Any, root: str) -> list[Shard]:
    """A folder of images, or of folders of images; empty if no file in them has the name of an image."""
    listings, beside = _image_folders(fs, root)
    names = (name for listing in listings.values() for name in listing.names())
    return _folder_shards(fs, root, listings, beside) if any(map(_is_image, names)) else []


def _is_image(name: str) -> bool:
    return (mimetypes.guess_type(name)[0] or "").startswith("image/")


def _advice(fs: Any, root: str) -> str:
    """What to give instead of a folder without data: the one below it that holds parquet files, if any."""
    top = root.rstrip("/")
    found = fs.glob(f"{top}/*/*.parquet") or fs.glob(f"{top}/*/*/*.parquet")
    if not found:
        return "Run beamclip ingest, or give the folder that holds its shards."
    folder = fs.unstrip_protocol(posixpath.dirname(sorted(found)[0])).removeprefix("file://")
    return f"Give the folder that holds the parquet files: {folder}."


def _foreign_tars(folder: _Folder) -> list[Shard]:
    """Tars without statistics, which others wrote; those without a sample are left out."""
    tars = [folder.shard(name, "tar") for name in _ending(folder, ".tar")]
    if not tars:
        return []
    lines = has_caption_lines(folder.fs, folder.root, folder.files)
    counted = _counted(tars, folder.counts(tars, _read_for_index))
    return [replace(shard, caption_lines=lines) for shard in counted]


def _ending(folder: _Folder, suffix: str) -> list[str]:
    return [name for name in sorted(folder.files) if name.endswith(suffix)]


def _read_for_index(tars: list[Shard]) -> Iterator[Known]:
    keys = {tar.path: tar.key for tar in tars}
    for path, found in find_indexes([(tar.path, tar.size) for tar in tars]):
        if isinstance(found, str):
            raise InputError(
                f"{path}: cannot be read as a tar ({found}). Make it readable, or move it elsewhere."
            )
        yield Known(keys[path], found.samples, found.places)


def _foreign_parquets(folder: _Folder) -> list[Shard]:
    """Parquet files without statistics, if any of them has images; those without a row are left out."""
    splits = sorted({split[1] for split in map(_SPLIT_FILE.fullmatch, folder.files) if split})
    if len(splits) > 1:
        raise InputError(
            f"{folder.address}: holds the splits {', '.join(splits)}. Give the files of one: "
            f"'{folder.address.rstrip('/')}/{'train' if 'train' in splits else splits[0]}-*'."
        )
    names = [name for name in _ending(folder, ".parquet") if name not in METADATA_FILES]
    files = [folder.shard(name, "parquet") for name in names]

    def learn(shards: list[Shard]) -> Iterator[Known]:
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = pool.map(_counted_rows, [shard.path for shard in shards])
            yield from (Known(shard.key, count) for shard, count in zip(shards, counts, strict=True))

    counts = folder.counts(files, learn)
    if all(count is None for count in counts):
        return []  # lists or labels beside images
    if None in counts:
        raise InputError(
            f"{files[counts.index(None)].path}: no column of images, or several and none named image, but "
            "other parquet files beside it have one. Move it elsewhere."
        )
    return _counted(files, counts)


def _counted_rows(path: str) -> int | None:
    try:
        return count_rows(path)
    except Exception as error:  # of the store, or of pyarrow
        raise InputError(
            f"{path}: cannot be read as parquet ({in_words(error)}). Bring it back, or move it elsewhere."
        ) from error


def _image_folders(fs: Any, root: str, *, as_classes: bool = False) -> tuple[dict[str, Listing], list[str]]:
    """Listings of the class folders and the files beside them; or of `root` itself, and no files beside.

    Args:
        as_classes: whether folders are classes even if images lie beside them.
    """
    folders, files = class_folders(fs, root)
    if not _are_classes(root, folders, files, as_classes=as_classes):
        return {root: list_folder(fs, root)}, []
    return {folder: list_folder(fs, folder) for folder in folders}, files


def _are_classes(root: str, folders: Sequence[str], files: Sequence[str], *, as_classes: bool) -> bool:
    """Whether each of the folders is a class, or `root` with all in it is one folder of images.

    Raises:
        InputError: they are splits.
    """
    is_described = any(posixpath.basename(path) in METADATA_FILES for path in files)
    if is_described or not folders or (not as_classes and any(map(_is_image, files))):
        return False
    splits = {posixpath.basename(path): path for path in folders if posixpath.basename(path) in SPLITS}
    if "train" in splits and len(splits) > 1:
        raise InputError(
            f"{root}: holds the splits {', '.join(splits)}. Give the folder of one: {splits['train']}."
        )
    return True


def _folder_shards(fs: Any, root: str, listings: Mapping[str, Listing], beside: Sequence[str]) -> list[Shard]:
    """A shard for each folder that is not empty, and one for the files beside the folders."""
    shards = [
        Shard(
            fs.unstrip_protocol(folder),
            len(listing),
            "images" if folder == root else "folder",
            version=listing.version,
        )
        for folder, listing in listings.items()
        if len(listing)
    ]
    return [*shards, Shard(fs.unstrip_protocol(root), len(beside), "loose")] if beside else shards


def _torchvision_shards(address: str, *, allow_missing: bool) -> list[Shard]:
    named = parse_address(address)
    samples = count_rows_of_set(named)
    return [
        Shard(
            named.address,
            min(ROWS_PER_SHARD, samples - first),
            "torchvision",
            may_be_missing=allow_missing,
            version=str(samples),
            first_row=first,
        )
        for first in range(0, samples, ROWS_PER_SHARD)
    ]


def split_address(address: str, split: str) -> str:
    """The address of a split, where an address is that of a folder with splits of tars; else the address.

    Args:
        split: its name; if there is only one, that is taken, whatever its name.

    Raises:
        InputError: there is no such folder, or none of its several splits has this name.
    """
    if is_torchvision(address):
        return address
    fs, root, pattern = _open_folder(address, _LABELLED_ADVICE)
    found = find_split(fs, root, split) if pattern == _ANY_NAME else None
    return address if found is None else posixpath.join(address, found)


def list_contents(address: str) -> tuple[list[str], list[str]]:
    """Addresses of the folders in a data set's folder, and of the files that its pattern fits; none hidden.

    Raises:
        InputError: there is no such folder.
    """
    fs, root, pattern = _open_folder(address, _LABELLED_ADVICE)
    folders, files = class_folders(fs, root)
    fitting = [path for path in files if fnmatchcase(posixpath.basename(path), pattern)]
    return [*map(fs.unstrip_protocol, folders)], [*map(fs.unstrip_protocol, fitting)]


def list_labelled(address: str, *, allow_missing: bool = False) -> list[Shard]:
    """Shards of a labelled data set: those of `list_shards`, but images need class folders or fields.

    Of a folder with splits of tars (see benchmark_folder), these are the shards of its `test`.

    Args:
        allow_missing: see `list_shards`.

    Raises:
        InputError: it is no such data set; see `list_shards`.
    """
    if is_torchvision(address):
        return _torchvision_shards(address, allow_missing=allow_missing)
    split = split_address(address, "test")
    if split != address:
        return list_shards(split, allow_missing=allow_missing)
    fs, root, pattern = _open_folder(address, _LABELLED_ADVICE)
    _, files = class_folders(fs, root)
    if pattern != _ANY_NAME or _hold_shards(files):
        return list_shards(address, allow_missing=allow_missing)
    listings, beside = _image_folders(fs, root, as_classes=True)
    names_of_images = (name for listing in listings.values() for name in listing.names())
    usable = any(not name.endswith(".parquet") for name in names_of_images)
    if not usable or (root in listings and not listings[root].has_fields):
        raise InputError(
            f"{address}: neither finished shards nor class folders with images in it, and no image that has "
            f"fields. Label by folders, by {METADATA_FILES[0]} or by a JSON beside each. {_advice(fs, root)}"
        )
    return [
        replace(shard, may_be_missing=allow_missing) for shard in _folder_shards(fs, root, listings, beside)
    ]


def _hold_shards(files: Sequence[str]) -> bool:
    names = {posixpath.basename(path) for path in files} - {*METADATA_FILES}
    return any(name.endswith((STATS_SUFFIX, ".tar", ".parquet")) for name in names)


def class_folder_names(address: str) -> list[str]:
    """Names of the class folders of a labelled data set, sorted: the labels of the images in them.

    They are those that `list_labelled` finds, but none is looked into, so that a large data set takes no
    longer than a small one.

    Raises:
        InputError: there is no such folder, it holds splits, or no class folders.
    """
    fs, root, pattern = _open_folder(address, _LABELLED_ADVICE)
    folders, files = class_folders(fs, root)
    is_other = pattern != _ANY_NAME or _hold_shards(files)
    if is_other or not _are_classes(root, folders, files, as_classes=True):
        raise InputError(
            f"{address}: no class folders in it. Give a folder with a folder of images for each class."
        )
    return [Shard(fs.unstrip_protocol(folder), 0, "folder").name for folder in folders]


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
            raise InputError(f"{where} a text in {name}. {_field_advice(first, name)}, or leave it out.")
    if all_lack(columns):
        raise InputError(f"{where} a caption. {_CAPTION_ADVICE.get(first.format, _INGEST_ADVICE)}")


def _field_advice(shard: Shard, name: str) -> str:
    if shard.format in ("folder", "images"):
        return f"Add it to {METADATA_FILES[0]} or to a JSON beside each image"
    return f"Ingest with --keep-columns {name}"


def _open_folder(address: str, advice: str) -> tuple[Any, str, str]:
    """Return the file system, the folder, and the pattern of names in it that the address ends with."""
    with reachable(address, advice):
        fs, root = fsspec.core.url_to_fs(str(address))
        # Others may have written to it since this process last looked.
        fs.invalidate_cache()
        is_folder, pattern = fs.isdir(root), _ANY_NAME
        if not is_folder and _ANY_NAME in posixpath.basename(root):
            root, pattern = posixpath.split(root)
            is_folder = fs.isdir(root)
    if not is_folder:
        raise InputError(f"{address}: no such folder. {advice}")
    return fs, root, pattern


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
