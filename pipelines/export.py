"""`beamclip export`, from a checkout: python pipelines/export.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
