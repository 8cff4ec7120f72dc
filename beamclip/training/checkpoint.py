"""Checkpoints of a run below any fsspec address: how they are written, found, read, and cleared away.

Each is a folder `step=00000400/` with the state and a manifest. The manifest is written last and removed
first, so a folder without one is a checkpoint that was not finished. It also holds the size and the hash
of the state, so that damage is found before training goes on from it.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any
from uuid import uuid4

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from beamclip.errors import InputError
from beamclip.places import PathOrAddress

log = logging.getLogger(__name__)

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
_MARK = ".checkpoints"

State = dict[str, Any]
"""Tensors and plain values: numbers, strings, bytes, None; lists, tuples and dictionaries of them."""

_FORMAT = 1
_CHUNK = 1 << 23
_MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "loss": (float, int, NoneType),
    "world_size": (int,),
    "data": (str,),
    "files": (dict,),
}
_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "disk quota exceeded"}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
# What a broken disk or folder answers; on any other store the same may be an outage.
_BROKEN = {errno.EIO, errno.EISDIR, errno.ENOTDIR}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, for a reason that a restart would only meet again; one line."""


class DamagedCheckpointError(OSError):
    """A checkpoint that is not what was written, or was not finished."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run is saved, and what of it stays."""

    keep_checkpoints: int = 2
    """The newest checkpoints to keep; the one of the lowest loss is kept besides."""
    checkpoints: PathOrAddress = None
    """Folder or any fsspec address of the checkpoints; by default checkpoints/ in the run's folder. Workers
    on several nodes need one that all of them reach."""

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1:
            raise InputError(f"keep_checkpoints is {self.keep_checkpoints}: give 1 or more.")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and of which run and data."""

    step: int
    loss: float | None
    """Of the last record before it; None where that was not finite, or there was none."""
    world_size: int
    data: str
    """Fingerprint of the data."""
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from."""

    manifest: Manifest | None
    """Of the newest whole checkpoint; None where there is none."""
    damaged: tuple[str, ...]
    """One line for each newer one that was passed over, and why."""


def check_writable(address: str) -> None:
    """Make the folder, and write and remove a small file in it.

    Raises:
        InputError: the store is unknown, its package is missing, or nothing can be written there.
    """
    fs, root = _open_store(address)
    probe = posixpath.join(root, f".probe-{uuid4().hex}")
    try:
        fs.makedirs(root, exist_ok=True)
        with fs.open(probe, "wb") as file:
            file.write(b"probe")
        fs.rm_file(probe)
    except Exception as error:  # each store has errors of its own; to the user all are one
        with contextlib.suppress(Exception):
            fs.rm_file(probe)
        raise InputError(
            f"{address}: no checkpoint can be written there: {cause_of(error)}. "
            "Make it writable, or give another folder with --checkpoints."
        ) from error


def mark(address: str) -> str:
    """Leave a sign by which workers on other nodes know that they see the same folder.

    Raises:
        InputError: as `check_writable`.
    """
    check_writable(address)
    fs, root = _open_store(address)
    sign = uuid4().hex
    fs.pipe_file(posixpath.join(root, _MARK), sign.encode())
    return sign


def is_marked(address: str, sign: str) -> bool:
    """Whether what lies at this address, as seen from here, bears the sign that `mark` gave."""
    fs, root = _open_store(address)
    try:
        return bool(fs.cat_file(posixpath.join(root, _MARK)) == sign.encode())
    except FileNotFoundError:
        return False


def has_checkpoints(address: str) -> bool:
    """Whether a finished checkpoint lies there, damaged or not."""
    fs, root = _open_store(address)
    return any(fs.exists(posixpath.join(folder, MANIFEST_FILE)) for _, folder in _folders(fs, root))


def set_aside(address: str, *, after: int) -> None:
    """Make unfinished ones of all checkpoints of later steps; what they hold stays until it is replaced."""
    fs, root = _open_store(address)
    for step, folder in _folders(fs, root):
        if step > after:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(posixpath.join(folder, MANIFEST_FILE))


def write_checkpoint(
    address: str, state: State, *, loss: float | None, world_size: int, data: str
) -> Manifest:
    """Write the checkpoint of step `state["step"]`, in place of what is there for that step already.

    Args:
        address: folder of all checkpoints.
        state: see State.
        loss: of the last record; one that is not finite is left out.
        world_size, data: number of workers, and fingerprint of the data, of the run.

    Raises:
        CheckpointError: no space, or no permission to write; what was begun is removed as far as possible.
        OSError: another failure, such as an outage, for which a store's package may have errors of its own;
            what was begun stays, without a manifest.
    """
    fs, root = _open_store(address)
    folder = posixpath.join(root, _folder_name(state["step"]))
    try:
        _remove(fs, folder)
        fs.makedirs(folder, exist_ok=True)
        record = _write_state(fs, posixpath.join(folder, STATE_FILE), state)
        finite = None if loss is None or not math.isfinite(loss) else float(loss)
        manifest = Manifest(state["step"], finite, world_size, data, {STATE_FILE: record})
        _write_manifest(fs, folder, manifest)
    except OSError as error:
        if not _lasts(error):
            raise
        with contextlib.suppress(Exception):
            _remove(fs, folder)
        raise CheckpointError(_failure(address, state, error)) from error
    return manifest


def find_checkpoint(address: str) -> Found:
    """The newest checkpoint that is as it was written: its manifest fits, and so do all sizes and hashes.

    Hashes are there to find damage. They are no seal: who rewrites a file can rewrite its manifest as well,
    which is why nothing but tensors and plain values is ever read from a checkpoint.

    Returns:
        No manifest and no lines for a folder that is missing or empty.

    Raises:
        OSError: the store cannot be reached or read, which says nothing about the checkpoints in it; its
            package may have errors of its own for that.
    """
    fs, root = _open_store(address)
    damaged: list[str] = []
    for step, folder in _folders(fs, root):
        try:
            manifest = _read_manifest(fs, folder, step)
            for name, record in manifest.files.items():
                _check_file(fs, posixpath.join(folder, name), record)
        except OSError as error:
            if not _is_damage(fs, error):
                raise
            damaged.append(f"{_folder_name(step)}: {cause_of(error)}")
        else:
            return Found(manifest, tuple(damaged))
    return Found(None, tuple(damaged))


def read_checkpoint(address: str, step: int) -> State:
    """The state of one checkpoint, on the CPU. Nothing but tensors and plain values is ever unpickled.

    Raises:
        DamagedCheckpointError: it is not what was written.
        pickle.UnpicklingError: it is, and holds something else than tensors and plain values.
    """
    fs, root = _open_store(address)
    folder = posixpath.join(root, _folder_name(step))
    try:
        record = _read_manifest(fs, folder, step).files[STATE_FILE]
        source = _checked_state(fs, posixpath.join(folder, STATE_FILE), record)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{address}: {_folder_name(step)}: {error}") from error
    state: State = torch.load(source, map_location="cpu", weights_only=True)
    return state


def _checked_state(fs: Any, path: str, record: FileRecord) -> str | io.BytesIO:
    """What torch loads a state from: of a store its content, which is read once; here the file."""
    if isinstance(fs, LocalFileSystem):
        # Beside the tensors, its content would take as much memory again.
        _check_file(fs, path, record)
        return path
    content = _read_file(fs, path)
    _compare(STATE_FILE, record, FileRecord(len(content), hashlib.sha256(content).hexdigest()))
    return io.BytesIO(content)


def prune(address: str, keep: int, *, written: int | None = None) -> list[int]:
    """Remove old checkpoints, and unfinished ones before the newest finished one; nothing else is touched.

    What goes wrong on the way is logged, and left for the next time.

    Args:
        keep: number of the newest finished checkpoints that stay, and the one of the lowest loss besides.
        written: step of the checkpoint just written; by default the newest there is. Later steps are left
            alone: training went back behind them since they are damaged, and they must not count for whole.

    Returns:
        The steps that were removed, newest first.
    """
    fs, root = _open_store(address)
    removed = []
    try:
        folders = {step: folder for step, folder in _folders(fs, root) if written is None or step <= written}
        for step in _superfluous(_losses(fs, folders), keep):
            _remove(fs, folders[step])
            removed.append(step)
    except Exception as error:  # each store has errors of its own, and none of them is worth a run
        log.warning("%s: old checkpoints stay for now: %s", address, cause_of(error))
    return removed


class _HashedWriter:
    """Writes through to a stream and takes the hash on the way.

    It raises nothing while it is written to: what comes back through torch's writer is an error about
    positions in the archive. The first failure is kept instead, and nothing is written after it.
    """

    def __init__(self, stream: Any) -> None:
        self.error: Exception | None = None
        self._stream = stream
        self._bytes = 0
        self._hash = hashlib.sha256()

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                self._stream.write(data)
                self._hash.update(data)
                self._bytes += len(data)
            except Exception as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """torch asks for it; the stream is flushed by who opened it."""

    def record(self) -> FileRecord:
        return FileRecord(self._bytes, self._hash.hexdigest())


def _write_state(fs: Any, path: str, state: State) -> FileRecord:
    with fs.open(path, "wb") as file:
        writer = _HashedWriter(file)
        torch.save(state, writer)  # type: ignore[arg-type]  # it calls write and flush only
        if writer.error is not None:
            raise writer.error
        if isinstance(fs, LocalFileSystem):
            _sync(file)
    return writer.record()


def _write_manifest(fs: Any, folder: str, manifest: Manifest) -> None:
    text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1, allow_nan=False).encode()
    path = posixpath.join(folder, MANIFEST_FILE)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, text)
        return
    with open(f"{path}.new", "wb") as file:
        file.write(text)
        _sync(file)
    os.replace(f"{path}.new", path)
    _sync_folder(folder)
    _sync_folder(posixpath.dirname(folder))


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    """Names need it as contents do: older checkpoints are removed once this one is there for good."""
    # Not every filesystem can do this for a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lasts(error: OSError) -> bool:
    # Object stores raise PermissionError without a number.
    return error.errno in _FULL or error.errno in _REFUSED or isinstance(error, PermissionError)


def _failure(address: str, state: State, error: OSError) -> str:
    if error.errno in _FULL:
        size = sum(tensor.nbytes for tensor in _tensors(state)) / 1e6
        what = f"{_FULL[error.errno]} at {address} (state of {size:,.1f} MB)"
        advice = "free space"
    else:
        what, advice = f"{address} cannot be written to: {cause_of(error)}", "make it writable"
    whole = None
    with contextlib.suppress(Exception):
        whole = find_checkpoint(address).manifest
    if whole is None:
        rest = f"There is no whole checkpoint before it: {advice} and start again."
    else:
        rest = f"The checkpoint of step {whole.step} is whole: {advice} and go on with --resume."
    return f"checkpoint of step {state['step']}: {what}. {rest}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _read_manifest(fs: Any, folder: str, step: int) -> Manifest:
    try:
        return _parse_manifest(fs.cat_file(posixpath.join(folder, MANIFEST_FILE)), step)
    except FileNotFoundError as error:
        raise DamagedCheckpointError("no manifest, it was not finished") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{MANIFEST_FILE} cannot be read ({error})") from error


def _parse_manifest(text: bytes, step: int) -> Manifest:
    """Raises ValueError with what is wrong."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it holds no JSON object")
    if fields.get("format") != _FORMAT:
        raise ValueError(f"its format is {fields.get('format')!r}, only {_FORMAT} is known")
    for name, types in _MANIFEST_TYPES.items():
        if type(fields.get(name)) not in types:
            raise ValueError(f"its {name} is {fields.get(name)!r}")
    if fields["step"] != step:
        raise ValueError(f"it is of step {fields['step']}")
    if STATE_FILE not in fields["files"]:
        raise ValueError(f"it does not name {STATE_FILE}")
    files = {name: _parse_record(name, record) for name, record in fields["files"].items()}
    loss = fields["loss"]
    return Manifest(step, None if loss is None else float(loss), fields["world_size"], fields["data"], files)


def _parse_record(name: str, fields: Any) -> FileRecord:
    types = {key: type(value) for key, value in fields.items()} if isinstance(fields, dict) else {}
    # The name becomes part of a path.
    if types != {"bytes": int, "sha256": str} or posixpath.basename(name) != name:
        raise ValueError(f"its record of {name} is {fields!r}")
    return FileRecord(**fields)


def _check_file(fs: Any, path: str, record: FileRecord) -> None:
    name = posixpath.basename(path)
    try:
        size = fs.info(path)["size"]
        # A file of another size need not be read at all.
        _compare(name, record, FileRecord(size, record.sha256))
        digest = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{name} is missing") from error
    _compare(name, record, FileRecord(size, digest.hexdigest()))


def _read_file(fs: Any, path: str) -> bytes:
    try:
        content: bytes = fs.cat_file(path)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{posixpath.basename(path)} is missing") from error
    return content


def _compare(name: str, expected: FileRecord, found: FileRecord) -> None:
    if found.bytes != expected.bytes:
        raise DamagedCheckpointError(f"{name} holds {found.bytes:,} of {expected.bytes:,} bytes")
    if found.sha256 != expected.sha256:
        raise DamagedCheckpointError(f"{name} is not what was written (sha256 differs)")


def _is_damage(fs: Any, error: OSError) -> bool:
    broken = isinstance(fs, LocalFileSystem) and error.errno in _BROKEN
    return broken or isinstance(error, DamagedCheckpointError)


def _losses(fs: Any, folders: dict[int, str]) -> dict[int, float | None]:
    """The loss of each step, infinite where the manifest tells none; None for a step without a manifest."""
    losses: dict[int, float | None] = {}
    for step, folder in folders.items():
        try:
            loss = _read_manifest(fs, folder, step).loss
            losses[step] = math.inf if loss is None or not math.isfinite(loss) else loss
        except DamagedCheckpointError:
            losses[step] = None
    return losses


def _superfluous(losses: dict[int, float | None], keep: int) -> list[int]:
    """Steps to remove, newest first."""
    finished = {step: loss for step, loss in losses.items() if loss is not None}
    if not finished:
        return []
    stay = set(sorted(finished)[-keep:])
    best = min(finished, key=lambda step: (finished[step], -step))
    return sorted({step for step in losses if step < max(finished)} - stay - {best}, reverse=True)


def _remove(fs: Any, folder: str) -> None:
    """The manifest first: what a removal leaves that is cut off was not finished, rather than false."""
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(posixpath.join(folder, MANIFEST_FILE))
    with contextlib.suppress(FileNotFoundError):
        fs.rm(folder, recursive=True)


def _open_store(address: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(str(address))
    except Exception as error:  # an unknown protocol, a missing package, no answer: to the user all are one
        raise InputError(
            f"{address}: cannot be opened: {cause_of(error)}. Give another folder with --checkpoints."
        ) from error
    # Others write there as well, and a listing may be remembered.
    fs.invalidate_cache()
    return fs, root


def _folder_name(step: int) -> str:
    return f"step={step:08d}"


def _folders(fs: Any, root: str) -> list[tuple[int, str]]:
    """Steps and folders of all checkpoints, newest first."""
    try:
        entries = fs.ls(root, detail=True)
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        path = entry["name"].rstrip("/")
        match = re.fullmatch("step=([0-9]{8,})", posixpath.basename(path))
        if match and entry["type"] == "directory" and _folder_name(int(match[1])) == match[0]:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def cause_of(error: BaseException) -> str:
    """What an error says, in one line without a full stop."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0].rstrip(".")
