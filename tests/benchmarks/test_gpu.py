"""What the GPU benchmark stands on: figures that outlive the errors of other parts."""

import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The folder of a program is on its path when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_an_error_is_a_figure_and_what_has_no_time_left_is_not_begun(tmp_path: Path) -> None:
    from support.timed_parts import Report

    began = time.time()
    report = Report(tmp_path / "figures.jsonl", began, began + 60)
    report.attempt("fails", 1, lambda: [][0])
    report.attempt("long", 90, lambda: report.figure("never", 1))
    report.attempt("short", 1, lambda: report.figure("images/s", 12.5))
    figures = report.figures()
    assert figures.pop("fails").startswith("failed: IndexError")
    assert figures.pop("long").startswith("skipped: ")
    assert figures == {"images/s": 12.5}
