"""The real thing over loopback: a web site with every kind of trouble, ingested into shards."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket import REFUSED, register_bucket
from pictures import encode
from PIL import Image

from beamclip.commands.command_line import run_command
from beamclip.commands.ingest import ingest_urls
from beamclip.data.listing import list_shards
from beamclip.data.shards import Columns, iterate_rows
from beamclip.errors import FailedRunError, InputError
from beamclip.ingest.config import IngestConfig
from beamclip.ingest.ingest import IngestCounts, IngestSummary, ingest
from beamclip.places import Folder

pytestmark = pytest.mark.slow


def picture(left: tuple[int, ...], right: tuple[int, ...]) -> Image.Image:
    """60 x 40 in two colours."""
    image = Image.new("RGB" if len(left) == 3 else "RGBA", (60, 40), left)
    image.paste(right, (30, 0, 60, 40))
    return image


def quarter_turn() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the photo must be turned clockwise to stand upright
    return exif


RED, GREEN, CLEAR = (255, 0, 0), (0, 255, 0), (0, 0, 0, 0)
PLAIN = encode(picture(RED, RED))
TRANSPARENT = {
    "rgba": encode(picture((*RED, 255), CLEAR)),
    "la": encode(picture((*RED, 255), CLEAR).convert("LA")),
    "palette": encode(picture(RED, GREEN).quantize(2), transparency=0),
    "deep": encode(Image.fromarray(np.full((40, 60), 65535, np.uint16))),
}
PHOTO = encode(picture(RED, (0, 0, 0)), "JPEG", exif=quarter_turn(), quality=95)


class Site(BaseHTTPRequestHandler):
    """Answers by path; `visits` counts them, so that a path can fail the first time only."""

    visits: ClassVar[Counter[str]] = Counter()
    pictures: ClassVar[dict[str, bytes]] = {**TRANSPARENT, "photo": PHOTO}

    def do_GET(self) -> None:
        Site.visits[self.path] += 1
        kind, _, name = self.path.strip("/").partition("/")
        handlers = {"moved": self.redirect, "drip": self.drip, "once": self.fail_once}
        if kind in handlers:
            handlers[kind](name)
        elif kind == "slow":
            time.sleep(1.6)
        elif kind == "404":
            self.reply(b"", 404)
        else:
            body = {"corrupt": PLAIN[:40], "html": b"<html></html>"}.get(kind)
            self.reply(body or self.pictures.get(name, PLAIN))

    def fail_once(self, name: str) -> None:
        self.reply(PLAIN, 503 if Site.visits[self.path] == 1 else 200)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def drip(self, name: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PLAIN)))
        self.end_headers()
        for byte in PLAIN[:10]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.3)

    def reply(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # the default of 5 loses connections of 64 threads, which then time out

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


TROUBLE = {
    "404/a": "HTTP 404",
    "corrupt/a": "undecodable image",
    "html/a": "unsupported image format",
    "slow/a": "timed out",
    "drip/a": "timed out",
    "moved/ftp://example.org/a.png": "refused: scheme ftp",
}
GOOD = ["good/0", "good/1", "once/a", "once/b", "moved//good/2", *(f"good/{n}" for n in Site.pictures)]


class Run:
    """One ingest and what it left behind."""

    def __init__(self, config: IngestConfig) -> None:
        self.config = config
        self.progress: list[IngestCounts] = []
        self.summary: IngestSummary = ingest(config, self.progress.append)

    def samples(self) -> dict[str, dict[str, bytes]]:
        return stored_samples(self.config.out)


def stored_samples(out: Path) -> dict[str, dict[str, bytes]]:
    """Members of each sample by the path of its URL, over all tars that have statistics."""
    found: dict[str, dict[str, bytes]] = {}
    for stats in sorted(out.glob("*_stats.json")):
        by_key: dict[str, dict[str, bytes]] = {}
        with tarfile.open(str(stats).replace("_stats.json", ".tar")) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                by_key.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
        assert len(by_key) == json.loads(stats.read_text())["successes"]
        for members in by_key.values():
            path = json.loads(members["json"])["url"].split("/", 3)[3]
            assert path not in found, f"{path} is stored twice"
            found[path] = members
    return found


@pytest.fixture(scope="module")
def run(site: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ingest")
    paths = [*TROUBLE, *GOOD]
    urls = [f"{site}/{path}" for path in paths] + [f"{site[:5]}:///nowhere", "ftp://example.org/a.png", None]
    table = pa.table({
        "link": urls,
        "text": [f"picture {n}" for n in range(len(urls))],
        "label": list(range(len(urls))),
        "unused": ["x"] * len(urls),
    })  # fmt: skip
    pq.write_table(table, folder / "urls.parquet")
    config = IngestConfig(
        urls=folder / "urls.parquet", out=folder / "shards", url_column="link", caption_column="text",
        keep_columns=("label",), resize_mode="no", encode_format="png", shard_size=10, processes=2,
        timeout_s=1.0, allow_private_hosts=True,
    )  # fmt: skip
    return Run(config)


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> IngestConfig:
    """The finished run in a folder of the test's own."""
    shutil.copytree(run.config.out, tmp_path / "shards")
    return IngestConfig(**{**vars(run.config), "out": tmp_path / "shards"})


def test_every_row_of_the_list_is_counted_once(run: Run) -> None:
    summary = run.summary
    assert summary.attempted == len(TROUBLE) + len(GOOD) + 3
    assert summary.attempted == summary.succeeded + sum(summary.failed.values())


def test_failures_are_counted_by_reason(run: Run) -> None:
    expected = Counter(TROUBLE.values()) + Counter({"malformed URL": 2, "refused: scheme ftp": 1})
    assert run.summary.failed == dict(expected)


def test_all_good_urls_are_stored_once_and_nothing_else(run: Run) -> None:
    assert set(run.samples()) == set(GOOD)
    assert run.summary.succeeded == len(GOOD)


def test_a_503_is_retried_in_a_further_shard(run: Run) -> None:
    first = {"once/a", "once/b", "slow/a", "drip/a"}
    assert run.summary.retried == len(first)
    with tarfile.open(run.config.out / "00002.tar") as tar:
        assert len([name for name in tar.getnames() if name.endswith(".png")]) == 2
    assert Site.visits["/once/a"] == 2
    assert Site.visits["/slow/a"] == 2


def test_answers_that_cannot_change_are_not_asked_for_twice(run: Run) -> None:
    assert Site.visits["/404/a"] == 1
    assert Site.visits["/corrupt/a"] == 1


def test_captions_and_kept_columns_come_along(run: Run) -> None:
    members = run.samples()["good/1"]
    row = len(TROUBLE) + GOOD.index("good/1")
    record = json.loads(members["json"])
    assert record["label"] == row
    assert members["txt"].decode() == record["caption"] == f"picture {row}"
    assert "unused" not in record


def test_stored_images_are_eight_bit_png_on_white(run: Run) -> None:
    samples = run.samples()
    for name in TRANSPARENT:
        image = Image.open(io.BytesIO(samples[f"good/{name}"]["png"]))
        assert image.format == "PNG", name
        assert image.mode in ("L", "RGB"), name
        assert np.asarray(image.convert("RGB")).min(axis=2).max() == 255, name


def test_photo_is_turned_upright(run: Run) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(run.samples()["good/photo"]["png"])))
    assert pixels.shape == (60, 40, 3)
    assert pixels[5, 20, 0] > 240  # the red left half has come to the top
    assert pixels[55, 20, 0] < 15


def test_folder_holds_no_json_but_statistics(run: Run) -> None:
    assert {path.name.partition("_")[2] for path in run.config.out.glob("*.json")} == {"stats.json"}


def test_progress_ends_at_the_final_counts(run: Run) -> None:
    last = run.progress[-1]
    assert last.succeeded == run.summary.succeeded
    assert last.succeeded + last.failed == last.rows == run.summary.attempted
    assert last.shards_done == last.shards == run.summary.shards == len(run.progress)


def test_second_run_of_a_finished_ingest_asks_for_nothing(copied: IngestConfig) -> None:
    visits = Site.visits.total()
    again = Run(copied)
    assert Site.visits.total() == visits
    assert again.progress == []
    assert again.summary.resumed_shards == again.summary.shards


def test_only_a_missing_shard_is_made_anew(run: Run, copied: IngestConfig) -> None:
    kept = copied.out / "00000.tar"
    before = kept.stat().st_mtime_ns
    for suffix in (".parquet", "_stats.json"):
        (copied.out / f"00001{suffix}").unlink()
    (copied.out / "00001.tar").write_bytes(b"half a tar")
    again = Run(copied)
    assert kept.stat().st_mtime_ns == before
    assert set(again.samples()) == set(GOOD)
    assert again.summary.failed == run.summary.failed
    assert (again.summary.shards, again.summary.resumed_shards) == (3, 2)


def test_remade_shard_leaves_out_what_its_retry_shard_holds(run: Run, copied: IngestConfig) -> None:
    # once/a is in list shard 0, which failed it, and in retry shard 2, which has it; by now it would succeed.
    (copied.out / "00000_stats.json").unlink()
    again = Run(copied)
    assert set(again.samples()) == set(GOOD)
    assert again.summary.succeeded == run.summary.succeeded
    assert again.summary.attempted == again.summary.succeeded + sum(again.summary.failed.values())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shard_size": 7}, "shard_size was 10, is 7"),
        ({"keep_columns": ()}, "keep_columns was"),
        ({}, "another URL list"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    copied: IngestConfig, tmp_path: Path, change: dict[str, object], word: str
) -> None:
    if not change:
        pq.write_table(pq.read_table(copied.urls).slice(1), tmp_path / "other.parquet")
        change = {"urls": tmp_path / "other.parquet"}
    with pytest.raises(InputError, match=word):
        ingest(IngestConfig(**{**vars(copied), **change}))


def test_shards_of_another_program_are_not_resumed(copied: IngestConfig) -> None:
    shutil.rmtree(copied.out / ".ingest")
    with pytest.raises(InputError, match="another program"):
        ingest(copied)


def test_private_hosts_are_refused_until_allowed(site: str, tmp_path: Path) -> None:
    port = site.rpartition(":")[2]
    hosts = ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]")
    urls = [f"http://{host}:{port}/private/{n}" for n, host in enumerate(hosts)]
    (tmp_path / "urls.csv").write_text("url\n" + "\n".join(urls) + "\n")
    config = IngestConfig(
        urls=tmp_path / "urls.csv", out=tmp_path / "shards", caption_column=None, format="parquet"
    )
    with pytest.raises(FailedRunError, match=r"none of 5 URLs.*private address.*--allow-private-hosts"):
        ingest_urls(config)
    summary = json.loads((tmp_path / "shards" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["counts"]["failed"] == {"refused: private address": len(urls)}
    assert not [path for path in Site.visits if path.startswith("/private/")]
    allowed = ingest(IngestConfig(**{**vars(config), "allow_private_hosts": True}))
    assert allowed.attempted == allowed.succeeded + sum(allowed.failed.values())
    assert Site.visits["/private/0"] == Site.visits["/private/1"] == 1
    rows = pq.read_table(tmp_path / "shards" / "00001.parquet").to_pylist()
    images = [Image.open(io.BytesIO(row["jpg"])) for row in rows if row["status"] == "success"]
    assert len(images) == allowed.succeeded >= 2
    assert {(image.format, image.size) for image in images} == {("JPEG", (60, 40))}


def test_ingest_into_a_bucket_fails_with_a_lost_shard_and_is_resumed_by_the_same_command(
    site: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register_bucket(tmp_path / "store", monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    rows = "".join(f"{site}/a picture/{n}\t{n}\n" for n in range(4))
    (tmp_path / "list.tsv").write_text("url\tlabel\n" + rows)
    argv = ["--urls", str(tmp_path / "list.tsv"), "--out", "bucket://b/new", "--shard-size", "2"]
    argv += ["--keep-columns", "label", "--allow-private-hosts", "--no-retry-failed"]
    with monkeypatch.context() as full:
        full.setenv(REFUSED, "00001.tar")
        assert run_command(IngestConfig, ingest_urls, "", argv) == 1
    shown = capsys.readouterr()
    assert "without captions: the list has no column 'caption'" in shown.out
    assert shown.err.count("\n") == 1
    assert "error: bucket://b/new: shards were lost: 2 shard failed" in shown.err
    counts = json.loads(Folder("bucket://b/new").read("summary.json") or b"")["counts"]
    assert (counts["attempted"], counts["succeeded"], counts["failed"]) == (4, 2, {"shard failed": 2})
    assert run_command(IngestConfig, ingest_urls, "", argv) == 0
    assert "4 of 4 URLs in 2 shards, 1 of them from before" in capsys.readouterr().out
    shards = list_shards("bucket://b/new")
    labels = [
        row["label"] for shard in shards for row in iterate_rows(shard, Columns(label="label"), range(2))
    ]
    assert sorted(labels) == ["0", "1", "2", "3"]
    assert Site.visits["/a%20picture/0"] == 1
    assert not [path for path in Path.cwd().iterdir() if path.name.startswith("bucket:")]


def test_shards_of_a_list_that_was_read_in_another_way_are_not_resumed(copied: IngestConfig) -> None:
    manifest = copied.out / ".ingest" / "manifest.json"
    before = json.loads(manifest.read_text())
    assert before["list_reading"] == 1  # parquet is read as it always was: older folders do not name it
    del before["list_reading"]
    manifest.write_text(json.dumps(before))
    assert ingest(copied).resumed_shards == 3
    manifest.write_text(json.dumps({**before, "list_reading": 2}))
    with pytest.raises(InputError, match="differently"):
        ingest(copied)


RAY_INGEST = """
import sys
from pathlib import Path
from beamclip.ingest.ingest import IngestConfig, ingest
out, urls = Path(sys.argv[1]), Path(sys.argv[2])
config = IngestConfig(urls=urls, out=out, distributor="ray", processes=1, allow_private_hosts=True)
summary = ingest(config)
assert (summary.succeeded, summary.failed) == (3, {}), summary
"""


def test_ray_tasks_download_too(site: str, tmp_path: Path) -> None:
    rows = [{"url": f"{site}/ray/{n}", "caption": f"caption {n}"} for n in range(3)]
    (tmp_path / "urls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "shards"
    # A process of its own: Ray reads its environment once, when it is first imported.
    command = [sys.executable, "-c", RAY_INGEST, str(out), str(tmp_path / "urls.jsonl")]
    assert subprocess.run(command, check=False, timeout=200).returncode == 0
    assert set(stored_samples(out)) == {"ray/0", "ray/1", "ray/2"}


@pytest.mark.parametrize(
    "change",
    [
        {"shard_size": 0},
        {"timeout_s": 0},
        {"image_size": None},
        {"encode_format": "png", "encode_quality": 95},
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://example.org/a.png,a\n")
    config = {"urls": tmp_path / "list.csv", "out": tmp_path / "shards", **change}
    with pytest.raises(InputError, match=next(reversed(change))):
        ingest(IngestConfig(**config))  # type: ignore[arg-type]
    assert not (tmp_path / "shards").exists()
