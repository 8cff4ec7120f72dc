"""Transfer a CLIP teacher into a small student, from images alone. Without any option: the quickstart.

python pipelines/distill.py --data SHARDS --teacher T --student resnet18 --classes FILE --out RUN
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.quickstart import quickstart
from beamclip.config import DistillConfig

if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(run_command(DistillConfig, lambda config: quickstart(), __doc__))
    sys.exit(run_command(DistillConfig, distill, __doc__))
