"""Decode rows of shards into images as a model takes them, and carry along what else is asked of them."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beamclip.data.config import Augmentation
from beamclip.data.decoding import row_draws
from beamclip.data.image_limits import refusal_reason
from beamclip.data.lost_samples import in_words, lost_sample
from beamclip.data.shards import Row
from beamclip.data.transforms import CROP_DRAWS, load_evaluation_image, load_training_image
from beamclip.models.clip import LoadedClip
from beamclip.prompts.texts import nfc


class Decoder:
    """Decodes rows of shards into images as a model takes them."""

    def __init__(self, clip: LoadedClip) -> None:
        self.preprocess = clip.preprocess_cfg
        self.size = clip.preprocessing.size
        self.threads = ThreadPoolExecutor(2)

    def __call__(self, table: pa.Table) -> tuple[list[NDArray[np.uint8]], dict[str, NDArray[Any]]]:
        """Decode a batch of rows.

        Returns:
            The images, each uint8 [size, size, 3], and columns over all rows: `label` (NFC), `key`, `shard`,
            `texts` (a JSON list), `problem` and `lost`. Damaged rows come last: they have no image and no
            label, but the reason (`problem`) and a text for the log (`lost`), which are empty for the others.
        """
        rows = table.to_pylist()
        images = list(self.threads.map(self._loaded, rows))
        good = [row for row, image in zip(rows, images, strict=True) if image is not None]
        lost = [row for row, image in zip(rows, images, strict=True) if image is None]
        reports = [("", "")] * len(good) + [lost_sample(row) for row in lost]
        columns = {
            "label": [nfc(row["label"] or "") for row in good] + [""] * len(lost),
            "key": [row["key"] or "" for row in good + lost],
            "shard": [row.get("shard") or "" for row in good + lost],
            "texts": [json.dumps(row.get("texts") or []) for row in good + lost],
            "problem": [problem for problem, _ in reports],
            "lost": [text for _, text in reports],
        }
        arrays = {name: np.array(values, dtype=object) for name, values in columns.items()}
        return [image for image in images if image is not None], arrays

    def load(self, row: Row) -> NDArray[np.uint8]:
        """Decode one image as the model's config says, whole or its centre."""
        return load_evaluation_image(
            row["image"],
            self.size,
            resize_mode=self.preprocess["resize_mode"],
            interpolation=self.preprocess["interpolation"],
            fill_color=self.preprocess["fill_color"],
        )

    def _loaded(self, row: Row) -> NDArray[np.uint8] | None:
        if row["problem"]:
            return None
        try:
            return self.load(row)
        except Exception as error:  # whatever a decoder met, a lack of memory too, is this sample's problem
            row.update(problem=refusal_reason(error), detail=in_words(error))
            return None


class CropDecoder(Decoder):
    """Decodes rows into random crops, some of them mirrored, which the seed, the epoch and the key decide."""

    def __init__(self, clip: LoadedClip, augmentation: Augmentation, seed: int) -> None:
        """Set up; of the augmentation, crops and flips are used."""
        super().__init__(clip)
        self.augmentation = augmentation
        self.seed = seed

    def load(self, row: Row) -> NDArray[np.uint8]:
        """Decode one random crop."""
        (draws,) = row_draws([row], self.seed)
        image = load_training_image(row["image"], draws, self.size, self.augmentation)
        return image[:, ::-1] if draws[CROP_DRAWS] < self.augmentation.flip_prob else image
