"""Score a model on labelled images: zero-shot classification and linear probe.

python pipelines/evaluate.py --model RUN --data LABELLED --classes FILE --tasks zeroshot probe --train-data LABELLED
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.evaluate import evaluate
from beamclip.config import EvaluateConfig

if __name__ == "__main__":
    sys.exit(run_command(EvaluateConfig, evaluate, __doc__))
