"""Checkpoints below any fsspec address: which exist, which are whole, which to remove.

Each checkpoint is a folder such as `step=00000400/` with the state and a manifest. The manifest is written
last and removed first, so a folder without one is an unfinished checkpoint. It also holds the size and the
hash of the state, so that damage is found before training resumes from it. `training.checkpoint` reads and
writes the state; this module does not need torch.
"""

import contextlib
import errno
import logging
import math
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from beamclip.errors import InputError
from beamclip.training.manifest import (
    MANIFEST_FILE,
    DamagedCheckpointError,
    Manifest,
    check_files,
    read_manifest,
)

log = logging.getLogger(__name__)

_CLAIM = ".checkpoints"

# Errors that mean damage on a local disk; from any other store they may be an outage.
_BROKEN = {errno.EIO, errno.EISDIR, errno.ENOTDIR}


@dataclass(frozen=True)
class Found:
    """The checkpoint to resume from."""

    manifest: Manifest | None
    """Manifest of the newest whole checkpoint; None if there is none."""
    damaged: tuple[str, ...]
    """One line for each newer checkpoint that was passed over, with the reason."""


def check_writable(address: str) -> None:
    """Check that a folder can be written to: make it, then write and remove a small file in it.

    Raises:
        InputError: the store is unknown, its package is missing, or nothing can be written there.
    """
    fs, root = open_store(address)
    probe = posixpath.join(root, f".probe-{uuid4().hex}")
    try:
        fs.makedirs(root, exist_ok=True)
        with fs.open(probe, "wb") as file:
            file.write(b"probe")
        fs.rm_file(probe)
    except Exception as error:  # each store raises errors of its own; one message serves all
        with contextlib.suppress(Exception):
            fs.rm_file(probe)
        raise InputError(
            f"{address}: no checkpoint can be written there: {cause_of(error)}. "
            "Make it writable, or give another folder with --checkpoints."
        ) from error


def claim(address: str) -> str:
    """Claim the folder for one command, and return the token left there.

    A worker that does not find the token sees another folder, or another command has claimed this one.

    Raises:
        InputError: see `check_writable`.
    """
    check_writable(address)
    fs, root = open_store(address)
    token = uuid4().hex
    fs.pipe_file(posixpath.join(root, _CLAIM), token.encode())
    return token


def holds_claim(address: str, token: str) -> bool:
    """Return whether the folder at this address, as seen from here, holds the token of a `claim`."""
    fs, root = open_store(address)
    try:
        return bool(fs.cat_file(posixpath.join(root, _CLAIM)) == token.encode())
    except FileNotFoundError:
        return False


def has_checkpoints(address: str) -> bool:
    """Return whether the folder has a finished checkpoint, damaged or not."""
    fs, root = open_store(address)
    return any(fs.exists(posixpath.join(folder, MANIFEST_FILE)) for _, folder in checkpoint_folders(fs, root))


def discard_after(address: str, *, after: int) -> None:
    """Remove the manifests of all checkpoints after a step: they count as unfinished until replaced."""
    fs, root = open_store(address)
    for step, folder in checkpoint_folders(fs, root):
        if step > after:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(posixpath.join(folder, MANIFEST_FILE))


def find_checkpoint(address: str, check: Callable[[Any, str, Manifest], None] | None = None) -> Found:
    """Find the newest whole checkpoint, passing over damaged ones.

    Hashes find damage, not forgery: whoever can rewrite a file can rewrite its manifest as well. Therefore
    only tensors and plain values are ever read from a checkpoint.

    Args:
        check: called with the store, a checkpoint's folder and its manifest; a DamagedCheckpointError rules
            the checkpoint out. By default all sizes and hashes are compared: `check_files`.

    Returns:
        The checkpoint, and those passed over as damaged; neither if the folder is missing or empty.

    Raises:
        OSError: the store cannot be reached or read, which says nothing about the checkpoints in it; its
            package may raise errors of its own instead.
    """
    fs, root = open_store(address)
    damaged: list[str] = []
    for step, folder in checkpoint_folders(fs, root):
        try:
            manifest = read_manifest(fs, folder, step)
            (check or check_files)(fs, folder, manifest)
        except OSError as error:
            if not _is_damage(fs, error):
                raise
            damaged.append(f"{folder_name(step)}: {cause_of(error)}")
        else:
            return Found(manifest, tuple(damaged))
    return Found(None, tuple(damaged))


def no_whole_checkpoint(address: str, damaged: Sequence[str]) -> str:
    """Return the message for a run that cannot be resumed because no checkpoint is whole."""
    damage = f" {'; '.join(damaged)}." if damaged else ""
    return (
        f"no whole checkpoint in {address}.{damage} "
        "Start the run anew, without --resume and with another --out."
    )


def prune(address: str, keep: int, *, written: int | None = None) -> list[int]:
    """Remove old checkpoints, and unfinished ones before the newest finished one; nothing else is touched.

    Failures are logged, and the rest is left for the next call.

    Args:
        keep: number of newest finished checkpoints to keep; the best one is kept as well: that with the
            highest score or, where none has a score, that with the lowest loss.
        written: step of the checkpoint just written; by default the newest. Later ones are ignored: training
            restarted before them because they are damaged, so they must not count as whole.

    Returns:
        The removed steps, newest first.
    """
    fs, root = open_store(address)
    removed = []
    try:
        folders = {
            step: folder
            for step, folder in checkpoint_folders(fs, root)
            if written is None or step <= written
        }
        for step in _superfluous(_manifests(fs, folders), keep):
            remove_checkpoint(fs, folders[step])
            removed.append(step)
    except Exception as error:  # each store raises errors of its own; none may end the run
        log.warning("%s: old checkpoints are not removed yet: %s", address, cause_of(error))
    return removed


def _is_damage(fs: Any, error: OSError) -> bool:
    broken = isinstance(fs, LocalFileSystem) and error.errno in _BROKEN
    return broken or isinstance(error, DamagedCheckpointError)


def best_step(address: str) -> int | None:
    """Return the step of the finished checkpoint with the highest score; None if none has a score."""
    fs, root = open_store(address)
    manifests = _manifests(fs, dict(checkpoint_folders(fs, root)))
    scored = [manifest for manifest in manifests.values() if manifest and manifest.score is not None]
    return max(scored, key=_merit).step if scored else None


def _manifests(fs: Any, folders: dict[int, str]) -> dict[int, Manifest | None]:
    """Return each step's manifest; None if there is no valid one."""
    manifests: dict[int, Manifest | None] = {}
    for step, folder in folders.items():
        try:
            manifests[step] = read_manifest(fs, folder, step)
        except DamagedCheckpointError:
            manifests[step] = None
    return manifests


def _superfluous(manifests: dict[int, Manifest | None], keep: int) -> list[int]:
    """Return the steps to remove, newest first."""
    finished = {step: manifest for step, manifest in manifests.items() if manifest is not None}
    if not finished:
        return []
    stay = {*sorted(finished)[-keep:], max(finished.values(), key=_merit).step}
    return sorted({step for step in manifests if step < max(finished)} - stay, reverse=True)


def _merit(manifest: Manifest) -> tuple[float, float, int]:
    """What the best checkpoint has the most of: score, then little loss, then steps."""
    score = -math.inf if manifest.score is None else manifest.score
    loss = manifest.loss if manifest.loss is not None and math.isfinite(manifest.loss) else math.inf
    return (score, -loss if score == -math.inf else 0.0, manifest.step)


def remove_checkpoint(fs: Any, folder: str) -> None:
    """Remove a checkpoint, its manifest first, so that an interrupted removal leaves an unfinished one."""
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(posixpath.join(folder, MANIFEST_FILE))
    with contextlib.suppress(FileNotFoundError):
        fs.rm(folder, recursive=True)


def open_store(address: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of an address, and the path of the folder in it.

    Raises:
        InputError: the store is unknown, its package is missing, or it does not answer.
    """
    try:
        fs, root = fsspec.core.url_to_fs(str(address))
    except Exception as error:  # unknown protocol, missing package, no answer: one message serves all
        raise InputError(
            f"{address}: cannot be opened: {cause_of(error)}. Give another folder with --checkpoints."
        ) from error
    # Other processes write there too, and fsspec may have cached a listing.
    fs.invalidate_cache()
    return fs, root


def folder_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step={step:08d}"


def checkpoint_folders(fs: Any, root: str) -> list[tuple[int, str]]:
    """Return the step and folder of every checkpoint, finished or not, newest first."""
    try:
        entries = fs.ls(root, detail=True)
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        path = entry["name"].rstrip("/")
        match = re.fullmatch("step=([0-9]{8,})", posixpath.basename(path))
        if match and entry["type"] == "directory" and folder_name(int(match[1])) == match[0]:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def cause_of(error: BaseException) -> str:
    """Return the first line of an error's text, without its full stop."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0].rstrip(".")
