"""A teacher cache of photos with random embeddings: it costs what any other costs to read."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from beamclip.data.cache import (
    CachedTeacher,
    CacheManifest,
    cache_schema,
    draws_column,
    embedding_column,
    write_cache_shard,
    write_manifest,
)
from beamclip.data.config import Augmentation
from beamclip.data.listing import fingerprint, list_shards
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.transforms import DRAWS, sample_uniforms
from beamclip.models.clip import LoadedClip


def write_random_cache(shards: Path, teacher: LoadedClip, views: int, folder: Path, processes: int) -> None:
    """Write a cache of the images in shards, as if `teacher` had embedded `views` views of each."""
    found = list_shards(str(shards))
    manifest = CacheManifest(
        teachers=(
            CachedTeacher(
                teacher.address, teacher.fingerprint, teacher.embed_dim, "bf16", teacher.preprocess_cfg
            ),
        ),
        image_size=teacher.image_size,
        augmentations=views,
        augmentation=asdict(Augmentation()),
        seed=0,
        draws=DRAWS,
        captions=False,
        source=str(shards),
        source_fingerprint=fingerprint(found),
        samples=sum(shard.samples for shard in found),
    )
    folder.mkdir(exist_ok=True)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(partial(_write_shard, manifest=manifest, folder=folder), found))
    write_manifest(str(folder), manifest)


def _write_shard(shard: Shard, manifest: CacheManifest, folder: Path) -> None:
    rows = list(iterate_rows(shard, Columns(everything=True), range(shard.samples)))
    keys = [row["key"] for row in rows]
    generator = np.random.default_rng(0)
    columns = {
        "key": keys,
        "caption": [row["caption"] for row in rows],
        "json": [row["fields"] for row in rows],
        "problem": [row["problem"] for row in rows],
        "image": [row["image"] for row in rows],
    }
    for view in range(manifest.augmentations):
        columns[draws_column(view)] = [
            draws.tobytes() for draws in sample_uniforms(manifest.seed, view, keys)
        ]
        points = generator.standard_normal((len(rows), manifest.teachers[0].embed_dim), np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        columns[embedding_column(0, view)] = [point.tobytes() for point in points.astype("<f2")]
    table = pa.Table.from_pydict(columns, cache_schema(manifest))
    write_cache_shard(str(folder), shard.name.removesuffix(".tar"), [table], manifest)
