"""Parquet files that others wrote, mostly Hugging Face datasets."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamclip.data.class_folders import OUTSIDE
from beamclip.data.listing import check_texts, list_labelled, list_shards
from beamclip.data.shards import MISSING_IMAGE, MISSING_LABEL, Columns, Row, iterate_rows
from beamclip.errors import InputError

EVERYTHING = Columns(caption=True, label="label")


def images(*names: str | None) -> list[dict[str, Any] | None]:
    return [{"bytes": name.encode(), "path": f"{name}.jpg"} if name else None for name in names]


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)


def read(address: Path | str, columns: Columns = EVERYTHING) -> list[Row]:
    return [
        row
        for shard in list_shards(str(address))
        for row in iterate_rows(shard, columns, range(shard.samples))
    ]


def test_rows_of_datasets_are_samples_with_keys_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        write(
            tmp_path / f"train-{number:05d}-of-00002.parquet",
            image=images("a", "b", None),
            text=["one", "two", "three"],
            label=[0, None, 2],
            key=["same"] * 3,
        )
    write(
        tmp_path / "train-00002-of-00003.parquet", image=pa.array(images("a"))[:0], text=pa.array([], "str")
    )
    rows = read(tmp_path)
    assert [shard.samples for shard in list_labelled(str(tmp_path))] == [3, 3]
    assert [(row["key"], row["problem"]) for row in rows] == [
        ("train-00000-of-00002/0", None),
        ("train-00000-of-00002/1", MISSING_LABEL),
        ("train-00000-of-00002/2", MISSING_IMAGE),
        ("train-00001-of-00002/0", None),
        ("train-00001-of-00002/1", MISSING_LABEL),
        ("train-00001-of-00002/2", MISSING_IMAGE),
    ]
    assert (rows[0]["image"], rows[0]["caption"], rows[0]["label"]) == (b"a", "one", "0")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_images_too(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", picture=pa.array([b"x", b"y"], kind), caption=[["one", "more"], ["two"]])
    rows = read(tmp_path, Columns(caption=True))
    assert [(row["image"], row["texts"]) for row in rows] == [(b"x", ["one", "more"]), (b"y", ["two"])]


def test_the_caption_is_the_column_caption_before_text(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet", image=images("a", "b"), text=["t", "t"], caption=["c", None], title=["x", "y"]
    )
    assert [row["texts"] for row in read(tmp_path, Columns(caption=True))] == [["c"], ["t"]]
    titles = Columns(caption=True, more_texts=("title",))
    assert [row["texts"] for row in read(tmp_path, titles)] == [["c", "x"], ["t", "y"]]
    (row, _) = read(tmp_path, Columns(everything=True))
    assert json.loads(row["fields"]) == {"text": "t", "caption": "c", "title": "x"}


def test_of_several_columns_of_images_the_one_named_image_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", mask=images("m"), image=images("a"))
    assert [row["image"] for row in read(tmp_path, Columns())] == [b"a"]
    write(tmp_path / "b.parquet", before=images("m"), after=images("a"))
    with pytest.raises(InputError, match=r"b\.parquet: no column of images, or several and none named image"):
        list_shards(str(tmp_path))


def test_one_split_of_several_is_given_by_a_pattern(tmp_path: Path) -> None:
    for split, name in (("test", "a"), ("train", "b")):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", image=images(name), text=[name])
    data = tmp_path / "data"
    with pytest.raises(InputError, match=rf"holds the splits test, train\. Give .*: '{data}/train-\*'"):
        list_shards(str(data))
    for listed in (list_shards, list_labelled):
        (shard,) = listed(f"{data}/train-*")
        assert shard.name == "train-00000-of-00001.parquet"
        with pytest.raises(InputError, match="no finished shard"):
            listed(f"{data}/nothing-*")


def test_the_folder_above_the_parquet_files_is_refused_with_the_one_to_give(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.parquet", image=images("a"))
    (tmp_path / "README.md").write_text("A data set.")
    for listed in (list_shards, list_labelled):
        with pytest.raises(
            InputError, match=rf"Give the folder that holds the parquet files: {tmp_path}/data"
        ):
            listed(str(tmp_path))


def test_a_parquet_file_without_images_lies_beside_images_as_any_file_does(tmp_path: Path) -> None:
    write(tmp_path / "pairs.parquet", file=["cat/a.jpg"], label=["cat"])
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"x")
    assert [(row["key"], row["problem"]) for row in read(tmp_path, Columns())] == [
        ("cat/a.jpg", None),
        ("pairs.parquet", OUTSIDE),
    ]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=images("a"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"b\.parquet: cannot be read as parquet \(ValueError: its end"):
        list_shards(str(tmp_path))


def test_parquet_without_captions_is_refused_with_the_names_that_are_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=images("a"), title=["one"])
    with pytest.raises(
        InputError, match=r"a caption\. Name its column caption or text, or give --caption-co"
    ):
        check_texts(list_shards(str(tmp_path)), Columns(caption=True), "data")


def test_rows_of_img2dataset_without_statistics_are_its_successful_ones(tmp_path: Path) -> None:
    status = ["success", "failed_to_download", "success"]
    write(tmp_path / "00000.parquet", jpg=[b"a", None, b"c"], key=["k0", "k1", "k2"], status=status)
    assert [(row["key"], row["image"]) for row in read(tmp_path, Columns())] == [("k0", b"a"), ("k2", b"c")]
