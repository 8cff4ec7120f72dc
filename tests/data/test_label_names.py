"""Names of numbered labels in the schema of Hugging Face datasets."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamclip.data.label_names import NumberedClasses, numbered_classes

NAMES = ["red_fox", "crane"]
CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}


def write(folder: Path, labels: pa.Array, metadata: bytes | None) -> str:
    table = pa.table({"image": [{"bytes": b"x", "path": "x.png"}] * len(labels), "label": labels})
    table = table.replace_schema_metadata({"huggingface": metadata} if metadata else None)
    pq.write_table(table, folder / "test-00000-of-00001.parquet")
    return str(folder)


def features(**found: Any) -> bytes:
    return json.dumps({"info": {"features": found}}).encode()


def test_names_are_those_of_the_column_of_labels(tmp_path: Path) -> None:
    address = write(tmp_path, pa.array([0, 1, 1]), features(label=CLASS_LABEL, image={"_type": "Image"}))
    assert numbered_classes(address, "label") == NumberedClasses(tuple(NAMES))
    assert numbered_classes(address, "other") is None


@pytest.mark.parametrize(
    ("labels", "metadata"),
    [
        (pa.array([0, 1]), None),
        (pa.array([0, 1]), b"no JSON"),
        (pa.array([0, 1]), b"[1]"),
        (pa.array([0, 1]), features(label={"dtype": "int64", "_type": "Value"})),
        (pa.array(["red_fox", "crane"]), features(label=CLASS_LABEL)),
    ],
)
def test_other_columns_have_none(tmp_path: Path, labels: pa.Array, metadata: bytes | None) -> None:
    assert numbered_classes(write(tmp_path, labels, metadata), "label") is None
