"""The inputs of a distillation that need no model, loaded and checked. A sweep uses this too.

Free of torch, whose import takes seconds: most mistakes are reported before it, and Ray starts beside it.
"""

from dataclasses import dataclass

from beamclip.commands.batches import check_batches, check_synchronisation, sized
from beamclip.commands.class_list import scored_classes
from beamclip.commands.console import plural
from beamclip.commands.contexts import check_contexts
from beamclip.commands.options import DistillConfig
from beamclip.commands.sources import list_sources, of_each, read_manifests
from beamclip.commands.validation_data import check_validation
from beamclip.data.cache import CacheManifest
from beamclip.data.listing import check_texts
from beamclip.data.shards import Columns, Shard
from beamclip.errors import InputError
from beamclip.option_texts import check_required
from beamclip.prompts.classes import ClassEntry
from beamclip.training.decode_place import check_decode


@dataclass(frozen=True)
class DistillData:
    """What the options of a distillation name, without its models."""

    shards: list[Shard]
    """Shards of all data sets, one data set after the other."""
    classes: list[ClassEntry]
    manifests: tuple[CacheManifest, ...]
    """Manifests of the teacher caches, one for each data set; empty if the data are plain shards."""

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)


def load_data(config: DistillConfig) -> DistillData:
    """Load and check every input that needs no model.

    Raises:
        InputError: for the first input that cannot be used.
    """
    # A wrong address is reported before a missing option.
    allow_missing = config.stream.allow_missing_shards
    shards = list_sources(config)
    check_options(config)
    check_vision_teachers(config)
    check_batches(sized(config, shards), shards)
    check_decode(config.stream, config.workers)
    check_synchronisation(config)
    if config.terms.read_captions:
        for address, own in zip(config.data, of_each(shards), strict=True):
            check_texts(own, Columns(caption=True), address)
    classes = scored_classes(config)
    if not classes and config.anchors != "captions":
        raise InputError(
            "--classes is required: the anchors are made from it, unless --anchors is captions or "
            "--eval-data names its classes."
        )
    check_contexts(classes, config.prompts, config.data, allow_missing=allow_missing)
    check_validation(config, classes)
    return DistillData(shards, classes, read_manifests(config.data))


def check_options(config: DistillConfig) -> None:
    """Refuse options that are incomplete or contradict each other.

    Raises:
        InputError: a required option is missing, all losses have the weight 0, there is not one temperature
            for each of the further teachers, or the terms of vision teachers have none.
    """
    check_required(config, hint="Without any option at all, the quickstart runs instead.")
    taus, further = config.csm.more_tau_teachers, len(config.more_teachers)
    if taus and len(taus) != further:
        raise InputError(
            f"--more-tau-teachers {' '.join(f'{tau:g}' for tau in taus)}: "
            f"{plural(len(taus), 'temperature')} for {plural(further, 'further teacher')}. Give one for each "
            "of --more-teachers, or none."
        )
    if config.vision.is_on and not config.vision_teachers:
        raise InputError(
            "--vision-relation-weight and --vision-feature-weight need teachers of vision only. Give "
            "--vision-teachers, or leave both weights at 0."
        )
    weights = (config.csm.csm_weight, config.feature.feature_weight)
    if not any(weights) and not config.terms.compare_samples:
        raise InputError(
            "--csm-weight and --feature-weight are 0, and so are the weights of all other terms of the "
            "embeddings, which would learn nothing. Give one of them a weight above 0."
        )


def check_vision_teachers(config: DistillConfig) -> None:
    """Refuse teachers of vision only that no term of the loss learns from.

    Raises:
        InputError: there are some, and the weights of their terms are 0.
    """
    if config.vision_teachers and not config.vision.is_on:
        raise InputError(
            f"--vision-teachers {' '.join(config.vision_teachers)}: nothing is learned from them, since "
            "--vision-relation-weight and --vision-feature-weight are 0. Give one of them a weight above 0."
        )
