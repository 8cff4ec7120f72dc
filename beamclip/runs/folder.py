"""The folder of a run: where it is, when it may be written to, what it keeps from one start to the next."""

import time
from pathlib import Path

from beamclip.errors import InputError
from beamclip.files import read_yaml
from beamclip.json_lines import mend_json_lines
from beamclip.storage import storage, stored_run
from beamclip.training.checkpoint_store import (
    check_writable,
    find_checkpoint,
    has_checkpoints,
    no_whole_checkpoint,
)
from beamclip.training.manifest import check_sizes

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
HISTORY_FILE = "metrics.jsonl"
PLOTS = "plots"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
TRACE = "trace"
MODEL = "model"
SHIP = "ship"


def new_run_dir(out: Path | None, command: str) -> Path:
    """Return the path of `out`, or of a folder below runs/ named after command, date and time.

    It is absolute, but relative on a cluster with a storage, whose copy of the folder has that name.
    """
    path = out if out is not None else Path("runs") / f"{command}-{time.strftime('%m%d-%H%M%S')}"
    return path if storage() else path.absolute()


def make_run_dir(run_dir: Path) -> None:
    """Make the folder of a run.

    Raises:
        InputError: it cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--out {run_dir}: cannot be made ({reason}). Give another.") from error


def check_own(out: Path, options: set[str]) -> None:
    """Refuse a folder that another command has written its options to.

    Args:
        options: some that no other command has together.

    Raises:
        InputError: the command would replace the results of a training, for example.
    """
    path = out / CONFIG_FILE
    content = read_yaml(path) if path.is_file() else dict.fromkeys(options)
    if not isinstance(content, dict) or not options <= {*content}:
        raise InputError(f"--out {out}: holds the results of another command. Give another folder.")


def checkpoint_address(checkpoints: str | None, run_dir: Path) -> str:
    """Return where a run's checkpoints are; a plain path becomes absolute.

    They are where `checkpoints` says, by default in the storage of the cluster, and without one in the folder
    of the run.
    """
    address = checkpoints or stored_run(run_dir) or str(run_dir / CHECKPOINTS)
    return address if "://" in address else str(Path(address).resolve())


def open_run_dir(run_dir: Path, checkpoints: str, data: str, *, resume: bool) -> None:
    """Make a run's folder, or check that the run in it can be resumed.

    Args:
        checkpoints: address of the run's checkpoints.
        data: fingerprint of the shards.

    Raises:
        InputError: a new run would mix with an older one, there is no checkpoint to resume from, the data are
            not those of the checkpoint, or nothing can be written.
    """
    make_run_dir(run_dir)
    make_run_dir(run_dir / PLOTS)
    check_writable(checkpoints)
    if resume:
        _check_resumable(run_dir, checkpoints, data)
        mend_json_lines(run_dir / HISTORY_FILE)
        return
    for address in (checkpoints, _checkpoints_of(run_dir)):
        if address is not None and has_checkpoints(address):
            raise InputError(
                f"{address}: holds the checkpoints of an earlier run. Resume it with --resume {run_dir}, "
                "or give another --out, or other --checkpoints."
            )
    # Left by a run that was cut off before its first checkpoint.
    (run_dir / HISTORY_FILE).unlink(missing_ok=True)


def _checkpoints_of(run_dir: Path) -> str | None:
    """Where the run that had this folder before kept its checkpoints, if any did."""
    path = run_dir / CONFIG_FILE
    content = read_yaml(path) if path.exists() else None
    if not isinstance(content, dict) or not isinstance(content.get("checkpoint"), dict):
        return None
    return checkpoint_address(content["checkpoint"].get("checkpoints"), run_dir)


def _check_resumable(run_dir: Path, checkpoints: str, data: str) -> None:
    # The worker that reads a checkpoint hashes it.
    found = find_checkpoint(checkpoints, check_sizes)
    if found.manifest is None:
        raise InputError(f"--resume {run_dir}: {no_whole_checkpoint(checkpoints, found.damaged)}")
    if found.manifest.data != data:
        raise InputError(
            f"--resume {run_dir}: its checkpoint was made with other data ({found.manifest.data}) than these "
            f"({data}), so its place in them is unknown. Give the same shards, or start a new run."
        )
