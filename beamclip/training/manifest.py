"""The manifest of a checkpoint: step, loss and data of the run, and size and hash of every file.

A checkpoint with a manifest is finished; one whose files are as the manifest says is whole.
"""

import contextlib
import hashlib
import json
import os
import posixpath
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any

from fsspec.implementations.local import LocalFileSystem

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"

_FORMAT = 1
_CHUNK = 1 << 23
_MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "loss": (float, int, NoneType),
    "world_size": (int,),
    "data": (str,),
    "files": (dict,),
    "score": (float, int, NoneType),
}


class DamagedCheckpointError(OSError):
    """A checkpoint is not as it was written, or was not finished."""


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of one file of a checkpoint, as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Describes a checkpoint: its step and loss, the run's workers and data, and its files."""

    step: int
    loss: float | None
    """Loss of the last record before the checkpoint; None if it was not finite or there was none."""
    world_size: int
    data: str
    """Fingerprint of the data."""
    files: dict[str, FileRecord]
    score: float | None = None
    """Zero-shot top-1 of these weights in validation, 0..1; None if they were not validated."""


def write_manifest(fs: Any, folder: str, manifest: Manifest) -> None:
    """Write a checkpoint's manifest, whole or not at all; this finishes the checkpoint."""
    text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1, allow_nan=False).encode()
    path = posixpath.join(folder, MANIFEST_FILE)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, text)
        return
    with open(f"{path}.new", "wb") as file:
        file.write(text)
        sync(file)
    os.replace(f"{path}.new", path)
    _sync_folder(folder)
    _sync_folder(posixpath.dirname(folder))


def sync(file: Any) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    """Flush a folder's entries to the disk, so that older checkpoints may be removed."""
    # Not every file system can sync a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_manifest(fs: Any, folder: str, step: int) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        DamagedCheckpointError: the manifest is missing, invalid, or for another step.
    """
    try:
        return _parse_manifest(fs.cat_file(posixpath.join(folder, MANIFEST_FILE)), step)
    except FileNotFoundError as error:
        raise DamagedCheckpointError("no manifest, it was not finished") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{MANIFEST_FILE} cannot be read ({error})") from error


def _parse_manifest(text: bytes, step: int) -> Manifest:
    """Parse a manifest; raise a ValueError that says what is wrong with it."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    if fields.get("format") != _FORMAT:
        raise ValueError(f"its format is {fields.get('format')!r}, only {_FORMAT} is known")
    for name, types in _MANIFEST_TYPES.items():
        if type(fields.get(name)) not in types:
            raise ValueError(f"its {name} is {fields.get(name)!r}")
    if fields["step"] != step:
        raise ValueError(f"it is for step {fields['step']}")
    if STATE_FILE not in fields["files"]:
        raise ValueError(f"it does not name {STATE_FILE}")
    files = {name: _parse_record(name, record) for name, record in fields["files"].items()}
    loss, score = (None if value is None else float(value) for value in (fields["loss"], fields.get("score")))
    return Manifest(step, loss, fields["world_size"], fields["data"], files, score)


def _parse_record(name: str, fields: Any) -> FileRecord:
    types = {key: type(value) for key, value in fields.items()} if isinstance(fields, dict) else {}
    # The name becomes part of a path.
    if types != {"bytes": int, "sha256": str} or posixpath.basename(name) != name:
        raise ValueError(f"its record of {name} is {fields!r}")
    return FileRecord(**fields)


def check_files(fs: Any, folder: str, manifest: Manifest) -> None:
    """Compare the size and the hash of every file of a checkpoint with its manifest.

    Raises:
        DamagedCheckpointError: a file is missing or differs.
    """
    for name, record in manifest.files.items():
        check_file(fs, posixpath.join(folder, name), record)


def check_sizes(fs: Any, folder: str, manifest: Manifest) -> None:
    """Compare the size of every file of a checkpoint with its manifest, without reading the file.

    Raises:
        DamagedCheckpointError: a file is missing or has another size.
    """
    for name, record in manifest.files.items():
        _check_size(fs, posixpath.join(folder, name), record)


def _check_size(fs: Any, path: str, record: FileRecord) -> None:
    name = posixpath.basename(path)
    try:
        size = fs.info(path)["size"]
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{name} is missing") from error
    compare(name, record, replace(record, bytes=size))


def check_file(fs: Any, path: str, record: FileRecord) -> None:
    """Compare the size and the hash of a file with its record.

    Raises:
        DamagedCheckpointError: the file is missing or differs.
    """
    # A file of another size need not be read at all.
    _check_size(fs, path, record)
    name = posixpath.basename(path)
    try:
        digest = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{name} is missing") from error
    compare(name, record, replace(record, sha256=digest.hexdigest()))


def compare(name: str, expected: FileRecord, found: FileRecord) -> None:
    """Raise DamagedCheckpointError, saying how the file differs, if it is not as it was written."""
    if found.bytes != expected.bytes:
        raise DamagedCheckpointError(f"{name} holds {found.bytes:,} of {expected.bytes:,} bytes")
    if found.sha256 != expected.sha256:
        raise DamagedCheckpointError(f"{name} is not what was written (sha256 differs)")
