"""The folder of an evaluation: whose it may be, and what an earlier evaluation left in it."""

from pathlib import Path

from beamclip.errors import InputError
from beamclip.files import read_yaml
from beamclip.runs.folder import CONFIG_FILE, PLOTS, REPORT
from beamclip.summary import SUMMARY_FILE


def check_out(out: Path | None) -> None:
    """Refuse a folder that another command has written its options to.

    Raises:
        InputError: an evaluation would replace the results of a training, for example.
    """
    path = out / CONFIG_FILE if out is not None else None
    if path is None or not path.is_file():
        return
    content = read_yaml(path)
    # Options that evaluate alone has together.
    if not isinstance(content, dict) or not {"tasks", "model", "against"} <= {*content}:
        raise InputError(f"--out {out}: holds the results of another command. Give another folder.")


def clear_earlier(folder: Path) -> None:
    """Remove the results of an earlier evaluation, which this one may not replace all."""
    tables = (path for stem in ("scores", "captions") for path in folder.glob(f"{stem}*.parquet"))
    pictures = (path for kind in ("png", "json") for path in (folder / PLOTS).glob(f"*.{kind}"))
    for path in (*tables, *pictures, folder / SUMMARY_FILE, folder / REPORT):
        path.unlink(missing_ok=True)
