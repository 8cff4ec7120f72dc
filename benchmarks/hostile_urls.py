"""What hostile servers in a URL list cost, and what the limit of requests to one host costs.

python benchmarks/hostile_urls.py --out DIR [--urls 20000] [--share 0.01] [--rounds 3] [--per-host N ...]
    [-- any options of an ingest]

Two lists are ingested in turn by the public command, each into an empty folder: one of images only, and the
same with a share of URLs whose servers misbehave in every way of support/hostile_server.py. All servers are
on this machine: the images on 127.0.0.1, each kind of hostile server on addresses of its own (Linux). The
first list has one host; with --per-host, it is also ingested under each of these limits.
"""

import argparse
import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from support.hostile_server import REASONS, TLS
from support.reports import circumstances

from beamclip.commands.console import table
from beamclip.summary import read_summary

ROOT = Path(__file__).resolve().parents[1]
SERVERS_A_KIND = 4
"""Addresses of each kind of hostile server."""


def main() -> None:
    """Ingest both lists in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/hostile_urls"), help="folder for all output")
    parser.add_argument("--urls", type=int, default=20_000, help="rows of the list")
    parser.add_argument("--share", type=float, default=0.01, help="share of hostile rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=640, help="width of an image, pixels; the height is 3/4")
    parser.add_argument("--per-host", type=int, nargs="*", default=[], help="limits to try on one host")
    parser.add_argument("rest", nargs="*", help="after --: options of an ingest")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    picture = write_picture(out / "picture.jpg", arguments.width)
    hostile = int(arguments.urls * arguments.share)
    with serving(picture) as port:
        good = [f"http://127.0.0.1:{port}/good/{n}.jpg" for n in range(arguments.urls - hostile)]
        mixed = [*good, *hostile_urls(port, hostile)]
        random.Random(0).shuffle(mixed)
        cases = {"pictures alone": (good, []), "with hostile servers": (mixed, [])}
        for limit in arguments.per_host:
            cases[f"pictures alone, --per-host {limit}"] = (good, ["--per-host", str(limit)])
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(arguments.rounds):
            for name, (urls, options) in cases.items():
                folder = out / f"{name.replace(' ', '-').replace(',', '')}-{turn}"
                seconds[name].append(ingest(urls, folder, [*options, *arguments.rest]))
    report(out, seconds, hostile)


def write_picture(path: Path, width: int) -> Path:
    """Write a gradient with noise, in pixels and bytes like an image on the web."""
    rng = np.random.default_rng(0)
    height = 3 * width // 4
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    pixels = (ramp + rng.integers(0, 16, (height, width, 3))).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=85)
    path.write_bytes(encoded.getvalue())
    return path


@contextmanager
def serving(picture: Path) -> Iterator[int]:
    """Run the server in a process of its own, at all addresses in the lists; yield its port."""
    addresses = ["127.0.0.1", *(address(kind, n) for kind in REASONS for n in range(SERVERS_A_KIND))]
    program = ROOT / "benchmarks" / "support" / "hostile_server.py"
    command = [sys.executable, str(program), str(picture), *addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def address(kind: str, number: int) -> str:
    """Return the address of the hostile server of this kind and number."""
    return f"127.0.{1 + list(REASONS).index(kind)}.{1 + number}"


def hostile_urls(port: int, count: int) -> list[str]:
    """Return so many URLs of hostile servers, cycling through all kinds."""
    urls = []
    for n in range(count):
        kind = list(REASONS)[n % len(REASONS)]
        host = address(kind, n // len(REASONS) % SERVERS_A_KIND)
        scheme = "https" if kind == TLS else "http"
        urls.append(f"{scheme}://{host}:{port}/{kind}/{n}.jpg")
    return urls


def ingest(urls: Sequence[str], folder: Path, options: Sequence[str]) -> float:
    """Ingest a list into an empty folder by the public command; return its wall seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "urls.csv").write_text("\n".join(["url,caption", *(f"{url},x" for url in urls)]) + "\n")
    command = [
        *(sys.executable, str(ROOT / "pipelines" / "ingest.py"), "--urls", str(folder / "urls.csv")),
        *("--out", str(folder / "shards"), "--allow-private-hosts", *options),
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    for data in (folder / "shards").glob("*.tar"):
        data.unlink()
    print(f"{folder.name}: {seconds:.1f} s, {read_summary(folder / 'shards').counts}", flush=True)
    return seconds


def report(out: Path, seconds: dict[str, list[float]], hostile: int) -> None:
    """Print the table and write the figures to a file in `out`."""
    reference = seconds["pictures alone"]
    rows = [["list", "wall s, median", "ratio, median of the rounds"]]
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, reference, strict=True))
        rows.append([name, f"{statistics.median(own):.1f}", f"{ratio:.2f}"])
    table(rows)
    counts = read_summary(out / "with-hostile-servers-0" / "shards").counts
    print(f"{hostile} hostile URLs, counted as: {counts.failed}")
    figures = {
        "circumstances": circumstances(" ".join(["python", *sys.argv])),
        "seconds": seconds,
        "hostile": hostile,
        "failed": counts.failed,
    }
    (out / "hostile_urls.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
