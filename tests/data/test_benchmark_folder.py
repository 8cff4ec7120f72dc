"""Data in CLIP_benchmark's form: which split is scored, what its labels mean, and what is refused."""

import io
import shutil
from pathlib import Path

import fsspec
import pytest
import webdataset
from PIL import Image

from beamclip.data.benchmark_folder import read_benchmark
from beamclip.data.label_names import NumberedClasses, numbered_classes
from beamclip.data.listing import list_labelled, list_shards, split_address
from beamclip.data.shards import MISSING_LABEL, Columns, Row, iterate_rows
from beamclip.errors import InputError


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "png")
    return file.getvalue()


def write_split(folder: Path, samples: list[dict[str, object]], per_tar: int = 2) -> None:
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "%d.tar"), maxcount=per_tar, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"s{number:07d}", "png": png(number), **sample})
    (folder / "nshards.txt").write_text(f"{-(-len(samples) // per_tar)}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes; five samples to test on, three to train on."""
    write_split(tmp_path / "test", [{"cls": label} for label in (2, 0, 1, 0, 2)])
    write_split(tmp_path / "train", [{"cls": label} for label in (0, 1, 2)])
    (tmp_path / "classnames.txt").write_text("red fox\ncrane\ncrane\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\n{c}\n")
    return tmp_path


def read(address: Path, columns: Columns) -> list[Row]:
    shards = list_labelled(str(address))
    return [row for shard in shards for row in iterate_rows(shard, columns, range(shard.samples))]


@pytest.mark.parametrize(("split", "labels"), [("", "20102"), ("train", "012")])
def test_the_test_split_is_scored_unless_another_is_named(folder: Path, split: str, labels: str) -> None:
    rows = read(folder / split, Columns(label="label"))
    assert [row["label"] for row in rows] == list(labels)
    assert all(row["problem"] is None and row["image"] for row in rows)


def test_a_label_is_the_number_of_a_line_from_the_folder_and_from_each_split(folder: Path) -> None:
    expected = NumberedClasses(("red fox", "crane", "crane"), ("a photo of a {}.", "{}"))

    for split in ("", "test", "train"):
        assert numbered_classes(str(folder / split), "label") == expected


def test_fields_of_a_json_come_before_the_label_of_its_own(tmp_path: Path) -> None:
    samples = [{"cls": b"07\n"}, {"cls": 1, "json": {"label": "fox"}}, {"json": {"other": 1}}]
    write_split(tmp_path / "data", samples, per_tar=3)
    (tmp_path / "data" / "nshards.txt").unlink()
    rows = read(tmp_path / "data", Columns(label="label"))
    assert [(row.get("label"), row["problem"]) for row in rows] == [
        ("7", None),
        ("fox", None),
        (None, MISSING_LABEL),
    ]
    assert numbered_classes(str(tmp_path / "data"), "label") is None


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("retrieval\n", [["a fox", "a red fox"], ["a crane"]]),
        ("classification\n", [["a fox\na red fox"], ["a crane"]]),
    ],
)
def test_each_line_is_a_caption_in_a_retrieval_set_only(
    tmp_path: Path, kind: str, texts: list[list[str]]
) -> None:
    write_split(tmp_path / "test", [{"txt": "a fox\na red fox"}, {"txt": "a crane"}])
    (tmp_path / "dataset_type.txt").write_text(kind)
    assert [row["texts"] for row in read(tmp_path, Columns(caption=True))] == texts


def test_splits_are_given_one_by_one_where_none_is_the_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    with pytest.raises(InputError, match="holds the splits train, val, and test is none of them"):
        list_labelled(str(folder))
    (folder / "train").rename(folder / "classes")
    assert sum(shard.samples for shard in list_labelled(str(folder))) == 5


def test_the_only_split_is_not_taken_for_the_other_role(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    with pytest.raises(InputError, match=rf"split train only\. .*give its folder: {folder}/train"):
        split_address(str(folder), "test")
    (folder / "train").rename(folder / "val")
    with pytest.raises(InputError, match="split val only"):
        split_address(str(folder), "train")
    assert split_address(str(folder), "test") == f"{folder}/val"


def test_an_address_is_made_that_of_a_split(folder: Path) -> None:
    assert split_address(str(folder), "train") == f"{folder}/train"
    assert split_address(f"{folder}/test", "train") == f"{folder}/test"
    assert split_address(f"{folder}/test/0*", "train") == f"{folder}/test/0*"
    assert split_address("torchvision:KMNIST/test", "train") == "torchvision:KMNIST/test"


def test_missing_tars_are_named(folder: Path) -> None:
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(InputError, match=r"test: 2 of 3 tars are there \(nshards.txt\)"):
        list_labelled(str(folder))
    # A pattern asks for some of them.
    assert sum(shard.samples for shard in list_shards(str(folder / "test" / "0*"))) == 2
    (folder / "test" / "nshards.txt").write_text("three")
    with pytest.raises(InputError, match=r"'three' is no number of tars\. Write 2"):
        list_labelled(str(folder))


def test_several_labels_a_sample_are_refused(folder: Path) -> None:
    (folder / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(InputError, match="a data set of several labels a sample"):
        list_labelled(str(folder))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("classnames.txt", b"fox\n\ncrane\n", "classnames.txt: line 2 is empty, and a label is the number"),
        ("classnames.txt", b"f\xfcchse\n", "classnames.txt: not UTF-8"),
        ("zeroshot_classification_templates.txt", b"a photo.\n", "line 1, 'a photo.': write {c} once"),
    ],
)
def test_files_that_would_shift_or_lose_classes_are_refused(
    folder: Path, name: str, text: bytes, said: str
) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(InputError, match=said):
        numbered_classes(str(folder), "label")


def test_it_is_read_from_any_file_system(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/benchmark", recursive=True)
    try:
        assert sum(shard.samples for shard in list_labelled("memory://benchmark")) == 5
        found = read_benchmark(fs, "/benchmark/test")
        assert found is not None
        assert found.names == ("red fox", "crane", "crane")
    finally:
        fs.rm("/benchmark", recursive=True)
