"""Train an image and a text tower from captioned shards.

python pipelines/pretrain.py --data SHARDS --model tiny-resnet18 --out RUN
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.options import PretrainConfig


def run(config: PretrainConfig) -> None:
    # Imported when the options are known to be right: torch, Ray and timm take seconds.
    from beamclip.commands.pretrain import pretrain

    pretrain(config)


if __name__ == "__main__":
    sys.exit(run_command(PretrainConfig, run, __doc__))
