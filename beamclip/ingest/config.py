"""Options of an ingest: what to download, and how to store it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from beamclip.errors import InputError
from beamclip.ingest.hosts import WEB_PORTS
from beamclip.places import LocalPath, PathOrAddress
from beamclip.ranges import Count, Natural, Positive, Range, check_ranges
from beamclip.tracking.config import TrackingConfig

AUTO = "auto"
"""Value of `caption_column`: the column `caption` if the list has one, otherwise no captions."""
CAPTION = "caption"

_QUALITY_RANGE = {"jpg": (0, 100), "webp": (1, 100), "png": (0, 9)}


@dataclass(frozen=True)
class IngestConfig:
    """What to download, and how to store it."""

    urls: PathOrAddress = None
    """Required. List of URLs: .parquet, .csv, .tsv or .jsonl (the last three also .gz, .bz2, .xz or .zst), or
    a folder of such files, which are read as one list."""
    out: PathOrAddress = None
    """Required. Folder for the shards; a second run with the same settings resumes there. On a cluster with
    a storage (BEAMCLIP_STORAGE) it is shards, unless given."""
    url_column: str = "url"
    """Column of the list that holds the URLs."""
    caption_column: str | None = AUTO
    """Column of the list that holds the captions. none: store no captions. auto: the column caption, if the
    list has one."""
    keep_columns: tuple[str, ...] = ()
    """Further columns (labels, ids) to keep in each sample's JSON record, separated by commas or spaces."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    format: Literal["webdataset", "parquet"] = "webdataset"
    """Write shards as webdataset tar files, or as parquet files with the image in a column."""
    image_size: Count | None = 256
    """Pixels of the side that resize_mode sets; None only with resize_mode no."""
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    """keep_ratio: shorter side to image_size; keep_ratio_largest: longer side; both leave smaller images as
    they are. border (padded white) and center_crop give squares of exactly image_size. no: original size."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Encoding of the stored images."""
    encode_quality: Natural | None = None
    """jpg and webp: quality in per cent; png: compression, 0 to 9. None: jpg 95, webp 90, png 6."""
    shard_size: Count = 1000
    """Rows of the list in one shard."""
    distributor: Literal["multiprocessing", "ray"] = "multiprocessing"
    """Download in processes of this machine, or in tasks of a Ray cluster (out must then be an address, or a
    folder that the nodes share)."""
    processes: Count | None = None
    """Shards downloaded at the same time; None: one per CPU. Without ray, shards that only wait for their
    last servers do not count."""
    threads: Count = 32
    """Downloads at the same time within a shard."""
    timeout_s: Positive = 10.0
    """Seconds for a whole download: name look-up, connection, redirects, retries that the server asks for,
    and the image to its last byte. Waiting for a turn at a host (per_host) does not count."""
    per_host: Count = 64
    """Requests to one host at a time, over all processes (and nodes, if out is a folder that they share). A
    host that answers 429 or 503 with a Retry-After is asked again after that delay, within timeout_s."""
    ports: tuple[Annotated[int, Range(1, 65535)], ...] = WEB_PORTS
    """Ports that a URL may name; others need allow_private_hosts."""
    download_retries: Natural = 0
    """Immediate retries of a failed download; the second pass (retry_failed) is kinder to servers."""
    allow_private_hosts: bool = False
    """Also fetch from loopback, private and link-local addresses and from any port: only for lists you
    trust."""
    retry_failed: bool = True
    """After all shards, retry once what failed for a reason that may pass (timeouts, HTTP 5xx, ...), or was
    refused for its address or port before allow_private_hosts was given."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.image_size is None and self.resize_mode != "no":
            raise InputError(
                f"image_size is None with resize_mode {self.resize_mode}: give pixels, for example 256."
            )
        low, high = _QUALITY_RANGE[self.encode_format]
        if self.encode_quality is not None and not low <= self.encode_quality <= high:
            raise InputError(
                f"encode_quality is {self.encode_quality} with encode_format {self.encode_format}: "
                f"give {low} to {high}."
            )
