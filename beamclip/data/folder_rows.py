"""Read samples from a folder of images, as rows of the schema of all shards."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import fsspec
import numpy as np

from beamclip.data.captions import CAPTION_CHARACTERS, caption_of, clean_text, texts_of
from beamclip.data.class_folders import read_entry
from beamclip.data.image_folder import FolderRow, kept_listing
from beamclip.data.sample_rows import MOST_FIELDS_BYTES, Columns, Pending, Row, json_fields, label_of
from beamclip.data.shard_file import Rows


def read_folder(
    address: str, version: str, columns: Columns, rows: Rows, class_name: str | None
) -> Iterator[Pending]:
    """Yield the samples of a folder of images with these row numbers.

    The caption is the text beside the image, else one of captions.CAPTION_FIELDS. Fields are those of the
    JSON beside it, and those of the metadata, which come first. The label is the field of that name, else
    the class.

    Args:
        version: of the listing by which the rows were counted.
        class_name: of a class folder, with which keys begin; None where the folders in it are the classes.

    Raises:
        InputError: the metadata file cannot be read.
    """
    fs, folder = fsspec.core.url_to_fs(address)
    listing = kept_listing(address, version)
    asked = np.asarray(rows)
    # Files that are gone since they were counted are counted as lost.
    for number in asked[asked < len(listing)].tolist():
        row = listing.row(number)
        key = f"{class_name}/{row.key}" if class_name else row.key
        yield key, partial(_row, fs, folder.rstrip("/"), row, key, columns, class_name)


def _row(fs: Any, folder: str, row: FolderRow, key: str, columns: Columns, class_name: str | None) -> Row:
    if row.problem:
        return {"key": key, "problem": row.problem}
    image, problem = read_entry(fs, f"{folder}/{row.name}")
    if problem:
        return {"key": key, "problem": problem}
    asks_text = columns.caption or columns.everything
    text = _read(fs, folder, row, row.txt, 4 * CAPTION_CHARACTERS) if asks_text else None
    fields, detail = dict[str, Any](), None
    if columns.more_texts or columns.label or columns.everything or (asks_text and not text):
        fields, detail = json_fields(_read(fs, folder, row, row.json, MOST_FIELDS_BYTES + 1))
        described, problem_of_metadata = json_fields(row.fields)
        fields, detail = fields | described, detail or problem_of_metadata
    caption = (clean_text(text) if text else None) or caption_of(fields)
    texts = texts_of([caption if asks_text else None, *(fields.get(name) for name in columns.more_texts)])
    label = label_of(fields, columns)
    return {
        "key": key,
        "image": image,
        "caption": next(iter(texts_of([caption])), None) if asks_text else None,
        "texts": texts,
        "label": (class_name or _top_folder(row)) if label is None and columns.label else label,
        "fields": json.dumps(fields) if columns.everything else None,
        "detail": detail,
    }


def _top_folder(row: FolderRow) -> str | None:
    top, slash, _ = row.name.partition("/")
    return top if slash else None


def _read(fs: Any, folder: str, row: FolderRow, suffix: str | None, most: int) -> bytes | None:
    """The first bytes of the file beside the image with this suffix; None if there is none."""
    if suffix is None:
        return None
    try:
        content: bytes = fs.cat_file(f"{folder}/{row.beside(suffix)}", end=most)
    except (FileNotFoundError, PermissionError, IsADirectoryError):  # gone since it was listed
        return None
    return content
