"""What a run read and made, as MLflow links it to other runs: data sets by digest, models by run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from beamclip.summary import SUMMARY_FILE

Context = Literal["training", "validation", "test", "source", "output"]
"""What a run did with a data set: trained or fitted on it, was scored on it while or after it trained, scored
a model on it, made another data set from it, or wrote it."""


@dataclass(frozen=True)
class Dataset:
    """A data set as MLflow shows it. Runs that name one of equal name and digest share it."""

    name: str
    digest: str
    """At most 36 characters, equal for equal content."""
    source: str
    """Path or address, without secrets."""
    context: Context
    counts: Mapping[str, int] = field(default_factory=dict)
    """Size of the data set: samples, shards, bytes."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What a sample holds, as far as the run knows: name to MLflow's type, `binary` or `string`."""

    @property
    def profile(self) -> str:
        """The counts as JSON; MLflow's page calls the number of samples `num_rows`."""
        return json.dumps({"num_rows" if name == "samples" else name: n for name, n in self.counts.items()})

    @property
    def schema(self) -> str | None:
        """The fields as JSON, in MLflow's form."""
        columns = [{"type": kind, "name": name, "required": True} for name, kind in self.fields.items()]
        return json.dumps({"mlflow_colspec": columns}) if columns else None

    @property
    def source_type(self) -> str:
        """`local`, or the scheme of the address."""
        return self.source.partition("://")[0] if "://" in self.source else "local"


@dataclass(frozen=True)
class ModelRef:
    """A model that a run uses and does not make."""

    address: str
    """Address of the model as it was given, without secrets."""
    fingerprint: str
    """Digest of its weights."""
    run_dir: str | None = None
    """Folder of the run that made it, if that is known."""


def run_dir_of(path: Path) -> Path | None:
    """Return the folder of the run that a path names or lies in, as RUN/model does; None without one.

    The run need not have an MLflow id yet: it may be waiting for its server.
    """
    folders = (path, *path.resolve().parents[:2])
    return next((folder for folder in folders if (folder / SUMMARY_FILE).exists()), None)
