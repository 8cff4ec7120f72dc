"""The folder of an evaluation: what an earlier one left in it."""

from pathlib import Path

from beamclip.runs.folder import PLOTS, REPORT
from beamclip.summary import SUMMARY_FILE


def clear_earlier(folder: Path) -> None:
    """Remove the results of an earlier evaluation, which this one may not replace all."""
    tables = (path for stem in ("scores", "captions") for path in folder.glob(f"{stem}*.parquet"))
    pictures = (path for kind in ("png", "json") for path in (folder / PLOTS).glob(f"*.{kind}"))
    for path in (*tables, *pictures, folder / SUMMARY_FILE, folder / REPORT):
        path.unlink(missing_ok=True)
