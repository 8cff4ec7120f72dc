"""Write and read a run's state as a checkpoint: written whole or not at all, read without unpickling objects.

`training.checkpoint_store` finds and removes checkpoints.
"""

import contextlib
import errno
import hashlib
import io
import math
import posixpath
from collections.abc import Iterator
from typing import Any

import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from beamclip.training.checkpoint_store import (
    cause_of,
    find_checkpoint,
    folder_name,
    open_store,
    remove_checkpoint,
)
from beamclip.training.manifest import (
    STATE_FILE,
    DamagedCheckpointError,
    FileRecord,
    Manifest,
    check_file,
    compare,
    read_manifest,
    sync,
    write_manifest,
)

State = dict[str, Any]
"""Tensors and plain values: numbers, strings, bytes, None; lists, tuples and dictionaries of them."""

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "disk quota exceeded"}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or used, and a restart would not help; the message is one line."""


def write_checkpoint(
    address: str,
    state: State,
    *,
    loss: float | None,
    world_size: int,
    data: str,
    score: float | None = None,
) -> Manifest:
    """Write the checkpoint of step `state["step"]`, replacing any other of that step; return its manifest.

    Args:
        address: folder of all checkpoints.
        state: see State.
        loss: loss of the last record; stored as None if it is not finite.
        world_size, data: the run's number of workers, and the fingerprint of its data.
        score: zero-shot top-1 of these weights in validation, if they were validated.

    Raises:
        CheckpointError: no space, or no permission to write; the partial checkpoint is removed if possible.
        OSError: another failure, such as an outage; the partial checkpoint stays, without a manifest. A
            store's package may raise errors of its own instead.
    """
    fs, root = open_store(address)
    folder = posixpath.join(root, folder_name(state["step"]))
    try:
        remove_checkpoint(fs, folder)
        fs.makedirs(folder, exist_ok=True)
        record = _write_state(fs, posixpath.join(folder, STATE_FILE), state)
        finite = None if loss is None or not math.isfinite(loss) else float(loss)
        manifest = Manifest(state["step"], finite, world_size, data, {STATE_FILE: record}, score)
        write_manifest(fs, folder, manifest)
    except OSError as error:
        if not _lasts(error):
            raise
        with contextlib.suppress(Exception):
            remove_checkpoint(fs, folder)
        raise CheckpointError(_failure(address, state, error)) from error
    return manifest


def read_checkpoint(address: str, step: int) -> State:
    """Return the state of one checkpoint, on the CPU. Only tensors and plain values are ever unpickled.

    Raises:
        DamagedCheckpointError: the checkpoint is unfinished, or not as it was written.
        pickle.UnpicklingError: it is whole, but holds something other than tensors and plain values.
    """
    fs, root = open_store(address)
    folder = posixpath.join(root, folder_name(step))
    try:
        return _load(fs, folder, read_manifest(fs, folder, step))
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{address}: {folder_name(step)}: {error}") from error


def read_newest_checkpoint(address: str) -> tuple[State | None, tuple[str, ...]]:
    """Return the state of the newest whole checkpoint, hashed once.

    Returns:
        The state, on the CPU, or None if no checkpoint is whole; and one line for each newer checkpoint that
        was passed over, with the reason.

    Raises:
        OSError: the store cannot be reached or read, which says nothing about the checkpoints in it.
        pickle.UnpicklingError: a whole checkpoint holds something other than tensors and plain values.
    """
    states: list[State] = []

    def read(fs: Any, folder: str, manifest: Manifest) -> None:
        states.append(_load(fs, folder, manifest))

    found = find_checkpoint(address, read)
    return (states[0] if states else None), found.damaged


def _load(fs: Any, folder: str, manifest: Manifest) -> State:
    source = _checked_state(fs, posixpath.join(folder, STATE_FILE), manifest.files[STATE_FILE])
    state: State = torch.load(source, map_location="cpu", weights_only=True)
    return state


def _checked_state(fs: Any, path: str, record: FileRecord) -> str | io.BytesIO:
    """Check the state file and return what torch loads it from: a local path, or a store's content."""
    if isinstance(fs, LocalFileSystem):
        # Reading the file into memory would take as much memory again as the tensors.
        check_file(fs, path, record)
        return path
    content = _read_file(fs, path)
    compare(STATE_FILE, record, FileRecord(len(content), hashlib.sha256(content).hexdigest()))
    return io.BytesIO(content)


class _HashedWriter:
    """Writes to a stream and hashes what it writes.

    `write` never raises: torch's writer would turn the error into one about positions in the archive. The
    first error is kept in `error`, and nothing is written after it.
    """

    def __init__(self, stream: Any) -> None:
        self.error: Exception | None = None
        self._stream = stream
        self._bytes = 0
        self._hash = hashlib.sha256()

    def write(self, data: memoryview) -> int:
        """Write and hash `data`; return its length in bytes, whether or not it could be written."""
        if self.error is None:
            try:
                self._stream.write(data)
                self._hash.update(data)
                self._bytes += len(data)
            except Exception as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: torch calls this, but whoever opened the stream flushes it."""

    def record(self) -> FileRecord:
        """Return the size and hash of what was written."""
        return FileRecord(self._bytes, self._hash.hexdigest())


def _write_state(fs: Any, path: str, state: State) -> FileRecord:
    with fs.open(path, "wb") as file:
        writer = _HashedWriter(file)
        torch.save(state, writer)  # type: ignore[arg-type]  # it calls write and flush only
        if writer.error is not None:
            raise writer.error
        if isinstance(fs, LocalFileSystem):
            sync(file)
    return writer.record()


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


def _read_file(fs: Any, path: str) -> bytes:
    try:
        content: bytes = fs.cat_file(path)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{posixpath.basename(path)} is missing") from error
    return content
