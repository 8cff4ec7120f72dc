"""`beamclip prompts`, from a checkout: python pipelines/prompts.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["prompts", *sys.argv[1:]]))
