"""`beamclip classes`, from a checkout: python pipelines/classes.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["classes", *sys.argv[1:]]))
