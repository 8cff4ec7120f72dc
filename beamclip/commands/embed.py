"""Build a teacher cache from shards."""

import posixpath
import time
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import numpy as np
import ray
import yaml
from numpy.typing import NDArray

from beamclip.addresses import without_secrets
from beamclip.cluster.room import check_resources
from beamclip.cluster.session import workers_session
from beamclip.commands.console import plural, print_stage
from beamclip.commands.effects import effective_parameters
from beamclip.commands.embed_inputs import EmbedInputs, agreed_manifest, load_inputs
from beamclip.commands.embedding import embed_missing, embedding_job, verified
from beamclip.commands.lineage import dataset_of, model_ref, named_run, written_dataset
from beamclip.commands.options import EmbedConfig
from beamclip.config import config_text
from beamclip.data.cache import CacheError, CacheManifest, skipped_in, write_manifest
from beamclip.models.address import absolute_address
from beamclip.places import Folder, is_address
from beamclip.runs.folder import CONFIG_FILE
from beamclip.storage import storage
from beamclip.summary import SUMMARY_FILE, Counts, Summary, summary_text
from beamclip.tracking import Tracking, notes_folder, tracked_run_id

DISTILL_CONFIG = "distill.yaml"


def embed(config: EmbedConfig) -> Summary:
    """Build a teacher cache, and print how to distill from it.

    Raises:
        InputError, CacheError: see `build_cache`.
    """
    summary = build_cache(config)
    _show(summary.paths["cache"], summary, has_vision=bool(config.vision_teachers))
    return summary


def build_cache(config: EmbedConfig) -> Summary:
    """Build a teacher cache, or finish one, and verify it.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        CacheError: a shard could not be embedded, no image could be used, or the check of the cache failed.
    """
    began = time.perf_counter()
    inputs = load_inputs(config)
    print_stage(
        "shards",
        f"{plural(len(inputs.shards), 'file')}, {plural(inputs.samples, 'image')}",
        _before(inputs),
    )
    with workers_session(config.workers):
        check_resources(config.workers)
        manifest = agreed_manifest(config, inputs)
        with _track(config, inputs) as tracking:
            manifest, seconds, cosines = _fill(config, inputs, manifest)
            summary = _summary(inputs, manifest, seconds, cosines, began)
            summary = replace(summary, mlflow_run_id=tracking.run_id)
            _leave(config, inputs.out, summary)
            _log(tracking, inputs.out, summary)
    return summary


def _fill(
    config: EmbedConfig, inputs: EmbedInputs, manifest: CacheManifest
) -> tuple[CacheManifest, float, NDArray[np.float32]]:
    """Embed what is missing; return the final manifest, the seconds it took, and what `verified` found."""
    job = embedding_job(config, inputs, manifest)
    reference = ray.put(job)
    seconds = embed_missing(config, inputs, job, reference) if inputs.todo else 0.0
    skipped = skipped_in(inputs.out)
    if sum(skipped.values()) == inputs.samples:
        raise CacheError(f"{config.data}: no image could be used: {skipped}. See the summary of the ingest.")
    try:
        cosines = verified(config, reference)
    except CacheError:
        # It may have been marked as finished before; without the mark, training refuses it.
        write_manifest(inputs.out, manifest)
        raise
    manifest = replace(manifest, samples=inputs.samples, skipped=skipped)
    write_manifest(inputs.out, manifest)
    return manifest, seconds, cosines


def _track(config: EmbedConfig, inputs: EmbedInputs) -> Tracking:
    """Begin the MLflow run of a cache, or continue that of an earlier start."""
    folder = notes_folder(inputs.out)
    tracking = Tracking.start(
        named_run(config.tracking, inputs.out),
        run_dir=folder,
        params=effective_parameters(config),
        tags={"command": "embed"},
        run_id=tracked_run_id(folder),
    )
    teachers = [model_ref(each.address, each.fingerprint) for each in inputs.all_teachers]
    tracking.inputs(datasets=[dataset_of(str(config.data), inputs.shards, "source")], models=teachers)
    return tracking


def _log(tracking: Tracking, out: str, summary: Summary) -> None:
    skipped = {f"skipped/{reason}": number for reason, number in summary.counts.skipped.items()}
    metrics = {name: value for name, value in summary.metrics.items() if value is not None}
    speed = summary.images_per_second
    record: dict[str, float] = {"step": 0, "images": summary.images, **skipped, **metrics}
    tracking.log([record if speed is None else {**record, "images_per_second": speed}])
    written = written_dataset(out)
    if written is not None:
        tracking.inputs(datasets=[written])
    if not is_address(out):
        for name in (SUMMARY_FILE, CONFIG_FILE, DISTILL_CONFIG):
            tracking.artifact(Path(out, name))


def _summary(
    inputs: EmbedInputs,
    manifest: CacheManifest,
    seconds: float,
    cosines: NDArray[np.float32],
    began: float,
) -> Summary:
    views = sum(shard.samples for shard in inputs.todo) * manifest.augmentations
    return Summary(
        command="embed",
        status="finished",
        wall_seconds=time.perf_counter() - began,
        images=views,
        images_per_second=views / seconds if seconds else None,
        metrics={"cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}
        if len(cosines)
        else {},
        counts=Counts(
            attempted=inputs.samples,
            succeeded=inputs.samples - sum(manifest.skipped.values()),
            skipped=manifest.skipped,
        ),
        paths={"cache": inputs.out},
        stages={"embedding_seconds": seconds, "bytes_per_sample": _bytes(inputs.out) / inputs.samples},
    )


def _before(inputs: EmbedInputs) -> str:
    return f"{len(inputs.shards) - len(inputs.todo)} embedded before" if inputs.done else ""


def _bytes(address: str) -> int:
    fs, root = fsspec.core.url_to_fs(address)
    return int(sum(fs.size(path) for path in fs.glob(posixpath.join(root, "*.parquet"))))


def _leave(config: EmbedConfig, out: str, summary: Summary) -> None:
    """Write options and summary into the cache, and the options of a distillation that fits it."""
    recorded = str if storage() else absolute_address
    fitting = {
        "data": out,
        "teacher": recorded(str(config.teacher)),
        "more_teachers": [recorded(address) for address in config.more_teachers],
        "vision_teachers": [recorded(address) for address in config.vision_teachers],
        "vision_image_size": config.vision_image_size,
        "augmentation": asdict(config.augmentation),
    }
    folder = Folder(out)
    folder.write(CONFIG_FILE, config_text(config).encode())
    folder.write(DISTILL_CONFIG, without_secrets(yaml.safe_dump(fitting, sort_keys=False)).encode())
    folder.write(SUMMARY_FILE, summary_text(summary).encode())


def _show(out: str, summary: Summary, *, has_vision: bool) -> None:
    for reason, number in sorted(summary.counts.skipped.items()):
        print_stage("skipped", f"{number:,} {reason}")
    size = summary.stages["bytes_per_sample"]
    print_stage("cache", f"{plural(summary.counts.attempted, 'image')}, {size / 1000:,.1f} kB each", out)
    if not is_address(out):
        weight = " --vision-feature-weight 1" if has_vision else ""
        print(f"beamclip distill --config {out}/{DISTILL_CONFIG} --student resnet18 --classes FILE{weight}")
