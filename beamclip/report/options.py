"""Options that differ from the defaults, and from each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from beamclip.report.run_files import RunFiles

LEFT_OUT = ("out",)
"""Options that say nothing about the result."""


@dataclass(frozen=True)
class OptionTable:
    """Options as texts: name, default, and the value in each run."""

    runs: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def option_table(runs: Sequence[RunFiles], defaults: Mapping[str, Mapping[str, str]]) -> OptionTable | None:
    """Return the options of a run that are not the defaults; of several, those that are not all equal.

    Args:
        defaults: command -> option -> default, as texts.
    """
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.options):
        default = defaults.get(runs[0].command, {}).get(name, "")
        values = tuple(run.options.get(name, "") for run in runs)
        differ = len(set(values)) > 1 if len(runs) > 1 else values[0] != default
        if differ and name not in LEFT_OUT:
            rows.append((name, default, values))
    return OptionTable(tuple(run.label for run in runs), tuple(rows)) if rows else None
