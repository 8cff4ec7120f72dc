"""`beamclip evaluate`, from a checkout: python pipelines/evaluate.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
