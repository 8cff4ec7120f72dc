"""Labels that are numbers of classes, and the names that the data set gives these classes.

Three forms have such labels: CLIP_benchmark's tars (`.cls`, with classnames.txt), torchvision's data sets,
and parquet files of Hugging Face datasets, whose schema holds the names of each ClassLabel column.
"""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from beamclip.data.benchmark_folder import read_benchmark
from beamclip.data.listing import list_contents, split_address
from beamclip.data.parquet_rows import open_parquet
from beamclip.data.shard_file import StoreError, open_shard
from beamclip.data.tar_samples import CLASS_SUFFIX
from beamclip.data.torchvision_sets import class_names, is_torchvision, parse_address

LABEL = "label"
"""Name of the field of labels where no other is given."""


@dataclass(frozen=True)
class NumberedClasses:
    """The classes that a data set numbers from 0 in its labels."""

    names: tuple[str, ...]
    """In the order of their numbers; empty where the data set does not name them."""
    templates: tuple[str, ...] = ()
    """Prompt templates that come with the data set, with {} for the class."""


def numbered_classes(address: str, label_column: str) -> NumberedClasses | None:
    """The classes of a labelled data set whose labels are their numbers; None if its labels are others.

    Args:
        address: as `list_labelled` takes it; data without labels number no classes.
        label_column: name of the field of labels.

    Raises:
        InputError: there is no such data set, or what it says of its classes cannot be used.
    """
    if is_torchvision(address):
        return NumberedClasses(class_names(parse_address(address)))
    _, files = list_contents(split_address(address, "test"))
    tars = [path for path in files if path.endswith(".tar")]
    parquets = [path for path in files if path.endswith(".parquet")]
    if not tars:
        return _of_schema(parquets[0], label_column) if parquets else None
    if label_column not in (LABEL, CLASS_SUFFIX):
        return None
    fs, folder = fsspec.core.url_to_fs(posixpath.dirname(tars[0]))
    found = read_benchmark(fs, folder)
    return NumberedClasses(found.names, found.templates) if found else None


def _of_schema(path: str, label_column: str) -> NumberedClasses | None:
    try:
        with open_shard(path) as file:
            schema = open_parquet(file).file.schema_arrow
        names = _feature_names(json.loads((schema.metadata or {})[b"huggingface"]), label_column)
    except (StoreError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None  # reading the rows reports what is wrong with the file
    is_number = label_column in schema.names and pa.types.is_integer(schema.field(label_column).type)
    return NumberedClasses(names) if is_number and names else None


def _feature_names(metadata: Any, label_column: str) -> tuple[str, ...]:
    feature = metadata["info"]["features"][label_column]
    return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else ()
