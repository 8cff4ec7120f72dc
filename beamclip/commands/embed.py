"""Build a teacher cache from shards."""

import posixpath
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import ray
import ray.data
import torch
import yaml
from numpy.typing import NDArray

from beamclip.addresses import without_secrets
from beamclip.cluster.nodes import SharedPlaces, ask_cluster, some_files
from beamclip.cluster.room import check_resources
from beamclip.cluster.session import workers_session
from beamclip.commands.console import ProgressLine, format_duration, plural, print_stage
from beamclip.commands.effects import effective_parameters
from beamclip.commands.lineage import dataset_of, model_ref, named_run, written_dataset
from beamclip.commands.options import EmbedConfig
from beamclip.config import config_text
from beamclip.data.cache import (
    CACHE_FILE,
    CachedTeacher,
    CacheError,
    CacheManifest,
    differences,
    is_cache,
    read_manifest,
    skipped_in,
    write_manifest,
)
from beamclip.data.config import DecodePlace
from beamclip.data.index import NO_STARTS
from beamclip.data.listing import STATS_SUFFIX, fingerprint, list_shards
from beamclip.data.lost_samples import FirstLost
from beamclip.data.rows import CROPS_AHEAD_BYTES, own_errors, prepared_dataset
from beamclip.data.shards import Shard
from beamclip.data.starts import read_starts
from beamclip.data.transforms import DRAWS
from beamclip.errors import InputError
from beamclip.models.address import absolute_address
from beamclip.models.clip import ImageTower, LoadedClip, load_clip, text_tower
from beamclip.models.vision import VisionTeacher, load_vision_teacher
from beamclip.option_texts import check_required
from beamclip.places import Folder, absolute, is_address
from beamclip.runs.folder import CONFIG_FILE
from beamclip.storage import storage
from beamclip.summary import SUMMARY_FILE, Counts, Summary, library_versions, summary_text
from beamclip.tracking import Tracking, notes_folder, tracked_run_id
from beamclip.training.channel import RemoteChannel
from beamclip.training.decode_place import decode_place
from beamclip.training.embedding import EmbeddingJob, ShardEmbedder, verify_cache
from beamclip.training.events import Embedded, Lost
from beamclip.training.optim import teacher_precision
from beamclip.training.worker import in_one_line

LEAST_COSINE = 0.999
"""Least cosine of a cached embedding and the same one computed again; bf16 in other batches exceeds it."""
DISTILL_CONFIG = "distill.yaml"
MOST_BLOCKS = 2000
"""Most blocks of the list of shards; more would only burden Ray."""
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class EmbedInputs:
    """The shards to embed, the teachers, and the shards that are done already."""

    shards: list[Shard]
    teachers: list[LoadedClip]
    vision_teachers: list[VisionTeacher]
    """Those of vision only."""
    image_towers: list[ImageTower]
    """Of the teachers, then of those of vision only."""
    out: str
    done: frozenset[str]
    """Names of the shards that the cache holds."""

    @property
    def todo(self) -> list[Shard]:
        """Shards that the cache lacks."""
        return [shard for shard in self.shards if _name(shard) not in self.done]

    @property
    def all_teachers(self) -> tuple[LoadedClip | VisionTeacher, ...]:
        """The teachers in the order in which the cache holds their embeddings."""
        return (*self.teachers, *self.vision_teachers)


def embed(config: EmbedConfig) -> Summary:
    """Build a teacher cache, and print how to distill from it.

    Raises:
        InputError, CacheError: see `build_cache`.
    """
    summary = build_cache(config)
    _show(summary.paths["cache"], summary, has_vision=bool(config.vision_teachers))
    return summary


def build_cache(config: EmbedConfig) -> Summary:
    """Build a teacher cache, or finish one, and verify it.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        CacheError: a shard could not be embedded, no image could be used, or the check of the cache failed.
    """
    began = time.perf_counter()
    inputs = _load(config)
    print_stage(
        "shards",
        f"{plural(len(inputs.shards), 'file')}, {plural(_samples(inputs), 'image')}",
        _before(inputs),
    )
    with workers_session(config.workers):
        check_resources(config.workers)
        manifest = _agreed_manifest(config, inputs)
        with _track(config, inputs) as tracking:
            manifest, seconds, cosines = _fill(config, inputs, manifest)
            summary = _summary(inputs, manifest, seconds, cosines, began)
            summary = replace(summary, mlflow_run_id=tracking.run_id)
            _leave(config, inputs.out, summary)
            _log(tracking, inputs.out, summary)
    return summary


def _fill(
    config: EmbedConfig, inputs: EmbedInputs, manifest: CacheManifest
) -> tuple[CacheManifest, float, NDArray[np.float32]]:
    """Embed what is missing; return the final manifest, the seconds it took, and what `_verified` found."""
    job = _job(config, inputs, manifest)
    reference = ray.put(job)
    seconds = _build(config, inputs, job, reference) if inputs.todo else 0.0
    skipped = skipped_in(inputs.out)
    if sum(skipped.values()) == _samples(inputs):
        raise CacheError(f"{config.data}: no image could be used: {skipped}. See the summary of the ingest.")
    try:
        cosines = _verified(config, reference)
    except CacheError:
        # It may have been marked as finished before; without the mark, training refuses it.
        write_manifest(inputs.out, manifest)
        raise
    manifest = replace(manifest, samples=_samples(inputs), skipped=skipped)
    write_manifest(inputs.out, manifest)
    return manifest, seconds, cosines


def _track(config: EmbedConfig, inputs: EmbedInputs) -> Tracking:
    """Begin the MLflow run of a cache, or continue that of an earlier start."""
    folder = notes_folder(inputs.out)
    tracking = Tracking.start(
        named_run(config.tracking, inputs.out),
        run_dir=folder,
        params=effective_parameters(config),
        tags={"command": "embed"},
        run_id=tracked_run_id(folder),
    )
    teachers = [model_ref(each.address, each.fingerprint) for each in inputs.all_teachers]
    tracking.inputs(datasets=[dataset_of(str(config.data), inputs.shards, "source")], models=teachers)
    return tracking


def _log(tracking: Tracking, out: str, summary: Summary) -> None:
    skipped = {f"skipped/{reason}": number for reason, number in summary.counts.skipped.items()}
    metrics = {name: value for name, value in summary.metrics.items() if value is not None}
    speed = summary.images_per_second
    record: dict[str, float] = {"step": 0, "images": summary.images, **skipped, **metrics}
    tracking.log([record if speed is None else {**record, "images_per_second": speed}])
    written = written_dataset(out)
    if written is not None:
        tracking.inputs(datasets=[written])
    if not is_address(out):
        for name in (SUMMARY_FILE, CONFIG_FILE, DISTILL_CONFIG):
            tracking.artifact(Path(out, name))


def _summary(
    inputs: EmbedInputs,
    manifest: CacheManifest,
    seconds: float,
    cosines: NDArray[np.float32],
    began: float,
) -> Summary:
    views = sum(shard.samples for shard in inputs.todo) * manifest.augmentations
    return Summary(
        command="embed",
        status="finished",
        wall_seconds=time.perf_counter() - began,
        images=views,
        images_per_second=views / seconds if seconds else None,
        metrics={"cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}
        if len(cosines)
        else {},
        counts=Counts(
            attempted=_samples(inputs),
            succeeded=_samples(inputs) - sum(manifest.skipped.values()),
            skipped=manifest.skipped,
        ),
        paths={"cache": inputs.out},
        stages={"embedding_seconds": seconds, "bytes_per_sample": _bytes(inputs.out) / _samples(inputs)},
    )


def _load(config: EmbedConfig) -> EmbedInputs:
    check_required(config)
    if config.workers.without_ray:
        raise InputError("--num-workers 0: embedding runs in actors of Ray. Give 1 or more.")
    folder = Folder(absolute(str(config.out)))
    shards = list_shards(str(config.data), allow_missing=config.allow_missing_shards)
    folder.prepare("--out")
    names = folder.names()
    done = frozenset(name.removesuffix(STATS_SUFFIX) for name in names if name.endswith(STATS_SUFFIX))
    if done and CACHE_FILE not in names:
        raise InputError(f"--out {config.out}: holds shards that are no teacher cache. Give another folder.")
    read = some_files("--data", [shard.path for shard in shards])
    ask_cluster(SharedPlaces(read, (("--out", folder.place),)))
    teachers = [load_clip(address) for address in (str(config.teacher), *config.more_teachers)]
    vision = [load_vision_teacher(each, config.vision_image_size) for each in config.vision_teachers]
    towers = [*(clip.image_tower for clip in teachers), *(tower for _, tower in vision)]
    return EmbedInputs(shards, teachers, [teacher for teacher, _ in vision], towers, folder.place, done)


def _name(shard: Shard) -> str:
    """Return the name of a shard's file in the cache, without a suffix; files sort as the shards do."""
    if shard.format == "loose":
        return "~beside"
    # The name of a folder may hold dots, and has no suffix.
    return shard.name if shard.format in ("folder", "images") else posixpath.splitext(shard.name)[0]


def _samples(inputs: EmbedInputs) -> int:
    return sum(shard.samples for shard in inputs.shards)


def _before(inputs: EmbedInputs) -> str:
    return f"{len(inputs.shards) - len(inputs.todo)} embedded before" if inputs.done else ""


def _agreed_manifest(config: EmbedConfig, inputs: EmbedInputs) -> CacheManifest:
    """Return the manifest of the cache: write it, or check that it agrees with the one that is there.

    Raises:
        InputError: the cache was begun with other options, which the message names.
    """
    precision = _precision(config)
    manifest = CacheManifest(
        teachers=tuple(_cached_teacher(each, precision) for each in inputs.all_teachers),
        image_size=config.image_size or max(each.image_size for each in inputs.all_teachers),
        augmentations=config.augmentations,
        augmentation=asdict(config.augmentation.chosen()),
        draws=DRAWS,
        seed=config.seed,
        captions=config.captions,
        source=without_secrets(str(config.data)),
        source_fingerprint=fingerprint(inputs.shards),
        versions=library_versions(),
    )
    if is_cache(inputs.out):
        differing = differences(read_manifest(inputs.out), manifest)
        if differing:
            raise InputError(
                f"{inputs.out}: holds a cache that was begun with other options: {'; '.join(differing)}. "
                "Give the same options, or another --out."
            )
    else:
        write_manifest(inputs.out, manifest)
    return manifest


def _cached_teacher(teacher: LoadedClip | VisionTeacher, precision: str) -> CachedTeacher:
    address, fingerprint = without_secrets(teacher.address), teacher.fingerprint
    if isinstance(teacher, LoadedClip):
        return CachedTeacher(address, fingerprint, teacher.embed_dim, precision, teacher.preprocess_cfg)
    pixels = teacher.preprocessing
    # Lists, as they are read from JSON.
    preprocess = {"size": pixels.size, "mean": list(pixels.mean), "std": list(pixels.std)}
    return CachedTeacher(address, fingerprint, teacher.width, precision, preprocess, vision_only=True)


def _precision(config: EmbedConfig) -> str:
    if not config.workers.use_gpu:
        return teacher_precision(config.teacher_precision, torch.device("cpu"))
    # The command's own machine may have no GPU.
    asked = ray.remote(num_gpus=config.workers.worker_gpus, num_cpus=0)(teacher_precision)
    precision: str = ray.get(asked.remote(config.teacher_precision, torch.device("cuda")))
    return precision


def _job(config: EmbedConfig, inputs: EmbedInputs, manifest: CacheManifest) -> EmbeddingJob:
    nodes = sum(node["Alive"] for node in ray.nodes())
    on_each = -(-config.workers.most_workers // max(1, nodes))
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, nodes))
    decode = _decode_place(config, min(config.workers.world_size, len(inputs.todo)))
    return EmbeddingJob(
        teachers=tuple(map(ray.put, inputs.image_towers)),
        text_towers=tuple(ray.put(text_tower(clip)) for clip in inputs.teachers if config.captions),
        manifest=manifest,
        out=inputs.out,
        batch_size=config.embed_batch,
        decode=decode,
        starts=ray.put(read_starts(inputs.todo) if decode == "tasks" else NO_STARTS),
        decode_threads=config.decode_threads,
        threads=config.workers.threads_per_worker or max(1, cpus // on_each),
        device="cuda" if config.workers.use_gpu else "cpu",
        compile=config.compile,
        channel=RemoteChannel(),
    )


def _decode_place(config: EmbedConfig, actors: int) -> DecodePlace:
    workers, resources = config.workers, ray.cluster_resources()
    spare = {**resources, "CPU": resources.get("CPU", 0.0) - actors * workers.worker_cpus}
    return decode_place(config.decode, actors * CROPS_AHEAD_BYTES, actors, spare, on_gpu=workers.use_gpu)


def _build(config: EmbedConfig, inputs: EmbedInputs, job: EmbeddingJob, reference: Any) -> float:
    """Embed the missing shards; return the seconds from the start of the first one to the last batch."""
    workers = config.workers
    names = ", ".join(each.address for each in inputs.all_teachers)
    views = f"{plural(config.augmentations, 'view')} each, {job.manifest.image_size} px"
    print_stage("embedding", f"{names}: {views}", job.manifest.teachers[0].precision)
    items = [
        {"shard": asdict(shard), "number": number, "name": _name(shard)}
        for number, shard in enumerate(inputs.todo)
    ]
    # Tasks go on with the next shard while the teacher is at one; each actor still has some turns.
    together = min(4, max(1, len(items) // (2 * workers.world_size))) if job.decode == "tasks" else 1
    dataset = prepared_dataset(ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS)))
    embedded = dataset.map_batches(
        ShardEmbedder,
        # The list keeps Ray Data from replacing the reference by its value in every task.
        fn_constructor_args=([reference],),
        batch_size=together,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(workers.least_workers, len(items)), max_size=min(workers.most_workers, len(items))
        ),
        num_cpus=workers.worker_cpus,
        num_gpus=workers.worker_gpus,
    )
    progress = _Progress(job.channel, sum(shard.samples for shard in inputs.todo))
    try:
        with progress, own_errors():
            for _ in embedded.iter_batches(batch_size=None):
                pass
    except KeyboardInterrupt:
        raise KeyboardInterrupt("embedded shards are kept; the same command continues") from None
    except ray.exceptions.RayError as error:
        raise CacheError(in_one_line(error)) from error
    return progress.seconds


class _Progress:
    """Shows the actors' progress, in a thread: the main thread waits for the shards and for Ctrl-C."""

    def __init__(self, channel: RemoteChannel, samples: int) -> None:
        self.channel = channel
        self.samples = samples
        self.embedded = 0
        self.first = self.last = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="beamclip-progress", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds from the start of the first shard to the last batch, of those reported so far."""
        return self.last - self.first

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        line = ProgressLine()
        lost = FirstLost()
        ended = False
        while not ended:
            ended = self.ended.wait(SECONDS_BETWEEN_LOOKS)
            for event in self.channel.take():
                match event:
                    case Embedded():
                        self._count(event)
                    case Lost(samples):
                        for _, text in lost.new(samples):
                            line.close()
                            print_stage("skipped", text)
            if self.embedded:
                line.show(self._text(), last=ended)
        line.close()

    def _count(self, event: Embedded) -> None:
        self.first = min(self.first or event.time, event.time)
        self.last = max(self.last, event.time)
        self.embedded += event.images

    def _text(self) -> str:
        rate = self.embedded / max(1e-9, self.seconds)
        eta = format_duration(max(0.0, (self.samples - self.embedded) / rate))
        return f"{self.embedded:,}/{self.samples:,} images  {rate:,.0f} img/s  eta {eta}"


def _verified(config: EmbedConfig, reference: Any) -> NDArray[np.float32]:
    """Return the cosines of cached and newly computed embeddings, [images, teachers]; none with --verify 0.

    Raises:
        CacheError: a cosine is too low, or the check itself failed.
    """
    if config.verify == 0:
        return np.zeros((0, 1), np.float32)
    task = ray.remote(num_cpus=0, num_gpus=config.workers.worker_gpus)(verify_cache)
    try:
        cosines: NDArray[np.float32] = ray.get(task.remote([reference], config.verify))
    except ray.exceptions.RayError as error:
        raise CacheError(in_one_line(error)) from error
    if len(cosines) == 0:
        print_stage("verified", f"no image: none of the {config.verify} picked could be used")
    else:
        least, mean = float(cosines.min()), float(cosines.mean())
        print_stage(
            "verified",
            f"{plural(len(cosines), 'image')} embedded anew",
            f"cosine {mean:.5f}, least {least:.5f}",
        )
        # A comparison with NaN is false, and so counts as a difference.
        right = cosines >= LEAST_COSINE
        if not right.all():
            raise CacheError(
                f"--verify {config.verify}: {int((~right).any(axis=1).sum())} of "
                f"{len(cosines)} embeddings differ from those that the teacher gives now (least cosine "
                f"{least:.4f}). Remove the cache's folder and build it anew."
            )
    return cosines


def _bytes(address: str) -> int:
    fs, root = fsspec.core.url_to_fs(address)
    return int(sum(fs.size(path) for path in fs.glob(posixpath.join(root, "*.parquet"))))


def _leave(config: EmbedConfig, out: str, summary: Summary) -> None:
    """Write options and summary into the cache, and the options of a distillation that fits it."""
    recorded = str if storage() else absolute_address
    fitting = {
        "data": out,
        "teacher": recorded(str(config.teacher)),
        "more_teachers": [recorded(address) for address in config.more_teachers],
        "vision_teachers": [recorded(address) for address in config.vision_teachers],
        "vision_image_size": config.vision_image_size,
        "augmentation": asdict(config.augmentation),
    }
    folder = Folder(out)
    folder.write(CONFIG_FILE, config_text(config).encode())
    folder.write(DISTILL_CONFIG, without_secrets(yaml.safe_dump(fitting, sort_keys=False)).encode())
    folder.write(SUMMARY_FILE, summary_text(summary).encode())


def _show(out: str, summary: Summary, *, has_vision: bool) -> None:
    for reason, number in sorted(summary.counts.skipped.items()):
        print_stage("skipped", f"{number:,} {reason}")
    size = summary.stages["bytes_per_sample"]
    print_stage("cache", f"{plural(summary.counts.attempted, 'image')}, {size / 1000:,.1f} kB each", out)
    if not is_address(out):
        weight = " --vision-feature-weight 1" if has_vision else ""
        print(f"beamclip distill --config {out}/{DISTILL_CONFIG} --student resnet18 --classes FILE{weight}")
