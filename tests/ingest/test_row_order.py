"""Samples lie in a shard in the order of the list, however late each download ends."""

import json
import os
import random
import tarfile
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, ClassVar

import pyarrow.parquet as pq
import pytest
from pictures import encode, photo

from beamclip.commands.command_line import run_command
from beamclip.commands.ingest import ingest_urls
from beamclip.ingest.config import IngestConfig
from beamclip.ingest.row_order import OrderedWriter

ROWS = 60
IMAGE_BYTES = 200_000


class Recorder:
    """The writer behind: keeps what it gets, and refuses some keys as a full disk would."""

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.keys: list[str] = []
        self.refused = refused
        self.closed = False

    def write(self, image: bytes | None, key: str, caption: object, meta: dict[str, Any]) -> None:
        if key in self.refused:
            raise OSError("disk full")
        assert (image, key, caption, meta) == made_row(int(key))
        self.keys.append(key)

    def close(self) -> None:
        self.closed = True


def made_row(position: int) -> tuple[bytes | None, str, str, dict[str, Any]]:
    """Return a row as img2dataset's downloader writes it; every seventh is a failed download."""
    failed = position % 7 == 3
    image = None if failed else bytes([position % 251]) * IMAGE_BYTES
    meta = {"status": "failed_to_download" if failed else "success", "label": [position]}
    return image, f"{position:04d}", f"caption {position}", meta


Files = tuple[IO[bytes], IO[bytes]]


@pytest.fixture
def files() -> Iterator[Files]:
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other:
        yield one, other


def size_of(files: Files) -> int:
    return sum(os.fstat(file.fileno()).st_size for file in files)


@pytest.mark.parametrize("window", [1, 8, ROWS])
def test_rows_in_any_order_come_out_once_each_in_the_order_of_their_keys(files: Files, window: int) -> None:
    drawn = random.Random(window)
    recorder = Recorder()
    writer = OrderedWriter(recorder, int, files)
    for position in sorted(range(ROWS), key=lambda position: position + drawn.uniform(0, window)):
        writer.write(*made_row(position))
    assert recorder.keys == [f"{position:04d}" for position in range(ROWS)]
    assert size_of(files) == 0
    writer.close()
    assert recorder.closed
    assert all(file.closed for file in files)


def test_rows_behind_a_late_one_wait_on_disk_and_not_in_memory(files: Files) -> None:
    recorder = Recorder()
    writer = OrderedWriter(recorder, int, files)
    tracemalloc.start()
    for position in range(1, ROWS):
        writer.write(*made_row(position))
    assert recorder.keys == []
    assert size_of(files) > ROWS * IMAGE_BYTES * 0.8
    writer.write(*made_row(0))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * IMAGE_BYTES
    assert recorder.keys == [f"{position:04d}" for position in range(ROWS)]
    assert size_of(files) == 0
    writer.write(*made_row(ROWS + 1))
    assert size_of(files) < 2 * IMAGE_BYTES


def test_files_do_not_grow_with_the_shard_though_some_row_always_waits(files: Files) -> None:
    recorder = Recorder()
    writer = OrderedWriter(recorder, int, files)
    writer.write(*made_row(1))
    sizes = []
    for position in range(0, 800, 2):
        for early_or_due in (position + 3, position):
            writer.write(*made_row(early_or_due))
            sizes.append(size_of(files))
    assert len(recorder.keys) == 800
    assert min(sizes) > 0
    assert max(sizes) < 40e6  # of 69e6 that went through the files


def test_row_that_cannot_be_written_is_reported_and_holds_back_no_other(files: Files) -> None:
    recorder = Recorder(refused=["0000", "0002"])
    writer = OrderedWriter(recorder, int, files)
    with pytest.raises(OSError, match="disk full"):
        writer.write(*made_row(0))
    writer.write(*made_row(3))
    writer.write(*made_row(2))
    with pytest.raises(OSError, match="disk full"):
        writer.write(*made_row(1))
    writer.write(*made_row(4))
    assert recorder.keys == ["0001", "0003", "0004"]


def test_rows_behind_one_that_never_came_are_written_in_order_at_the_end(files: Files) -> None:
    recorder = Recorder()
    writer = OrderedWriter(recorder, int, files)
    for position in (4, 0, 3, 2):
        writer.write(*made_row(position))
    assert recorder.keys == ["0000"]
    writer.close()
    assert recorder.keys == ["0000", "0002", "0003", "0004"]
    assert recorder.closed


PICTURE = encode(photo(40, 30), "JPEG")
PICTURES = 16


class LateSite(BaseHTTPRequestHandler):
    """Answers each path after its delay; /once/ with an error at the first visit, /404/ at every visit."""

    delays: ClassVar[dict[str, float]] = {}
    visits: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        LateSite.visits.append(self.path)
        time.sleep(self.delays[self.path])
        fails = "/404/" in self.path or ("/once/" in self.path and LateSite.visits.count(self.path) == 1)
        body = b"" if fails else PICTURE
        self.send_response({"/404/": 404, "/once": 503}[self.path[:5]] if fails else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class LateServer(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def site() -> Iterator[str]:
    server = LateServer(("127.0.0.1", 0), LateSite)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ingest_paths(site: str, paths: Sequence[str], delays: Sequence[float], out: Path, form: str) -> None:
    LateSite.visits.clear()
    LateSite.delays.update(zip(paths, delays, strict=True))
    urls = out.with_suffix(".csv")
    urls.write_text("url,caption\n" + "".join(f"{site}{path},about {path}\n" for path in paths))
    argv = ["--urls", str(urls), "--out", str(out), "--format", form, "--allow-private-hosts"]
    assert run_command(IngestConfig, ingest_urls, "", [*argv, "--processes", "1"]) == 0


def members_of(out: Path) -> list[tuple[str, bytes]]:
    """Return names and contents of the tars' members, as they lie there."""
    members = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return members


def records_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_two_ingests_of_a_list_lay_the_same_samples_in_the_same_order(
    site: str, tmp_path: Path, form: str
) -> None:
    kinds = {2: "404", 5: "once", 9: "once"}
    paths = [f"/{kinds.get(n, 'good')}/{n}" for n in range(PICTURES)]
    falling = [0.06 * (PICTURES - n) for n in range(PICTURES)]
    mixed = [0.06 * (7 * n % PICTURES) for n in range(PICTURES)]
    for name, delays in (("falling", falling), ("mixed", mixed)):
        ingest_paths(site, paths, delays, tmp_path / name, form)
    records = records_of(tmp_path / "falling")
    assert records == records_of(tmp_path / "mixed")  # with the encoded images, in parquet
    assert [row["url"] for row in records] == [site + path for path in (*paths, paths[5], paths[9])]
    assert all(before["key"] < after["key"] for before, after in pairwise(records))
    assert [row["caption"] for row in records] == [
        f"about {row['url'].removeprefix(site)}" for row in records
    ]
    stored = [row["key"] for row in records if row["status"] == "success"]
    assert len(stored) == PICTURES - 1
    if form == "parquet":
        return
    members = members_of(tmp_path / "falling")
    assert members == members_of(tmp_path / "mixed")
    assert [json.loads(text)["key"] for name, text in members if name.endswith(".json")] == stored
