"""The data sets that a training draws from: listed, checked against each other, and shown.

Free of torch: they are checked before a model is loaded.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path

from beamclip.cluster.nodes import NO_PLACES, SharedPlaces, some_files
from beamclip.cluster.session import cluster_address
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.data.cache import CacheManifest, finished_manifest, is_cache
from beamclip.data.listing import list_labelled, list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Shard
from beamclip.errors import InputError
from beamclip.places import absolute, is_address
from beamclip.runs.folder import checkpoint_address
from beamclip.training.recipe import total_steps


def list_sources(config: DistillConfig | PretrainConfig) -> list[Shard]:
    """The shards of all data sets of --data, each with the place of its data set.

    Raises:
        InputError: a data set cannot be listed or is given twice, or the weights are not one each.
    """
    weights = config.stream.data_weights
    if weights and len(weights) != len(config.data):
        raise InputError(
            f"--data-weights {' '.join(f'{each:g}' for each in weights)}: {plural(len(weights), 'weight')} "
            f"for {plural(len(config.data), 'data set')}. Give one for each of --data, or none."
        )
    seen = dict[str, str]()
    for address in config.data:
        place = absolute(address).rstrip("/")
        place = place if is_address(place) else str(Path(place).resolve())
        if place in seen:
            raise InputError(
                f"--data {address}: given twice. For more of it in each batch, give --data-weights."
            )
        seen[place] = address
    missing = config.stream.allow_missing_shards
    listed = [list_shards(address, allow_missing=missing) for address in config.data]
    return [replace(shard, source=place) for place, shards in enumerate(listed) for shard in shards]


def of_each(shards: Sequence[Shard]) -> list[list[Shard]]:
    """The shards of each data set."""
    return [list(own) for _, own in groupby(shards, key=attrgetter("source"))]


def places_of(config: DistillConfig | PretrainConfig, shards: Sequence[Shard], run_dir: Path) -> SharedPlaces:
    """What all nodes of a cluster must see alike to train: data, labelled images and checkpoints.

    Args:
        shards: those of all data sets.

    Returns:
        Nothing to see, if no cluster is to be joined.
    """
    if not cluster_address():
        return NO_PLACES
    read = [some_files("--data", [shard.path for shard in own]) for own in of_each(shards)]
    if config.scoring.eval_data:
        read.append(_labelled(config.scoring.eval_data, allow_missing=config.stream.allow_missing_shards))
    checkpoints = checkpoint_address(config.checkpoint.checkpoints, run_dir)
    return SharedPlaces(tuple(chain.from_iterable(read)), (("--checkpoints", checkpoints),))


def _labelled(address: str, *, allow_missing: bool) -> tuple[tuple[str, str], ...]:
    shards = list_labelled(address, allow_missing=allow_missing)
    return some_files("--eval-data", [shard.path for shard in shards])


def read_manifests(addresses: Sequence[str]) -> tuple[CacheManifest, ...]:
    """The manifest of each teacher cache; none if the data are plain shards or images.

    Raises:
        InputError: some are caches and some are not, one is not finished, or their images differ in size.
    """
    caches = [address for address in addresses if is_cache(address)]
    if not caches:
        return ()
    if len(caches) < len(addresses):
        other = next(address for address in addresses if address not in caches)
        raise InputError(
            f"--data: {caches[0]} is a teacher cache and {other} is none. Give caches alone (beamclip embed "
            "builds them), or the data that they were built from."
        )
    manifests = tuple(map(finished_manifest, caches))
    for address, manifest in zip(caches, manifests, strict=True):
        size, first = manifest.image_size, manifests[0].image_size
        if size != first:
            raise InputError(
                f"--data: {caches[0]} was made from images of {first} px, and {address} of {size} px. "
                "Build them with one --image-size."
            )
    return manifests


def show_sources(config: DistillConfig | PretrainConfig, shards: Sequence[Shard]) -> None:
    """Print a line for each data set if there are several: samples, share of a batch, passes over it.

    Args:
        config: as returned by `batches.sized`.
    """
    counts = source_counts(shards)
    if len(counts) < 2:
        return
    stream = config.stream
    assert stream.batch_size is not None
    samples = [int(each.sum()) for each in counts]
    mixture = mixture_of(counts, stream.data_weights, stream.shuffle_window, config.seed, 1)
    parts = [order.lanes for order in mixture.orders] if stream.data_weights else samples
    seen = total_steps(config.optim, sum(samples), stream.batch_size) * stream.batch_size
    for address, number, part in zip(config.data, samples, parts, strict=True):
        share = part / sum(parts)
        text = f"{address}: {plural(number, 'sample')}, {percent(share)} of each batch"
        print_stage("source", text, f"{seen * share / number:.2f} passes")
