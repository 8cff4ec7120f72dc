"""Sweep temperatures, contexts and other options of a distillation, all trials from one teacher cache.

python tune/sweep.py --data SHARDS|CACHE --teacher T --classes FILE --eval-data LABELLED --out DIR
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.options import SweepConfig


def run(config: SweepConfig) -> None:
    # Imported when the options are known to be right: torch, Ray and timm take seconds.
    from beamclip.sweep.sweep import sweep

    sweep(config)


if __name__ == "__main__":
    sys.exit(run_command(SweepConfig, run, __doc__))
