"""The measured constants that a plan stands on, each with hardware, date and source.

Whoever measures anew writes a new value into docs/benchmarks/constants.json too; a test compares the two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Constant:
    """A measured value."""

    value: float
    unit: str
    meaning: str
    hardware: str
    date: str
    """Of the measurement: year-month-day."""
    file: str
    """Name of the file in docs/benchmarks that holds the measurement, and the command that made it."""
    path: tuple[str, ...]
    """Keys that lead to the value in that file."""

    @property
    def source(self) -> str:
        """Where the value comes from, in a few words."""
        return f"{self.file}: {self.path[-1]}"


def read_constants(file: Path = FOLDER / "constants.json") -> dict[str, Constant]:
    """Return all constants by name."""
    content = json.loads(file.read_text())
    return {name: Constant(**{**each, "path": tuple(each["path"])}) for name, each in content.items()}


def values_of(constants: Mapping[str, Constant]) -> dict[str, float]:
    """Return the values alone, by name."""
    return {name: constant.value for name, constant in constants.items()}


def measured_value(constant: Constant, folder: Path = FOLDER) -> float:
    """Return the value that the source of a constant holds."""
    found = json.loads((folder / constant.file).read_text())
    for key in constant.path:
        found = found[key]
    return float(found)
