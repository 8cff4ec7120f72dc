"""`beamclip pretrain`, from a checkout: python pipelines/pretrain.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
