"""Download a URL list into shards."""

import dataclasses
import time

from beamclip.commands.console import ProgressLine, clock, count, stage
from beamclip.commands.run_dir import CONFIG_FILE
from beamclip.config import write_config
from beamclip.data.ingest import IngestConfig, IngestCounts, ingest
from beamclip.summary import Counts, Summary, write_summary


def ingest_urls(config: IngestConfig) -> Summary:
    """Run an ingest, with one progress line, and leave config.yaml and summary.json beside the shards.

    Raises:
        InputError: the list or a setting cannot be used.
    """
    columns = tuple(name for word in config.keep_columns for name in word.split(",") if name)
    config = dataclasses.replace(config, keep_columns=columns)
    began = time.perf_counter()
    line = ProgressLine()

    def on_progress(counts: IngestCounts) -> None:
        tried = counts.succeeded + counts.failed
        eta = (time.perf_counter() - began) / max(1, tried) * (counts.rows - tried)
        line.show(
            f"shard {counts.shards_done}/{counts.shards}  {tried:,}/{counts.rows:,} URLs  "
            f"{counts.failed:,} failed  eta {clock(max(0.0, eta))}"
        )

    result = ingest(config, on_progress)
    line.close()
    resumed = f", {result.resumed_shards} of them from before" if result.resumed_shards else ""
    stage(
        "ingest",
        f"{result.succeeded:,} of {result.attempted:,} URLs in {count(result.shards, 'shard')}{resumed}",
        f"{result.images_per_second:,.0f} img/s",
    )
    for reason, number in sorted(result.failed.items(), key=lambda item: -item[1]):
        stage("failed", f"{number:,} {reason}")
    summary = Summary(
        command="ingest",
        status="finished",
        wall_seconds=result.wall_seconds,
        images=result.succeeded,
        images_per_second=result.images_per_second,
        counts=Counts(attempted=result.attempted, succeeded=result.succeeded, failed=result.failed),
        paths={"shards": str(config.out)},
        stages={
            key: value
            for key, value in dataclasses.asdict(result).items()
            if key in ("shards", "resumed_shards", "retried")
        },
    )
    assert config.out is not None, "ingest() refuses a missing --out"
    write_config(config, config.out / CONFIG_FILE)
    write_summary(config.out, summary)
    print(f"{config.out}: shards  summary.json")
    return summary
