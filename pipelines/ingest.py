"""`beamclip ingest`, from a checkout: python pipelines/ingest.py --help"""

import sys

from beamclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
