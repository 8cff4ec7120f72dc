"""Download a list of image URLs and captions into shards, with img2dataset.

python pipelines/ingest.py --urls list.parquet --url-column url --caption-column caption --out SHARDS
"""

import sys

from beamclip.commands.command_line import run_command
from beamclip.ingest.config import IngestConfig


def run(config: IngestConfig) -> None:
    # Imported when the options are known to be right: torch, Ray and timm take seconds.
    from beamclip.commands.ingest import ingest_urls

    ingest_urls(config)


if __name__ == "__main__":
    sys.exit(run_command(IngestConfig, run, __doc__))
