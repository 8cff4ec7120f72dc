"""What a distillation would take on a cluster: hours, bytes, requests, cost, and what limits it first.

python benchmarks/plan.py [--images 4e8] [--teacher ViT-L-14] [--student resnet18] [--gpus 64] ...

Arithmetic on what was measured (docs/benchmarks/constants.json; --sources lists it) and on what is assumed:
prices, the network, the store. Each assumption is an option. --driver runs the parts of a command that grow
with shards and workers for real, on counts without data, and --stored measures what an image costs to ingest
and to store; both write what they find to docs/benchmarks.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from support.constants import FOLDER, Constant, read_constants, values_of
from support.plan_options import Cluster, Job, Measuring, Prices

from beamclip.commands.console import table
from beamclip.errors import InputError
from beamclip.option_texts import option_texts

MEASURED_TEACHER, MEASURED_STUDENT, MEASURED_SIDE, MEASURED_WIDTH = "ViT-B-16", "resnet18", 224, 512
"""The networks whose speed was measured, pixels of their images, numbers of their embeddings."""
LINE = 100
"""Columns of a terminal."""

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        self.exit(2, f"{message}\n")


def main() -> None:
    """Print the plan, or measure what plans stand on."""
    options = _parser().parse_args()
    try:
        job, cluster, prices = (_section(kind, options) for kind in (Job, Cluster, Prices))
        if options.driver:
            measure_driver(_section(Measuring, options), job.rows_per_shard, options.report)
        elif options.stored:
            measure_stored(options.report)
        elif options.sources:
            show_sources(read_constants())
        else:
            show_plan(job, cluster, prices)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        usage="python benchmarks/plan.py [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for section in (Job, Cluster, Prices):
        _add_options(parser, section)
    other = parser.add_argument_group("Instead of a plan")
    other.add_argument("--sources", action="store_true", help="list the constants, and where they come from")
    other.add_argument("--driver", action="store_true", help="run what grows with shards and workers")
    other.add_argument(
        "--stored", action="store_true", help="measure what an image costs to ingest and store"
    )
    other.add_argument("--report", type=Path, help="file for what was measured, in place of that of the docs")
    _add_options(parser, Measuring)
    return parser


def _add_options(parser: argparse.ArgumentParser, section: type) -> None:
    """Make the fields of a section options, with their texts."""
    group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
    texts = option_texts(section)
    for each in fields(section):
        flag, text = f"--{each.name.replace('_', '-')}", texts[each.name]
        if isinstance(each.default, str):
            group.add_argument(flag, default=each.default, metavar="NAME", help=f"{text} [{each.default}]")
        else:
            reads = _whole if isinstance(each.default, int) else float
            shown = "" if each.default is None else f" [{each.default:,}]"
            group.add_argument(flag, type=reads, default=each.default, metavar="N", help=text + shown)


def _whole(text: str) -> int:
    """Read a whole number, which may be written as 4e8."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if number.is_integer():
            return int(number)
    raise argparse.ArgumentTypeError(f"{text} is not a whole number: give one, such as 64 or 4e8")


def show_plan(job: Job, cluster: Cluster, prices: Prices) -> None:
    """Print a plan."""
    # Imported here: torch takes seconds, and mistyped numbers are reported without it.
    from support.model_costs import student_cost, teacher_cost
    from support.plan_text import plan_lines
    from support.reading import planned_reading
    from support.scale import Plan

    from beamclip.data.config import StreamConfig
    from beamclip.data.order import LANES_PER_WORKER, PIECE

    job = job if job.epochs is not None else replace(job, epochs=_usual_epochs(job, cluster))
    teacher = teacher_cost(job.teacher)
    student = student_cost(job.student, teacher.image_size, teacher.embed_dim)
    constants = {
        **values_of(read_constants()),
        "measured_teacher_gflops": teacher_cost(MEASURED_TEACHER).gflops,
        "measured_student_gflops": student_cost(MEASURED_STUDENT, MEASURED_SIDE, MEASURED_WIDTH).gflops,
    }
    window = max(StreamConfig().shuffle_window, LANES_PER_WORKER * PIECE * cluster.gpus)
    batch_size = job.batch_per_gpu * cluster.gpus
    reading = planned_reading(job.shards, job.rows_per_shard, window, cluster.gpus, batch_size)
    plan = Plan(job, cluster, teacher, student, constants, reading, window)
    print("\n".join(plan_lines(plan, prices)))


def _usual_epochs(job: Job, cluster: Cluster) -> float | None:
    """Return the epochs that `beamclip distill` chooses for so many images."""
    from beamclip.data.config import StreamConfig
    from beamclip.training.config import OptimConfig
    from beamclip.training.recipe import DISTILLATION, complete

    stream = StreamConfig(batch_size=job.batch_per_gpu * cluster.gpus)
    return complete(DISTILLATION, job.images, stream, OptimConfig())[1].epochs


def _section(kind: type[T], options: argparse.Namespace) -> T:
    """Return the section of options that the command line gives."""
    return kind(**{each.name: getattr(options, each.name) for each in fields(kind)})  # type: ignore[arg-type]


def show_sources(constants: Mapping[str, Constant]) -> None:
    """Print what each constant is, and under it what it was measured on, when, and where that is written."""
    for name, each in constants.items():
        print(f"{name:<36}{each.value:>12,.6g} {each.unit}")
        for line in (each.meaning, f"{each.hardware}, {each.date}", f"docs/benchmarks/{each.source}"):
            print(textwrap.fill(line, LINE, initial_indent="    ", subsequent_indent="    "))


def measure_driver(sizes: Measuring, rows: int, report: Path | None) -> None:
    """Run the parts of a command that grow with shards and workers, print and write what they take."""
    from support.driver_parts import Part, Scale, count_system_metrics, measure_driver, planning_ns

    scale = Scale(sizes.driver_shards, rows, sizes.driver_workers, sizes.driver_records)
    print(f"{scale.shards:,} shards of {scale.rows:,} samples, {scale.workers:,} workers")
    print(f"{'':<52}{'s':>8}{'CPU s':>8}{'peak MB':>9}")

    def show(part: Part) -> None:
        taken = f"{part.seconds:>8.2f}{part.cpu_seconds:>8.2f}{part.peak_mb:>9,.0f}"
        print(f"{part.name:<52}{taken}  {part.note}", flush=True)

    parts = measure_driver(scale, show)
    figures = {
        "scale": asdict(scale),
        "parts": {key: asdict(part) for key, part in parts.items()},
        "planning, ns a sample": planning_ns(scale, parts),
        "system metrics at a time": count_system_metrics(),
    }
    flags = f"--driver --driver-shards {scale.shards} --driver-workers {scale.workers}"
    flags += f" --driver-records {scale.records} --rows-per-shard {scale.rows}"
    _write(report or FOLDER / "driver.json", flags, figures)


def measure_stored(report: Path | None) -> None:
    """Measure what an image costs to ingest and how many bytes it takes, print and write it."""
    from support.stored_images import measure_stored

    with tempfile.TemporaryDirectory(prefix="beamclip-stored-") as scratch:
        found = asdict(measure_stored(Path(scratch)))
    table([["figure", "value"], *([name, f"{value:,.1f}"] for name, value in found.items())])
    _write(report or FOLDER / "stored.json", "--stored", found)


def _write(report: Path, flags: str, figures: Mapping[str, Any]) -> None:
    from support.reports import circumstances

    lines = circumstances(f"python benchmarks/plan.py {flags}").splitlines()
    content = {
        "circumstances": [line.removeprefix("- ") for line in lines],
        "date": time.strftime("%Y-%m-%d"),
        **figures,
    }
    report.write_text(json.dumps(content, indent=2) + "\n")
    print(f"results written to {report}")


if __name__ == "__main__":
    main()
