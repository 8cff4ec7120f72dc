"""The folder an ingest fills: what was asked for, which shards are complete, what became of each URL.

    out/00000.tar  00000.parquet  00000_stats.json     written by img2dataset, one set a shard
    out/.ingest/manifest.json      the settings that decide what the shards hold
    out/.ingest/retries.json       which rows were tried a second time, in which further shards
    out/.ingest/summary.json       the final counts, once nothing is left to do
    out/.ingest/rows/              the rows of shards under way, and samples that wait for their turn
    out/.ingest/log.txt            what img2dataset printed
    out/.ingest/lock               locked while an ingest is at work

The shards' own folder stays free of other .json files: img2dataset takes each of them for statistics.

`out` may be an address. All of this is then stored there, so that any machine can resume, except the log and
the lock: they need a local file system and are in this machine's folder for temporary files. So the lock then
keeps out only other ingests of this machine.
"""

import fcntl
import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from beamclip.data.image_limits import CORRUPT_IMAGE, REFUSALS
from beamclip.data.index import INDEX_SUFFIX
from beamclip.errors import InputError
from beamclip.ingest.download import BODY_TOO_LARGE, REASONS, REDIRECT_LOOP
from beamclip.ingest.hosts import MALFORMED_URL, PRIVATE_ADDRESS, REFUSED_PORT
from beamclip.ingest.shard import row_of_key, shard_name
from beamclip.places import Folder, is_address

SHARD_FAILED = "shard failed"
UNDECODABLE = "undecodable image"
DISALLOWED = "disallowed by X-Robots-Tag"

_BEFORE = {"list_reading": 1}
"""Values that hold for manifests of earlier versions, which lack these fields."""

_READERS = 16
"""Small files read at the same time; in a bucket each takes a few hundredths of a second."""

# Reasons that a second attempt cannot change. 404 and 410 are final answers, a 503 or a timeout is not.
_FINAL = frozenset(
    [
        MALFORMED_URL, UNDECODABLE, *REFUSALS, DISALLOWED, SHARD_FAILED, BODY_TOO_LARGE, REDIRECT_LOOP,
        "HTTP 404", "HTTP 410",
    ]
)  # fmt: skip

_ALLOWABLE = (PRIVATE_ADDRESS, REFUSED_PORT)

# The first match decides. The texts are those of urllib, http.client, ssl and socket, which earlier versions
# recorded in shards.
_REASONS = (
    ("unknown url type", MALFORMED_URL),
    ("timed out", "timed out"),
    ("X-Robots-Tag", DISALLOWED),
    ("IncompleteRead", "incomplete body"),
    ("body too large", "body too large"),
    ("[SSL", "TLS error"),
    ("CERTIFICATE_VERIFY", "TLS error"),
    ("[Errno -", "host not found"),
    ("nodename nor servname", "host not found"),
    ("control characters", MALFORMED_URL),
    ("codec can't encode", MALFORMED_URL),
    ("redirect error", "redirect loop"),
    ("<urlopen error", "connection failed"),
    ("[Errno", "connection failed"),
    ("Remote end closed", "connection failed"),
)


@dataclass(frozen=True)
class ShardPlan:
    """Which rows of the URL list belong to which shard.

    The first shards hold the list in order, `shard_size` rows each. Each further shard holds rows that
    failed there and are tried once more; from then on, such a row belongs to the further shard alone.
    """

    rows: int
    shard_size: int
    retries: tuple[tuple[int, ...], ...] = ()

    @property
    def first_shards(self) -> range:
        """Numbers of the shards that hold the list."""
        return range(math.ceil(self.rows / self.shard_size))

    @property
    def retry_shards(self) -> range:
        """Numbers of the shards that hold second attempts."""
        first = self.first_shards.stop
        return range(first, first + len(self.retries))

    def rows_of(self, shard_id: int) -> Sequence[int]:
        """Return the rows of the list that a shard holds, in the shard's order."""
        if shard_id in self.retry_shards:
            return self.retries[shard_id - self.retry_shards.start]
        start = shard_id * self.shard_size
        return range(start, min(start + self.shard_size, self.rows))

    @cached_property
    def moved(self) -> frozenset[int]:
        """Rows that belong to a retry shard and no longer to the shard of their place in the list."""
        return frozenset(row for rows in self.retries for row in rows)

    def with_retries(self, rows: Sequence[int]) -> "ShardPlan":
        """Return the plan with further shards for these rows."""
        starts = range(0, len(rows), self.shard_size)
        added = tuple(tuple(rows[start : start + self.shard_size]) for start in starts)
        return ShardPlan(self.rows, self.shard_size, self.retries + added)


@dataclass(frozen=True)
class ListOutcome:
    """What became of each row of a list: `succeeded` plus the sum of `failed` is the number of rows.

    `retryable` rows failed in their first attempt for a reason that may pass; `refused_private` rows were
    refused in it for their address or port, which a later run may allow.
    """

    succeeded: int
    failed: dict[str, int]
    retryable: tuple[int, ...]
    refused_private: tuple[int, ...]


class IngestFolder:
    """Reads and writes the layout described above, for one output folder."""

    def __init__(self, out: str, data_suffix: str) -> None:
        self.out = Folder(out)
        self.state = self.out.join(".ingest")
        self.rows = self.state.join("rows")
        self._local = self._local_state()
        self.log = self._local / "log.txt"
        self._suffixes = (data_suffix, ".parquet", "_stats.json")

    def _local_state(self) -> Path:
        if not is_address(self.out.place):
            return Path(self.state.place)
        digest = hashlib.sha256(self.out.place.encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"beamclip-ingest-{digest}")

    def claim(self, manifest: dict[str, Any]) -> None:
        """Mark the folder as this ingest's, or check that it is already.

        Raises:
            InputError: it holds something else, or was filled with other settings.
        """
        before = self.read_manifest()
        changed = [name for name in manifest if before.get(name, _BEFORE.get(name)) != manifest[name]]
        # Without a complete shard, there is nothing to mix other settings with.
        if changed and any(name.endswith("_stats.json") for name in self.out.names()):
            raise InputError(f"{self.out.place}: {_describe_changes(changed, before, manifest)}")
        self.rows.fs.makedirs(self.rows.path(""), exist_ok=True)
        if changed:
            self.state.remove("retries.json")
            self._write_json("manifest.json", manifest)

    def read_manifest(self) -> dict[str, Any]:
        """Return the settings that the folder was filled with; empty if it is new."""
        return self._read_json("manifest.json") or {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other ingests out of it inside the block.

        Raises:
            InputError: nothing can be written there, or another ingest is writing there.
        """
        self.out.prepare("--out")
        self._local.mkdir(parents=True, exist_ok=True)
        with (self._local / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{self.out.place}: another ingest is writing here. Wait for it.") from None
            yield

    def read_retries(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows of each retry shard."""
        return tuple(tuple(rows) for rows in self._read_json("retries.json") or ())

    def write_retries(self, plan: ShardPlan) -> None:
        """Write down which rows are retried; call it before the first of them is."""
        self._write_json("retries.json", plan.retries)

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary of an ingest that left nothing to do, or None."""
        summary: dict[str, Any] | None = self._read_json("summary.json")
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the final counts."""
        self._write_json("summary.json", summary)

    def forget_summary(self) -> None:
        """Remove the final counts: something is left to do after all."""
        self.state.remove("summary.json")

    def complete_shards(self, plan: ShardPlan) -> dict[int, dict[str, Any]]:
        """Return the statistics of complete shards: those with data, records and readable statistics."""
        names = self.out.names()
        there = [i for i in (*plan.first_shards, *plan.retry_shards) if self._has_files(i, names)]
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(there, pool.map(self.read_stats, there), strict=True)
        return {shard_id: stats for shard_id, stats in found if stats is not None}

    def has_all_shards(self, count: int) -> bool:
        """Whether all files of the shards 0 to count - 1 exist."""
        names = self.out.names()
        return all(self._has_files(shard_id, names) for shard_id in range(count))

    def read_stats(self, shard_id: int) -> dict[str, Any] | None:
        """Return img2dataset's statistics of a shard; None if there are none, or only a part was written."""
        text = self.out.read(shard_name(shard_id) + "_stats.json")
        try:
            stats: dict[str, Any] | None = None if text is None else json.loads(text)
        except json.JSONDecodeError:
            return None
        return stats

    def drop(self, shard_id: int) -> None:
        """Remove what is left of a shard, statistics first, so that no reader takes it for complete."""
        for suffix in reversed(self._suffixes):
            self.out.remove(shard_name(shard_id) + suffix)
        self.out.remove(shard_name(shard_id) + INDEX_SUFFIX)

    def read_outcome(self, plan: ShardPlan) -> ListOutcome:
        """Count what became of each row of the list, from the shards' records."""
        complete = self.complete_shards(plan)
        first, second = (
            self._all_failures(plan, ids, complete) for ids in (plan.first_shards, plan.retry_shards)
        )
        reasons = Counter(reason for _, reason in (*first, *second))
        return ListOutcome(
            succeeded=sum(stats["successes"] for stats in complete.values()),
            failed=dict(reasons.most_common()),
            retryable=tuple(sorted(row for row, reason in first if is_retryable(reason))),
            refused_private=tuple(sorted(row for row, reason in first if reason in _ALLOWABLE)),
        )

    def _all_failures(
        self, plan: ShardPlan, shard_ids: Iterable[int], complete: Iterable[int]
    ) -> list[tuple[int, str]]:
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda i: list(self._failures(plan, i, i in complete)), shard_ids)
            return [failure for failures in found for failure in failures]

    def _failures(self, plan: ShardPlan, shard_id: int, complete: bool) -> Iterator[tuple[int, str]]:
        rows = plan.rows_of(shard_id)
        moved = plan.moved if shard_id in plan.first_shards else frozenset()
        if not complete:
            yield from ((row, SHARD_FAILED) for row in rows if row not in moved)
            return
        columns = ["key", "status", "error_message"]
        with self.out.fs.open(self.out.path(shard_name(shard_id) + ".parquet"), "rb") as file:
            table = pq.read_table(file, columns=columns)
        for record in table.filter(pc.field("status") != "success").to_pylist():
            row = rows[row_of_key(record["key"], shard_id, plan.shard_size)]
            if row not in moved:
                yield row, failure_reason(record["status"], record["error_message"])

    def _has_files(self, shard_id: int, names: set[str]) -> bool:
        return all(shard_name(shard_id) + suffix in names for suffix in self._suffixes)

    def _read_json(self, name: str) -> Any:
        text = self.state.read(name)
        return None if text is None else json.loads(text)

    def _write_json(self, name: str, content: Any) -> None:
        self.state.write(name, json.dumps(content, indent=1).encode())


def failure_reason(status: str, message: str | None) -> str:
    """Return the reason to count for an image that failed, from img2dataset's status and message."""
    if status == "failed_to_resize":
        return message if message in REFUSALS and message != CORRUPT_IMAGE else UNDECODABLE
    message = message or ""
    if message.startswith("refused: ") or message in REASONS:
        return message
    if message.startswith("HTTP Error "):
        return "HTTP " + message.removeprefix("HTTP Error ")[:3]
    return next((reason for part, reason in _REASONS if part in message), "download failed")


def is_retryable(reason: str) -> bool:
    """Whether a second attempt may end differently."""
    return reason not in _FINAL and not reason.startswith("refused: ")


def _describe_changes(changed: Sequence[str], before: dict[str, Any], now: dict[str, Any]) -> str:
    if not before:
        return "holds shards of another program. Give an empty folder as out."
    if "urls_sha256" in changed:
        return "was filled from another URL list. Give that list again to resume, or another out."
    if "list_reading" in changed:
        return (
            "was filled by an earlier version, which read quotes, dates and numbers of such lists "
            "differently. Give another out."
        )
    changes = "; ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
    return f"was filled with other settings ({changes}). Use the same to resume, or give another out."
