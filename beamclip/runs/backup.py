"""Copy a run's small files beside checkpoints that are stored elsewhere, and restore them.

The folder of a run is lost with the machine that the command ran on. Its options, its metrics and the id of
its MLflow run are then restored from where its checkpoints are.
"""

import logging
import os
import posixpath
from pathlib import Path

import fsspec

from beamclip.addresses import reachable, without_secrets
from beamclip.errors import InputError
from beamclip.runs.folder import CHECKPOINTS, CONFIG_FILE, HISTORY_FILE, TRACKING_FILE, make_run_dir

log = logging.getLogger(__name__)

COPY = "run"
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
