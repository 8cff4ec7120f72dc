"""Write the report of a run, or of several side by side."""

from dataclasses import replace
from pathlib import Path

import yaml

from beamclip.commands.console import plural, print_stage
from beamclip.commands.options import (
    DistillConfig,
    EvaluateConfig,
    PretrainConfig,
    ReportConfig,
    SweepConfig,
)
from beamclip.config import plain
from beamclip.errors import InputError
from beamclip.files import parse_yaml
from beamclip.runs.folder import REPORT
from beamclip.summary import Summary, write_summary

COMPARED = {
    "pretrain": PretrainConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "sweep": SweepConfig,
}
"""Options of the commands that have a report."""


def report(config: ReportConfig) -> Path:
    """Write the report and print its path.

    Raises:
        InputError: no folder is given, one holds no run or nothing to show, or the file cannot be written.
    """
    if not config.runs:
        raise InputError("no run is given. Name the --out folder of one or several: beamclip report RUN.")
    folders = [Path(run) for run in config.runs]
    out = config.out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    path = write_reports(folders, out)
    size = path.stat().st_size / 1e6
    print_stage("report", f"{plural(len(folders), 'run')}, {size:.1f} MB")
    print(path)
    return path


def write_reports(folders: list[Path], out: Path) -> Path:
    """Write one report of some runs' folders; return its path.

    Raises:
        InputError: a folder holds no run or nothing to show, or the file cannot be written.
    """
    # matplotlib and jinja2 take half a second, for which training need not wait.
    from beamclip.report.page import write_report
    from beamclip.report.run_files import flat_options, read_runs

    if out.is_dir():
        raise InputError(f"--out {out}: is a folder. Give the name of a file, such as {out / REPORT}.")
    defaults = {
        command: flat_options(parse_yaml(yaml.safe_dump(plain(options())), command))
        for command, options in COMPARED.items()
    }
    runs = read_runs(folders)
    try:
        return write_report(runs, defaults, out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}). Give another.") from error


def report_run(folder: Path) -> Path | None:
    """Write the report of a run into its folder; return its path, or None if there is nothing to show."""
    from beamclip.report.run_files import NothingToShowError

    try:
        return write_reports([folder], folder / REPORT)
    except NothingToShowError:
        return None


def write_summary_and_report(folder: Path, summary: Summary) -> Summary:
    """Write the summary of a run, then its report; a report that fails is only mentioned.

    Returns:
        The summary, which names the report if there is one.
    """
    write_summary(folder, summary)
    try:
        path = report_run(folder)
    except Exception as error:  # the scores are written already
        print_stage("report", f"could not be written: {error}")
        return summary
    if path is not None:
        summary = replace(summary, paths={**summary.paths, "report": path.name})
        write_summary(folder, summary)
    return summary
