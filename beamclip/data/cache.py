"""The teacher cache: shards that carry, for each image, augmentations and the teachers' embeddings of them.

After dataset reinforcement (MobileCLIP, https://arxiv.org/abs/2311.17049). Each source shard becomes one
parquet file of as many rows in the same order, so a row that is lost shifts no other. A row holds the key,
the encoded image and all fields of the source; for each augmentation the random numbers that it is replayed
from, and each teacher's embedding of exactly that view; and the embeddings of the caption. Every view has
columns of its own: training reads those of one view an epoch, and leaves the others on the disk.

Embeddings are little-endian float16 in fixed-size binary. For unit vectors this is exact to a cosine error
of 1e-7, and takes a microsecond to read.

Free of torch: every process that runs a read task imports this module.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from beamclip.addresses import reachable
from beamclip.data.order import PIECE
from beamclip.errors import InputError

CACHE_FILE = "cache.json"

_FORMAT = 2


class CacheError(RuntimeError):
    """A cache that does not hold what it says."""


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher whose embeddings a cache holds."""

    address: str
    """Address of the teacher, as it was given to `beamclip embed`."""
    fingerprint: str
    """sha256 of its weights and configs."""
    embed_dim: int
    precision: str
    """Arithmetic of its image tower, fp32 or bf16."""
    preprocess: dict[str, Any]
    """open_clip's keys: size, mean, std, ..."""
    vision_only: bool = False
    """Whether it is a backbone without a text tower, whose features are held. These come last."""


@dataclass(frozen=True)
class CachedViews:
    """What training takes from each row of a cache: one view an epoch, as some teachers saw it."""

    teachers: tuple[int, ...]
    """Places of the teachers among those of the cache's manifest, those of vision only last."""
    augmentations: int
    """Number of views of each image in the cache."""
    widths: tuple[int, ...] = ()
    """Bytes of a row's random numbers, then of each of these teachers' embeddings, then of the caption's."""
    captions: bool = False
    """Whether the first of these teachers' embedding of the caption is read, too."""

    def names(self, epoch: int) -> list[str]:
        """The columns of an epoch: the random numbers, each teacher's embeddings, that of the caption."""
        view = epoch % self.augmentations
        of_images = [embedding_column(teacher, view) for teacher in self.teachers]
        return [
            draws_column(view),
            *of_images,
            *([caption_column(self.teachers[0])] if self.captions else []),
        ]


@dataclass(frozen=True)
class CacheManifest:
    """What a cache was made of and how."""

    teachers: tuple[CachedTeacher, ...]
    image_size: int
    """Side of the crops that were embedded, pixels."""
    augmentations: int
    """Number of views of each image."""
    augmentation: dict[str, Any]
    """The fields of Augmentation."""
    seed: int
    draws: int
    """Random numbers that a view is replayed from."""
    captions: bool
    """Whether the captions' embeddings are there."""
    source: str
    """Address of the shards that it was made from."""
    source_fingerprint: str
    versions: dict[str, str] = field(default_factory=dict)
    samples: int | None = None
    """Rows in all shards; None until the last one is written."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows without embeddings, by reason."""

    def views(self, teachers: tuple[int, ...], *, captions: bool = False) -> CachedViews:
        """The views as these teachers saw them; with the first one's embedding of the caption, if wanted."""
        places = (*teachers, *teachers[: int(captions)])
        widths = (4 * self.draws, *(2 * self.teachers[place].embed_dim for place in places))
        return CachedViews(teachers, self.augmentations, widths, captions)


_MADE_LATER = ("versions", "samples", "skipped")


def draws_column(view: int) -> str:
    """Random numbers of a view: little-endian float32 [draws]."""
    return f"draws.{view}"


def embedding_column(teacher: int, view: int) -> str:
    """A teacher's embedding of a view: float16 [D], unit length."""
    return f"embedding.{teacher}.{view}"


def caption_column(teacher: int) -> str:
    """A teacher's embedding of the caption: float16 [D], unit length; null without a caption."""
    return f"caption_embedding.{teacher}"


def is_cache(address: str) -> bool:
    """Whether there is a teacher cache, finished or not."""
    with reachable(address, "Give a folder or an address that can be read."):
        fs, root = fsspec.core.url_to_fs(address)
        return bool(fs.exists(posixpath.join(root, CACHE_FILE)))


def read_manifest(address: str) -> CacheManifest:
    """The manifest of a cache.

    Raises:
        InputError: there is none, or this version cannot read it.
    """
    fs, root = fsspec.core.url_to_fs(address)
    path = posixpath.join(root, CACHE_FILE)
    advice = "Build it with beamclip embed."
    try:
        content = json.loads(fs.cat_file(path))
        if content.pop("format") != _FORMAT:
            raise InputError(f"{path}: of another version of beamclip. {advice}")
        content["teachers"] = tuple(CachedTeacher(**teacher) for teacher in content["teachers"])
        return CacheManifest(**content)
    except FileNotFoundError as error:
        raise InputError(f"{address}: no teacher cache ({CACHE_FILE} is missing). {advice}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a manifest of a teacher cache ({error!r}). {advice}") from error


def finished_manifest(address: str) -> CacheManifest:
    """The manifest of a cache of which all shards are there.

    Raises:
        InputError: there is no cache, or it is not finished.
    """
    manifest = read_manifest(address)
    if manifest.samples is None:
        raise InputError(f"{address}: this teacher cache is not finished. Run beamclip embed again.")
    return manifest


def write_manifest(address: str, manifest: CacheManifest) -> None:
    """Write, or replace, a cache's manifest."""
    fs, root = fsspec.core.url_to_fs(address)
    fs.makedirs(root, exist_ok=True)
    content = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2)
    draft = posixpath.join(root, f".{CACHE_FILE}.part")
    fs.pipe_file(draft, content.encode())
    fs.mv(draft, posixpath.join(root, CACHE_FILE))


def differences(cached: CacheManifest, wanted: CacheManifest) -> list[str]:
    """What keeps two caches from being one, each as `name: X there, Y here`."""
    found = []
    for item in fields(CacheManifest):
        there, here = getattr(cached, item.name), getattr(wanted, item.name)
        if item.name in (*_MADE_LATER, "source") or there == here:
            continue
        if item.name == "augmentation":
            found += augmentation_differences(there, here)
        elif item.name == "teachers":
            found += _teacher_differences(there, here)
        else:
            found.append(f"{item.name}: {there} there, {here} here")
    return found


def augmentation_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The options of the augmentation that differ."""
    names = [*there, *(name for name in here if name not in there)]
    values = [(name, there.get(name), here.get(name)) for name in names]
    return [f"{name}: {a} there, {b} here" for name, a, b in values if a != b]


def _teacher_differences(there: tuple[CachedTeacher, ...], here: tuple[CachedTeacher, ...]) -> list[str]:
    if len(there) != len(here):
        return [f"{len(there)} teachers there, {len(here)} here"]
    found = []
    for a, b in zip(there, here, strict=True):
        # The same weights may be reached by another path.
        if replace(a, address="") != replace(b, address=""):
            found.append(
                f"teacher: {a.address} ({a.precision}, {a.fingerprint[:12]}) there, "
                f"{b.address} ({b.precision}, {b.fingerprint[:12]}) here"
            )
    return found


def cache_schema(manifest: CacheManifest) -> pa.Schema:
    """The columns of a cache's shards."""
    views, teachers = range(manifest.augmentations), list(enumerate(manifest.teachers))
    columns = [(name, pa.string()) for name in ("key", "caption", "json", "problem")]
    columns.append(("image", pa.binary()))
    columns += [(draws_column(view), pa.binary(4 * manifest.draws)) for view in views]
    for index, teacher in teachers:
        width = pa.binary(2 * teacher.embed_dim)
        columns += [(embedding_column(index, view), width) for view in views]
        columns += [(caption_column(index), width)] if manifest.captions and not teacher.vision_only else []
    return pa.schema(columns)


def is_written(address: str, name: str) -> bool:
    """Whether a shard of the cache is finished."""
    fs, root = fsspec.core.url_to_fs(address)
    return bool(fs.exists(posixpath.join(root, f"{name}_stats.json")))


def write_cache_shard(address: str, name: str, tables: Iterable[pa.Table], manifest: CacheManifest) -> None:
    """Write one shard; its statistics come last, and until then it does not count.

    Args:
        name: of the shard, without a suffix.
        tables: of cache_schema(manifest), in the order of the rows.
    """
    fs, root = fsspec.core.url_to_fs(address)
    problems: Counter[str] = Counter()
    rows = 0
    schema = cache_schema(manifest)
    # Images and embeddings do not compress, and their least and greatest values tell nobody anything.
    texts = [column.name for column in schema if pa.types.is_string(column.type)]
    compression = {column.name: "zstd" if column.name in texts else "none" for column in schema}
    path = posixpath.join(root, f"{name}.parquet")
    with (
        fs.open(path, "wb") as file,
        pq.ParquetWriter(
            file, schema, compression=compression, use_dictionary=["problem"], write_statistics=False
        ) as writer,
    ):
        for group in _row_groups(tables):
            writer.write_table(group)
            problems.update(problem for problem in group["problem"].to_pylist() if problem)
            rows += group.num_rows
    stats = {"count": rows, "successes": rows, "skipped": dict(problems)}
    fs.pipe_file(posixpath.join(root, f"{name}_stats.json"), json.dumps(stats).encode())


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of PIECE rows: whoever wants one of them reads all of its group, and training wants a piece."""
    held = pa.table({})
    for table in tables:
        held = pa.concat_tables([held, table]) if len(held) else table
        whole = len(held) - len(held) % PIECE
        for start in range(0, whole, PIECE):
            yield held.slice(start, PIECE).combine_chunks()
        held = held.slice(whole)
    if len(held):
        yield held.combine_chunks()


def skipped_in(address: str) -> dict[str, int]:
    """Rows without embeddings in the finished shards, by reason."""
    fs, root = fsspec.core.url_to_fs(address)
    skipped: Counter[str] = Counter()
    for path in fs.glob(posixpath.join(root, "*_stats.json")):
        skipped.update(json.loads(fs.cat_file(path)).get("skipped", {}))
    return dict(skipped)
