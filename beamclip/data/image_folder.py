"""What a folder of images holds, row by row: its images, the texts beside them, and what is neither.

Every file below the folder is a row, with two exceptions: the metadata file, and `x.txt` and `x.json` beside
an image `x.jpg`, which are its caption and its fields. For example

    cat/1.jpg  cat/1.txt  cat/2.jpg  cat/notes.txt  metadata.csv with file_name cat/1.jpg and cat/3.jpg

are four rows: cat/1.jpg, whole; cat/2.jpg, which the metadata do not list; cat/3.jpg, which is missing; and
cat/notes.txt, which has no image beside it. Without the metadata file, cat/2.jpg is whole as well.

Rows are sorted by path. A process that reads some of them keeps the whole listing, so that reading a row
costs no listing; `Listing.version` tells listings of the same folder apart.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from beamclip.data.class_folders import folder_entries
from beamclip.data.known_shards import KNOWN_FILE
from beamclip.data.metadata import METADATA_FILES, Described, read_metadata
from beamclip.errors import InputError

NO_IMAGE_BESIDE = "text without an image beside it"
NOT_DESCRIBED = "file that the metadata do not list"
MISSING_FILE = "file of the metadata is missing"

SECOND_TEXT = "second text of one name"

_TEXTS = {".txt": "txt", ".json": "json"}


class FolderRow(NamedTuple):
    """One row of a folder."""

    name: str
    """Path below the folder."""
    problem: str | None = None
    """Why it will not be read; None for a file that may be an image."""
    txt: str | None = None
    """Suffix of the caption's file beside it, None if there is none; the spelling may be `.TXT`."""
    json: str | None = None
    """Suffix of the JSON file beside it, None if there is none; the spelling may be `.JSON`."""
    fields: bytes | None = None
    """JSON of its row of the metadata."""
    repeat: int = 0
    """How many rows of the metadata before this one describe the same file."""

    @property
    def key(self) -> str:
        """The name; another caption of the same file has its number behind it."""
        return f"{self.name}#{self.repeat + 1}" if self.repeat else self.name

    def beside(self, suffix: str) -> str:
        """Path below the folder of the file with the same stem and this suffix."""
        return posixpath.splitext(self.name)[0] + suffix


@dataclass(frozen=True, eq=False)
class Listing:
    """The rows of a folder, in little memory: some 50 bytes a row and what the metadata say of it."""

    table: pa.Table
    """A column for each field of FolderRow; names as bytes, since those of files need not be UTF-8."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def row(self, number: int) -> FolderRow:
        """Return one row."""
        name, *others = (column[number].as_py() for column in self.table.columns)
        return FolderRow(os.fsdecode(name), *others)

    def names(self) -> Iterator[str]:
        """Path below the folder, of the rows that may be images."""
        usable = self.table.filter(pc.is_null(self.table["problem"]))
        return (os.fsdecode(name.as_py()) for name in usable["name"])

    @property
    def has_fields(self) -> bool:
        """Whether any row has fields, from which a label could be taken."""
        return any(self.table[name].null_count < len(self) for name in ("json", "fields"))

    @cached_property
    def version(self) -> str:
        """Changes with the rows."""
        digest = hashlib.sha256()
        for batch in self.table.to_batches(max_chunksize=65536):
            digest.update(repr(batch.to_pydict()).encode())
        return digest.hexdigest()[:16]


_SCHEMA = pa.schema(
    [
        ("name", pa.binary()),
        ("problem", pa.string()),
        ("txt", pa.string()),
        ("json", pa.string()),
        ("fields", pa.large_binary()),
        ("repeat", pa.int32()),
    ]
)


class _OtherVersionError(Exception):
    def __init__(self, listing: Listing) -> None:
        super().__init__("the folder has changed since its rows were counted")
        self.listing = listing


def kept_listing(address: str, version: str) -> Listing:
    """Return the listing of a folder, made when this process first asks for this version of it.

    A folder that has changed is listed each time: what is missing in it may be back a moment later.

    Args:
        version: of the listing by which the rows were counted.
    """
    try:
        return _kept(address, version)
    except _OtherVersionError as changed:
        return changed.listing


@lru_cache(maxsize=1024)
def _kept(address: str, version: str) -> Listing:
    listing = list_folder(*fsspec.core.url_to_fs(address))
    if listing.version != version:
        raise _OtherVersionError(listing)
    return listing


def list_folder(fs: Any, folder: str) -> Listing:
    """List everything below a folder.

    Raises:
        InputError: its metadata file cannot be read, or there are several.
    """
    top = len(folder.rstrip("/"))
    found = {path[top:].lstrip("/") or ".": problem for path, problem in folder_entries(fs, folder)}
    found.pop(KNOWN_FILE, None)
    metadata = [name for name in METADATA_FILES if name in found and found[name] is None]
    if len(metadata) > 1:
        raise InputError(f"{folder}: holds {' and '.join(metadata)}. Leave one of them.")
    for name in metadata:
        del found[name]
    rows = _rows_of_files(found)
    if metadata:
        rows = _described(rows, read_metadata(fs, posixpath.join(folder, metadata[0])))
    columns = zip(*[(os.fsencode(row.name), *row[1:]) for row in sorted(rows, key=_place)], strict=True)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=False)]
    return Listing(pa.table(arrays, _SCHEMA) if arrays else _SCHEMA.empty_table())


def _place(row: FolderRow) -> tuple[str, int]:
    return row.name, row.repeat


def _rows_of_files(found: Mapping[str, str | None]) -> list[FolderRow]:
    """Images with the suffixes of the texts beside them, texts without an image, and what has a problem."""
    texts: dict[str, dict[str, str]] = {}
    images, rows = list[tuple[str, str]](), list[FolderRow]()
    for name, problem in found.items():
        stem, suffix = posixpath.splitext(name)
        if problem is not None:
            rows.append(FolderRow(name, problem))
        elif suffix.lower() in _TEXTS:
            # A name may be spelled x.txt and x.TXT in one folder.
            if texts.setdefault(stem, {}).setdefault(_TEXTS[suffix.lower()], suffix) != suffix:
                rows.append(FolderRow(name, SECOND_TEXT))
        else:
            images.append((name, stem))
    beside = ((name, texts.get(stem, {})) for name, stem in images)
    rows += [FolderRow(name, None, suffixes.get("txt"), suffixes.get("json")) for name, suffixes in beside]
    taken = {stem for _, stem in images}
    alone = ((stem, suffixes.values()) for stem, suffixes in texts.items() if stem not in taken)
    return rows + [FolderRow(stem + suffix, NO_IMAGE_BESIDE) for stem, found in alone for suffix in found]


def _described(rows: list[FolderRow], metadata: list[Described]) -> list[FolderRow]:
    """Give each file its rows of the metadata."""
    by_name: dict[str, list[bytes]] = {}
    for name, fields in metadata:
        by_name.setdefault(name, []).append(fields)
    described = list[FolderRow]()
    for row in rows:
        of_row = by_name.pop(row.name, None)
        if of_row is None:
            described.append(row if row.problem else row._replace(problem=NOT_DESCRIBED))
        else:
            described += [row._replace(fields=each, repeat=number) for number, each in enumerate(of_row)]
    return described + [
        FolderRow(name, MISSING_FILE, fields=each, repeat=number)
        for name, of_name in by_name.items()
        for number, each in enumerate(of_name)
    ]
