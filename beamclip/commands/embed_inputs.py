"""What an embedding reads, and the manifest of the cache that it fills."""

import posixpath
from dataclasses import asdict, dataclass

import ray
import torch

from beamclip.addresses import without_secrets
from beamclip.cluster.nodes import SharedPlaces, ask_cluster, some_files
from beamclip.commands.options import EmbedConfig
from beamclip.data.cache import (
    CACHE_FILE,
    CachedTeacher,
    CacheManifest,
    differences,
    is_cache,
    read_manifest,
    write_manifest,
)
from beamclip.data.listing import STATS_SUFFIX, fingerprint, list_shards
from beamclip.data.shards import Shard
from beamclip.data.transforms import DRAWS
from beamclip.errors import InputError
from beamclip.models.clip import ImageTower, LoadedClip, load_clip
from beamclip.models.vision import VisionTeacher, load_vision_teacher
from beamclip.option_texts import check_required
from beamclip.places import Folder, absolute
from beamclip.summary import library_versions
from beamclip.training.optim import teacher_precision


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
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def todo(self) -> list[Shard]:
        """Shards that the cache lacks."""
        return [shard for shard in self.shards if name_of(shard) not in self.done]

    @property
    def all_teachers(self) -> tuple[LoadedClip | VisionTeacher, ...]:
        """The teachers in the order in which the cache holds their embeddings."""
        return (*self.teachers, *self.vision_teachers)


def load_inputs(config: EmbedConfig) -> EmbedInputs:
    """Load and check shards and teachers, and look which shards the cache holds.

    Raises:
        InputError: for the first input that cannot be used.
    """
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


def name_of(shard: Shard) -> str:
    """Return the name of a shard's file in the cache, without a suffix; files sort as the shards do."""
    if shard.format == "loose":
        return "~beside"
    # The name of a folder may hold dots, and has no suffix.
    return shard.name if shard.format in ("folder", "images") else posixpath.splitext(shard.name)[0]


def agreed_manifest(config: EmbedConfig, inputs: EmbedInputs) -> CacheManifest:
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
