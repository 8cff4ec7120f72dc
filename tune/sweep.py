"""`beamclip sweep`, from a checkout: python tune/sweep.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
