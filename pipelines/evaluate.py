"""Score a model on labelled images: zero-shot classification and linear probe.

python pipelines/evaluate.py --model RUN --data LABELLED --classes FILE --tasks zeroshot probe
    --train-data LABELLED
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.options import EvaluateConfig


def run(config: EvaluateConfig) -> None:
    # Imported when the options are known to be right: torch, Ray and timm take seconds.
    from beamclip.commands.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    sys.exit(run_command(EvaluateConfig, run, __doc__))
