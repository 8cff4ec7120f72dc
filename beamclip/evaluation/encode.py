"""Labelled images -> embeddings and backbone features, through Ray Data, every sample exactly once."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.cluster import WorkersConfig
from beamclip.data.rows import Bundle, Segment, read_dataset, tasks_of
from beamclip.data.shards import CORRUPT_IMAGE, Columns, Row, Shard, iterate_rows, list_labelled
from beamclip.data.transforms import load_evaluation_image
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip, normalise_pixels
from beamclip.models.student import backbone_features
from beamclip.models.teacher import Precision, Teacher

UNKNOWN_LABEL = "label not in the class list"


@dataclass(frozen=True)
class Encoded:
    """The images of a data set in a model's eyes."""

    embeddings: Tensor
    """float32 [N, D], unit length; [0, 0] where only features were asked for."""
    features: Tensor
    """float32 [N, F], the backbone's; [0, 0] where only embeddings were asked for."""
    labels: Tensor
    """int64 [N], indices into the class list."""
    skipped: dict[str, int]
    """Samples left out, by reason."""


@dataclass(frozen=True)
class EncodeSpec:
    """What to compute for each image."""

    embeddings: bool = True
    features: bool = False
    batch_size: int = 256
    precision: Precision = "fp32"


class Encoder:
    """Rows of shards in, arrays out; built once in each process that encodes."""

    def __init__(self, clip: LoadedClip, spec: EncodeSpec, device: str) -> None:
        self.spec = spec
        self.preprocess = clip.preprocess_cfg
        self.preprocessing = clip.preprocessing
        self.device = torch.device(device)
        self.teacher = Teacher(clip, spec.precision).to(self.device)
        self.threads = ThreadPoolExecutor(2)

    def __call__(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """One batch of rows; damaged ones come back as rows with a reason and no arrays."""
        rows = table.to_pylist()
        images = list(self.threads.map(self._load, rows))
        good = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
        lost = [row for row, image in zip(rows, images, strict=True) if image is None]
        arrays = self._encode([image for _, image in good])
        blank = {name: np.zeros((len(lost), array.shape[1]), np.float32) for name, array in arrays.items()}
        return {
            **{name: np.concatenate([array, blank[name]]) for name, array in arrays.items()},
            "label": np.array([row["label"] for row, _ in good] + [""] * len(lost), dtype=object),
            "problem": np.array(
                [""] * len(good) + [row["problem"] or CORRUPT_IMAGE for row in lost], dtype=object
            ),
        }

    def _load(self, row: Row) -> NDArray[np.uint8] | None:
        if row["problem"]:
            return None
        try:
            return load_evaluation_image(
                row["image"],
                self.preprocessing.size,
                resize_mode=self.preprocess["resize_mode"],
                interpolation=self.preprocess["interpolation"],
                fill_color=self.preprocess["fill_color"],
            )
        except ValueError:
            return None

    @torch.inference_mode()
    def _encode(self, images: list[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        names = [name for name in ("embeddings", "features") if getattr(self.spec, name)]
        # A batch without a usable image still has to say how wide its columns are.
        size = self.preprocessing.size
        stacked = np.stack(images) if images else np.zeros((1, size, size, 3), np.uint8)
        pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).to(self.device)
        found = {}
        if "embeddings" in names:
            found["embeddings"] = self.teacher.encode_image(pixels)
        if "features" in names:
            found["features"] = backbone_features(
                self.teacher.clip, normalise_pixels(pixels, self.preprocessing)
            )
        return {name: value[: len(images)].float().cpu().numpy() for name, value in found.items()}


def encode_labelled(
    clip: LoadedClip,
    address: str,
    class_ids: Sequence[str],
    label_column: str,
    spec: EncodeSpec,
    workers: WorkersConfig,
) -> Encoded:
    """Encode a labelled data set.

    Args:
        clip: the model; one worker on the CPU uses it in this process, more get copies.
        address: shards with a label column, or a folder of class folders.
        class_ids: labels in the order of the class list.

    Raises:
        InputError: there is no such data, or none of its labels is in the class list.
    """
    bundles = [Bundle((Segment(shard, range(shard.samples)),)) for shard in list_labelled(address)]
    dataset = read_dataset([*tasks_of(bundles)], Columns(label=label_column))
    index = {class_id: i for i, class_id in enumerate(class_ids)}
    skipped: Counter[str] = Counter()
    parts: dict[str, list[NDArray[Any]]] = {"embeddings": [], "features": [], "labels": []}
    seen: set[str] = set()
    for batch in _encoded_batches(dataset, clip, spec, workers):
        skipped.update(problem for problem in batch["problem"] if problem)
        known = np.array([label in index for label in batch["label"]], dtype=bool)
        foreign = ~known & (batch["problem"] == "")
        skipped.update({UNKNOWN_LABEL: int(foreign.sum())} if foreign.any() else {})
        seen.update(batch["label"][foreign][:3])
        parts["labels"].append(np.array([index[label] for label in batch["label"][known]], dtype=np.int64))
        for name in ("embeddings", "features"):
            if name in batch:
                parts[name].append(np.asarray(batch[name], np.float32)[known])
    tensors = {
        name: torch.from_numpy(np.concatenate(p)) if p else torch.zeros(0, 0) for name, p in parts.items()
    }
    if len(tensors["labels"]) == 0:
        raise InputError(
            f"{address}: no image to score; skipped: {dict(skipped)}. "
            f"The labels (column {label_column!r}) must be ids of the class list. "
            f"Met: {', '.join(sorted(seen)[:3]) or 'none'}; the list has {', '.join(class_ids[:3])}, ..."
        )
    return Encoded(tensors["embeddings"], tensors["features"], tensors["labels"], dict(skipped))


def _encoded_batches(dataset: Any, clip: LoadedClip, spec: EncodeSpec, workers: WorkersConfig) -> Any:
    if workers.num_workers == 1 and not workers.use_gpu:
        encoder = Encoder(clip, spec, "cpu")
        for table in dataset.iter_batches(batch_size=spec.batch_size, batch_format="pyarrow"):
            yield encoder(table)
        return
    import ray
    from ray.data import ActorPoolStrategy

    class RemoteEncoder(Encoder):
        """Unpacks the model that all actors share, once in each of them."""

        def __init__(self, reference: Any) -> None:
            super().__init__(ray.get(reference[0]), spec, "cuda" if workers.use_gpu else "cpu")

    # The list keeps Ray Data from replacing the reference by its value in every task.
    encoded = dataset.map_batches(
        RemoteEncoder,
        fn_constructor_args=([ray.put(clip)],),
        batch_size=spec.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers.num_workers),
        num_cpus=workers.cpus_per_worker,
        num_gpus=1 if workers.use_gpu else 0,
    )
    yield from encoded.iter_batches(batch_size=None, batch_format="numpy")


def sample_images(
    address: str, class_ids: Sequence[str], label_column: str, count: int, size: int
) -> tuple[Tensor, list[int]]:
    """Images at even distances over a labelled data set, for pictures.

    Returns:
        uint8 [n, 3, size, size] with n <= count, and the class index of each.
    """
    shards = list_labelled(address)
    index = {class_id: i for i, class_id in enumerate(class_ids)}
    images, labels = list[NDArray[np.uint8]](), list[int]()
    for shard, row in _spread(shards, count):
        found = next(iterate_rows(shard, Columns(label=label_column), range(row, row + 1)))
        if found["problem"] is None and found["label"] in index:
            try:
                images.append(load_evaluation_image(found["image"], size))
            except ValueError:
                continue
            labels.append(index[found["label"]])
    pixels = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def _spread(shards: list[Shard], count: int) -> list[tuple[Shard, int]]:
    total = sum(shard.samples for shard in shards)
    count = min(count, total)
    wanted = [total * (2 * i + 1) // (2 * count) for i in range(count)]
    chosen, first = [], 0
    for shard in shards:
        chosen += [(shard, place - first) for place in wanted if first <= place < first + shard.samples]
        first += shard.samples
    return chosen
