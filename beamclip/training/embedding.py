"""Actors that build a teacher cache: they turn shards of images into shards of images with embeddings.

An actor handles one shard at a time from its first row to its last. Embeddings are therefore always stored
beside the images that they were computed from, and a shard that is lost with its node is redone as a whole.
Its threads read and decode the images, or tasks of Ray Data on any node do so for it.
"""

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
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
from beamclip.data.bundles import bundles_in_line
from beamclip.data.cache import (
    CacheError,
    CacheManifest,
    cache_schema,
    caption_column,
    draws_column,
    embedding_column,
    is_written,
    write_cache_shard,
)
from beamclip.data.config import Augmentation, CaptionConfig, DecodePlace
from beamclip.data.decoding import Decoding
from beamclip.data.listing import list_shards
from beamclip.data.lost_samples import FirstLost, lost_sample
from beamclip.data.rows import read_tables
from beamclip.data.shard_file import MissingShardError
from beamclip.data.shards import Columns, Row, Shard, iterate_rows
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, teacher_pixels
from beamclip.data.views import ViewDecoding, Views, rows_with_views
from beamclip.models.teacher import ImageTeacher, Teacher
from beamclip.training.events import Embedded, Lost
from beamclip.training.process import prepare_process

_Decoded = tuple[Row, NDArray[np.float32], Views | None]
"""A row, the random numbers of its views [K, DRAWS], and its crops."""


@dataclass(frozen=True)
class EmbeddingJob:
    """Everything an actor needs, as plain data and references."""

    teachers: tuple[Any, ...]
    """References to ImageTowers, those of vision only last."""
    text_towers: tuple[Any, ...]
    """References to LoadedClips without image towers, for the teachers that have texts; empty if captions are
    not embedded."""
    manifest: CacheManifest
    out: str
    """Address of the cache."""
    batch_size: int
    """Views encoded at a time."""
    decode: DecodePlace
    starts: Any
    """Reference to the Starts of the shards to embed, from which tasks read."""
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
        self.augmentation = Augmentation(**job.manifest.augmentation)
        self.decoding = ViewDecoding(
            job.manifest.image_size, self.augmentation, job.manifest.augmentations, job.manifest.seed
        )
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
            batch: "shard", the fields of each Shard as a dictionary, "number", its place among those to
                embed, and "name", its file name in the cache.

        Returns:
            The batch's "name" column alone.
        """
        names = batch["name"].tolist()
        numbered = zip(batch["number"].tolist(), (Shard(**shard) for shard in batch["shard"]), strict=True)
        # Ray calls this again where it lost the process: what that one finished stays as it is.
        todo = {
            name: each
            for name, each in zip(names, numbered, strict=True)
            if not is_written(self.job.out, name)
        }
        with contextlib.closing(self._decoded(list(todo.values()))) as decoded:
            for name, (_, shard) in todo.items():
                write_cache_shard(self.job.out, name, self._tables(shard, decoded), self.manifest)
        return {"name": batch["name"]}

    def _tables(self, shard: Shard, decoded: Iterator[_Decoded]) -> Iterator[pa.Table]:
        """Yield the rows of a shard, in order, with the columns that the cache adds, and report progress."""
        self.job.channel.put(Embedded(0, time.time()))
        for first in range(0, shard.samples, self._batch_rows):
            expected = min(self._batch_rows, shard.samples - first)
            taken = list(islice(decoded, expected))
            if len(taken) < expected:
                raise MissingShardError(
                    f"{shard.path}: it ends after {first + len(taken)} of {shard.samples} samples"
                )
            rows, draws, views = [list(column) for column in zip(*taken, strict=True)]
            yield self._embedded(rows, np.stack(draws), views)
            if told := self.first_lost.new(lost_sample(row) for row in rows if row["problem"]):
                self.job.channel.put(Lost(tuple(told)))
            self.job.channel.put(Embedded(len(rows), time.time()))

    @property
    def _batch_rows(self) -> int:
        return max(1, self.job.batch_size // self.decoding.views)

    def _decoded(self, shards: Sequence[tuple[int, Shard]]) -> Generator[_Decoded, None, None]:
        """Yield the rows of shards, one shard after the other."""
        if self.job.decode == "tasks":
            bundles = bundles_in_line(shards, ray.get(self.job.starts))
            with contextlib.closing(read_tables(bundles, Columns(everything=True), self.decoding)) as tables:
                for table in tables:
                    yield from rows_with_views(table, self.decoding)
        else:
            for _, shard in shards:
                yield from self._decoded_by_threads(shard)

    def _decoded_by_threads(self, shard: Shard) -> Iterator[_Decoded]:
        """Decode a batch ahead of the teacher."""
        rows = iterate_rows(shard, Columns(everything=True), range(shard.samples))
        ahead: deque[list[tuple[Row, NDArray[np.float32], Future[Views | None]]]] = deque()
        while taken := list(islice(rows, self._batch_rows)):
            ahead.append(
                [
                    (row, draws, self.pool.submit(self.decoding.crops, row, draws))
                    for row, draws in zip(taken, self.decoding.draws(taken), strict=True)
                ]
            )
            if len(ahead) > 1:
                yield from _resolved(ahead.popleft())
        while ahead:
            yield from _resolved(ahead.popleft())

    def _embedded(self, rows: list[Row], draws: NDArray[np.float32], views: list[Views | None]) -> pa.Table:
        """A table of the cache; draws are [rows, K, DRAWS]."""
        lost = [row["problem"] for row in rows]
        good = [index for index, problem in enumerate(lost) if problem is None]
        embeddings = self._embed([each for each in views if each is not None], draws[good])
        captions = self._embed_captions(rows) if self.manifest.captions else []
        return self._table(rows, lost, good, draws, embeddings, captions)

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
        seen = teacher_pixels(pixels.to(device), numbers.contiguous().to(device), self.augmentation)
        shape = (len(views), self.manifest.augmentations, -1)
        return [_half(teacher.encode_image(seen)).reshape(shape) for teacher in self.teachers]

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


def _resolved(batch: list[tuple[Row, NDArray[np.float32], "Future[Views | None]"]]) -> Iterator[_Decoded]:
    return ((row, draws, crops.result()) for row, draws, crops in batch)


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

    Raises:
        CacheError: a row cannot be read.
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
            pixels, draws = batch.pixels.to(job.device), batch.draws.to(job.device)
            pixels = teacher_pixels(pixels, draws, embedder.augmentation)
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
        for row in iterate_rows(own, Columns(), range(number, number + 1), epoch=turn):
            # The cache says why a sample was lost, and no more. What says more is damage to the cache.
            if row["problem"] and row["detail"]:
                raise CacheError(
                    f"{own.path}, row {number}: {row['problem']} ({row['detail']}). Remove this file and its "
                    "_stats.json, and give the same command again."
                )
            chosen += [row] if row["problem"] is None else []
    return chosen
