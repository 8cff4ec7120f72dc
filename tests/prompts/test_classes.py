"""Class lists: what is read, and what a mistake is answered with."""

import json
from pathlib import Path

import pytest

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry, load_classes, save_classes

CRANES = """
- id: n02012849
  name: crane
  contexts: [a bird that wades, a grey bird]
  parents: [wading bird, bird]
  synset: n02012849
- id: 517
  name: crane
- name: no
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_classes(path)
    return str(caught.value)


def test_a_text_list_gives_each_name_as_its_own_id_in_file_order(tmp_path: Path) -> None:
    path = written(tmp_path, "classes.txt", "\ufeffsmiling face\n\n  crane \nÄpfel\n")
    assert load_classes(path) == [ClassEntry(n, n) for n in ("smiling face", "crane", "Äpfel")]


def test_a_yaml_list_gives_every_field_and_keeps_scalars_as_they_are_written(tmp_path: Path) -> None:
    bird, machine, no = load_classes(written(tmp_path, "classes.yaml", CRANES))
    assert bird == ClassEntry(
        "n02012849", "crane", ("a bird that wades", "a grey bird"), ("wading bird", "bird"), "n02012849"
    )
    assert machine == ClassEntry("517", "crane")
    assert no == ClassEntry("no", "no")


def test_yaml_ids_keep_their_leading_zeros(tmp_path: Path) -> None:
    (entry,) = load_classes(written(tmp_path, "classes.yml", "- {id: 0012, name: 2024-01-02}"))
    assert (entry.id, entry.name) == ("0012", "2024-01-02")


def test_a_json_list_takes_integers_as_ids_and_null_for_what_is_absent(tmp_path: Path) -> None:
    items = [{"id": 7, "name": "crane", "contexts": None, "parents": [], "synset": None}, {"name": "heron"}]
    path = written(tmp_path, "classes.json", json.dumps(items))
    assert load_classes(str(path)) == [ClassEntry("7", "crane"), ClassEntry("heron", "heron")]


def test_yaml_null_stands_for_what_is_absent(tmp_path: Path) -> None:
    path = written(
        tmp_path, "classes.yaml", "- {id: null, name: crane, contexts: ~, parents: , synset: null}"
    )
    assert load_classes(path) == [ClassEntry("crane", "crane")]


def test_comments_of_a_text_list_are_no_classes(tmp_path: Path) -> None:
    path = written(tmp_path, "classes.txt", "# fruit\napple\n\n  # more of it\n#\n## nuts\nC#\n")
    assert [entry.name for entry in load_classes(path)] == ["apple", "C#"]


def test_a_name_that_begins_with_a_hash_is_sent_to_yaml(tmp_path: Path) -> None:
    found = message(written(tmp_path, "classes.txt", "# tags\n#hashtag\n"))
    assert "line 2: '#hashtag' is a comment only with a space after the #" in found
    assert "YAML list: - name: '#hashtag'" in found
    (entry,) = load_classes(written(tmp_path, "classes.yaml", "- name: '#hashtag'"))
    assert entry.name == "#hashtag"


def test_every_text_is_brought_to_composed_form(tmp_path: Path) -> None:
    item = {key: "cafe\u0301" for key in ("id", "name", "synset")} | {"contexts": ["e\u0301"]}
    (entry,) = load_classes(written(tmp_path, "classes.json", json.dumps([item])))
    assert entry == ClassEntry("caf\u00e9", "caf\u00e9", ("\u00e9",), (), "caf\u00e9")
    found = message(written(tmp_path, "classes.txt", "cafe\u0301\ncaf\u00e9\n"))
    assert "2 classes share the id caf\u00e9" in found


def test_a_shared_id_is_named_with_its_classes_and_entries(tmp_path: Path) -> None:
    path = written(tmp_path, "classes.yaml", CRANES + "- {id: n02012849, name: crane}")
    assert message(path) == (
        f'{path}: 2 classes share the id n02012849 ("crane"): entries 1 and 4. '
        "Give each class its own id; names may repeat."
    )


def test_more_shared_ids_are_counted(tmp_path: Path) -> None:
    path = written(
        tmp_path, "classes.json", json.dumps([{"id": i, "name": f"{n}"} for n, i in enumerate([1, 2] * 3)])
    )
    assert '3 classes share the id 1 ("0", "2", "4"): entries 1, 3 and 5. Further shared ids: 1.' in message(
        path
    )


def test_a_name_repeated_in_a_text_list_leads_to_yaml(tmp_path: Path) -> None:
    found = message(written(tmp_path, "classes.txt", "crane\n\nheron\ncrane\n"))
    assert '2 classes share the id crane ("crane"): lines 1 and 4.' in found
    assert "YAML list that gives each class its own id" in found


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            {"name": "crane", "context": ["bird"]},
            "entry 2 has the unknown key 'context'. Did you mean contexts?",
        ),
        (
            {"name": "crane", "colour": "grey"},
            "unknown key 'colour'. Known keys: id, name, contexts, parents, synset",
        ),
        ({"id": "n1"}, "entry 2 has no name"),
        ({"name": " "}, "entry 2 has no name"),
        ({"name": 7}, "entry 2: name must be text, not the number 7"),
        ({"id": True, "name": "crane"}, "entry 2: id must be text, not the boolean True"),
        ({"id": 1.5, "name": "crane"}, "entry 2: id must be text, not the number 1.5"),
        (
            {"name": "crane", "contexts": "bird"},
            "entry 2: contexts must be a list of texts, not the text 'bird'",
        ),
        ({"name": "crane", "contexts": 0}, "entry 2: contexts must be a list of texts, not the number 0"),
        ({"name": "crane", "parents": [1]}, "entry 2: each of parents must be text, not the number 1"),
        ({"name": "crane", "contexts": ["bird", ""]}, "entry 2: contexts holds an empty text"),
        ("crane", "entry 2 is the text 'crane'; write a mapping, such as `name: crane`"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number(tmp_path: Path, item: object, expected: str) -> None:
    path = written(tmp_path, "classes.json", json.dumps([{"name": "heron"}, item]))
    assert message(path).startswith(f"{path}: entry 2")
    assert expected in message(path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", " \n\n", "the list is empty"),
        ("classes.yaml", "", "the list is empty"),
        ("classes.json", "[]", "the list is empty"),
        ("classes.yaml", "name: crane", "holds a mapping; write a list"),
        ("classes.yaml", "- name: crane\n- name: [heron\n", "line 3 is not valid YAML"),
        ("classes.json", '[{"name": "crane"},\n]', "line 2 is not valid JSON"),
        ("classes.yaml", "[" * 100_000, "nested more than 50 levels deep"),
        ("classes.yaml", "- " * 100_000 + "x", "nested more than 50 levels deep"),
        ("classes.yaml", "- &a [*a]", "*a contains itself"),
        ("classes.yaml", "- {name: x, contexts: &a [*a]}", "*a contains itself"),
        ("classes.json", "[" * 100_000, "nested more than 50 levels deep"),
        ("classes.json", f'[{{"id": {"9" * 5000}, "name": "x"}}]', "a number in it has thousands of digits"),
        ("classes.json", '[{"name": "\\ud800"}]', "half a character"),
        ("classes.txt", "crane\n&" + "amp;" * 1000, "line 2: 4,001 characters, beginning with '&amp;amp;"),
        ("classes.csv", "crane", "must end in .txt, .yaml, .yml, .json; this ends in '.csv'"),
    ],
)
def test_a_file_that_holds_no_class_list_is_refused(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    path = written(tmp_path, name, text)
    assert message(path).startswith(f"{path}")
    assert expected in message(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "absent.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Äpfel".encode("latin-1"))
    assert "byte 0 is not UTF-8" in message(latin)


def test_the_classes_of_imagenet_have_the_names_and_numbers_of_clip_and_their_wordnet_ids() -> None:
    classes = load_classes("imagenet1k")
    assert [entry.id for entry in classes] == [str(number) for number in range(1000)]
    assert classes[134] == ClassEntry("134", "crane bird", synset="n02012849")
    assert classes[517] == ClassEntry("517", "construction crane", synset="n03126707")
    # In the order of their WordNet ids, as in the folders of the data set.
    synsets = [str(entry.synset) for entry in classes]
    assert synsets == sorted(synsets)


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_a_subset_of_imagenet_keeps_its_numbers(name: str) -> None:
    classes, all_classes = load_classes(name), load_classes("imagenet1k")
    assert len(classes) == 200
    assert all(all_classes[int(entry.id)] == entry for entry in classes)


def test_a_misspelled_name_of_a_list_is_answered_with_the_right_one() -> None:
    assert "Did you mean imagenet1k?" in message(Path("imagenet-1k"))


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_class_list_that_is_written_is_read_back(suffix, tmp_path):
    entries = [
        ClassEntry("0", "crane", contexts=("a bird",), parents=("wader", "bird"), synset="n02012849"),
        ClassEntry("#1", "Äpfel"),
        ClassEntry("0012", "no", contexts=("~", "a, b: c", "x" * 500)),
        ClassEntry("2026-02-30", "'🦩' - \"it\"", parents=("null",)),
    ]
    save_classes(entries, tmp_path / f"classes.{suffix}")
    assert load_classes(tmp_path / f"classes.{suffix}") == entries
