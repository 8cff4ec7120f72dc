"""One shard: its URLs through img2dataset's downloader, resizer and writer.

img2dataset's own entry point, `img2dataset.download`, is not used. It starts processes into which no
guard against private addresses can be put, never reports a shard that failed, counts images that it
could not write, and spends 5 to 15 s a call on a logging process and on imports. Its parts are used as
they are: `Downloader` (threads, retries, X-Robots-Tag, statistics), `Resizer`, and the sample writers.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from beamclip.data.body_memory import BodyMemory
from beamclip.data.fetch import FetchRules, install_guarded_opener

SHARD_DIGITS = 5
"""Digits of a shard's number in file names, as img2dataset's `oom_shard_count`."""

DEFAULT_QUALITY = {"jpg": 95, "webp": 90, "png": 6}

_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_FIXED_SIZE_MODES = ("border", "center_crop")

_SECOND_ATTEMPT_THREADS = 8
"""Times as many for rows that failed before: most of them only wait."""


@dataclass(frozen=True)
class DownloadSettings:
    """What every shard of an ingest has in common; see `beamclip.data.ingest.IngestConfig`."""

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
    per_host: int
    ports: tuple[int, ...]
    turns: str = ""
    """File by which processes count requests to a host together; the runner makes it."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to download: its number, and an Arrow file with its rows, which is removed on success."""

    shard_id: int
    rows_file: str
    second_attempt: bool = False
    """All of its rows have failed before."""


def download_shard(
    settings: DownloadSettings, task: ShardTask, on_last_rows: Callable[[], object] = lambda: None
) -> None:
    """Download one shard; when this returns its files are complete and its statistics true.

    Installs the guarded opener into this process.

    Args:
        settings, task: what to download.
        on_last_rows: called once, when all rows that are left are under way: from then on the shard needs
            little of the processor, and may take as long as its slowest server.

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
    downloader = _build_downloader(settings, threads, memory, count)
    finished, _ = downloader((task.shard_id, task.rows_file))
    if not finished:
        raise RuntimeError(f"shard {task.shard_id} failed")
    _check_counts(shard_path(settings.folder, task.shard_id))


def shard_path(folder: str, shard_id: int) -> Path:
    """Path of a shard's files without their endings."""
    return Path(folder) / f"{shard_id:0{SHARD_DIGITS}d}"


def row_of_key(key: str, shard_id: int, shard_size: int) -> int:
    """Position in its shard of the sample that img2dataset gave this key."""
    return int(key) - shard_id * 10 ** math.ceil(math.log10(shard_size))


def _check_counts(path: Path) -> None:
    """img2dataset counts a sample as a success before it writes it, and only prints when that fails."""
    stats_file = path.with_name(path.name + "_stats.json")
    stats = json.loads(stats_file.read_text())
    status = pq.read_table(path.with_name(path.name + ".parquet"), columns=["status"]).column("status")
    written = status.to_pylist().count("success")
    if (len(status), written) != (stats["count"], stats["successes"]):
        stats_file.unlink()
        raise RuntimeError(
            f"shard {path.name}: {written} of {stats['successes']} samples written, "
            f"{len(status)} of {stats['count']} rows recorded"
        )


class _RowCount:
    """Calls back when so many rows are written."""

    def __init__(self, rows: int, reached: Callable[[], object]) -> None:
        self._left = max(1, rows)
        self._reached = reached

    def add(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._reached()


class _CountingWriter:
    """A sample writer of img2dataset that counts what it writes, failures included."""

    def __init__(self, writer: Any, count: _RowCount) -> None:
        self._writer = writer
        self._count = count

    def write(self, *row: Any) -> None:
        self._writer.write(*row)
        self._count.add()

    def close(self) -> None:
        self._writer.close()


class _BodyDroppingResizer:
    """A resizer that gives the memory of a body back once its picture is made."""

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
    with pa.memory_map(rows_file) as file:
        rows: int = pa.ipc.open_file(file).read_all().num_rows
    return rows


def _build_downloader(settings: DownloadSettings, threads: int, memory: BodyMemory, count: _RowCount) -> Any:
    from img2dataset.downloader import Downloader
    from img2dataset.writer import ParquetSampleWriter, WebDatasetSampleWriter

    writers = {"webdataset": WebDatasetSampleWriter, "parquet": ParquetSampleWriter}
    return Downloader(
        sample_writer_class=lambda *about: _CountingWriter(writers[settings.format](*about), count),
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


class UprightResizer:
    """img2dataset's resizer for pictures it would store turned, saturated or with a black background.

    Those are: pictures whose EXIF data says that they lie on their side, 16-bit PNG and TIFF (whose
    values it cuts at 255), and grey PNG with a transparent colour. They are decoded here and handed on
    as plain 8-bit PNG; all others pass through untouched.
    """

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: None = None) -> tuple[Any, ...]:
        """Encoded image, width, height, original width, original height, error message or None."""
        try:
            plain = plain_picture(img_stream.getvalue())
        except Exception as error:  # Pillow raises many kinds; any means that this image is unusable.
            return None, None, None, None, None, f"Image decoding error: {error}"
        result: tuple[Any, ...] = self._resizer(io.BytesIO(plain), blurring_bbox_list)
        return result


def plain_picture(data: bytes) -> bytes:
    """An encoded picture that is upright, of 8 bits, and grey, RGB or RGBA; `data` itself where it is."""
    deep = _is_deep(data)
    if not deep and not any(mark in data for mark in (b"Exif\0\0", b"EXIF", b"eXIf")):
        return data
    with Image.open(io.BytesIO(data)) as image:
        if not deep and image.getexif().get(_ORIENTATION, 1) == 1:
            return data
        upright = _eight_bit(ImageOps.exif_transpose(image))
    out = io.BytesIO()
    upright.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _is_deep(data: bytes) -> bool:
    """Whether OpenCV would lose the values or the transparency of this picture."""
    if data.startswith(_PNG) and len(data) > 25:
        bit_depth, colour_type = data[24], data[25]
        return bit_depth == 16 or (colour_type == 0 and b"tRNS" in data)
    return data.startswith(_TIFF)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    transparent = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "RGBa", "La")
    return image.convert("RGBA" if transparent else "RGB")


def write_rows(table: pa.Table, path: Path) -> None:
    """Write the rows of one shard as the Arrow file that img2dataset's downloader reads."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
