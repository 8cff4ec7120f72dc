"""`beamclip classes`: lists of class folders, of WordNet and of libraries, through the command."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from lexicon import write_lexicon
from PIL import Image

from beamclip.commands.class_list import check_labels
from beamclip.commands.main import main
from beamclip.data.listing import list_labelled
from beamclip.data.shards import Columns, iterate_rows
from beamclip.prompts.classes import ClassEntry, load_classes

CRANES = {"n02012849": ("crane bird", 134), "n03126707": ("construction crane", 517)}
"""Synsets of ImageNet -> open_clip's name, and number among the 1,000 classes."""


def write_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "1.png")
    return root


def classes_of(out: Path, *flags: str) -> list[ClassEntry]:
    assert main(["classes", *flags, "--out", str(out)]) == 0
    return load_classes(out)


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["classes", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A dict folder, and the ids of its synsets by place and first word."""
    pytest.importorskip("nltk")
    folder = tmp_path_factory.mktemp("wordnet") / "dict"
    words = ["organism", "animal", "bird", "wader", "crane", "device", "derrick", "stork", "owl"]
    return str(folder), dict(zip(words, write_lexicon(folder), strict=True))


def test_class_folders_become_classes_whose_ids_are_the_labels_of_their_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folders(
        tmp_path / "train", "n01440764", *CRANES, "n00004475", "n99999999", "red_fox", "Äpfel"
    )
    (data / ".cache").mkdir()
    (data / "labels.csv").write_text("")
    found = classes_of(tmp_path / "lists/classes.yaml", "--folder", str(data))
    columns = Columns(label="label")
    rows = [row for shard in list_labelled(str(data)) for row in iterate_rows(shard, columns, range(1))]
    assert [entry.id for entry in found] == [row["label"] for row in rows if not row.get("problem")]
    check_labels(found, str(data), "label", listed=True)
    by_id = {entry.id: entry for entry in found}
    assert by_id["n01440764"] == ClassEntry("n01440764", "tench", synset="n01440764")
    assert {id_: by_id[id_].name for id_ in CRANES} == {id_: name for id_, (name, _) in CRANES.items()}
    # Beyond the 1,000 classes: the first of WordNet's "organism, being".
    assert by_id["n00004475"] == ClassEntry("n00004475", "organism", synset="n00004475")
    assert by_id["red_fox"] == ClassEntry("red_fox", "red fox")
    assert by_id["Äpfel"] == ClassEntry("Äpfel", "Äpfel")
    said = capsys.readouterr().out
    assert "classes   7, 5 with a synset, 0 with parents" in said
    assert "1 class named by synset, first n99999999" in said
    assert "the class list lacks" not in said
    assert "- id: n00004475\n  name: organism\n  synset: n00004475\n- id: n01440764\n" in said
    assert said.splitlines()[-1] == str(tmp_path / "lists/classes.yaml")


def test_the_list_of_imagenet_has_numbers_names_and_synsets_and_its_repeated_names_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = classes_of(tmp_path / "a.json", "--names", "imagenet1k")
    assert found[0] == ClassEntry("0", "tench", synset="n01440764")
    for synset, (name, number) in CRANES.items():
        assert found[number] == ClassEntry(str(number), name, synset=synset)
    assert len(json.loads((tmp_path / "a.json").read_text())) == 1000
    said = capsys.readouterr().out
    assert "2 shared by 4 classes, first missile (657, 744)" in said
    assert "Contexts tell classes of one name apart" in said


def test_the_synsets_below_some_are_classes_with_their_parents(
    tmp_path: Path, wordnet: tuple[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ids = wordnet
    out = tmp_path / "a.yaml"
    found = classes_of(out, "--synsets", "bird.n.01", ids["device"], "--wordnet", folder)
    assert found == [
        ClassEntry(
            ids["crane"], "crane", (), ("wading bird", "bird", "animal", "organism"), synset=ids["crane"]
        ),
        ClassEntry(ids["derrick"], "Crane", (), ("lifting device",), synset=ids["derrick"]),
        ClassEntry(ids["stork"], "stork", (), ("wading bird", "bird", "animal", "organism"), ids["stork"]),
        ClassEntry(ids["owl"], "owl", (), ("bird", "animal", "organism"), ids["owl"]),
    ]
    assert "  parents: [wading bird, bird, animal, organism]\n" in out.read_text()
    assert "shared by" not in capsys.readouterr().out


def test_depth_ends_the_way_down(tmp_path: Path, wordnet: tuple[str, dict[str, str]]) -> None:
    folder, ids = wordnet
    given = ["--synsets", ids["animal"], "--wordnet", folder, "--depth"]
    assert [each.name for each in classes_of(tmp_path / "2.yaml", *given, "2")] == ["wading bird", "owl"]
    assert len(classes_of(tmp_path / "9.yaml", *given, "9")) == 3
    both = ["--synsets", ids["crane"], ids["stork"], "--wordnet", folder, "--depth", "0"]
    assert [each.id for each in classes_of(tmp_path / "0.yaml", *both)] == [ids["crane"], ids["stork"]]


def test_class_folders_get_names_and_parents_from_wordnet(
    tmp_path: Path, wordnet: tuple[str, dict[str, str]]
) -> None:
    folder, ids = wordnet
    data = write_folders(tmp_path / "train", ids["owl"], "red_fox")
    found = classes_of(tmp_path / "a.yaml", "--folder", str(data), "--parents", "--wordnet", folder)
    owl = ClassEntry(ids["owl"], "owl", parents=("bird", "animal", "organism"), synset=ids["owl"])
    assert found == [owl, ClassEntry("red_fox", "red fox")]


def test_classes_that_data_number_and_name_have_the_numbers_as_ids(tmp_path: Path) -> None:
    feature = {"names": ["owl", "red_fox"], "_type": "ClassLabel"}
    table = pa.table({"image": [{"bytes": b"x", "path": "x.png"}], "label": [1]})
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    (tmp_path / "data").mkdir()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "data" / "a.parquet")
    numbered = classes_of(tmp_path / "a.yaml", "--folder", str(tmp_path / "data"))
    assert numbered == [ClassEntry("0", "owl"), ClassEntry("1", "red_fox")]
    write_folders(tmp_path / "eurosat/2750", "AnnualCrop", "Sea_Lake")
    named = classes_of(tmp_path / "b.yaml", "--names", f"torchvision:EuroSAT?root={tmp_path}")
    assert named == [ClassEntry("0", "AnnualCrop"), ClassEntry("1", "Sea Lake")]


def test_a_list_that_exists_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "classes.yaml"
    out.write_text("- name: of my own\n")
    data = write_folders(tmp_path / "train", "cat", "dog")
    assert "exists" in refusal(capsys, "--folder", str(data), "--out", str(out))
    assert out.read_text() == "- name: of my own\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--out", "a.yaml"], "Give one of --folder, --synsets and --names."),
        (["--folder", "one", "--names", "imagenet1k", "--out", "a.yaml"], "classes come from one place"),
        (["--folder", "two"], "--out is required"),
        (["--folder", "two", "--out", "a.txt"], "ends in .yaml, .yml, .json"),
        (["--folder", "two", "--depth", "2", "--out", "a.yaml"], "levels below --synsets"),
        (["--folder", "two", "--wordnet", "d", "--out", "a.yaml"], "read for --synsets and for --parents"),
        (["--folder", "two", "--parents", "--out", "a.yaml"], "none of 2 classes has a synset"),
        (["--folder", "one", "--out", "a.yaml"], "would hold one class, 'cat'"),
        (["--folder", "spaced", "--out", "a.yaml"], "class folder 'cat ': ids neither begin nor end"),
        (["--folder", "nowhere", "--out", "a.yaml"], "nowhere: no such folder"),
        (["--folder", "one/cat", "--out", "a.yaml"], "one/cat: no class folders in it"),
        (["--folder", "described", "--out", "a.yaml"], "described: no class folders in it"),
        (["--folder", "splits", "--out", "a.yaml"], "holds the splits train, val"),
        (["--names", "imagenet", "--out", "a.yaml"], "no list has this name. Give imagenet1k, "),
        (["--names", "torchvision:FakeData?size=2", "--out", "a.yaml"], "does not name its classes"),
        (["--folder", "two", "--out", "file/a.yaml"], "file/a.yaml: cannot be written"),
    ],
)
def test_what_gives_no_list_is_refused(
    flags: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path, "one/cat", "two/cat", "two/dog", "spaced/cat ", "spaced/dog", "splits/train/a")
    write_folders(tmp_path, "splits/val/a", "described/cat", "described/dog")
    (tmp_path / "described/metadata.csv").write_text("file_name,label\ncat/1.png,lynx\n")
    (tmp_path / "file").write_text("")
    assert expected in refusal(capsys, *flags)
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("synset", ["unicorn.n.01", "owl.n.07", "owl.v.01", "n00000007", "owl"])
def test_a_synset_that_wordnet_lacks_is_named(
    synset: str, tmp_path: Path, wordnet: tuple[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--synsets", synset, "--wordnet", wordnet[0], "--out", str(tmp_path / "a.yaml")]
    assert f"--synsets: the lexicon has no synset '{synset}'. Write synsets as" in refusal(capsys, *given)


def test_options_come_from_a_file_too(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "train", "cat", "dog")
    options = {"folder": str(data), "out": str(tmp_path / "a.yaml")}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    assert main(["classes", "--config", str(tmp_path / "options.yaml")]) == 0
    assert [each.name for each in load_classes(tmp_path / "a.yaml")] == ["cat", "dog"]
