"""Embedding shards: every row its own embeddings, equal to the teacher's of the replayed view."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import torch.nn.functional as F

from beamclip.data import bundles
from beamclip.data.batch import load_batch
from beamclip.data.cache import (
    CachedTeacher,
    CachedViews,
    CacheError,
    CacheManifest,
    caption_column,
    draws_column,
    embedding_column,
    write_manifest,
)
from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.listing import list_shards
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.transforms import DRAWS, augment
from beamclip.models.clip import LoadedClip, new_clip, text_tower
from beamclip.models.teacher import Teacher
from beamclip.training.channel import RemoteChannel
from beamclip.training.embedding import EmbeddingJob, ShardEmbedder, verify_cache

VIEWS = 3
STRONG = Augmentation(crop_scale_min=0.3, flip_prob=0.5, grey_prob=0.3)


@pytest.fixture(scope="module")
def teachers(tiny_config: Path) -> list[LoadedClip]:
    return [new_clip(tiny_config, seed=0), new_clip(tiny_config, seed=1)]


@pytest.fixture(scope="module")
def damaged(shards: list[Shard], tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """The shards, with broken images at the first, a middle and the last row of one of them."""
    folder = tmp_path_factory.mktemp("damaged")
    for shard in shards:
        source = Path(shard.path.removeprefix("file://"))
        for path in (source, source.with_name(f"{source.stem}_stats.json")):
            (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / "00001.tar").read_bytes())
    rows = iterate_rows(shards[1], Columns(), range(20))
    for number, row in enumerate(rows):
        if number in (0, 9, 19):
            start = content.index(row["image"])
            content[start : start + len(row["image"])] = bytes(len(row["image"]))
    (folder / "00001.tar").write_bytes(content)
    return list_shards(str(folder))


@pytest.fixture(scope="module")
def job(
    ray_cluster: None,
    damaged: list[Shard],
    teachers: list[LoadedClip],
    tmp_path_factory: pytest.TempPathFactory,
) -> EmbeddingJob:
    """A finished cache, and what it was made by; its batches of 4 rows do not divide any shard."""
    out = str(tmp_path_factory.mktemp("cache"))
    manifest = CacheManifest(
        teachers=tuple(
            CachedTeacher(clip.address, clip.fingerprint, clip.embed_dim, "fp32", clip.preprocess_cfg)
            for clip in teachers
        ),
        image_size=32,
        augmentations=VIEWS,
        augmentation=asdict(STRONG),
        draws=DRAWS,
        seed=5,
        captions=True,
        source="shards",
        source_fingerprint="",
    )
    write_manifest(out, manifest)
    job = EmbeddingJob(
        teachers=tuple(ray.put(clip.image_tower) for clip in teachers),
        text_towers=tuple(ray.put(text_tower(clip)) for clip in teachers),
        manifest=manifest,
        out=out,
        batch_size=4 * VIEWS,
        decode="worker",
        starts=ray.put(read_starts(damaged)),
        decode_threads=2,
        threads=1,
        device="cpu",
        compile=False,
        channel=RemoteChannel(),
    )
    embed(job, damaged)
    return job


def embed(job: EmbeddingJob, shards: list[Shard]) -> None:
    """Have one actor embed all shards."""
    batch = {
        "shard": np.array([asdict(shard) for shard in shards], dtype=object),
        "number": np.arange(len(shards)),
        "name": np.array([Path(shard.path).stem for shard in shards]),
    }
    ShardEmbedder([ray.put(job)])(batch)


def test_tasks_that_decode_make_the_same_cache(
    job: EmbeddingJob, damaged: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(str(tmp_path), job.manifest)
    # Several bundles a shard, each of whole batches.
    monkeypatch.setattr(bundles, "ROWS_PER_TASK", 8)
    embed(replace(job, out=str(tmp_path), decode="tasks"), damaged)
    for cached, again in zip(list_shards(job.out), list_shards(str(tmp_path)), strict=True):
        expected, found = (pq.read_table(each.path.removeprefix("file://")) for each in (cached, again))
        assert found.equals(expected)


def test_what_is_written_is_not_written_again_where_ray_repeats_a_task(
    job: EmbeddingJob, damaged: list[Shard], tmp_path: Path
) -> None:
    for file in Path(job.out).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    last = Path(damaged[-1].path).stem
    (tmp_path / f"{last}_stats.json").unlink()
    (tmp_path / f"{last}.parquet").write_bytes(b"half of it")
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    embed(replace(job, out=str(tmp_path)), damaged)
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    assert {name for name in after if after[name] != before[name]} == {f"{last}.parquet"}
    whole = (pq.read_table(Path(out, f"{last}.parquet")) for out in (job.out, tmp_path))
    assert next(whole).equals(next(whole))


def test_rows_are_those_of_the_source_in_their_order(job: EmbeddingJob, damaged: list[Shard]) -> None:
    for source, cached in zip(damaged, list_shards(job.out), strict=True):
        before = [row["key"] for row in iterate_rows(source, Columns(), range(source.samples))]
        assert pq.read_table(cached.path.removeprefix("file://"))["key"].to_pylist() == before


@pytest.mark.parametrize("view", range(VIEWS))
def test_every_embedding_is_the_teachers_of_the_view_that_training_replays(
    job: EmbeddingJob, teachers: list[LoadedClip], view: int
) -> None:
    """In all shards, beyond their first batch, and after each row that was lost."""
    views = CachedViews((0, 1), VIEWS)
    rows = [
        row
        for shard in list_shards(job.out)
        for row in iterate_rows(replace(shard, views=views), Columns(), range(shard.samples), epoch=view)
    ]
    assert sum(row["problem"] is not None for row in rows) == 3
    good = [row for row in rows if row["problem"] is None]
    widths = tuple(2 * clip.embed_dim for clip in teachers)
    decoding = Decoding(32, STRONG, CaptionConfig(), seed=999, embedding_bytes=widths)
    with ThreadPoolExecutor(1) as pool:
        batch, _ = load_batch(good, decoding, pool, size=len(good))
    assert batch.keys == [row["key"] for row in good]
    pixels = augment(batch.pixels, batch.draws, STRONG)
    for clip, cached in zip(teachers, batch.embeddings, strict=True):
        live = Teacher(clip).encode_image(pixels)
        assert F.cosine_similarity(live, cached.float()).min() > 0.99999
        # Another row's, or another view's, would not pass.
        assert F.cosine_similarity(live.roll(1, 0), cached.float()).max() < 0.99999


def test_views_differ_and_are_those_of_a_live_trainings_first_epochs(job: EmbeddingJob) -> None:
    shard = replace(list_shards(job.out)[0], views=CachedViews((0,), VIEWS))
    draws = [
        [row["draws"] for row in iterate_rows(shard, Columns(), range(5), epoch=view)]
        for view in range(VIEWS)
    ]
    assert len({each for of_view in draws for each in of_view}) == 5 * VIEWS


def test_captions_are_embedded_too(job: EmbeddingJob, teachers: list[LoadedClip]) -> None:
    table = pq.read_table(list_shards(job.out)[2].path.removeprefix("file://"))
    for index, clip in enumerate(teachers):
        cached = np.stack([np.frombuffer(each, "<f2") for each in table[caption_column(index)].to_pylist()])
        live = Teacher(clip).encode_text(table["caption"].to_pylist())
        cosine = F.cosine_similarity(live, torch.from_numpy(cached.astype(np.float32)))
        assert cosine.min() > 0.99999


def test_verification_replays_rows_of_all_shards(job: EmbeddingJob) -> None:
    cosines = verify_cache([ray.put(job)], 50)
    assert cosines.shape[1] == 2
    assert 45 <= len(cosines) <= 50
    assert cosines.min() > 0.9999


def swapped_embeddings(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index(embedding_column(0, 0))
    column = table.column(place).to_pylist()
    moved = pa.array(column[1:] + column[:1], table.schema.field(place).type)
    return table.set_column(place, table.schema.field(place), moved)


def swapped_draws(table: pa.Table) -> pa.Table:
    names = [draws_column(0), draws_column(1)]
    return table.rename_columns([names[1 - names.index(n)] if n in names else n for n in table.column_names])


@pytest.mark.parametrize("spoil", [swapped_embeddings, swapped_draws])
def test_verification_finds_what_is_out_of_place(job: EmbeddingJob, tmp_path: Path, spoil: Callable) -> None:
    """Embeddings shifted by a row; random numbers of another view."""
    for file in Path(job.out).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in tmp_path.glob("*.parquet"):
        pq.write_table(spoil(pq.read_table(file)), file)
    cosines = verify_cache([ray.put(replace(job, out=str(tmp_path)))], 60)
    assert (cosines.min(axis=1) < 0.999).mean() > 0.2


def test_a_shard_of_the_cache_that_cannot_be_read_fails_the_verification(
    job: EmbeddingJob, tmp_path: Path
) -> None:
    for file in Path(job.out).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoilt = min(tmp_path.glob("*.parquet"))
    spoilt.write_bytes(spoilt.read_bytes()[:1000])
    with pytest.raises(
        CacheError, match=rf"{spoilt.name}, row 0: broken shard \(.*give the same command again"
    ):
        verify_cache([ray.put(replace(job, out=str(tmp_path)))], 60)
