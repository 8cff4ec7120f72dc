"""Make shards for benchmarks, in img2dataset's layout; they are made once and kept."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

SLOPE = 1.5
"""Amplitudes fall with this power of the frequency; those of photographs fall with about the first power.
Noise compresses worse than photographs of the same slope; with this one, the files are as large as theirs."""
QUALITY = 90
"""Quality of the JPEG files."""
CHANNELS = np.array([[1.0, 0.35, 0.1], [1.0, -0.05, -0.2], [1.0, -0.3, 0.25]], np.float32)
"""Weights that mix red, green and blue from three planes of noise: mostly grey, as photographs are."""


@dataclass(frozen=True)
class Photos:
    """Pictures that cost about what photographs cost to read, to decode and to crop."""

    width: int
    height: int
    samples: int
    distinct: int
    """Different pictures; the samples repeat them in turn, each under a key of its own."""
    per_shard: int

    @property
    def name(self) -> str:
        """Name of the folder of the shards, which contains all of the fields."""
        return f"{self.width}x{self.height}-{self.samples}-of-{self.distinct}-by-{self.per_shard}"


@dataclass(frozen=True)
class Sample:
    """One row of a shard."""

    suffix: str
    """Suffix of the image's file, without the dot."""
    image: bytes
    caption: str


def photo_shards(photos: Photos, parent: Path) -> Path:
    """Make shards of photos in a folder below `parent`, unless it exists; return the folder."""
    return made(parent / photos.name, lambda draft: write_shards(_samples(photos), photos.per_shard, draft))


def made(folder: Path, make: Callable[[Path], object]) -> Path:
    """Let `make` fill a folder, unless it exists; it appears whole or not at all. Return the folder."""
    if folder.exists():
        return folder
    print(f"making {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch, folder.name)
        draft.mkdir()
        make(draft)
        draft.rename(folder)
    return folder


def write_shards(samples: Iterable[Sample], per_shard: int, folder: Path) -> None:
    """Write samples as tar files with their statistics, in the order given."""
    source, number = iter(samples), 0
    while rows := list(islice(source, per_shard)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for row, sample in enumerate(rows):
                _add(tar, f"{number:05d}{row:05d}.{sample.suffix}", sample.image)
                _add(tar, f"{number:05d}{row:05d}.txt", sample.caption.encode())
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"successes": len(rows)}))
        number += 1


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _samples(photos: Photos) -> Iterator[Sample]:
    sizes = [(photos.width, photos.height)] * photos.distinct
    # Spawned, not forked: the caller may hold threads of torch.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        pictures = list(pool.map(_picture, sizes, range(photos.distinct), chunksize=16))
    for number in range(photos.samples):
        yield Sample("jpg", pictures[number % photos.distinct], f"picture {number}")


def _picture(size: tuple[int, int], seed: int) -> bytes:
    """Return a JPEG file of coloured noise."""
    width, height = size
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    # The mean of a plane, whose frequency is 0, stays 0.
    amplitude = np.divide(1.0, frequency**SLOPE, where=frequency > 0, out=np.zeros_like(frequency))
    real, imaginary = generator.standard_normal((2, 3, *frequency.shape), np.float32)
    planes = np.fft.irfft2((real + 1j * imaginary) * amplitude, s=(height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    levels = 128 + 45 * np.tensordot(planes, CHANNELS, axes=(0, 1))
    file = io.BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()
