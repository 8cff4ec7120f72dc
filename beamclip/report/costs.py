"""How fast a run was, what it used, and how large its models are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beamclip.report.run_files import RunFiles

MILLION = 1e6
BYTES_A_PARAMETER = 4
"""float32, as checkpoints and exports hold them."""


@dataclass(frozen=True)
class CostTable:
    """What runs cost: the name of each figure, and its text in each run."""

    runs: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def cost_table(runs: Sequence[RunFiles]) -> CostTable | None:
    """Return speed, time and size of the runs; None if none of them is known."""
    rows = [(title, tuple(map(text, runs))) for title, text in _figures().items()]
    kept = tuple(row for row in rows if any(row[1]))
    return CostTable(tuple(run.label for run in runs), kept) if kept else None


def duration_text(seconds: float) -> str:
    """Format seconds: `8.2 s`, `12 min 31 s`, `1 h 2 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _figures() -> dict[str, Callable[[RunFiles], str]]:
    return {
        "wall time": lambda run: duration_text(run.summary.wall_seconds) if run.summary else "",
        "of it, training": lambda run: _seconds(_stages(run).get("training_seconds")),
        "of it, validation": lambda run: _seconds(_stages(run).get("validation_seconds")),
        "steps": lambda run: _count(_steps(run)),
        "step of the exported weights": lambda run: _count(_stages(run).get("exported_step")),
        "images": lambda run: _count(run.summary.images) if run.summary else "",
        "images per second": _speed,
        "workers": _workers,
        "reserved for training": _reserved,
        "teacher": lambda run: _size(run, "teacher"),
        "student": lambda run: _size(run, "student"),
        "model": lambda run: _size(run, "model"),
    }


def _stages(run: RunFiles) -> Mapping[str, Any]:
    return run.summary.stages if run.summary else {}


def _steps(run: RunFiles) -> Any:
    return run.history[-1].get("step") if run.history else None


def _seconds(value: Any) -> str:
    return duration_text(value) if isinstance(value, int | float) and value else ""


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) and value else ""


def _speed(run: RunFiles) -> str:
    speed = run.summary.images_per_second if run.summary else None
    return f"{speed:,.0f}" if speed else ""


def _workers(run: RunFiles) -> str:
    if "num_workers" not in run.options:
        return ""
    device = "GPU" if run.options.get("use_gpu") == "true" else "CPU"
    number = run.options["num_workers"]
    return f"the command's own process, on {device}" if number == "0" else f"{number}, on {device}"


def _reserved(run: RunFiles) -> str:
    """Hours of workers, over the windows between records; start-up and scoring are not counted."""
    seconds = [(r["window_seconds"], r.get("workers", 1) or 1) for r in run.history if "window_seconds" in r]
    hours = sum(window * workers for window, workers in seconds) / 3600
    if not hours:
        return ""
    if run.options.get("use_gpu") == "true":
        return f"{hours * float(run.options.get('gpus_per_worker') or 1):.3g} GPU hours"
    threads = run.options.get("threads_per_worker")
    return f"{hours * int(threads):.3g} CPU core hours" if threads else f"{hours:.3g} hours of a CPU worker"


def _size(run: RunFiles, role: str) -> str:
    """Parameters of a model whose size the run noted, and their megabytes in float32."""
    noted = _stages(run).get("parameters", {})
    towers = noted.get(role) if isinstance(noted, dict) else None
    if not isinstance(towers, dict):
        return ""
    names = {"image": "image tower", "whole": "whole model"}
    parts = (f"{name} {_millions(towers[key])}" for key, name in names.items() if towers.get(key))
    return "; ".join(parts)


def _millions(number: int) -> str:
    megabytes = number * BYTES_A_PARAMETER / MILLION
    return f"{number / MILLION:,.2f} M parameters, {megabytes:,.1f} MB"
