"""Describe for MLflow what a command reads and writes: data sets by their shards, models by their runs.

Free of torch.
"""

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from beamclip.addresses import without_secrets
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.commands.sources import of_each
from beamclip.data.listing import fingerprint, list_labelled, list_shards
from beamclip.data.shards import Shard
from beamclip.errors import InputError
from beamclip.models.address import HUB, OPEN_CLIP, TIMM, split_address
from beamclip.places import absolute
from beamclip.tracking import Dataset, ModelRef, run_dir_of
from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.lineage import Context


def dataset_of(
    address: str, shards: Sequence[Shard], context: Context, *, texts: Iterable[str] = ()
) -> Dataset:
    """Describe a data set.

    Its digest covers the names, counts and sizes of its shards, and is the same wherever they lie: a training
    names the data set that an ingest named when it wrote it.

    Args:
        address: as given by an option.
        shards: all of this data set.
        texts: fields of a sample, beside its image, that the command reads or writes.
    """
    own = [replace(shard, source=0) for shard in shards]
    sizes = " ".join(str(shard.size) for shard in own)
    return Dataset(
        name=dataset_name(address),
        digest=hashlib.sha256(f"{fingerprint(own)} {sizes}".encode()).hexdigest()[:16],
        source=without_secrets(absolute(address)),
        context=context,
        counts={
            "samples": sum(shard.samples for shard in own),
            "shards": len(own),
            "bytes": sum(shard.size for shard in own),
        },
        fields={"image": "binary", **dict.fromkeys(texts, "string")},
    )


def dataset_name(address: str) -> str:
    """Return the last two parts of a path or address: `emoji/train` tells more than `train`."""
    parts = without_secrets(absolute(address)).partition("://")[2] or absolute(address)
    return "/".join([part for part in parts.split("/") if part][-2:]) or address


def training_datasets(config: DistillConfig | PretrainConfig, shards: Sequence[Shard]) -> list[Dataset]:
    """Describe the data sets of --data, --val-data and --eval-data."""
    given = zip(config.data, of_each(shards), strict=True)
    texts = ("caption", *config.captions.caption_columns) if isinstance(config, PretrainConfig) else ()
    found = [dataset_of(address, own, "training", texts=texts) for address, own in given]
    missing = config.stream.allow_missing_shards
    label_column, chosen_on = config.scoring.label_column, config.validation.val_data
    validated = labelled_dataset(chosen_on, "validation", label_column, allow_missing=missing)
    return [*found, *(each for each in (validated, scored_dataset(config)) if each is not None)]


def scored_dataset(config: DistillConfig | PretrainConfig) -> Dataset | None:
    """Describe the data set of --eval-data, if there is one."""
    allow_missing = config.stream.allow_missing_shards
    scoring = config.scoring
    # Without --val-data, the model is validated on images of --eval-data.
    context: Context = "test" if config.validation.val_data else "validation"
    return labelled_dataset(scoring.eval_data, context, scoring.label_column, allow_missing=allow_missing)


def labelled_dataset(
    address: str | None, context: Context, label_column: str, *, allow_missing: bool
) -> Dataset | None:
    """Describe a labelled data set; None without one, or if it cannot be listed, as its reader will say."""
    with suppress(InputError):
        if address is None:
            return None
        shards = list_labelled(address, allow_missing=allow_missing)
        return dataset_of(address, shards, context, texts=[label_column])
    return None


def written_dataset(address: str, texts: Iterable[str] = ()) -> Dataset | None:
    """Describe the shards that a command wrote, with these texts in each sample; None if there are none."""
    with suppress(InputError):
        return dataset_of(address, list_shards(address), "output", texts=texts)
    return None


def model_ref(address: str, fingerprint: str) -> ModelRef:
    """Name a model that a command uses, by the run that made it if its address leads there.

    Args:
        address: as given by an option.
        fingerprint: digest of its weights.
    """
    schema, rest = split_address(address)
    run_dir = None if schema in (HUB, OPEN_CLIP, TIMM) else run_dir_of(Path(absolute(rest)))
    shown = posixpath.basename(address.rstrip("/")) if run_dir else address
    return ModelRef(without_secrets(shown), fingerprint, str(run_dir) if run_dir else None)


def named_run(tracking: TrackingConfig, place: str) -> TrackingConfig:
    """Name a run after the folder or address that it writes, unless it has a name."""
    return replace(tracking, run_name=tracking.run_name or posixpath.basename(place.rstrip("/")))
