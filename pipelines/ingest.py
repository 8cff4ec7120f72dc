"""Download a list of image URLs and captions into shards, with img2dataset.

python pipelines/ingest.py --urls list.parquet --url-column url --caption-column caption --out SHARDS
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.commands.ingest import ingest_urls
from beamclip.data.ingest import IngestConfig

if __name__ == "__main__":
    sys.exit(run_command(IngestConfig, ingest_urls, __doc__))
