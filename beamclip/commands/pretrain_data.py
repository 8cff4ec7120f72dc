"""The inputs of a pre-training that need no model, loaded and checked.

Free of torch, whose import takes seconds: most mistakes are reported before it, and Ray starts beside it.
"""

from dataclasses import dataclass, fields

from beamclip.commands.batches import check_batches, check_synchronisation, sized
from beamclip.commands.class_list import scored_classes
from beamclip.commands.contexts import check_contexts
from beamclip.commands.options import PretrainConfig
from beamclip.commands.sources import list_sources, of_each
from beamclip.commands.validation_data import check_validation, validated_on
from beamclip.data.config import CaptionConfig
from beamclip.data.listing import check_texts
from beamclip.data.shards import Columns, Shard
from beamclip.errors import InputError
from beamclip.losses.config import PsdConfig
from beamclip.option_texts import check_required
from beamclip.prompts.classes import ClassEntry
from beamclip.training.decode_place import check_decode


@dataclass(frozen=True)
class PretrainData:
    """What the options of a pre-training name, without its model."""

    shards: list[Shard]
    """Shards of all data sets, one data set after the other."""
    classes: list[ClassEntry]


def load_data(config: PretrainConfig) -> PretrainData:
    """Load and check every input that needs no model.

    Raises:
        InputError: for the first input that cannot be used.
    """
    check_required(config)
    _refuse_idle_options(config)
    allow_missing = config.stream.allow_missing_shards
    shards = list_sources(config)
    check_batches(sized(config, shards), shards)
    check_decode(config.stream, config.workers)
    check_synchronisation(config)
    for address, own in zip(config.data, of_each(shards), strict=True):
        check_texts(own, columns_of(config), address)
    classes = scored_classes(config)
    check_validation(config, classes)
    if config.scoring.eval_data or validated_on(config, classes):
        check_contexts(classes, config.prompts, config.data, allow_missing=allow_missing)
    return PretrainData(shards, classes)


def _refuse_idle_options(config: PretrainConfig) -> None:
    """Raise InputError for an option that was changed but has no effect with the others."""
    if config.lock_image and config.lock_text:
        raise InputError(
            "--lock-image and --lock-text: nothing is left to learn but the logit scale. Leave one out."
        )
    if config.lock_image and config.optim.frozen_layers:
        raise InputError("--frozen-layers has no effect with --lock-image, which freezes all. Leave it out.")
    captions = CaptionConfig(caption_columns=config.captions.caption_columns)
    idle: list[tuple[PsdConfig | CaptionConfig, PsdConfig | CaptionConfig, bool, str]] = [
        (config.psd, PsdConfig(), config.objective == "psd", f"with --objective {config.objective}"),
        (config.captions, captions, bool(captions.caption_columns), "without --caption-columns"),
    ]
    for section, default, used, circumstance in idle:
        changed = [f.name for f in fields(section) if getattr(section, f.name) != getattr(default, f.name)]
        if changed and not used:
            raise InputError(f"--{changed[0].replace('_', '-')} has no effect {circumstance}. Leave it out.")


def columns_of(config: PretrainConfig) -> Columns:
    """Return the columns to read: the caption and the further texts of each sample."""
    return Columns(caption=True, more_texts=config.captions.caption_columns)
