"""Download a URL list into shards."""

import dataclasses
import time
from dataclasses import replace
from pathlib import Path

from beamclip.commands.console import ProgressLine, format_duration, plural, print_stage
from beamclip.commands.ingest_tracking import IngestTracking
from beamclip.config import config_text
from beamclip.errors import FailedRunError
from beamclip.ingest.config import IngestConfig
from beamclip.ingest.folder import SHARD_FAILED, IngestFolder
from beamclip.ingest.hosts import PRIVATE_ADDRESS, REFUSED_PORT
from beamclip.ingest.ingest import IngestCounts, IngestSummary, ingest
from beamclip.places import Folder, absolute
from beamclip.runs.folder import CONFIG_FILE
from beamclip.summary import SUMMARY_FILE, Counts, Summary, summary_text

_HINTS = {
    PRIVATE_ADDRESS: "--allow-private-hosts fetches them too",
    REFUSED_PORT: "--ports or --allow-private-hosts fetches them too",
    SHARD_FAILED: "the same command tries them again",
}


def ingest_urls(config: IngestConfig) -> Summary:
    """Run an ingest, with one progress line, and write config.yaml and summary.json beside the shards.

    Raises:
        InputError: the list or a setting cannot be used.
        FailedRunError: no image was stored, or whole shards were lost; config.yaml and summary.json are
            written all the same.
    """
    columns = tuple(name for word in config.keep_columns for name in word.split(",") if name)
    config = replace(config, keep_columns=columns)
    with IngestTracking(config) as tracked:
        return _ingest_urls(config, tracked)


def _ingest_urls(config: IngestConfig, tracked: IngestTracking) -> Summary:
    began = time.perf_counter()
    line = ProgressLine()

    def on_progress(counts: IngestCounts) -> None:
        tracked.progress(counts)
        tried = counts.succeeded + counts.failed
        eta = (time.perf_counter() - began) / max(1, tried) * (counts.rows - tried)
        line.show(
            f"shard {counts.shards_done}/{counts.shards}  {tried:,}/{counts.rows:,} URLs  "
            f"{counts.failed:,} failed  eta {format_duration(max(0.0, eta))}"
        )

    notes: list[str] = []

    def on_notice(notice: str) -> None:
        notes.append(notice)
        print_stage("ingest", notice)

    result = ingest(config, on_progress, on_notice)
    line.close()
    _show(result)
    out = Folder(absolute(str(config.out)))
    log = IngestFolder(out.place, "").log
    failed = _failure(result, log) is not None
    summary = replace(_summary(config, result, failed=failed), notes=notes)
    summary = replace(summary, mlflow_run_id=tracked.run_id)
    out.write(CONFIG_FILE, config_text(config).encode())
    out.write(SUMMARY_FILE, summary_text(summary).encode())
    tracked.end(summary, IngestFolder(out.place, "").read_manifest())
    print(f"{config.out}: shards  summary.json")
    if failed:
        raise FailedRunError(
            f"{config.out}: {_failure(result, log)}{''.join(f' ({note})' for note in notes)}"
        )
    return summary


def _show(result: IngestSummary) -> None:
    resumed = f", {result.resumed_shards} of them from before" if result.resumed_shards else ""
    print_stage(
        "ingest",
        f"{result.succeeded:,} of {result.attempted:,} URLs in {plural(result.shards, 'shard')}{resumed}",
        f"{result.images_per_second:,.0f} img/s",
    )
    for reason, number in _by_number(result.failed):
        print_stage("failed", f"{number:,} {reason}", _HINTS.get(reason, ""))


def _failure(result: IngestSummary, log: Path) -> str | None:
    """Why an ingest has failed, if it has: single URLs may fail, but not all URLs, and no whole shard."""
    lost = result.failed.get(SHARD_FAILED, 0)
    if result.succeeded > 0 and lost == 0:
        return None
    errors = f" The errors of lost shards are in {log}." if lost else ""
    if result.succeeded == 0:
        return f"none of {plural(result.attempted, 'URL')} was stored: {_reasons(result.failed)}.{errors}"
    return f"shards were lost: {_reasons({SHARD_FAILED: lost})}.{errors}"


def _reasons(failed: dict[str, int]) -> str:
    hints = {reason: f" ({_HINTS[reason]})" if reason in _HINTS else "" for reason in failed}
    return "; ".join(f"{number:,} {reason}{hints[reason]}" for reason, number in _by_number(failed))


def _by_number(failed: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(failed.items(), key=lambda item: -item[1])


def _summary(config: IngestConfig, result: IngestSummary, *, failed: bool) -> Summary:
    return Summary(
        command="ingest",
        status="failed" if failed else "finished",
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
