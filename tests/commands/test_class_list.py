"""Which classes a command has without a class list, and what the labels of the data call those of a list."""

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamclip.commands.class_list import check_labels, class_list, label_ids
from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry, load_classes

NAMES = ["red_fox", "Crane", "owl", "7"]


def write_numbered(folder: Path, names: list[str]) -> str:
    """Parquet files whose labels are numbers of names."""
    feature = {"names": names, "_type": "ClassLabel"}
    metadata = json.dumps({"info": {"features": {"label": feature}}})
    table = pa.table({"image": [{"bytes": b"x", "path": "x.png"}], "label": [2]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), folder / "a.parquet")
    return str(folder)


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    """Parquet files whose labels are numbers of NAMES."""
    return write_numbered(tmp_path, NAMES)


def entries(*names: str) -> list[ClassEntry]:
    return [ClassEntry(name, name) for name in names]


def test_without_a_list_the_classes_are_those_that_the_data_name(numbered: str) -> None:
    found = class_list(None, numbered, "label")
    assert found.entries == [ClassEntry(str(number), name) for number, name in enumerate(NAMES)]
    assert label_ids(found.entries, numbered, "label") == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("classes", "ids"),
    [
        (entries("owl", "red_fox"), ["2", "0"]),
        (entries("RED FOX", "crane", "7"), ["0", "1", "3"]),
        ([ClassEntry("a", "Owl"), ClassEntry("b", "red fox")], ["2", "0"]),
        ([ClassEntry("red_fox", "owl"), ClassEntry("owl", "fox")], ["0", "2"]),
        ([ClassEntry("3", "heron"), ClassEntry("0", "fox")], ["3", "0"]),
        ([ClassEntry("0", "Red fox"), ClassEntry("3", "heron")], ["0", "3"]),
        ([ClassEntry("0", "owl"), ClassEntry("1", "red_fox")], ["2", "0"]),
        ([ClassEntry("2", "owl"), ClassEntry("99", "crane")], ["2", "1"]),
    ],
    ids=[
        "names",
        "spelling",
        "names of other ids",
        "ids before names",
        "new names for the numbers",
        "numbers with some of the names",
        "numbers of other data",
        "a number beyond the names",
    ],
)
def test_numbers_are_found_by_id_or_name(numbered: str, classes: list[ClassEntry], ids: list[str]) -> None:
    assert label_ids(classes, numbered, "label") == ids


def test_a_class_that_the_data_lack_takes_no_number(numbered: str) -> None:
    found = label_ids([ClassEntry("1", "heron"), ClassEntry("b", "owl")], numbered, "label")
    assert found[1] == "2"
    assert found[0] not in {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (
            entries("heron", "stork"),
            r"no class is one of .*, whose labels are the numbers of red_fox, Crane, owl",
        ),
        ([ClassEntry("a", "crane"), ClassEntry("b", "Crane")], "'crane' names several classes"),
    ],
)
def test_a_list_that_does_not_say_which_number_is_meant_is_refused(
    numbered: str, classes: list[ClassEntry], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        label_ids(classes, numbered, "label")


def test_classes_of_other_data_keep_their_numbers_by_name_only(numbered: str) -> None:
    check = partial(check_labels, address=numbered, label_column="label")
    check([ClassEntry("0", "crane"), ClassEntry("1", "Red Fox")], listed=False)
    same_place = [ClassEntry("2", "owl"), ClassEntry("1", "truck")]
    with pytest.raises(InputError, match="other names, such as 'truck' for 'Crane'"):
        check(same_place, listed=False)


def test_what_a_list_says_of_numbers_is_mentioned(numbered: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_labels([ClassEntry("2", "owl"), ClassEntry("1", "bird")], numbered, "label", listed=True)
    assert "the list renames 1 class: 'bird' for 'Crane'" in capsys.readouterr().out
    check_labels(entries("a", "b"), "torchvision:FakeData?size=2", "label", listed=True)
    assert "labels are taken as places in the class list" in capsys.readouterr().out


def test_numbers_that_nobody_names_are_no_classes_of_other_data() -> None:
    with pytest.raises(InputError, match="numbers without names, and nobody says which"):
        check_labels(entries("a", "b"), "torchvision:FakeData?size=2", "label", listed=False)


def test_the_numbers_of_imagenet_hold_for_other_spellings_of_its_names(tmp_path: Path) -> None:
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    write_numbered(tmp_path, _IMAGENET_CATEGORIES)
    classes = load_classes("imagenet1k")
    assert label_ids(classes, str(tmp_path), "label") == [entry.id for entry in classes]


def test_the_classes_of_imagenet_r_are_found_where_they_are_numbered_from_0(tmp_path: Path) -> None:
    classes = load_classes("imagenet-r")
    write_numbered(tmp_path, [entry.name for entry in classes])
    assert label_ids(classes, str(tmp_path), "label") == [str(number) for number in range(200)]


def test_labels_without_names_are_the_places_in_the_list() -> None:
    address = "torchvision:FakeData?size=2"
    assert label_ids(entries("a", "b", "c"), address, "label") == ["0", "1", "2"]
    assert class_list(None, address, "label").entries == []


def folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir()
        (root / name / "1.png").write_bytes(b"x")
    return str(root)


def test_class_folders_with_wordnet_ids_are_the_classes_of_imagenet(tmp_path: Path) -> None:
    classes = load_classes("imagenet1k")
    by_wordnet = label_ids(classes, folders(tmp_path, "n01440764", "n15075141"), "label")
    assert (by_wordnet[0], by_wordnet[999]) == ("n01440764", "n15075141")


def test_class_folders_that_the_list_lacks_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bird", "ground", "smiling"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"an image")
    check_labels([ClassEntry("bird", "bird")], str(tmp_path), "label", listed=True)
    said = capsys.readouterr().out
    assert f"{tmp_path}: the class list lacks 2 class folders, left out: ground, smiling" in said
    check_labels([ClassEntry("0", "zero")], str(tmp_path), "label", listed=True)
    assert capsys.readouterr().out == ""


def test_class_folders_with_other_names_are_ids(tmp_path: Path) -> None:
    classes = load_classes("imagenet1k")
    assert label_ids(classes, folders(tmp_path, "0", "17"), "label") == [
        str(number) for number in range(1000)
    ]
