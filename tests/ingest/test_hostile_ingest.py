"""A list of which a third is hostile, through the whole of ingest."""

from collections import Counter
from pathlib import Path

import pytest
from pictures import encode, photo
from support.hostile_server import ANSWERS, DRIPS, REASONS, TLS, hostile_server

from beamclip.ingest.config import IngestConfig
from beamclip.ingest.ingest import ingest

pytestmark = pytest.mark.slow

KINDS = (*DRIPS, *ANSWERS, TLS)  # floods end by what they send and not by the clock: see test_fetch
PER_HOST = 12


def test_hostile_urls_cost_no_shard_and_no_picture_and_are_counted_by_reason(tmp_path: Path) -> None:
    with hostile_server(encode(photo(40, 30), "JPEG"), delay_s=0.01) as server:
        secure = server.site.replace("http:", "https:")
        urls = [f"{secure if kind == TLS else server.site}/{kind}/{n}" for n, kind in enumerate(KINDS)]
        urls += [f"{server.site}/good/{n}" for n in range(2 * len(urls))] + [f"{server.site}/429-once/1"]
        spread = [url for start in range(7) for url in urls[start::7]]
        (tmp_path / "urls.csv").write_text("\n".join(["url", *spread]) + "\n")
        summary = ingest(
            IngestConfig(
                urls=tmp_path / "urls.csv", out=tmp_path / "shards", caption_column=None, shard_size=30,
                processes=2, threads=16, timeout_s=2.0, per_host=PER_HOST, allow_private_hosts=True,
            )
        )  # fmt: skip
    assert summary.succeeded == len(urls) - len(KINDS)
    assert summary.failed == Counter(REASONS[kind] for kind in KINDS)
    assert 2 < server.busiest <= PER_HOST
