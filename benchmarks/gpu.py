"""Whether the data keep up with a GPU: training steps alone, ways to read alone, and both in runs.

python benchmarks/gpu.py [--seconds 440]

A ResNet-18 learns from a teacher cache of 224 px, in bfloat16. Then what the anchors cost, and what a teacher
embeds in a second. What does not fit into --seconds is left out. --tiny goes through everything in small,
on any machine.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from support.gpu_bench import FULL, TINY, Bench
from support.timed_parts import Report, run_part, shown

from beamclip.commands.console import table

IN_MEMORY = Path("/dev/shm")
LEAST_IN_MEMORY = 12 << 30
"""Free bytes with which a file system in memory holds inputs, crops on their way, and Ray's object store."""


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=440.0, help="for everything together")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="go through everything in small")
    parser.add_argument("--parts", nargs="+", default=[name for name, _, _ in PARTS], help="all by default")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks/gpu.json"), help="file to write")
    options = parser.parse_args()
    began = time.time()
    options.report.parent.mkdir(parents=True, exist_ok=True)
    beside = options.report.parent.resolve()
    with tempfile.TemporaryDirectory(dir=_roomy(), prefix="gpu-") as folder:
        bench = Bench(TINY if options.tiny else FULL, Path(folder), options.device, beside)
        report = Report(Path(folder, "figures.jsonl"), began, began + options.seconds)
        for name, least, function in PARTS:
            if name not in ("inputs", *options.parts):
                continue
            run_part(report, name, 5 if options.tiny else least, _part, function, bench)
            _write(report, options.report, f"python benchmarks/gpu.py --seconds {options.seconds:g}")
        print()
        table([["figure", "value"], *([name, shown(value)] for name, value in report.figures().items())])
        print(f"{time.time() - began:.0f} s; results written to {options.report}")


def _roomy() -> Path | None:
    if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free >= LEAST_IN_MEMORY:
        return IN_MEMORY
    return None


def _part(report: Report, function: str, bench: Bench) -> None:
    # Imported here: every process that a pool starts imports this module, and the models take seconds.
    from support import gpu_parts

    getattr(gpu_parts, function)(report, bench)


def _write(report: Report, file: Path, command: str) -> None:
    import torch
    from support.reports import circumstances

    from beamclip.summary import library_versions

    where = [line.removeprefix("- ") for line in circumstances(command).splitlines()]
    if torch.cuda.is_available():
        where.append(f"GPU: {torch.cuda.get_device_name()}")
    result = {"circumstances": where, "versions": library_versions(), "figures": report.figures()}
    file.write_text(json.dumps(result, indent=2) + "\n")


PARTS: tuple[tuple[str, float, str], ...] = (
    ("inputs", 25, "make_inputs"),
    ("training", 60, "measure_training"),
    ("CSM", 12, "measure_csm"),
    ("one process", 25, "measure_one_process"),
    ("distill", 60, "measure_distill"),
    ("teacher", 40, "measure_teacher"),
    ("large batch", 40, "measure_large_batch"),
    ("distill without Ray", 60, "measure_distill_without_ray"),
)
"""Name, seconds without which a part is not begun, and function of support.gpu_parts."""


if __name__ == "__main__":
    main()
