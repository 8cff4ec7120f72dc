"""Curves of training, as small pictures that stand side by side where there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from beamclip.plots.curves import curve_figures
from beamclip.plots.style import SERIES
from beamclip.plots.svg import svg_element
from beamclip.report.run_files import RunFiles


@dataclass(frozen=True)
class CurveSection:
    """Pictures of what was recorded over the steps."""

    figures: tuple[Markup, ...]
    runs: tuple[tuple[str, str], ...]
    """Label and colour of each run, where there are several."""


def curve_section(runs: Sequence[RunFiles]) -> CurveSection | None:
    """Return the curves of the runs, overlaid; None if nothing was recorded."""
    # All runs, so that each has its colour of the page.
    figures = curve_figures([run.history for run in runs])
    drawn = tuple(
        Markup(svg_element(figure, f"curve{i}", f"{title}, over the steps"))
        for i, (title, figure) in enumerate(figures)
    )
    if not drawn:
        return None
    colours = ((run.label, SERIES[i % len(SERIES)]) for i, run in enumerate(runs) if run.history)
    return CurveSection(drawn, tuple(colours) if len(runs) > 1 else ())
