"""Options that all studies share."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudyOptions:
    """Options of the command of a study."""

    emoji: Path
    out: Path
    report: Path
    seeds: int
    jobs: int


def read_options(name: str, description: str | None, *, seeds: int = 3) -> StudyOptions:
    """Read the command line of the study `name`; results and report are named after it by default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=Path, required=True, help="folder with pairs.parquet and images/")
    parser.add_argument("--out", type=Path, default=Path(f"runs/{name}"), help="where results are kept")
    parser.add_argument("--report", type=Path, default=Path(f"docs/studies/{name}.md"), help="to write")
    parser.add_argument("--seeds", type=int, default=seeds, help="trainings of each setting")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    return StudyOptions(**vars(parser.parse_args()))


def of_trials(name: str, seeds: Sequence[int], jobs: int) -> list[str]:
    """Return the command of a study as it was run, and notes on its trials, for `circumstances`."""
    return [
        f"python benchmarks/{name}.py --emoji FOLDER --seeds {len(seeds)} --jobs {jobs}",
        f"{jobs} trials at a time, one thread each",
        f"Seeds: {', '.join(map(str, seeds))}; plus-minus is the standard deviation over them",
    ]
