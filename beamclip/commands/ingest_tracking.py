"""The MLflow run of an ingest."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from beamclip.addresses import without_secrets
from beamclip.commands.effects import effective_parameters
from beamclip.commands.lineage import dataset_name, named_run, written_dataset
from beamclip.ingest.config import IngestConfig
from beamclip.ingest.ingest import IngestCounts
from beamclip.places import absolute, is_address
from beamclip.runs.folder import CONFIG_FILE
from beamclip.summary import SUMMARY_FILE, Summary
from beamclip.tracking import Dataset, Tracking, notes_folder, tracked_run_id


class IngestTracking:
    """Records an ingest in MLflow. A resumed ingest continues its run; one with nothing left to do has none.

    The run begins with the first finished shard: an ingest that was refused leaves no failed run.
    """

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._began = time.time()
        self._tracking: Tracking | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, also that of an earlier start; None if there is none."""
        if self._tracking is not None:
            return self._tracking.run_id
        return tracked_run_id(self._folder) if self._config.out else None

    def progress(self, counts: IngestCounts) -> None:
        """Log the counts so far, after each shard."""
        if self._tracking is None:
            self._tracking = Tracking.start(
                named_run(self._config.tracking, self._place),
                run_dir=self._folder,
                params=effective_parameters(self._config),
                tags={"command": "ingest"},
                run_id=tracked_run_id(self._folder),
                began=self._began,
            )
        self._tracking.log(
            [{"step": counts.shards_done, "succeeded": counts.succeeded, "failed": counts.failed}]
        )

    def end(self, summary: Summary, manifest: dict[str, Any]) -> None:
        """Log the final counts, the list of URLs and the shards.

        Args:
            manifest: settings that the folder was filled with, as IngestFolder.read_manifest returns them.
        """
        if self._tracking is None:
            return
        counts = summary.counts
        reasons = {f"failed/{reason}": float(number) for reason, number in counts.failed.items()}
        record = {"images": counts.succeeded, "images_per_second": summary.images_per_second or 0.0}
        self._tracking.log([{"step": summary.stages["shards"], **record, **reasons}])
        urls = str(self._config.urls)
        listed = Dataset(
            dataset_name(urls),
            str(manifest.get("urls_sha256"))[:16],
            without_secrets(absolute(urls)),
            "source",
            {"samples": counts.attempted},
        )
        texts = [*(["caption"] if manifest.get("caption_column") else []), *self._config.keep_columns]
        written = written_dataset(self._place, texts)
        self._tracking.inputs(datasets=[listed, *([written] if written else [])])
        if not is_address(self._place):
            for name in (SUMMARY_FILE, CONFIG_FILE):
                self._tracking.artifact(Path(self._place, name))

    def __enter__(self) -> "IngestTracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracking is not None:
            self._tracking.__exit__(kind, error, trace)

    @property
    def _place(self) -> str:
        return absolute(str(self._config.out))

    @property
    def _folder(self) -> Path:
        return notes_folder(self._place)
