"""Embed images by a teacher once, in several views each, for any number of distillations.

python pipelines/embed.py --data SHARDS --teacher T --out CACHE
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.options import EmbedConfig


def run(config: EmbedConfig) -> None:
    # Imported when the options are known to be right: torch, Ray and timm take seconds.
    from beamclip.commands.embed import embed

    embed(config)


if __name__ == "__main__":
    sys.exit(run_command(EmbedConfig, run, __doc__))
