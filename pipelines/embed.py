"""`beamclip embed`, from a checkout: python pipelines/embed.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
