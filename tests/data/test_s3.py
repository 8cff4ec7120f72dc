"""Data in S3, as moto answers for it: the same rows, and how many requests opening and reading take."""

import logging
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from beamclip.data.bundles import read_rows_here
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.order import PIECE
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare, worker_rows

SHARDS, ROWS = 12, 3 * PIECE
CAPTIONED = Columns(caption=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a store that answers as S3 does."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file system whose buckets lie in the server."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=False)
    fs.mkdir("data")
    yield fs
    fs.rm("data", recursive=True)
    type(fs).clear_instance_cache()


class _Requests(logging.Handler):
    """What the server answered, one line each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r'"(\w+) (/[^ ]*) HTTP', re.sub(r"\x1b\[\d+m", "", record.getMessage()))
        if found:
            self.lines.append(f"{found[1]} {found[2]}")

    def taken(self) -> list[str]:
        """Those since the last call."""
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def requests() -> Iterator[_Requests]:
    log, handler = logging.getLogger("werkzeug"), _Requests()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path, make_samples: Callable[..., Any], write_tar: Callable[..., Path], s3: Any) -> Path:
    """A folder of shards, of which data/shards in the store is a copy."""
    for number in range(SHARDS):
        samples = make_samples(number, ROWS)
        del samples[PIECE - 1]["txt"]
        write_tar(tmp_path, number, samples)
    s3.put(f"{tmp_path}/", "data/shards/", recursive=True)
    s3.invalidate_cache()
    return tmp_path


def rows(shards: list[Shard], count: int) -> list[Any]:
    mixture = mixture_of(source_counts(shards), (), 128, seed=0, num_workers=1)
    share = WorkerShare(mixture, batch_size=8)
    numbered = worker_rows(shards, read_starts(shards), CAPTIONED, share, 0, read_rows_here)
    taken = list(islice(numbered, count))
    numbered.close()
    return taken


@pytest.mark.parametrize("by_others", [False, True])
def test_opening_known_data_takes_the_listing_and_a_file(
    folder: Path, s3: Any, requests: _Requests, by_others: bool
) -> None:
    if by_others:
        s3.rm("data/shards/*_stats.json")
        s3.rm("data/shards/*.parquet")
    first = list_shards("s3://data/shards")
    starts = read_starts(first)
    assert [shard.samples for shard in first] == [ROWS] * SHARDS
    s3.invalidate_cache()
    requests.taken()
    assert list_shards("s3://data/shards") == first
    opening = requests.taken()
    assert not any(".tar" in line or "_stats" in line for line in opening)
    assert len(opening) <= 5
    again = read_starts(first)
    assert [line for line in requests.taken() if not line.startswith("HEAD")] == ["GET /data/shards/.shards"]
    assert (again.places == starts.places).all()


def test_rows_from_s3_are_those_of_the_files_and_a_piece_is_a_request(
    folder: Path, requests: _Requests
) -> None:
    shards = list_shards("s3://data/shards")
    read_starts(shards)
    requests.taken()
    assert rows(shards, SHARDS * ROWS) == rows(list_shards(str(folder)), SHARDS * ROWS)
    reads = [line for line in requests.taken() if ".tar" in line]
    assert {line.split()[0] for line in reads} == {"GET"}
    # A window of 8 pieces is read ahead; neighbouring pieces of a window are read together.
    assert SHARDS <= len(reads) <= SHARDS * ROWS // PIECE + 8


def test_rows_of_a_parquet_file_are_a_request_once_its_footer_is_known(
    tmp_path: Path, make_samples: Callable[..., Any], s3: Any, requests: _Requests
) -> None:
    samples = make_samples(0, ROWS, "jpg")
    images = pa.table({name: [sample[name] for sample in samples] for name in ("jpg", "txt", "key")})
    pq.write_table(images, tmp_path / "data.parquet", row_group_size=PIECE)
    s3.put(f"{tmp_path}/", "data/parquet/", recursive=True)
    (shard,), (file,) = list_shards("s3://data/parquet"), list_shards(str(tmp_path))
    requests.taken()
    for first in range(0, ROWS, PIECE):
        rows = range(first, first + PIECE)
        found = list(iterate_rows(shard, Columns(), rows))
        assert found == list(iterate_rows(file, Columns(), rows))
        assert found[0]["image"] == samples[first]["jpg"]
        assert [line.split()[0] for line in requests.taken()] == ["GET"] * (2 if first == 0 else 1)
