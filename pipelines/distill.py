"""Transfer a CLIP teacher into a small student, from images alone. Without any option: the quickstart.

python pipelines/distill.py --data SHARDS --teacher T --student resnet18 --classes FILE --out RUN
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.options import DistillConfig


def run(config: DistillConfig) -> None:
    # Imported when the options are known to be right: torch, Ray and timm take seconds.
    if len(sys.argv) == 1:
        from beamclip.commands.quickstart import quickstart

        quickstart()
    else:
        from beamclip.commands.distill import distill

        distill(config)


if __name__ == "__main__":
    sys.exit(run_command(DistillConfig, run, __doc__))
