"""Encode images as embeddings and backbone features, every sample exactly once, in the order of the data."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.data.bundles import Bundle, Segment, read_batches_here, tasks_of
from beamclip.data.config import Augmentation
from beamclip.data.listing import list_labelled, list_shards
from beamclip.data.lost_samples import FirstLost
from beamclip.data.rows import read_batches, read_dataset
from beamclip.data.shards import Columns, Shard
from beamclip.errors import InputError
from beamclip.evaluation.decoder import CropDecoder, Decoder
from beamclip.evaluation.spaced import evenly_spaced
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import Precision, copied_image_teacher

log = logging.getLogger(__name__)

UNKNOWN_LABEL = "label not in the class list"


@dataclass(frozen=True)
class Encoded:
    """A model's embeddings or features of the images of a data set, or both."""

    embeddings: Tensor
    """float32 [N, D], unit length; [0, 0] where only features were asked for."""
    features: Tensor
    """float32 [N, F], the backbone's; [0, 0] where only embeddings were asked for."""
    labels: Tensor
    """int64 [N], indices into the class list; [0] where there is none."""
    skipped: dict[str, int]
    """Samples left out, by reason."""
    keys: list[str] = field(default_factory=list)
    """Names of the N samples, no two alike."""
    texts: list[list[str]] = field(default_factory=list)
    """Captions of each of the N samples, which may have none; all empty if they were not asked for."""


@dataclass(frozen=True)
class EncodeSpec:
    """What to compute for each image."""

    embeddings: bool = True
    features: bool = False
    captions: bool = False
    caption_columns: tuple[str, ...] = ()
    """Fields of a sample with texts besides its caption."""
    batch_size: int = 256
    precision: Precision = "fp32"
    augmentation: Augmentation | None = None
    """Crops and flips of the images; None: each is seen whole."""
    seed: int = 0
    """Seed of the augmentation."""


class Encoder:
    """Computes the arrays of rows of shards; built once in each process that encodes."""

    def __init__(self, clip: LoadedClip, spec: EncodeSpec, device: str) -> None:
        self.spec = spec
        self.decode = CropDecoder(clip, spec.augmentation, spec.seed) if spec.augmentation else Decoder(clip)
        self.device = torch.device(device)
        self.teacher = copied_image_teacher(clip, spec.precision).to(self.device)

    def __call__(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """Encode a batch of rows; return its arrays and the columns of `Decoder`.

        Damaged rows come last, with zeros in the arrays.
        """
        images, columns = self.decode(table)
        lost = len(columns["label"]) - len(images)
        arrays = {
            name: np.concatenate([array, np.zeros((lost, array.shape[1]), np.float32)])
            for name, array in self._encode(images).items()
        }
        return {**arrays, **columns}

    @torch.inference_mode()
    def _encode(self, images: list[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        # A batch without a usable image still needs the widths of its columns.
        size = self.decode.size
        stacked = np.stack(images) if images else np.zeros((1, size, size, 3), np.uint8)
        pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).to(self.device)
        found = {}
        if self.spec.features:
            found["embeddings"], found["features"] = self.teacher.encode_with_features(pixels)
        else:
            found["embeddings"] = self.teacher.encode_image(pixels)
        if not self.spec.embeddings:
            del found["embeddings"]
        return {name: value[: len(images)].float().cpu().numpy() for name, value in found.items()}


def encode_labelled(
    clip: LoadedClip,
    address: str,
    class_ids: Sequence[str] | None,
    label_column: str,
    spec: EncodeSpec,
    workers: WorkersConfig,
    *,
    allow_missing: bool = False,
) -> Encoded:
    """Encode a data set with labels or captions.

    Args:
        clip: the model; used in this process with one worker on the CPU or none, else copied to the workers.
        address: shards with a label column, or a folder of class folders; without classes, shards with
            captions or a folder of captioned images.
        class_ids: labels in the order of the class list, NFC; labels of the data are normalised to NFC. None:
            labels do not matter, and a sample without a caption is left out.
        label_column: name of the column of labels.
        spec: what to compute for each image.
        workers: where to encode.
        allow_missing: whether the samples of a shard that cannot be opened count as lost, instead of raising.

    Raises:
        InputError: there is no such data, or no usable image has a label in the class list; or what the model
            makes of an image is not finite.
    """
    columns = Columns(caption=True, more_texts=spec.caption_columns)
    if class_ids is not None:
        more_texts = spec.caption_columns if spec.captions else ()
        columns = Columns(more_texts=more_texts, label=label_column, everything=spec.captions)
    listed = list_shards if class_ids is None else list_labelled
    tasks = _labelled_tasks(listed(address, allow_missing=allow_missing))
    batches = encoded_batches(tasks, columns, clip, spec, workers)
    return _encoded(batches, address, class_ids, label_column, spec)


def encode_some(
    clip: LoadedClip,
    shards: list[Shard],
    most: int,
    address: str,
    class_ids: Sequence[str],
    label_column: str,
    spec: EncodeSpec,
    workers: WorkersConfig,
) -> Encoded:
    """Encode at most so many images of a labelled data set, evenly spaced: those of `evenly_spaced`.

    Args:
        shards: of the data set at `address`.
        clip, address, class_ids, label_column, spec, workers: see `encode_labelled`.

    Raises:
        InputError: no usable image has a label in the class list.
    """
    batches = encoded_batches(_labelled_tasks(shards, most), Columns(label=label_column), clip, spec, workers)
    return _encoded(batches, address, class_ids, label_column, spec)


def _encoded(
    batches: Iterable[dict[str, NDArray[Any]]],
    address: str,
    class_ids: Sequence[str] | None,
    label_column: str,
    spec: EncodeSpec,
) -> Encoded:
    arrays, labels, skipped = _scorable(batches, address, class_ids, label_column)
    tensors = {
        name: torch.from_numpy(arrays[name]) if name in arrays else torch.zeros(0, 0)
        for name in ("embeddings", "features")
    }
    return Encoded(
        tensors["embeddings"],
        tensors["features"],
        torch.from_numpy(labels),
        skipped,
        distinct_keys(arrays["key"].tolist(), arrays["shard"].tolist()),
        [json.loads(texts) if spec.captions else [] for texts in arrays["texts"]],
    )


def distinct_keys(keys: Sequence[str], shards: Sequence[str]) -> list[str]:
    """Return names of samples of which no two are alike, and which depend on the data alone.

    Where keys are, all get the names of their shards in front; what is alike even then is numbered.
    """
    if len(set(keys)) == len(keys):
        return list(keys)
    seen: Counter[str] = Counter()
    names = []
    for shard, key in zip(shards, keys, strict=True):
        name = f"{shard}/{key}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


@dataclass(frozen=True)
class HeldOut:
    """Labelled images, decoded once for any number of models with the same preprocessing."""

    images: NDArray[np.uint8]
    """uint8 [N, size, size, 3]."""
    labels: NDArray[np.int64]
    """int64 [N], indices into the class list."""
    skipped: dict[str, int]
    """Samples left out, by reason."""


def load_held_out(
    clip: LoadedClip,
    address: str,
    class_ids: Sequence[str],
    label_column: str,
    most: int,
    *,
    allow_missing: bool = False,
) -> HeldOut:
    """Decode a labelled data set as a model takes it, or evenly spaced images of it.

    Args:
        clip: the model whose preprocessing is used.
        address, class_ids, label_column, allow_missing: see `encode_labelled`.
        most: largest number of images to decode.

    Raises:
        InputError: see `encode_labelled`.
    """
    decode = Decoder(clip)
    tasks = _labelled_tasks(list_labelled(address, allow_missing=allow_missing), most)
    dataset = read_dataset(tasks, Columns(label=label_column))

    def batches() -> Iterator[dict[str, NDArray[Any]]]:
        for table in read_batches(dataset, batch_size=256, batch_format="pyarrow"):
            images, columns = decode(table)
            blank = [np.zeros((decode.size, decode.size, 3), np.uint8)]
            yield {"images": np.stack(images + blank * (len(columns["label"]) - len(images))), **columns}

    arrays, labels, skipped = _scorable(batches(), address, class_ids, label_column)
    return HeldOut(arrays["images"], labels, skipped)


def _labelled_tasks(shards: list[Shard], most: int | None = None) -> list[list[Bundle]]:
    """Return read tasks of all rows, or of at most so many, evenly spaced."""
    total = sum(shard.samples for shard in shards)
    if most is None or most >= total:
        bundles = [Bundle((Segment(shard, range(shard.samples)),)) for shard in shards]
    else:
        places, rows = evenly_spaced(shards, most)
        bundles = [
            Bundle((Segment(shards[place], rows[places == place]),)) for place in np.unique(places).tolist()
        ]
    return [*tasks_of(bundles)]


def _scorable(
    batches: Iterable[dict[str, NDArray[Any]]],
    address: str,
    class_ids: Sequence[str] | None,
    label_column: str,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64], dict[str, int]]:
    """Return arrays and labels of the rows whose label is in the class list, and counts of the others.

    Without a class list all rows are taken that can be used, and no labels.

    Raises:
        InputError: there is no such row.
    """
    index = {class_id: i for i, class_id in enumerate(class_ids or ())}
    skipped: Counter[str] = Counter()
    parts: dict[str, list[NDArray[Any]]] = defaultdict(list)
    labels: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    seen: set[str] = set()
    first_lost = FirstLost()
    for batch in batches:
        lost = [each for each in zip(batch["problem"], batch["lost"], strict=True) if each[0]]
        skipped.update(problem for problem, _ in lost)
        for _, text in first_lost.new(lost):
            log.warning("%s", text)
        known = batch["problem"] == ""
        if class_ids is not None:
            known &= np.array([label in index for label in batch["label"]], dtype=bool)
        foreign = ~known & (batch["problem"] == "")
        skipped.update({UNKNOWN_LABEL: int(foreign.sum())} if foreign.any() else {})
        seen.update(batch["label"][foreign][:3])
        if class_ids is not None:
            labels.append(np.array([index[label] for label in batch["label"][known]], dtype=np.int64))
        for name in batch.keys() - {"label", "problem", "lost"}:
            parts[name].append(batch[name][known])
    found = np.concatenate(labels)
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    if not len(arrays.get("key", ())):
        _refuse_empty(address, class_ids, label_column, dict(skipped), sorted(seen))
    return arrays, found, dict(skipped)


def _refuse_empty(
    address: str,
    class_ids: Sequence[str] | None,
    label_column: str,
    skipped: dict[str, int],
    seen: Sequence[str],
) -> NoReturn:
    if class_ids is None:
        raise InputError(f"{address}: no image with a caption; skipped: {skipped}. Give captioned images.")
    raise InputError(
        f"{address}: no image to score; skipped: {skipped}. "
        f"The labels (column {label_column!r}) must be ids of the class list. "
        f"Found: {', '.join(seen[:3]) or 'none'}; the list has {', '.join(class_ids[:3])}, ..."
    )


def encoded_batches(
    tasks: list[list[Bundle]], columns: Columns, clip: LoadedClip, spec: EncodeSpec, workers: WorkersConfig
) -> Iterator[dict[str, NDArray[Any]]]:
    """Encode the rows of read tasks; yields what `Encoder` returns, in the order of the tasks.

    Within a batch, the damaged rows come last.

    Raises:
        InputError: the model makes embeddings or features that are not finite, of which no figure follows.
    """
    for batch in _encoded_batches(tasks, columns, clip, spec, workers):
        for name in batch.keys() & {"embeddings", "features"}:
            bad = np.flatnonzero(~np.isfinite(batch[name]).all(axis=1))
            if len(bad):
                raise InputError(
                    f"{clip.address}: its {name} of {len(bad):,} of {len(batch[name]):,} images are not "
                    f"finite ({batch['key'][bad[0]]} for one). Give another model, or compute in fp32."
                )
        yield batch


def _encoded_batches(
    tasks: list[list[Bundle]], columns: Columns, clip: LoadedClip, spec: EncodeSpec, workers: WorkersConfig
) -> Iterator[dict[str, NDArray[Any]]]:
    device = "cuda" if workers.use_gpu else "cpu"
    if workers.without_ray:
        yield from map(Encoder(clip, spec, device), read_batches_here(tasks, columns, spec.batch_size))
        return
    dataset = read_dataset(tasks, columns)
    if workers.num_workers == 1 and not workers.use_gpu:
        tables = read_batches(dataset, batch_size=spec.batch_size, batch_format="pyarrow")
        yield from map(Encoder(clip, spec, device), tables)
        return
    import ray
    from ray.data import ActorPoolStrategy

    class RemoteEncoder(Encoder):
        """An encoder that fetches the model, which all actors share, once in each of them."""

        def __init__(self, reference: Any) -> None:
            super().__init__(ray.get(reference[0]), spec, device)

    # The list keeps Ray Data from replacing the reference by its value in every task.
    encoded = dataset.map_batches(
        RemoteEncoder,
        fn_constructor_args=([ray.put(clip)],),
        batch_size=spec.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=workers.least_workers, max_size=workers.most_workers),
        num_cpus=workers.worker_cpus,
        num_gpus=workers.worker_gpus,
    )
    yield from read_batches(encoded, batch_size=None, batch_format="numpy")
