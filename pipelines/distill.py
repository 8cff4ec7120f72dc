"""`beamclip distill`, from a checkout: python pipelines/distill.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
