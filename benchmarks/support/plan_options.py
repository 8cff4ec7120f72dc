"""What a plan does not know by measurement: each field is an option of benchmarks/plan.py, with its text.

Free of torch, so that a mistyped number is reported at once.
"""

import math
from dataclasses import dataclass

from beamclip.ranges import Count, NonNegative, Positive, check_ranges


@dataclass(frozen=True)
class Job:
    """What is to be done."""

    images: Count = 400_000_000
    """Images in the list."""
    teacher: str = "ViT-L-14"
    """A CLIP model by its name in open_clip."""
    student: str = "resnet18"
    """A backbone by its name in timm."""
    epochs: Positive | None = None
    """Passes over the images; by default what `beamclip distill` chooses for so many."""
    views: Count = 4
    """Views of each image in a teacher cache."""
    batch_per_gpu: Count = 256
    """Images of a step on each GPU."""
    rows_per_shard: Count = 1000
    """Samples of a shard, the same in each."""
    log_every: Count = 10
    """Steps between two records."""
    checkpoint_every: Count = 200
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def shards(self) -> int:
        """Files of samples."""
        return math.ceil(self.images / self.rows_per_shard)


@dataclass(frozen=True)
class Cluster:
    """On what: assumed, not measured."""

    gpus: Count = 64
    """GPUs, of one worker each."""
    gpus_per_node: Count = 8
    """GPUs of a node."""
    cpus_per_gpu: Count = 16
    """CPUs of the cluster for each GPU."""
    gpu_speed: Positive = 1.0
    """Speed of a GPU; that of an H200 is 1."""
    node_gbit: Positive = 100.0
    """Network of a node in each direction, 1e9 bits/s."""
    ingest_cpus: Count = 256
    """CPUs of the machines that ingest, before any GPU is there."""
    ingest_gbit_per_cpu: Positive = 0.3
    """Their network, 1e9 bits/s for each CPU."""
    downloads_per_cpu: Count = 32
    """Downloads at the same time for each of these CPUs."""
    download_seconds: Positive = 1.0
    """Seconds of a download, mean over the servers in the list."""
    store_gets: Positive = 5500.0
    """Reads that the object store answers in a second; so many S3 promises for one prefix."""
    store_puts: Positive = 3500.0
    """Writes that it answers in a second."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def nodes(self) -> int:
        """Nodes with GPUs."""
        return math.ceil(self.gpus / self.gpus_per_node)

    @property
    def cpus(self) -> int:
        """CPUs beside the GPUs."""
        return self.gpus * self.cpus_per_gpu

    @property
    def bytes_per_second(self) -> float:
        """Bytes that all nodes together can receive in a second."""
        return self.nodes * self.node_gbit * 1e9 / 8

    @property
    def abroad(self) -> float:
        """Share of what tasks make that is made on another node than the one that uses it."""
        return 1 - 1 / self.nodes


@dataclass(frozen=True)
class Prices:
    """US dollars: round numbers of November 2026 that nobody has offered. Give your own."""

    gpu_hour_usd: NonNegative = 4.0
    """A GPU with its share of a node, for an hour."""
    cpu_hour_usd: NonNegative = 0.05
    """A CPU that ingests, for an hour."""
    tb_month_usd: NonNegative = 23.0
    """1e12 bytes in the store, for a month."""
    million_gets_usd: NonNegative = 0.4
    """A million requests that read from the store."""
    million_puts_usd: NonNegative = 5.0
    """A million requests that write to the store."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Measuring:
    """With --driver."""

    driver_shards: Count = 1_000_000
    """Shards of the folder, of --rows-per-shard samples each."""
    driver_workers: Count = 1000
    """Workers of the training."""
    driver_records: Count = 5000
    """Records of the training."""

    def __post_init__(self) -> None:
        check_ranges(self)
