"""From a list of URLs to shards of images: guarded, resumable, and counted to the last row.

img2dataset (https://github.com/rom1504/img2dataset) downloads, resizes and writes, one shard at a time;
`beamclip.ingest.shard` says which parts of it are used, and why not all. Proxies of the environment are used
with `allow_private_hosts` only. EXIF orientation is applied, transparency gets a white background, and every
image is encoded anew with 8 bits.
"""

import contextlib
import importlib.util
import os
import posixpath
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beamclip.data.listing import list_shards
from beamclip.errors import InputError
from beamclip.ingest.config import AUTO, CAPTION, IngestConfig
from beamclip.ingest.folder import IngestFolder, ListOutcome, ShardPlan
from beamclip.ingest.runners import LocalRunner, RayRunner, local_runner, ray_runner, run_shards
from beamclip.ingest.shard import DownloadSettings, ShardTask, write_rows
from beamclip.ingest.url_list import hash_url_list, lists_reading, read_url_list
from beamclip.option_texts import check_required
from beamclip.places import absolute

_DATA_SUFFIX = {"webdataset": ".tar", "parquet": ".parquet"}
# Kinds of rows without a second attempt. The summary on disk keeps their numbers: a later run may retry them.
_OPEN_ROWS = ("retryable", "refused_private")


@dataclass(frozen=True)
class IngestCounts:
    """Progress of an ingest; `succeeded` and `failed` count the rows of the list that have been tried."""

    rows: int
    succeeded: int
    failed: int
    shards_done: int
    shards: int


@dataclass(frozen=True)
class IngestSummary:
    """Result of an ingest, over all runs into one folder.

    `attempted`, the number of rows, is `succeeded` plus the sum of `failed` (by reason). `shards` are
    complete; `resumed_shards` of them were complete before this run. `retried` rows were tried in a second
    pass and count by its result. `images_per_second` is what this run stored, over its `wall_seconds`.
    """

    attempted: int
    succeeded: int
    failed: dict[str, int]
    shards: int
    resumed_shards: int
    retried: int
    images_per_second: float
    wall_seconds: float


OnProgress = Callable[[IngestCounts], None]


def ingest(
    config: IngestConfig,
    on_progress: OnProgress | None = None,
    on_notice: Callable[[str], None] = lambda notice: None,
) -> IngestSummary:
    """Download a URL list into shards. Resumes what an earlier run left; returns at once if nothing is left.

    A URL that cannot be fetched or decoded is counted, never raised.

    Args:
        config: what to download.
        on_progress: called after each shard.
        on_notice: called with what the user should know before the first download.

    Raises:
        InputError: img2dataset is not installed, a required option is missing, the list cannot be used, or
            the folder cannot be written to, is in use, or was filled with other settings.
        RuntimeError: the download processes cannot run.
    """
    started = time.monotonic()
    if importlib.util.find_spec("img2dataset") is None:
        raise InputError('img2dataset is not installed. In the checkout: pip install ".[ingest]"')
    check_required(config)
    urls, out = str(config.urls), absolute(str(config.out))
    if config.caption_column is not None and config.caption_column.lower() in ("none", "null"):
        config = replace(config, caption_column=None)
    manifest = _manifest(config, urls)
    folder = IngestFolder(out, _DATA_SUFFIX[config.format])
    with folder.lock():
        table = None
        if config.caption_column == AUTO:
            before = folder.read_manifest()
            if before.get("urls_sha256") == manifest["urls_sha256"]:
                has_captions = before.get("caption_column") is not None
                why = "as it was begun; to store captions, give another --out"
            else:
                table = _read_list(config, urls)
                has_captions = CAPTION in table.column_names
                why = f"the list has no column {CAPTION!r}; --caption-column names another column"
            if not has_captions:
                on_notice(f"without captions: {why}")
            config = replace(config, caption_column=CAPTION if has_captions else None)
            manifest["caption_column"] = config.caption_column
        folder.claim(manifest)
        finished = _finished(folder, config)
        if finished is not None:
            return replace(finished, wall_seconds=time.monotonic() - started)
        table = _read_list(config, urls) if table is None else table
        summary = _Ingest(config, table, folder, on_progress).run(started)
        # What is known of the shards is kept in a file: from then on, opening them takes one request.
        with contextlib.suppress(InputError):
            list_shards(out)
        return summary


def _read_list(config: IngestConfig, urls: str) -> pa.Table:
    return read_url_list(urls, config.url_column, config.caption_column, config.keep_columns)


class _Ingest:
    """One run: its list, its folder, and the plan, to which the second pass adds shards."""

    def __init__(
        self, config: IngestConfig, table: pa.Table, folder: IngestFolder, on_progress: OnProgress | None
    ) -> None:
        self._table = table
        self._config = config
        self._folder = folder
        self._on_progress = on_progress
        self._plan = ShardPlan(self._table.num_rows, config.shard_size, folder.read_retries())
        self._complete = folder.complete_shards(self._plan)

    def run(self, started: float) -> IngestSummary:
        """Download what is missing, retry what failed, and count; `started` is a time of `time.monotonic`."""
        self._folder.forget_summary()
        resumed = len(self._complete)
        stored = -self._succeeded()
        with self._open_runner() as runner:
            self._download(runner, self._plan.first_shards)
            if self._config.retry_failed:
                self._plan_retries()
            self._download(runner, self._plan.retry_shards)
        stored += self._succeeded()
        wall = time.monotonic() - started
        outcome = self._folder.read_outcome(self._plan)
        summary = _summarise(self._plan, outcome, len(self._complete), resumed, stored / wall, wall)
        if len(self._complete) == self._plan.retry_shards.stop:
            open_rows = {name: len(getattr(outcome, name)) for name in _OPEN_ROWS}
            self._folder.write_summary({**asdict(summary), **open_rows})
        return summary

    def _open_runner(self) -> AbstractContextManager[LocalRunner] | AbstractContextManager[RayRunner]:
        settings = _download_settings(self._config, self._folder.out.place, tuple(self._table.column_names))
        if self._config.distributor == "ray":
            return ray_runner(settings, self._config.processes)
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return local_runner(settings, self._config.processes or cpus, self._folder.log)

    def _download(self, runner: LocalRunner | RayRunner, shard_ids: range) -> None:
        for shard_id, complete in run_shards(runner, self._tasks(shard_ids)):
            stats = self._folder.read_stats(shard_id)
            if complete and stats is not None:
                self._complete[shard_id] = stats
            else:
                self._folder.drop(shard_id)
            if self._on_progress is not None:
                self._on_progress(self._counts())

    def _tasks(self, shard_ids: range) -> Iterator[ShardTask]:
        for shard_id in shard_ids:
            if shard_id in self._complete:
                continue
            self._folder.drop(shard_id)
            place = posixpath.join(self._folder.rows.place, f"{shard_id}.arrow")
            write_rows(self._rows(shard_id), place)
            yield ShardTask(shard_id, place, second_attempt=shard_id in self._plan.retry_shards)

    def _rows(self, shard_id: int) -> pa.Table:
        """Return a shard's rows. A first shard that is made anew must not fetch rows of a retry shard."""
        rows = self._plan.rows_of(shard_id)
        if isinstance(rows, range):
            table = self._table.slice(rows.start, len(rows))
        else:
            table = self._table.take(pa.array(rows, pa.int64()))
        if shard_id in self._plan.retry_shards or not self._plan.moved:
            return table
        moved = pa.array([row in self._plan.moved for row in rows])
        column = table.column_names.index("url")
        # An unknown scheme: refused without a look-up, and the record still shows the URL.
        marked = pc.binary_join_element_wise("retried", table.column(column), ":")
        return table.set_column(column, "url", pc.if_else(moved, marked, table.column(column)))

    def _plan_retries(self) -> None:
        outcome = self._folder.read_outcome(self._plan)
        rows = outcome.retryable + (outcome.refused_private if self._config.allow_private_hosts else ())
        if rows:
            self._plan = self._plan.with_retries(sorted(rows))
            self._folder.write_retries(self._plan)

    def _succeeded(self) -> int:
        return sum(stats["successes"] for stats in self._complete.values())

    def _counts(self) -> IngestCounts:
        first = self._plan.first_shards
        tried = sum(stats["count"] for shard_id, stats in self._complete.items() if shard_id in first)
        succeeded = self._succeeded()
        return IngestCounts(
            rows=self._plan.rows,
            succeeded=succeeded,
            failed=max(0, tried - succeeded),
            shards_done=len(self._complete),
            shards=self._plan.retry_shards.stop,
        )


def _finished(folder: IngestFolder, config: IngestConfig) -> IngestSummary | None:
    record = folder.read_summary()
    if record is None or not folder.has_all_shards(record["shards"]):
        return None
    retryable, refused_private = (record.pop(name) for name in _OPEN_ROWS)
    if config.retry_failed and (retryable or (refused_private and config.allow_private_hosts)):
        return None
    return replace(IngestSummary(**record), resumed_shards=record["shards"], images_per_second=0.0)


def _summarise(
    plan: ShardPlan, outcome: ListOutcome, shards: int, resumed: int, images_per_second: float, wall: float
) -> IngestSummary:
    return IngestSummary(
        attempted=plan.rows,
        succeeded=outcome.succeeded,
        failed=outcome.failed,
        shards=shards,
        resumed_shards=resumed,
        retried=len(plan.moved),
        images_per_second=images_per_second,
        wall_seconds=wall,
    )


def _manifest(config: IngestConfig, urls: str) -> dict[str, Any]:
    """The settings that decide what the shards hold, as JSON values."""
    content = ("url_column", "caption_column", "keep_columns", "format", "shard_size")
    images = ("image_size", "resize_mode", "encode_format", "encode_quality")
    settings = {name: getattr(config, name) for name in (*content, *images)}
    settings["keep_columns"] = list(config.keep_columns)
    return {"urls_sha256": hash_url_list(urls), "list_reading": lists_reading(urls), **settings}


def _download_settings(config: IngestConfig, out: str, columns: tuple[str, ...]) -> DownloadSettings:
    return DownloadSettings(
        folder=out,
        format=config.format,
        columns=columns,
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        encode_format=config.encode_format,
        encode_quality=config.encode_quality,
        shard_size=config.shard_size,
        threads=config.threads,
        timeout_s=config.timeout_s,
        retries=config.download_retries,
        allow_private_hosts=config.allow_private_hosts,
        per_host=config.per_host,
        ports=config.ports,
    )
