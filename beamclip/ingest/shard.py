"""Download one shard by img2dataset's downloader, resizer and writer.

img2dataset's own entry point, `img2dataset.download`, is not used. It starts processes into which no
guard against private addresses can be put, never reports a shard that failed, counts images that it
could not write, and spends 5 to 15 s a call on a logging process and on imports. Its parts are used as
they are: `Downloader` (threads, retries, X-Robots-Tag, statistics), `Resizer` (which gets images that are
already decoded, see `resizer`), and the sample writers (which get rows in the order of the list, see
`row_order`).
"""

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from beamclip.data.index import index_from, write_index
from beamclip.ingest.body_memory import BodyMemory
from beamclip.ingest.hosts import WEB_PORTS
from beamclip.ingest.opener import FetchRules, install_guarded_opener
from beamclip.ingest.resizer import UprightResizer
from beamclip.ingest.row_order import OrderedWriter
from beamclip.places import Folder, is_address

SHARD_DIGITS = 5
"""Digits of a shard's number in file names; img2dataset calls it `oom_shard_count`."""

DEFAULT_QUALITY = {"jpg": 95, "webp": 90, "png": 6}
"""`encode_quality` by format, where none is given."""

_FIXED_SIZE_MODES = ("border", "center_crop")

_SECOND_ATTEMPT_THREADS = 8
"""Factor of threads for rows that failed before: most of them only wait."""


@dataclass(frozen=True)
class DownloadSettings:
    """Settings that all shards of an ingest share; see `beamclip.ingest.config.IngestConfig`."""

    folder: str
    format: Literal["webdataset", "parquet"]
    columns: tuple[str, ...]
    image_size: int | None
    resize_mode: str
    encode_format: Literal["jpg", "png", "webp"]
    encode_quality: int | None
    shard_size: int
    threads: int
    timeout_s: float
    retries: int
    allow_private_hosts: bool
    per_host: int = 64
    ports: tuple[int, ...] = WEB_PORTS
    turns: str = ""
    """File by which processes count their requests to a host together; the runner sets it."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to download: its number, and the path or address of an Arrow file with its rows, which is
    removed on success."""

    shard_id: int
    rows_file: str
    second_attempt: bool = False
    """Whether all of its rows have failed before."""


def download_shard(
    settings: DownloadSettings, task: ShardTask, on_last_rows: Callable[[], object] = lambda: None
) -> None:
    """Download one shard; when this returns, its files are complete and its statistics are true.

    Installs the guarded opener into this process.

    Args:
        settings, task: what to download.
        on_last_rows: called once, when all remaining rows are under way: from then on the shard needs little
            CPU time, and may take as long as its slowest server.

    Raises:
        RuntimeError: the shard could not be written, or holds fewer samples than counted.
    """
    threads = settings.threads * (_SECOND_ATTEMPT_THREADS if task.second_attempt else 1)
    memory = BodyMemory(bodies=2 * threads)  # img2dataset has as many rows under way or waiting
    rules = FetchRules(
        turns=Path(settings.turns),
        per_host=settings.per_host,
        allow_private_hosts=settings.allow_private_hosts,
        ports=settings.ports,
    )
    install_guarded_opener(rules, memory)
    count = _RowCount(_count_rows(task.rows_file) - threads, on_last_rows)
    downloader = _build_downloader(settings, threads, memory, partial(_open_writer, settings, task, count))
    finished, _ = downloader((task.shard_id, task.rows_file))
    if not finished:
        raise RuntimeError(f"shard {task.shard_id} failed")
    folder, name = Folder(settings.folder), shard_name(task.shard_id)
    _check_counts(folder, name)


def shard_name(shard_id: int) -> str:
    """Return the name of a shard's files, without their endings."""
    return f"{shard_id:0{SHARD_DIGITS}d}"


def row_of_key(key: str, shard_id: int, shard_size: int) -> int:
    """Return the position in its shard of the sample that img2dataset gave this key."""
    return int(key) - shard_id * 10 ** math.ceil(math.log10(shard_size))


def _check_counts(folder: Folder, name: str) -> None:
    """img2dataset counts a sample as a success before it writes it, and only prints when that fails."""
    stats = json.loads(folder.read(name + "_stats.json") or b"")
    with folder.fs.open(folder.path(name + ".parquet"), "rb") as file:
        status = pq.read_table(file, columns=["status"]).column("status")
    written = status.to_pylist().count("success")
    if (len(status), written) != (stats["count"], stats["successes"]):
        folder.remove(name + "_stats.json")
        raise RuntimeError(
            f"shard {name}: {written} of {stats['successes']} samples written, "
            f"{len(status)} of {stats['count']} rows recorded"
        )


class _RowCount:
    """Counts rows that have come to be written, and calls `reached` when there are so many."""

    def __init__(self, rows: int, reached: Callable[[], object]) -> None:
        self._left = max(1, rows)
        self._reached = reached

    def add(self) -> None:
        """Count one row."""
        self._left -= 1
        if self._left == 0:
            self._reached()


class _CountingWriter:
    """A sample writer that counts the rows it gets, those of failed downloads included."""

    def __init__(self, writer: OrderedWriter, count: _RowCount) -> None:
        self._writer = writer
        self._count = count

    def write(self, *row: Any) -> None:
        """Write one row, at once or when its turn comes, and count it."""
        self._writer.write(*row)
        self._count.add()

    def close(self) -> None:
        """Finish the shard's files."""
        self._writer.close()


class _IndexingWriter:
    """img2dataset's writer of tars, which writes an index beside the tar: it knows where samples begin."""

    def __init__(self, writer: Any, tar: str) -> None:
        self._writer = writer
        self._tar = tar
        self._starts = list[int]()

    def write(self, image: bytes | None, *about: Any) -> None:
        """Write one row; one without an image adds nothing to the tar."""
        if image is not None:
            self._starts.append(self._writer.tarwriter.tarstream.offset)
        self._writer.write(image, *about)

    def close(self) -> None:
        """Finish the shard's files."""
        end = self._writer.tarwriter.tarstream.offset
        self._writer.close()
        # Whoever trains on a tar without an index reads it for one.
        with contextlib.suppress(Exception):
            write_index(self._tar, index_from(self._starts, end))


class _BodyDroppingResizer:
    """A resizer that gives the memory of a body back once its image is resized."""

    def __init__(self, resizer: Any, memory: BodyMemory) -> None:
        self._resizer = resizer
        self._memory = memory

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: None = None) -> tuple[Any, ...]:
        size = len(img_stream.getbuffer())
        try:
            result: tuple[Any, ...] = self._resizer(img_stream, blurring_bbox_list)
            return result
        finally:
            self._memory.drop_body(size)


def _count_rows(rows_file: str) -> int:
    with fsspec.open(rows_file, "rb") as file:
        rows: int = pa.ipc.open_file(file).read_all().num_rows
    return rows


def _open_writer(
    settings: DownloadSettings, task: ShardTask, count: _RowCount, *about: Any
) -> _CountingWriter:
    """Open the shard's files; `about` is what img2dataset tells its own writers."""
    from img2dataset.writer import ParquetSampleWriter, WebDatasetSampleWriter

    if settings.format == "webdataset":
        tar = Folder(settings.folder).join(shard_name(task.shard_id) + ".tar").place
        writer: Any = _IndexingWriter(WebDatasetSampleWriter(*about), tar)
    else:
        writer = ParquetSampleWriter(*about)
    # A folder for temporary files may be small, or in memory; beside the shards there is room for a shard.
    folder = None if is_address(task.rows_file) else os.path.dirname(task.rows_file)
    ordered = OrderedWriter(
        writer,
        lambda key: row_of_key(key, task.shard_id, settings.shard_size),
        (_temporary_file(folder), _temporary_file(folder)),
    )
    return _CountingWriter(ordered, count)


def _temporary_file(folder: str | None) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder, prefix="waiting-")


def _build_downloader(
    settings: DownloadSettings, threads: int, memory: BodyMemory, open_writer: Callable[..., _CountingWriter]
) -> Any:
    from img2dataset.downloader import Downloader

    return Downloader(
        sample_writer_class=open_writer,
        resizer=_BodyDroppingResizer(UprightResizer(_build_resizer(settings)), memory),
        thread_count=threads,
        save_caption="caption" in settings.columns,
        extract_exif=False,
        output_folder=settings.folder,
        column_list=list(settings.columns),
        timeout=settings.timeout_s,
        number_sample_per_shard=settings.shard_size,
        oom_shard_count=SHARD_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format=settings.encode_format,
        retries=settings.retries,
        user_agent_token="img2dataset",  # honours what sites tell img2dataset, and says who asks
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )


def _build_resizer(settings: DownloadSettings) -> Any:
    from img2dataset.resizer import Resizer

    quality = settings.encode_quality
    return Resizer(
        image_size=settings.image_size,
        resize_mode=settings.resize_mode,
        # Modes that promise a size enlarge small images; the others leave them as they are.
        resize_only_if_bigger=settings.resize_mode not in _FIXED_SIZE_MODES,
        encode_format=settings.encode_format,
        encode_quality=DEFAULT_QUALITY[settings.encode_format] if quality is None else quality,
    )


def write_rows(table: pa.Table, place: str) -> None:
    """Write the rows of one shard to a path or address, as the Arrow file that its downloader reads."""
    with fsspec.open(place, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
