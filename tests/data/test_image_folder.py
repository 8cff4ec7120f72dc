"""A folder of images with texts beside them or a metadata file: each file is one row, or belongs to one."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket import register_bucket

from beamclip.data.class_folders import HIDDEN_FILE, OUTSIDE
from beamclip.data.image_folder import (
    MISSING_FILE,
    NO_IMAGE_BESIDE,
    NOT_DESCRIBED,
    SECOND_TEXT,
    kept_listing,
)
from beamclip.data.known_shards import KNOWN_FILE
from beamclip.data.listing import check_texts, list_labelled, list_shards
from beamclip.data.shards import MISSING_CAPTION, MISSING_LABEL, Columns, Row, Shard, iterate_rows
from beamclip.errors import InputError

CAPTIONS = Columns(caption=True)
LABELS = Columns(label="label")


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def read(root: Path | str, columns: Columns = CAPTIONS) -> list[Row]:
    return [row for shard in list_shards(str(root)) for row in rows_of(shard, columns)]


def rows_of(shard: Shard, columns: Columns) -> list[Row]:
    return [*iterate_rows(shard, columns, range(shard.samples))]


def texts(rows: list[Row]) -> dict[str, list[str]]:
    return {row["key"]: row["texts"] for row in rows if row["problem"] is None}


def losses(rows: list[Row]) -> dict[str, str]:
    return {row["key"]: row["problem"] for row in rows if row["problem"] is not None}


def test_the_text_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.jpg": "x",
            "a.txt": " a red bird\n",
            "b.v2.png": "x",
            "b.v2.TXT": "two dots",
            "c.webp": "x",
            "deep/d.jpg": "x",
            "deep/d.txt": "below",
            "README.txt": "no caption",
            "labels.json": "[1, 2",
            KNOWN_FILE: "ours",
        },
    )
    rows = read(tmp_path)
    assert texts(rows) == {"a.jpg": ["a red bird"], "b.v2.png": ["two dots"], "deep/d.jpg": ["below"]}
    assert losses(rows) == {
        "c.webp": MISSING_CAPTION,
        "README.txt": NO_IMAGE_BESIDE,
        "labels.json": NO_IMAGE_BESIDE,
    }
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)


def test_the_json_beside_an_image_holds_its_fields(tmp_path: Path) -> None:
    fields = {"caption": "from its JSON", "text": "not this", "tags": ["red", "wing"], "label": 7}
    write(
        tmp_path,
        {
            "cat/1.jpg": "x",
            "cat/1.json": json.dumps(fields),
            "cat/2.jpg": "x",
            "cat/2.txt": "from its text",
            "cat/2.json": json.dumps(fields),
            "cat/3.jpg": "x",
            "cat/3.json": "no JSON",
            "dog/4.jpg": "x",
            "dog/4.json": '{"text": "another name"}',
        },
    )
    rows = read(tmp_path, Columns(caption=True, more_texts=("tags",), label="label"))
    assert texts(rows) == {
        "cat/1.jpg": ["from its JSON", "red", "wing"],
        "cat/2.jpg": ["from its text", "red", "wing"],
        "dog/4.jpg": ["another name"],
    }
    assert losses(rows) == {"cat/3.jpg": MISSING_CAPTION}
    assert [row["label"] for row in rows if row["problem"] is None] == ["7", "7", "dog"]
    (lost,) = [row for row in rows if row["problem"]]
    assert lost["detail"].startswith("its JSON: JSONDecodeError")
    whole = read(tmp_path, Columns(everything=True))
    assert json.loads(whole[0]["fields"]) == fields
    assert whole[1]["caption"] == "from its text"


def test_images_beside_folders_are_lost_only_where_folders_are_classes(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "x", "cat/b.jpg": "x", "__MACOSX/._a.jpg": "mac"})
    rows = read(tmp_path, Columns())
    assert [row["key"] for row in rows if row["problem"] is None] == ["a.jpg", "cat/b.jpg"]
    labelled = [row for shard in list_labelled(str(tmp_path)) for row in rows_of(shard, LABELS)]
    assert losses(labelled) == {"__MACOSX/._a.jpg": HIDDEN_FILE, "a.jpg": OUTSIDE}


def test_a_second_spelling_of_a_text_is_not_lost_silently(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "x", "a.TXT": "one", "a.txt": "two"})
    rows = read(tmp_path)
    assert [len(each) for each in texts(rows).values()] == [1]
    assert list(losses(rows).values()) == [SECOND_TEXT]


def write_metadata(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def described(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a metadata file, which does not fit its files."""
    write(tmp_path, {f"cat/{name}.jpg": name for name in "abc"} | {"top.png": "x", "LICENSE": "free"})
    write_metadata(
        tmp_path / f"metadata.{request.param}",
        [
            {"file_name": "cat/b.jpg", "text": 'two\nlines, "quoted"', "label": "007"},
            {"file_name": "./cat/a.jpg", "text": "first", "label": "1"},
            {"file_name": "gone.jpg", "text": "gone", "label": "2"},
            {"file_name": "../outside.jpg", "text": "outside", "label": "2"},
            {"file_name": "cat/a.jpg", "text": "second", "label": "1"},
            {"file_name": "top.png", "text": None, "label": None},
        ],
    )
    (tmp_path.parent / "outside.jpg").write_text("x")
    return tmp_path


def test_a_metadata_file_describes_the_images_of_a_folder(described: Path) -> None:
    rows = read(described)
    assert texts(rows) == {
        "cat/a.jpg": ["first"],
        "cat/a.jpg#2": ["second"],
        "cat/b.jpg": ['two\nlines, "quoted"'],
    }
    assert losses(rows) == {
        "../outside.jpg": MISSING_FILE,
        "LICENSE": NOT_DESCRIBED,
        "cat/c.jpg": NOT_DESCRIBED,
        "gone.jpg": MISSING_FILE,
        "top.png": MISSING_CAPTION,
    }
    assert {row["key"]: row["image"] for row in rows if row["problem"] is None}["cat/b.jpg"] == b"b"


def test_labels_are_those_of_the_metadata_else_of_the_folders(described: Path) -> None:
    (shard,) = list_labelled(str(described))
    rows = rows_of(shard, LABELS)
    assert Counter(row.get("label") for row in rows) == {"1": 2, "007": 1, None: 5}
    assert losses(rows)["top.png"] == MISSING_LABEL
    rows = rows_of(shard, Columns(label="nowhere"))
    assert Counter(row.get("label") for row in rows) == {"cat": 3, None: 5}


@pytest.mark.parametrize("described", ["csv"], indirect=True)
def test_a_bucket_gives_the_same_rows(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(described, {"cat/a.txt": "beside it", "alone.txt": "alone"})
    register_bucket(described.parent / f"{described.name}-store", monkeypatch)
    bucket = fsspec.filesystem("bucket")
    for path in described.rglob("*"):
        if path.is_file():
            bucket.pipe_file(f"b/data/{path.relative_to(described)}", path.read_bytes())
    local, remote = read(described), read("bucket://b/data")
    assert [{**row, "shard": None} for row in remote] == [{**row, "shard": None} for row in local]
    assert texts(local)["cat/a.jpg"] == ["beside it"]


def test_each_folder_has_its_own_metadata(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "one/a.jpg": "x",
            "one/metadata.csv": "file_name,caption\na.jpg,first\n",
            "two/a.jpg": "x",
            "two/metadata.jsonl": '{"image_file_name": "a.jpg", "caption": "second"}',
        },
    )
    assert texts(read(tmp_path)) == {"one/a.jpg": ["first"], "two/a.jpg": ["second"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("csv", b"file_name,text\na.jpg,one\nb.jpg,two,three\n", "line 3: 3 values, but 2 columns"),
        ("csv", b"file,text\na.jpg,one\n", "line 2: no file_name among file, text"),
        ("csv", b"file_name,text\n,one\n", "line 2: no file_name among text"),
        ("csv", b'file_name,text\na.jpg,"o"ne\n', "line 2: no CSV"),
        ("csv", b'file_name,text\na.jpg,"one\n', "line 2: no CSV"),
        ("csv", b"file_name,text\na.jpg,caf\xe9\n", "line 2: not UTF-8"),
        ("jsonl", b'{"file_name": "a.jpg"}\n{"file_name": \n', "line 2: no JSON"),
        ("jsonl", b'{"file_name": "a.jpg"}\n[1]\n', "line 2: JSON, but no object"),
        ("jsonl", b'{"file_name": 3}\n', "line 1: no file_name among file_name"),
        ("parquet", b"PAR1", "metadata.parquet: no readable parquet file"),
    ],
)
def test_metadata_that_cannot_be_read_are_one_line_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write(tmp_path, {"a.jpg": "x"})
    (tmp_path / f"metadata.{name}").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        list_shards(str(tmp_path))
    assert str(refusal.value).startswith(f"{tmp_path}/metadata.{name}")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_metadata_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "x", "metadata.csv": "file_name\na.jpg", "metadata.jsonl": ""})
    with pytest.raises(InputError, match=r"holds metadata\.csv and metadata\.jsonl\. Leave one"):
        list_shards(str(tmp_path))


def test_a_folder_of_splits_is_refused_unless_they_are_classes(tmp_path: Path) -> None:
    write(tmp_path, {"train/a.jpg": "x", "val/b.jpg": "x"})
    for listed in (list_shards, list_labelled):
        with pytest.raises(InputError, match=rf"holds the splits train, val\..*: {tmp_path}/train\."):
            listed(str(tmp_path))
    write(tmp_path, {"more/train/a.jpg": "x", "more/plane/b.jpg": "x"})
    assert len(list_shards(str(tmp_path / "more"))) == 2


def test_images_without_fields_or_class_folders_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "x"})
    with pytest.raises(InputError, match="neither finished shards nor class folders"):
        list_labelled(str(tmp_path))
    write(tmp_path, {"a.json": '{"label": "cat"}'})
    (shard,) = list_labelled(str(tmp_path))
    assert [row["label"] for row in rows_of(shard, LABELS)] == ["cat"]


def test_a_folder_without_captions_is_refused_with_where_to_put_them(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "x"})
    shards = list_shards(str(tmp_path))
    with pytest.raises(InputError, match=r"a caption\. Put it into x\.txt beside x\.jpg, or into metadata"):
        check_texts(shards, CAPTIONS, "data")
    with pytest.raises(InputError, match=r"a text in tags\. Add it to metadata\.csv or to a JSON beside"):
        check_texts(shards, Columns(more_texts=("tags",)), "data")


def test_a_listing_is_kept_for_as_long_as_its_version_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, {"b.jpg": "x", "metadata.csv": "file_name,text\nb.jpg,old\n"})
    (before,) = list_shards(str(tmp_path))
    kept = kept_listing(before.path, before.version)
    assert texts(read(tmp_path)) == {"b.jpg": ["old"]}
    write(tmp_path, {"a.jpg": "x", "metadata.csv": "file_name,text\nb.jpg,new\na.jpg,first\n"})
    assert kept_listing(before.path, before.version) is kept
    assert texts(read(tmp_path)) == {"a.jpg": ["first"], "b.jpg": ["new"]}
    # A process that meets the folder only after its change sees what is there then, and keeps none of it.
    late = [kept_listing(before.path, "of another time") for _ in range(2)]
    assert [len(listing) for listing in late] == [2, 2]
    assert late[0] is not late[1]
