"""What an evaluation found out about each image, as tables that other tools can read.

`scores.parquet` has a row for each scored image, in the order of the data; `captions.parquet` one for each
caption, where retrieval ran. Every figure of a data set follows from them (see scores.statistics_of).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from beamclip.errors import InputError
from beamclip.files import write_whole

SCORES_FILE = "scores.parquet"
CAPTIONS_FILE = "captions.parquet"
METADATA_KEY = b"beamclip"

RANKS = ("zeroshot", "probe", "knn10", "knn20", "i2t")
"""What a column `rank_...` may be of."""
NO_RANK = -1
"""Rank of an image that a task leaves out: one without a caption, in retrieval."""
MISSED = np.iinfo(np.int32).max
"""Rank of an image that is found at no k."""

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Facts:
    """What the rows of the tables are about."""

    model: str
    """Address of the model."""
    data: str
    """Address of the data set."""
    tasks: tuple[str, ...]
    class_ids: tuple[str, ...] = ()
    """Ids of the classes, in the order that labels count in; none without a class list."""
    class_names: tuple[str, ...] = ()
    temperature: float | None = None
    """Temperature of the softmax behind `probability`."""
    teacher: str | None = None
    """Fingerprint of the teacher that predictions are compared with."""


@dataclass(frozen=True, eq=False)
class Captions:
    """The captions of a data set, M of them, and how well each finds its image."""

    texts: list[str]
    image: Ints
    """[M], the row of its image in the table of scores."""
    ranks: Ints
    """[M], images ahead of its own."""


@dataclass(frozen=True, eq=False)
class BesideTeacher:
    """How the zero-shot predictions of N images agree with a teacher's."""

    ranks: Ints
    """[N], classes that the teacher puts ahead of the true one."""
    same_class: npt.NDArray[np.bool_]
    """[N], whether both find the same class likeliest."""
    kl: npt.NDArray[np.float32]
    """[N], KL(teacher || student) of the probabilities of the classes, nats."""
    cosine: npt.NDArray[np.float32] | None = None
    """[N], of the two embeddings; None where they have different widths."""


BESIDE_COLUMNS = {
    "ranks": ("rank_teacher", pa.int32()),
    "same_class": ("teacher_same_class", pa.bool_()),
    "kl": ("teacher_kl", pa.float32()),
    "cosine": ("teacher_cosine", pa.float32()),
}
"""Name and type of the column of each part of BesideTeacher."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of N images, in the order of the data; a part is None if its task did not run."""

    facts: Facts
    keys: list[str]
    """Names of the images, no two alike."""
    labels: Ints | None = None
    """[N], true classes."""
    predicted: Ints | None = None
    """[N, min(5, K)], the best classes by zero-shot, best first."""
    probability: npt.NDArray[np.float32] | None = None
    """[N], of the best class, at `facts.temperature`."""
    own_probability: npt.NDArray[np.float32] | None = None
    """[N], of the best class, at the model's own scale."""
    ranks: Mapping[str, Ints] = field(default_factory=dict)
    """For each of RANKS whose task ran, [N]: classes, or captions, ahead of the true one; MISSED, NO_RANK."""
    captions: Captions | None = None
    beside: BesideTeacher | None = None

    def __len__(self) -> int:
        return len(self.keys)


def as_ranks(counts: Any) -> Ints:
    """Return int64 counts, a tensor or an array, as int32 ranks; what is too large is MISSED."""
    return np.minimum(np.asarray(counts), MISSED).astype(np.int32)


def write_scores(folder: Path, scores: Scores, name: str = "") -> list[Path]:
    """Write the tables of an evaluation, each in one step; return their paths.

    Args:
        name: of the data set or the model, in the names of the files; "" where there is only one.
    """
    tables = {SCORES_FILE: _columns(scores)}
    if scores.captions is not None:
        owners = scores.captions.image
        tables[CAPTIONS_FILE] = {
            "key": pa.array([scores.keys[row] for row in owners], pa.string()),
            "text": pa.array(scores.captions.texts, pa.string()),
            "image": pa.array(owners, pa.int32()),
            "rank_t2i": pa.array(scores.captions.ranks, pa.int32()),
        }
    else:
        # Of an earlier evaluation in this folder.
        _path(folder, CAPTIONS_FILE, name).unlink(missing_ok=True)
    facts = {METADATA_KEY: json.dumps(asdict(scores.facts), ensure_ascii=False)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, parts in tables.items():
        table = pa.table(parts).replace_schema_metadata(facts)
        paths.append(_path(folder, file, name))
        write_whole(paths[-1], partial(pq.write_table, table))
    return paths


def _columns(scores: Scores) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {"key": pa.array(scores.keys, pa.string())}
    if scores.labels is not None:
        columns["label"] = pa.array(scores.labels, pa.int32())
    if scores.predicted is not None:
        columns["predicted"] = pa.array(list(scores.predicted), pa.list_(pa.int32()))
    for column in ("probability", "own_probability"):
        if getattr(scores, column) is not None:
            columns[column] = pa.array(getattr(scores, column), pa.float32())
    columns |= {f"rank_{task}": pa.array(ranks, pa.int32()) for task, ranks in scores.ranks.items()}
    for part, (column, kind) in BESIDE_COLUMNS.items():
        values = getattr(scores.beside, part, None)
        if values is not None:
            columns[column] = pa.array(values, kind)
    return columns


def has_scores(folder: Path, name: str = "") -> bool:
    """Whether an evaluation left its table here."""
    return _path(folder, SCORES_FILE, name).is_file()


def score_names(folder: Path) -> list[str]:
    """Names of all tables of scores in a folder, sorted; "" is that of scores.parquet itself."""
    stem, suffix = SCORES_FILE.split(".")
    plain = [""] if has_scores(folder) else []
    return plain + sorted(
        path.name[len(stem) + 1 : -len(suffix) - 1] for path in folder.glob(f"{stem}-*.{suffix}")
    )


def read_scores(folder: Path, name: str = "") -> Scores:
    """Read the tables that `write_scores` wrote.

    Raises:
        InputError: there are none, or they are not of beamclip.
    """
    path = _path(folder, SCORES_FILE, name)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file. Name the folder of an evaluation, or of a training with --eval-data."
        )
    table = _read(path)
    captions_path = _path(folder, CAPTIONS_FILE, name)
    captions = _read(captions_path) if captions_path.is_file() else None
    try:
        facts = _facts(json.loads(table.schema.metadata[METADATA_KEY]))
        return _scores(facts, table, captions if "i2t" in _tasks_in(table) else None)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a table of beamclip ({error}). Run evaluate again.") from error


def _facts(content: dict[str, Any]) -> Facts:
    known: dict[str, Any] = {}
    for name in Facts.__dataclass_fields__:
        if name in content:
            value = content[name]
            known[name] = tuple(value) if isinstance(value, list) else value
    return Facts(**known)


def _scores(facts: Facts, table: pa.Table, captions: pa.Table | None) -> Scores:
    def column(name: str) -> Any:
        return table[name].to_numpy() if name in table.column_names else None

    predicted = None
    if "predicted" in table.column_names:
        flat = table["predicted"].combine_chunks()
        predicted = flat.flatten().to_numpy().reshape(len(table), -1)
    beside = None
    if column(BESIDE_COLUMNS["ranks"][0]) is not None:
        beside = BesideTeacher(**{part: column(name) for part, (name, _) in BESIDE_COLUMNS.items()})
    return Scores(
        facts,
        table["key"].to_pylist(),
        column("label"),
        predicted,
        column("probability"),
        column("own_probability"),
        {task: column(f"rank_{task}") for task in _tasks_in(table)},
        captions
        and Captions(
            captions["text"].to_pylist(), captions["image"].to_numpy(), captions["rank_t2i"].to_numpy()
        ),
        beside,
    )


def _tasks_in(table: pa.Table) -> list[str]:
    return [task for task in RANKS if f"rank_{task}" in table.column_names]


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as parquet ({error}). Run evaluate again.") from error


def _path(folder: Path, file: str, name: str) -> Path:
    stem, suffix = file.split(".")
    return folder / (f"{stem}-{name}.{suffix}" if name else file)
