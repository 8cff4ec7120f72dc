"""What an image costs to ingest, and how many bytes it takes in shards and in a teacher cache.

Pictures of 1024 x 768 that cost what photographs cost come from a server on this machine, through the public
command. Two lists of different lengths are ingested, so that the start of the command does not count.
"""

import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from support.cached_distillation import EMBED_DIM, VIEWS, write_teacher
from support.made_shards import Photos, photo_shards
from support.pipelines import ROOT
from support.process_tree import TreeRun, run_tree
from support.random_cache import write_random_cache

from beamclip.corpus.serve import serve_folder
from beamclip.data.transforms import DRAWS
from beamclip.models.clip import load_clip
from beamclip.summary import read_summary

PHOTOS = Photos(1024, 768, 256, 256, 256)
ROWS_PER_SHARD = 1000
SHORT, LONG = 1000, 5000
"""Rows of the two lists."""


@dataclass(frozen=True)
class StoredImages:
    """What was measured; bytes and CPU time are means over the images."""

    downloaded_bytes: float
    """Of an image as the server sends it."""
    ingest_cpu_ms: float
    """CPU time of all processes of the ingest but the server, ms."""
    image_bytes: float
    """Of an image as it is stored, 256 pixels on its shorter side."""
    tar_bytes: float
    """Of a sample in a tar."""
    files_per_shard: float
    """Files that an ingest leaves for a shard."""
    cache_row_bytes: float
    """Of a row of a teacher cache, without the random numbers and embeddings of its views."""
    footer_bytes_per_row: float
    """Of the footer of a cache's shard, over its rows."""


def measure_stored(out: Path) -> StoredImages:
    """Ingest both lists below a folder, build a cache of the longer one, and weigh everything."""
    pictures = _pictures(out)
    with serve_folder(pictures) as address:
        urls = [f"{address}/{file.name}" for file in sorted(pictures.iterdir())]
        short, long = (_ingest(urls, rows, out / f"ingest-{rows}") for rows in (SHORT, LONG))
    shards = out / f"ingest-{LONG}" / "shards"
    write_teacher(224, out / "teacher")
    write_random_cache(shards, load_clip(str(out / "teacher")), VIEWS, out / "cache", processes=2)
    tables = sorted((out / "cache").glob("*.parquet"))
    of_views = VIEWS * (4 * DRAWS + 2 * EMBED_DIM)
    return StoredImages(
        downloaded_bytes=_mean_size(sorted(pictures.iterdir())),
        ingest_cpu_ms=1e3 * (long.cpu_seconds - short.cpu_seconds) / (LONG - SHORT),
        image_bytes=_image_bytes(shards),
        tar_bytes=sum(tar.stat().st_size for tar in shards.glob("*.tar")) / LONG,
        files_per_shard=_files_per_shard(shards),
        cache_row_bytes=sum(table.stat().st_size for table in tables) / LONG - of_views,
        footer_bytes_per_row=sum(pq.read_metadata(table).serialized_size for table in tables) / LONG,
    )


def _pictures(out: Path) -> Path:
    """A folder of the photos as files."""
    folder = out / "pictures"
    if not folder.exists():
        (tar,) = photo_shards(PHOTOS, out).glob("*.tar")
        with tarfile.open(tar) as opened:
            members = [member for member in opened if member.name.endswith(".jpg")]
            opened.extractall(folder, members, filter="data")
    return folder


def _ingest(urls: Sequence[str], rows: int, folder: Path) -> TreeRun:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["url,caption", *(f"{urls[row % len(urls)]},picture {row}" for row in range(rows))]
    (folder / "urls.csv").write_text("\n".join(lines) + "\n")
    command = [
        *(sys.executable, str(ROOT / "pipelines" / "ingest.py"), "--urls", str(folder / "urls.csv")),
        *("--out", str(folder / "shards"), "--shard-size", str(ROWS_PER_SHARD), "--allow-private-hosts"),
    ]
    found = run_tree(command, folder / "log")
    counts = read_summary(folder / "shards").counts if found.exit_code == 0 else None
    if counts is None or counts.succeeded != rows:
        raise RuntimeError(f"the ingest of {rows} rows went wrong; see {found.log}")
    print(f"{rows:,} rows: {found.wall_seconds:.0f} s, {found.cpu_seconds:.0f} s of CPU time", flush=True)
    return found


def _image_bytes(shards: Path) -> float:
    sizes = []
    for tar in shards.glob("*.tar"):
        with tarfile.open(tar) as opened:
            sizes += [member.size for member in opened if member.name.endswith(".jpg")]
    return sum(sizes) / len(sizes)


def _files_per_shard(shards: Path) -> float:
    stems = Counter(file.name[:5] for file in shards.iterdir() if file.name[:5].isdigit())
    return sum(stems.values()) / len(stems)


def _mean_size(files: Sequence[Path]) -> float:
    return sum(file.stat().st_size for file in files) / len(files)
