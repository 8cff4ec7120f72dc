"""Captioned images held in memory, so that small studies need no cluster."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor

from beamclip.corpus.glyphs import GlyphConfig, write_corpus
from beamclip.data.batch import Batch
from beamclip.data.config import StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.mixture import mixture_of
from beamclip.data.transforms import load_evaluation_image
from beamclip.data.worker_stream import Numbered, WorkerShare, training_batches
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import Teacher


@dataclass(frozen=True)
class Pairs:
    """Encoded images, the caption of each, and the index of its class."""

    keys: list[str]
    images: list[bytes]
    captions: list[str]
    labels: list[int]
    more_texts: list[tuple[str, ...]] = field(default_factory=list)
    """Further texts of each image, by default none; training draws one of all its texts."""


def load_emoji(folder: Path) -> tuple[Pairs, Pairs, list[str]]:
    """Load train and test split, whose captions are class names, and the names by class index."""
    table = pd.read_parquet(folder / "pairs.parquet")
    first = table.drop_duplicates("hexcode").sort_values("hexcode")
    index = {hexcode: i for i, hexcode in enumerate(first["hexcode"])}
    splits = [_pairs(table[table["split"] == split], folder, index) for split in ("train", "test")]
    return splits[0], splits[1], first["label"].tolist()


def _pairs(table: pd.DataFrame, folder: Path, index: dict[str, int]) -> Pairs:
    return Pairs(
        keys=table["path"].tolist(),
        images=[(folder / path).read_bytes() for path in table["path"]],
        captions=table["label"].tolist(),
        labels=[index[hexcode] for hexcode in table["hexcode"]],
    )


def load_glyphs(folder: Path, images: int, test_images: int) -> tuple[Pairs, Pairs, list[str]]:
    """Load the splits and class names of the embedded corpus, which is drawn into `folder` if missing.

    Its captions contain the names, but may say more.
    """
    paths = write_corpus(GlyphConfig(images=images, test_images=test_images), folder, workers=1)
    classes = yaml.safe_load(paths.classes.read_text())
    index = {entry["id"]: i for i, entry in enumerate(classes)}
    splits = []
    for table in (pd.read_parquet(paths.train), pd.read_parquet(paths.test)):
        images_of = [(folder / path).read_bytes() for path in table["path"]]
        labels = [index[label] for label in table["label"]]
        splits.append(Pairs(table["path"].tolist(), images_of, table["caption"].tolist(), labels))
    return splits[0], splits[1], [entry["name"] for entry in classes]


def subset(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    """Return some rows of pairs, without their further texts."""
    return Pairs(
        *([values[i] for i in rows] for values in (pairs.keys, pairs.images, pairs.captions, pairs.labels))
    )


def shuffle_captions(pairs: Pairs, share: float, seed: int) -> Pairs:
    """Return pairs of which a share have another image's caption; see `shuffled_rows`."""
    sources = shuffled_rows(len(pairs.keys), share, seed)
    return replace(pairs, captions=[pairs.captions[row] for row in sources])


def shuffled_rows(number: int, share: float, seed: int) -> list[int]:
    """Return for each image the one whose caption it gets.

    round(share * number) images, chosen by the seed, pass their captions around, so the share is exact. A few
    captions still fit their new image, since a class has two images.
    """
    chosen = np.random.default_rng(seed).permutation(number)[: round(share * number)]
    sources = np.arange(number)
    sources[chosen] = np.roll(chosen, 1)
    return sources.tolist()


def endless_batches(pairs: Pairs, batch_size: int, decoding: Decoding) -> Generator[Batch, None, None]:
    """Yield the batches of a lone worker, without end, each epoch in an order of its own."""
    counts = np.array([len(pairs.keys)])
    # A lone worker serves all samples of a step, so its share is the same in any order.
    mixture = mixture_of([counts], (), StreamConfig().shuffle_window, decoding.seed, num_workers=1)
    rows = _endless_rows(pairs, decoding.seed)
    with closing(training_batches(rows, WorkerShare(mixture, batch_size), decoding, threads=1)) as batches:
        yield from batches


def _endless_rows(pairs: Pairs, seed: int) -> Generator[Numbered, None, None]:
    for epoch in count():
        order = np.random.default_rng((seed, epoch)).permutation(len(pairs.keys))
        for number, i in enumerate(order, epoch * len(pairs.keys)):
            yield (
                number,
                {
                    "key": pairs.keys[i],
                    "image": pairs.images[i],
                    "texts": [pairs.captions[i], *(pairs.more_texts[i] if pairs.more_texts else ())],
                    "epoch": epoch,
                    "problem": None,
                },
            )


def encode_pairs(clip: LoadedClip, pairs: Pairs, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encode all images of pairs, [N, D], and some texts, [M, D], as unit embeddings."""
    teacher = Teacher(clip)
    batches = load_images(pairs, clip.image_size).split(256)
    images = torch.cat([teacher.encode_image(batch) for batch in batches])
    return images, teacher.encode_text(list(texts))


def load_images(pairs: Pairs, size: int) -> Tensor:
    """Load all images as for evaluation, uint8 [N, 3, size, size]."""
    pixels = np.stack([load_evaluation_image(image, size) for image in pairs.images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
