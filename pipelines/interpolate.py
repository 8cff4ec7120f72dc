"""`beamclip interpolate`, from a checkout: python pipelines/interpolate.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["interpolate", *sys.argv[1:]]))
