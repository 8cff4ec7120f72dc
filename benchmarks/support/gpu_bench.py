"""Sizes and places of the measurements on a GPU. Free of torch: every spawned process imports this first."""

import os
from dataclasses import dataclass
from pathlib import Path

from support.made_shards import Photos

CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    side: int
    photos: Photos
    batch: int
    large_batch: int
    warm_up: int
    """Steps before those that are measured."""
    steps: int
    """Steps that a ceiling is measured over."""
    seconds: float
    """That a stream is measured for, and a run about as long."""
    window: int
    threads: tuple[int, ...]
    processes: int
    one_process: int
    """Images that one process takes."""
    csm: tuple[int, int, int]
    """Batch, anchors, and anchors at a time."""
    teacher: str
    teacher_batch: int
    embedded: int
    """Shards that a teacher embeds."""


FULL = Sizes(
    side=224,
    photos=Photos(256, 256, 16384, 2048, 1024),
    batch=256,
    large_batch=512,
    warm_up=5,
    steps=60,
    seconds=6.0,
    window=4096,
    threads=(14,),
    processes=max(1, CPUS - 1),
    one_process=16384,
    csm=(1024, 20000, 4096),
    teacher="ViT-B-16",
    teacher_batch=512,
    embedded=5,
)
TINY = Sizes(
    side=32,
    photos=Photos(32, 32, 256, 32, 64),
    batch=8,
    large_batch=16,
    warm_up=1,
    steps=1,
    seconds=1.0,
    window=128,
    threads=(2,),
    processes=2,
    one_process=512,
    csm=(16, 200, 64),
    teacher="tiny-vit",
    teacher_batch=16,
    embedded=1,
)


@dataclass(frozen=True)
class Bench:
    """Where and on what everything is measured."""

    sizes: Sizes
    folder: Path
    """Of the inputs, and of what passes between processes."""
    device: str
    """Of torch."""
    beside: Path
    """Folder of the report."""

    @property
    def shards(self) -> Path:
        """Folder of the photos."""
        return self.folder / self.sizes.photos.name

    @property
    def cache(self) -> Path:
        """Folder of their embeddings."""
        return self.folder / "cache"

    @property
    def teacher(self) -> Path:
        """Folder of the cache's teacher."""
        return self.folder / "teacher"

    @property
    def cpu_threads(self) -> int:
        """Threads of torch: all of them, as of a lone worker; one where the rehearsal shares its machine."""
        return CPUS if self.device == "cuda" else 1

    @property
    def on_gpu(self) -> list[str]:
        """Options of a command that is to use the GPU."""
        return ["--use-gpu", "--compile"] if self.device == "cuda" else []
