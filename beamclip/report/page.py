"""The page: its sections, those without data left out, put into one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from beamclip.addresses import without_secrets
from beamclip.files import write_whole
from beamclip.plots.style import SERIES
from beamclip.report.classes import class_tables
from beamclip.report.costs import cost_table
from beamclip.report.curves import curve_section
from beamclip.report.lineage import lineage, sample_rows
from beamclip.report.options import option_table
from beamclip.report.pictures import draw_contexts, draw_similarity, sweep_part
from beamclip.report.run_files import RunFiles
from beamclip.report.scores import percent_text, score_section


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    key: str
    """Names its template and its place in the page."""
    title: str
    content: Any


def write_report(runs: Sequence[RunFiles], defaults: Mapping[str, Mapping[str, str]], out: Path) -> Path:
    """Write the report of a run, or of several side by side.

    Args:
        runs: one or more.
        defaults: command -> option -> default, as texts.
        out: HTML file; its folder is made.

    Returns:
        `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, report_html(runs, defaults))
    return out


def report_html(runs: Sequence[RunFiles], defaults: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page that `write_report` writes."""
    environment = Environment(
        loader=PackageLoader("beamclip.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent_text
    page = environment.get_template("page.html").render(
        runs=runs,
        title=" · ".join(run.label for run in runs),
        sections=report_sections(runs, defaults),
        series=SERIES,
    )
    return without_secrets(page)


def report_sections(runs: Sequence[RunFiles], defaults: Mapping[str, Mapping[str, str]]) -> list[Section]:
    """Return the sections that have something to show, in order; some are of single runs only."""
    several = len(runs) > 1
    sections = [
        Section("scores", "Scores", score_section(runs)),
        *([] if several else _pictures(runs[0])),
        Section("curves", "Curves", curve_section(runs)),
        Section("costs", "Speed and cost", cost_table(runs)),
        Section(
            "options",
            "Options that differ" if several else "Options that differ from the defaults",
            option_table(runs, defaults),
        ),
        *([] if several else _origin(runs[0])),
    ]
    return [section for section in sections if section.content]


def _pictures(run: RunFiles) -> list[Section]:
    return [
        Section("sweep", "Trials", sweep_part(run.folder, run.pictures) if run.command == "sweep" else None),
        Section("sheet", "Images", run.sheet),
        Section("classes", "Worst classes", class_tables(run)),
        Section("retrieval", "Retrieval", run.retrieval),
        Section(
            "drawn",
            "Similarity of images and text",
            draw_similarity(run.similarity) if run.similarity else None,
        ),
        Section("drawn", "Contexts", draw_contexts(run.contexts) if run.contexts else None),
    ]


def _origin(run: RunFiles) -> list[Section]:
    way = lineage(run.folder)
    return [
        Section("lineage", "Lineage", way if way.sources else None),
        Section("samples", "Samples", sample_rows(way)),
    ]
