"""Train an image and a text tower from captioned shards.

python pipelines/pretrain.py --data SHARDS --model tiny-resnet18 --out RUN
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.pretrain import pretrain
from beamclip.config import PretrainConfig

if __name__ == "__main__":
    sys.exit(run_command(PretrainConfig, pretrain, __doc__))
