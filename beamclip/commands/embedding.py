"""Embed shards by actors of Ray Data, and check what they wrote."""

from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from beamclip.commands.console import plural, print_stage
from beamclip.commands.embed_inputs import EmbedInputs, name_of
from beamclip.commands.embed_progress import EmbeddingProgress
from beamclip.commands.options import EmbedConfig
from beamclip.data.cache import CacheError, CacheManifest
from beamclip.data.config import DecodePlace
from beamclip.data.index import NO_STARTS
from beamclip.data.rows import CROPS_AHEAD_BYTES, own_errors, prepared_dataset
from beamclip.data.starts import read_starts
from beamclip.models.clip import text_tower
from beamclip.training.channel import RemoteChannel
from beamclip.training.decode_place import decode_place
from beamclip.training.embedding import EmbeddingJob, ShardEmbedder, verify_cache
from beamclip.training.worker import in_one_line

LEAST_COSINE = 0.999
"""Least cosine of a cached embedding and the same one computed again; bf16 in other batches exceeds it."""
MOST_BLOCKS = 2000
"""Most blocks of the list of shards; more would only burden Ray."""


def embedding_job(config: EmbedConfig, inputs: EmbedInputs, manifest: CacheManifest) -> EmbeddingJob:
    """Make the job of the actors; its models lie in Ray's store."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    on_each = -(-config.workers.most_workers // max(1, nodes))
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, nodes))
    decode = _decode_place(config, min(config.workers.world_size, len(inputs.todo)))
    return EmbeddingJob(
        teachers=tuple(map(ray.put, inputs.image_towers)),
        text_towers=tuple(ray.put(text_tower(clip)) for clip in inputs.teachers if config.captions),
        manifest=manifest,
        out=inputs.out,
        batch_size=config.embed_batch,
        decode=decode,
        starts=ray.put(read_starts(inputs.todo) if decode == "tasks" else NO_STARTS),
        decode_threads=config.decode_threads,
        threads=config.workers.threads_per_worker or max(1, cpus // on_each),
        device="cuda" if config.workers.use_gpu else "cpu",
        compile=config.compile,
        channel=RemoteChannel(),
    )


def _decode_place(config: EmbedConfig, actors: int) -> DecodePlace:
    workers, resources = config.workers, ray.cluster_resources()
    spare = {**resources, "CPU": resources.get("CPU", 0.0) - actors * workers.worker_cpus}
    return decode_place(config.decode, actors * CROPS_AHEAD_BYTES, actors, spare, on_gpu=workers.use_gpu)


def embed_missing(config: EmbedConfig, inputs: EmbedInputs, job: EmbeddingJob, reference: Any) -> float:
    """Embed the missing shards; return the seconds from the start of the first one to the last batch.

    Args:
        reference: to the job in Ray's store.

    Raises:
        CacheError: a shard could not be embedded.
        KeyboardInterrupt: with a message that says what is kept.
    """
    workers = config.workers
    names = ", ".join(each.address for each in inputs.all_teachers)
    views = f"{plural(config.augmentations, 'view')} each, {job.manifest.image_size} px"
    print_stage("embedding", f"{names}: {views}", job.manifest.teachers[0].precision)
    items = [
        {"shard": asdict(shard), "number": number, "name": name_of(shard)}
        for number, shard in enumerate(inputs.todo)
    ]
    # Tasks go on with the next shard while the teacher is at one; each actor still has some turns.
    together = min(4, max(1, len(items) // (2 * workers.world_size))) if job.decode == "tasks" else 1
    dataset = prepared_dataset(ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS)))
    embedded = dataset.map_batches(
        ShardEmbedder,
        # The list keeps Ray Data from replacing the reference by its value in every task.
        fn_constructor_args=([reference],),
        batch_size=together,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(workers.least_workers, len(items)), max_size=min(workers.most_workers, len(items))
        ),
        num_cpus=workers.worker_cpus,
        num_gpus=workers.worker_gpus,
    )
    progress = EmbeddingProgress(job.channel, sum(shard.samples for shard in inputs.todo))
    try:
        with progress, own_errors():
            for _ in embedded.iter_batches(batch_size=None):
                pass
    except KeyboardInterrupt:
        raise KeyboardInterrupt("embedded shards are kept; the same command continues") from None
    except ray.exceptions.RayError as error:
        raise CacheError(in_one_line(error)) from error
    return progress.seconds


def verified(config: EmbedConfig, reference: Any) -> NDArray[np.float32]:
    """Return the cosines of cached and newly computed embeddings, [images, teachers]; none with --verify 0.

    Args:
        reference: to the job in Ray's store.

    Raises:
        CacheError: a cosine is too low, or the check itself failed.
    """
    if config.verify == 0:
        return np.zeros((0, 1), np.float32)
    task = ray.remote(num_cpus=0, num_gpus=config.workers.worker_gpus)(verify_cache)
    try:
        cosines: NDArray[np.float32] = ray.get(task.remote([reference], config.verify))
    except ray.exceptions.RayError as error:
        raise CacheError(in_one_line(error)) from error
    if len(cosines) == 0:
        print_stage("verified", f"no image: none of the {config.verify} picked could be used")
    else:
        least, mean = float(cosines.min()), float(cosines.mean())
        print_stage(
            "verified",
            f"{plural(len(cosines), 'image')} embedded anew",
            f"cosine {mean:.5f}, least {least:.5f}",
        )
        # A comparison with NaN is false, and so counts as a difference.
        right = cosines >= LEAST_COSINE
        if not right.all():
            raise CacheError(
                f"--verify {config.verify}: {int((~right).any(axis=1).sum())} of "
                f"{len(cosines)} embeddings differ from those that the teacher gives now (least cosine "
                f"{least:.4f}). Remove the cache's folder and build it anew."
            )
    return cosines
