"""Hours, bytes, requests and cost of a distillation on a cluster, by arithmetic on measured constants.

1. The way has up to three stages: ingest, embedding (of a teacher cache), and training. In each, images pass
   (in embedding, views of images).
2. Each resource of the cluster allows so many passes a second: its amount over what a pass takes of it. All
   resources of a stage are used at the same time, so the narrowest limits the stage.
3. Of that, the public command reached a share when it was measured; a stage's hours follow from both.

With 2 GPUs that take 1 ms an image, and 8 CPUs that take 5 ms each, GPUs allow 2,000 images/s and CPUs 1,600:
CPUs are the bottleneck, and 5.76 million images take an hour.

A network that was not measured is taken to cost what one that was measured costs, times their FLOPs. Every
number that is not measured is an option (plan_options.py), for the user to replace.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from support.model_costs import ModelCost
from support.plan_options import Cluster, Job, Prices
from support.reading import Reading

from beamclip.data.bundles import ROWS_PER_TASK
from beamclip.data.order import PIECE
from beamclip.data.transforms import DRAWS
from beamclip.training.decode_place import crop_store_bytes

GPUS, PROCESSES, DECODING, NETWORK = "GPUs", "workers' processes", "CPUs", "network of the nodes"
PLANNING = "planning in each worker"
GETS, PUTS, SERVERS = "reads from the store", "writes to the store", "answers of the servers"

FOOTERS_KEPT = 64
"""Shards of a cache whose footers a process keeps (data.parquet_rows)."""
TAIL_BYTES = 64 << 10
"""That are read of a cache's shard for its footer (data.parquet_rows)."""
FLOAT = 4
"""Bytes of a weight, a gradient or a moment of AdamW."""
METRICS_PER_RECORD = 10
"""Of a distillation on GPUs, besides the step (training.metric_sums)."""
SYSTEM_METRICS_SECONDS = 10.0
"""Between two looks of MLflow at the driver's machine."""
STATES = 3
"""Numbers that a checkpoint holds for each weight: itself and two moments of AdamW."""
MEASURED_CPUS = 16
"""CPUs of the machine on which `decode_images_per_second` was measured."""
FILES_OF_CACHE = 2
"""Of each of its shards: a table and its statistics."""


@dataclass(frozen=True)
class Stage:
    """One stage of the way."""

    name: str
    passes: float
    """Images, or views of images, that pass."""
    limits: Mapping[str, float]
    """Resource -> passes a second that it allows, on the whole cluster."""
    reached: float
    """Share of the narrowest limit that the command reaches."""
    gets: float = 0.0
    """Requests that read from the store."""
    puts: float = 0.0
    read_bytes: float = 0.0
    """That come from the store, or from the web."""

    @property
    def bottleneck(self) -> str:
        """The resource that limits the stage."""
        return min(self.limits, key=self.limits.__getitem__)

    @property
    def per_second(self) -> float:
        """Passes a second."""
        return self.reached * self.limits[self.bottleneck]

    @property
    def hours(self) -> float:
        """Of wall time, without the start of the command."""
        return self.passes / self.per_second / 3600

    def share(self, resource: str) -> float:
        """How much of a resource the narrowest one lets be used, 1 for the narrowest."""
        return self.limits[self.bottleneck] / self.limits[resource]


@dataclass(frozen=True)
class Plan:
    """A distillation on paper."""

    job: Job
    """With epochs."""
    cluster: Cluster
    teacher: ModelCost
    student: ModelCost
    constants: Mapping[str, float]
    """Measured values by name (constants.py), and the FLOPs of the networks that were measured."""
    reading: Reading
    """Of the shards, in training."""
    window: int
    """Samples that are shuffled among each other."""

    @property
    def teacher_seconds(self) -> float:
        """Of one GPU, for an image's forward pass through the teacher."""
        own = self.teacher.gflops / self.constants["measured_teacher_gflops"]
        return own / self.constants["teacher_images_per_second"] / self.cluster.gpu_speed

    @property
    def step_seconds(self) -> float:
        """Of one GPU, for a step of the student alone; no host was seen to queue steps any faster."""
        own = self.student.gflops / self.constants["measured_student_gflops"]
        on_gpu = own / self.constants["student_images_per_second"] / self.cluster.gpu_speed
        return max(self.job.batch_per_gpu * on_gpu, self.constants["host_ms_per_step"] / 1e3)

    @property
    def decoded_per_cpu(self) -> float:
        """Crops a second that tasks make, a CPU of the machine."""
        return self.constants["decode_images_per_second"] / MEASURED_CPUS

    @property
    def crop_bytes(self) -> int:
        """Of a decoded crop."""
        return 3 * self.teacher.image_size**2

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return math.ceil(self.job.images * self.job.epochs / self.batch_size)

    @property
    def batch_size(self) -> int:
        """Images of a step, over all GPUs."""
        return self.job.batch_per_gpu * self.cluster.gpus

    @property
    def row_bytes(self) -> float:
        """Of a row of the teacher cache."""
        return self.constants["cache_row_bytes"] + self.job.views * (4 * DRAWS + 2 * self.teacher.embed_dim)

    @property
    def gradient_bytes(self) -> float:
        """That a node receives in a step, by a ring through all GPUs; 0 on a single node."""
        if self.cluster.nodes == 1:
            return 0.0
        gpus = self.cluster.gpus
        return 2 * (gpus - 1) / gpus * self.student.parameters * FLOAT

    @cached_property
    def ingest(self) -> Stage:
        """From a list of URLs to shards."""
        images, cluster = self.job.images, self.cluster
        puts = self.constants["files_per_shard"] / self.job.rows_per_shard
        downloaded = self.constants["downloaded_bytes"]
        limits = {
            DECODING: cluster.ingest_cpus / (self.constants["ingest_cpu_ms"] / 1e3),
            NETWORK: cluster.ingest_cpus * cluster.ingest_gbit_per_cpu * 1e9 / 8 / downloaded,
            SERVERS: cluster.ingest_cpus * cluster.downloads_per_cpu / cluster.download_seconds,
            PUTS: cluster.store_puts / puts,
        }
        return Stage("ingest", images, limits, 1.0, puts=images * puts, read_bytes=images * downloaded)

    @cached_property
    def embedding(self) -> Stage:
        """From shards to a teacher cache; a pass is a view."""
        job, cluster = self.job, self.cluster
        # In one process the teacher waits for crops, and crops wait for the teacher.
        alone = self.constants["compiled_teacher_images_per_second"]
        beside = 1 / self.constants["embed_images_per_second"] - 1 / alone
        read = self.constants["tar_sample_bytes"] / job.views
        crops = self.crop_bytes * cluster.abroad
        requests = math.ceil(job.rows_per_shard / ROWS_PER_TASK), FILES_OF_CACHE
        gets, puts = (number / job.rows_per_shard / job.views for number in requests)
        limits = {
            GPUS: cluster.gpus / (self.teacher_seconds + beside),
            DECODING: cluster.cpus * self.decoded_per_cpu,
            NETWORK: cluster.bytes_per_second / (crops + max(read, self.row_bytes / job.views)),
            GETS: cluster.store_gets / gets,
            PUTS: cluster.store_puts / puts,
        }
        passes = float(job.images * job.views)
        return Stage("embedding", passes, limits, 1.0, passes * gets, passes * puts, passes * read)

    @cached_property
    def training_from_cache(self) -> Stage:
        """From a teacher cache to a student."""
        # A process keeps few footers, and pieces come from all over the data.
        missing = max(0.0, 1 - FOOTERS_KEPT / self.job.shards) * self.reading.opened
        footer = max(TAIL_BYTES, self.constants["footer_bytes_per_row"] * self.job.rows_per_shard)
        read = self.reading.fetched * self.row_bytes + missing * footer
        return self._training("training from the cache", 0.0, read, self.reading.requests + missing)

    @cached_property
    def training_live(self) -> Stage:
        """From shards to a student, with the teacher in each step."""
        read = self.reading.fetched * self.constants["tar_sample_bytes"]
        return self._training("live training", self.teacher_seconds, read, self.reading.requests)

    def _training(self, name: str, teacher_seconds: float, read: float, gets: float) -> Stage:
        job, cluster = self.job, self.cluster
        seconds = teacher_seconds + self.step_seconds / job.batch_per_gpu
        gradients = self.gradient_bytes * cluster.nodes / self.batch_size
        limits = {
            GPUS: cluster.gpus / seconds,
            PROCESSES: cluster.gpus * self.constants["worker_images_per_second"],
            # Each worker plans all samples, also those that others serve: more workers do not help.
            PLANNING: 1e9 / self.constants["planning_ns_per_sample"],
            DECODING: cluster.cpus * self.decoded_per_cpu,
            NETWORK: cluster.bytes_per_second / (read + self.crop_bytes * cluster.abroad + gradients),
            GETS: cluster.store_gets / gets,
        }
        passes = float(self.steps * self.batch_size)
        reached = self.constants["command_images_per_second"] / self.constants["decode_images_per_second"]
        return Stage(name, passes, limits, reached, gets=passes * gets, read_bytes=passes * read)

    @property
    def from_cache(self) -> list[Stage]:
        """The stages of the way with a teacher cache."""
        return [self.ingest, self.embedding, self.training_from_cache]

    @property
    def live(self) -> list[Stage]:
        """The stages of the way with the teacher in each step."""
        return [self.ingest, self.training_live]

    def cpus_for_gpus(self, stage: Stage) -> float:
        """CPUs that a GPU needs so that decoding keeps up with it."""
        return stage.limits[GPUS] / self.cluster.gpus / self.decoded_per_cpu

    def usd(self, stage: Stage, prices: Prices) -> float:
        """What a stage costs in machines and requests."""
        machines = (
            self.cluster.ingest_cpus * prices.cpu_hour_usd
            if stage is self.ingest
            else self.cluster.gpus * prices.gpu_hour_usd
        )
        requests = stage.gets * prices.million_gets_usd + stage.puts * prices.million_puts_usd
        return stage.hours * machines + requests / 1e6


@dataclass(frozen=True)
class Volumes:
    """Bytes that lie somewhere, or are written, but for what stages read."""

    shards: float
    cache: float
    crops_in_store: float
    """In Ray's object store, over all nodes."""
    list_in_worker: float
    """The list of shards that each worker receives."""
    starts_on_node: float
    """Where samples begin in tars, on each node."""
    checkpoint: float
    checkpoints: int
    """Number of them."""
    records: int
    mlflow: float
    gradients_per_second: float
    """That each node receives while it trains from the cache."""


def volumes(plan: Plan) -> Volumes:
    """Weigh what a plan leaves and holds."""
    job, constants = plan.job, plan.constants
    training = plan.training_from_cache
    records = plan.steps // job.log_every
    metrics = records * METRICS_PER_RECORD
    metrics += training.hours * 3600 / SYSTEM_METRICS_SECONDS * constants["system_metrics"]
    return Volumes(
        shards=job.images * constants["tar_sample_bytes"],
        cache=job.images * plan.row_bytes,
        crops_in_store=crop_store_bytes(plan.window, plan.teacher.image_size, plan.cluster.gpus),
        list_in_worker=job.shards * constants["listed_shard_bytes"],
        starts_on_node=8.0 * job.shards * (math.ceil(job.rows_per_shard / PIECE) + 2),
        checkpoint=float(STATES * FLOAT * plan.student.parameters),
        checkpoints=math.ceil(plan.steps / job.checkpoint_every),
        records=records,
        mlflow=metrics * constants["metric_bytes"],
        gradients_per_second=plan.gradient_bytes * training.per_second / plan.batch_size,
    )
