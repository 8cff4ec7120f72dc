"""Look at the prompts of a class list, and at what contexts do to their anchors.

python pipelines/prompts.py --classes FILE --teacher T --context-source hierarchy --num-contexts 2
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.options import PromptsConfig


def run(config: PromptsConfig) -> None:
    # Imported when the options are known to be right: torch and timm take seconds.
    from beamclip.commands.prompts import show_prompts

    show_prompts(config)


if __name__ == "__main__":
    sys.exit(run_command(PromptsConfig, run, __doc__))
