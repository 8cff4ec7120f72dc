"""Copy a run's folder beside checkpoints that are stored elsewhere, and bring it back.

The folder of a run is lost with the machine that the command ran on. While it trains, its options, its
metrics and the id of its MLflow run are copied to where its checkpoints are; at the end all of the folder is.
"""

import contextlib
import logging
import os
import posixpath
import shutil
from pathlib import Path
from uuid import uuid4

import fsspec

from beamclip.addresses import reachable, without_secrets
from beamclip.errors import FailedRunError, InputError
from beamclip.places import one_line
from beamclip.runs.folder import CHECKPOINTS, CONFIG_FILE, HISTORY_FILE, make_run_dir
from beamclip.storage import COPY, in_storage
from beamclip.tracking import TRACKING_FILE

log = logging.getLogger(__name__)

ADVICE = "Give the --out folder of a run, or the address that its --checkpoints were written to."
COPIED = (CONFIG_FILE, TRACKING_FILE, HISTORY_FILE)


def back_up(checkpoints: str, run_dir: Path) -> None:
    """Copy the files that exist, unless the checkpoints are in the run's folder; a failure is only logged."""
    if checkpoints == str((run_dir / CHECKPOINTS).resolve()):
        return
    try:
        fs, root = fsspec.core.url_to_fs(checkpoints)
        fs.makedirs(posixpath.join(root, COPY), exist_ok=True)
        for path in (run_dir / name for name in COPIED):
            if path.exists():
                fs.pipe_file(posixpath.join(root, COPY, path.name), path.read_bytes())
    except Exception as error:  # each store has errors of its own, and none of them may end the run
        log.warning("%s", without_secrets(f"{checkpoints}: no copy of the run's own files: {error}"))


def keep_whole(place: str, run_dir: Path) -> str | None:
    """Copy all that a command left in a run's folder, but checkpoints; return where to.

    None if there is nothing to copy, or the checkpoints are in the folder itself.

    Args:
        place: address of the run's checkpoints, as `folder.checkpoint_address` returns it.

    Raises:
        FailedRunError: something could not be copied.
    """
    here = run_dir.resolve()
    if not here.is_dir() or place in (str(here / CHECKPOINTS), str(here)):
        return None
    copy = posixpath.join(place, COPY)
    try:
        fs, root = fsspec.core.url_to_fs(copy)
        for path in sorted(here.rglob("*")):
            name = path.relative_to(here)
            if path.is_file() and name.parts[0] != CHECKPOINTS:
                target = posixpath.join(root, name.as_posix())
                fs.makedirs(posixpath.dirname(target), exist_ok=True)
                fs.put_file(str(path), target)
    except Exception as error:  # each store has errors of its own
        said = without_secrets(f"{copy}: not all of {run_dir} could be copied there: {one_line(error)}.")
        raise FailedRunError(f"{said} Copy it yourself, before its machine goes.") from error
    return copy


def bring_run(name: str) -> None:
    """Bring a run's folder from the storage of the cluster, if it is named by its path and is not here.

    Raises:
        InputError: the storage cannot be read.
    """
    place = in_storage(name)
    if not name or place == name or os.path.exists(name):
        return
    with reachable(place, ADVICE):
        fs, root = fsspec.core.url_to_fs(posixpath.join(place, COPY))
        if not fs.exists(root):
            return
        # As a whole or not at all: another job may look for it at the same time.
        draft = f"{name.rstrip('/')}.{uuid4().hex}.part"
        for path in fs.find(root):
            here = Path(draft, posixpath.relpath(path, root))
            here.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(path, str(here))
        with contextlib.suppress(OSError):
            os.rename(draft, name)
        shutil.rmtree(draft, ignore_errors=True)


def has_copy(checkpoints: str) -> bool:
    """Whether a local folder of checkpoints holds a copy of the files of a run."""
    return os.path.exists(os.path.join(checkpoints, COPY, CONFIG_FILE))


def restore_run(checkpoints: str, run_dir: Path) -> None:
    """Restore the files of a run into a folder, unless they are there already.

    Raises:
        InputError: there is no copy, it cannot be read, or the folder holds another run.
    """
    with reachable(f"--resume {checkpoints}", ADVICE):
        fs, root = fsspec.core.url_to_fs(checkpoints)
        found = {path.rpartition("/")[2]: path for path in fs.ls(posixpath.join(root, COPY), detail=False)}
        contents = {name: fs.cat_file(found[name]) for name in COPIED if name in found}
    if CONFIG_FILE not in contents:
        raise InputError(f"--resume {checkpoints}: no run there. {ADVICE}")
    config = run_dir / CONFIG_FILE
    if config.exists():
        if config.read_bytes() == contents[CONFIG_FILE]:
            return
        raise InputError(
            f"--out {run_dir}: holds another run. Resume it with --resume {run_dir}, or give another --out."
        )
    make_run_dir(run_dir)
    for name, content in contents.items():
        (run_dir / name).write_bytes(content)
