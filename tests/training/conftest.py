"""Shards and a CLIP small enough that a training step takes milliseconds."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beamclip.data.listing import list_shards
from beamclip.data.shards import Shard

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
SHARD_SIZES = (17, 20, 23)
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config file of a tiny CLIP with a ViT: no batch statistics make images depend on each other."""
    file = tmp_path_factory.mktemp("configs") / "tiny.json"
    file.write_text(json.dumps(TINY))
    return file


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """Three shards with 60 captioned images in all, 16 to 31 pixels wide."""
    folder = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(0)
    for index, samples in enumerate(SHARD_SIZES):
        write_shard(folder / f"{index:05d}.tar", index, samples, generator)
    return list_shards(str(folder))


@pytest.fixture(scope="session")
def damaged_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 70 samples: a tar that breaks off, an image that is none, a sample without caption."""
    folder = tmp_path_factory.mktemp("damaged")
    generator = np.random.default_rng(0)
    for index, samples in enumerate((33, 20, 17)):
        write_shard(folder / f"{index:05d}.tar", index, samples, generator)
    first, second = (folder / f"{index:05d}.tar" for index in range(2))
    content = first.read_bytes()
    first.write_bytes(content.replace(b"PNG", b"PNX", 1).replace(b"a red square", b" " * 12, 1))
    second.write_bytes(second.read_bytes()[:9000])
    return folder


def write_shard(path: Path, index: int, samples: int, generator: np.random.Generator) -> None:
    """Write a finished tar shard of images in random colours, each with its colour in the caption."""
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            key = f"{index:05d}{number:04d}"
            channel = int(generator.integers(3))
            add(tar, f"{key}.png", noisy_png(channel, generator))
            add(tar, f"{key}.txt", f"a {COLOURS[channel]} square".encode())
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"successes": samples}))


def noisy_png(channel: int, generator: np.random.Generator) -> bytes:
    """Return a noisy square PNG, 16 to 31 pixels wide, in which one channel is strong."""
    side = int(generator.integers(16, 32))
    pixels = generator.integers(0, 128, (side, side, 3), dtype=np.uint8)
    pixels[:, :, channel] += 127
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with this content to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
