"""Actors that build a teacher cache: they turn shards of images into shards of images with embeddings.

An actor handles one shard at a time from its first row to its last. Embeddings are therefore always stored
beside the images that they were computed from, and a shard that is lost with its node is redone as a whole.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.batch import load_batch
from beamclip.data.cache import (
    CacheManifest,
    cache_schema,
    caption_column,
    draws_column,
    embedding_column,
    write_cache_shard,
)
from beamclip.data.config import AugmentConfig, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.image_limits import refusal_reason
from beamclip.data.listing import list_shards
from beamclip.data.lost_samples import FirstLost, in_words, lost_sample
from beamclip.data.shards import Columns, Row, Shard, iterate_rows
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, augment, load_training_views, sample_uniforms
from beamclip.models.teacher import ImageTeacher, Teacher
from beamclip.training.events import Embedded, Lost
from beamclip.training.process import prepare_process

Views = NDArray[np.uint8]
"""[K, H, W, 3], the crops of one image."""

_Decoded = tuple[list[Row], NDArray[np.float32], list[Views | None]]


@dataclass(frozen=True)
class EmbeddingJob:
    """Everything an actor needs, as plain data and references."""

    teachers: tuple[Any, ...]
    """References to ImageTowers."""
    text_towers: tuple[Any, ...]
    """References to LoadedClips without image towers; empty if captions are not embedded."""
    manifest: CacheManifest
    out: str
    """Address of the cache."""
    batch_size: int
    """Views encoded at a time."""
    decode_threads: int
    threads: int
    """CPU threads of torch."""
    device: str
    compile: bool
    channel: Any
    """A RemoteChannel, which receives Embedded and Lost events."""


class ShardEmbedder:
    """Turns source shards into shards of the cache; built once in each embedding process."""

    def __init__(self, references: list[Any]) -> None:
        """Load the models of a job.

        Args:
            references: a list of one reference to an EmbeddingJob; Ray does not resolve references in a list.
        """
        job: EmbeddingJob = ray.get(references[0])
        prepare_process(job.threads, job.manifest.seed)
        self.job = job
        self.manifest = job.manifest
        self.augmentation = AugmentConfig(**job.manifest.augmentation)
        self.teachers = [
            ImageTeacher(ray.get(reference), cached.precision).to(job.device)  # type: ignore[arg-type]
            for reference, cached in zip(job.teachers, job.manifest.teachers, strict=True)
        ]
        if job.compile:
            for teacher in self.teachers:
                teacher.compile_network()
        self.text_towers = [Teacher(ray.get(reference)).to(job.device) for reference in job.text_towers]
        self.pool = ThreadPoolExecutor(job.decode_threads)
        self.first_lost = FirstLost()

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed the shards of a batch and write them to the cache.

        Args:
            batch: "shard", the fields of each Shard as a dictionary, and "name", its file name in the cache.

        Returns:
            The batch's "name" column alone.
        """
        for shard, name in zip(batch["shard"].tolist(), batch["name"].tolist(), strict=True):
            write_cache_shard(self.job.out, name, self.tables(Shard(**shard)), self.manifest)
        return {"name": batch["name"]}

    def tables(self, shard: Shard) -> Iterator[pa.Table]:
        """Yield the rows of a shard, in order, with the columns that the cache adds, and report progress."""
        self.job.channel.put(Embedded(0, time.time()))
        for rows, draws, views in self._decoded(shard):
            lost = [row["problem"] for row in rows]
            good = [index for index, problem in enumerate(lost) if problem is None]
            embeddings = self._embed([each for each in views if each is not None], draws[good])
            captions = self._embed_captions(rows) if self.manifest.captions else []
            yield self._table(rows, lost, good, draws, embeddings, captions)
            if told := self.first_lost.new(lost_sample(row) for row in rows if row["problem"]):
                self.job.channel.put(Lost(tuple(told)))
            self.job.channel.put(Embedded(len(rows), time.time()))

    def _decoded(self, shard: Shard) -> Iterator[_Decoded]:
        """Yield rows, their random numbers [rows, K, DRAWS] and their crops, a batch ahead of the teacher."""
        rows = iterate_rows(shard, Columns(everything=True), range(shard.samples))
        views = range(self.manifest.augmentations)
        size = max(1, self.job.batch_size // len(views))
        ahead: deque[tuple[list[Row], NDArray[np.float32], list[Future[Views | None]]]] = deque()
        while taken := list(islice(rows, size)):
            keys = [row["key"] for row in taken]
            # The numbers that training without a cache would use in its first epochs.
            draws = np.stack([sample_uniforms(self.manifest.seed, view, keys) for view in views], axis=1)
            futures = [self.pool.submit(self._load, row, own) for row, own in zip(taken, draws, strict=True)]
            ahead.append((taken, draws, futures))
            if len(ahead) > 1:
                yield _resolved(*ahead.popleft())
        while ahead:
            yield _resolved(*ahead.popleft())

    def _load(self, row: Row, draws: NDArray[np.float32]) -> Views | None:
        if row["problem"]:
            return None
        try:
            return load_training_views(row["image"], draws, self.manifest.image_size, self.augmentation)
        except Exception as error:  # whatever a decoder raises, even lack of memory, is this sample's problem
            row.update(problem=refusal_reason(error), detail=in_words(error))
            return None

    @torch.no_grad()
    def _embed(self, views: list[Views], draws: NDArray[np.float32]) -> list[NDArray[np.float16]]:
        """Return each teacher's embeddings of the augmented views, float16 [rows, K, D]."""
        if not views:
            return [
                np.zeros((0, self.manifest.augmentations, teacher.embed_dim), np.float16)
                for teacher in self.manifest.teachers
            ]
        pixels = torch.from_numpy(np.stack(views)).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
        numbers = torch.from_numpy(draws).flatten(0, 1)[:, CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS]
        device = self.job.device
        augmented = augment(pixels.to(device), numbers.contiguous().to(device), self.augmentation)
        shape = (len(views), self.manifest.augmentations, -1)
        return [_half(teacher.encode_image(augmented)).reshape(shape) for teacher in self.teachers]

    def _embed_captions(self, rows: list[Row]) -> list[list[bytes | None]]:
        """Return each teacher's caption embeddings by row: float16 [D] as bytes; None without a caption."""
        captions = [row.get("caption") for row in rows]
        distinct = list(dict.fromkeys(caption for caption in captions if caption))
        if not distinct:
            return [[None] * len(rows) for _ in self.text_towers]
        columns = []
        for teacher in self.text_towers:
            encoded = dict(zip(distinct, _half(teacher.encode_text(distinct)), strict=True))
            columns.append([encoded[text].tobytes() if text else None for text in captions])
        return columns

    def _table(
        self,
        rows: list[Row],
        lost: list[str | None],
        good: list[int],
        draws: NDArray[np.float32],
        embeddings: list[NDArray[np.float16]],
        captions: list[list[bytes | None]],
    ) -> pa.Table:
        columns: dict[str, list[Any]] = {
            "key": [row["key"] for row in rows],
            "caption": [row.get("caption") for row in rows],
            "json": [row.get("fields") for row in rows],
            "problem": lost,
            "image": [None if problem else row["image"] for row, problem in zip(rows, lost, strict=True)],
        }
        for view in range(self.manifest.augmentations):
            columns[draws_column(view)] = _spread(draws[good, view], good, len(rows))
            for index, of_teacher in enumerate(embeddings):
                columns[embedding_column(index, view)] = _spread(of_teacher[:, view], good, len(rows))
        for index, column in enumerate(captions):
            columns[caption_column(index)] = column
        return pa.Table.from_pydict(columns, cache_schema(self.manifest))


def _resolved(rows: list[Row], draws: NDArray[np.float32], futures: "list[Future[Views | None]]") -> _Decoded:
    return rows, draws, [future.result() for future in futures]


def _half(embeddings: Tensor) -> NDArray[np.float16]:
    return embeddings.half().cpu().numpy().astype("<f2", copy=False)


def _spread(values: NDArray[Any], places: list[int], rows: int) -> list[bytes | None]:
    """Return a column with the bytes of each value at its row, and None elsewhere."""
    column: list[bytes | None] = [None] * rows
    for place, value in zip(places, values, strict=True):
        column[place] = value.tobytes()
    return column


def verify_cache(references: list[Any], samples: int) -> NDArray[np.float32]:
    """Check a cache: replay its views as training does, and embed them with the teachers again.

    Args:
        references: see ShardEmbedder.
        samples: number of evenly spaced rows to check, one view of each; unusable rows are left out.

    Returns:
        float32 [rows, teachers], cosine similarities between cached and recomputed embeddings.
    """
    embedder = ShardEmbedder(references)
    job, manifest = embedder.job, embedder.manifest
    rows = _views_at_even_distances(list_shards(job.out), manifest, samples)
    if not rows:
        return np.zeros((0, len(manifest.teachers)), np.float32)
    widths = manifest.views(tuple(range(len(manifest.teachers)))).widths
    decoding = Decoding(
        manifest.image_size, embedder.augmentation, CaptionConfig(), manifest.seed, widths[1:]
    )
    cosines = []
    with ThreadPoolExecutor(job.decode_threads) as pool:
        for begin in range(0, len(rows), job.batch_size):
            part = rows[begin : begin + job.batch_size]
            batch, _ = load_batch(part, decoding, pool, size=len(part))
            pixels = augment(batch.pixels.to(job.device), batch.draws.to(job.device), embedder.augmentation)
            cosines.append(
                [
                    F.cosine_similarity(teacher.encode_image(pixels).cpu(), cached.float()).numpy()
                    for teacher, cached in zip(embedder.teachers, batch.embeddings, strict=True)
                ]
            )
    return np.concatenate(cosines, axis=1).T


def _views_at_even_distances(shards: list[Shard], manifest: CacheManifest, samples: int) -> list[Row]:
    ends = np.cumsum([shard.samples for shard in shards])
    views = manifest.views(tuple(range(len(manifest.teachers))))
    chosen = []
    for turn, place in enumerate(np.unique(np.linspace(0, ends[-1] - 1, samples).astype(np.int64)).tolist()):
        shard = int(np.searchsorted(ends, place, "right"))
        number = place - int(ends[shard]) + shards[shard].samples
        own = replace(shards[shard], views=views)
        found = iterate_rows(own, Columns(), range(number, number + 1), epoch=turn)
        chosen += [row for row in found if row["problem"] is None]
    return chosen
