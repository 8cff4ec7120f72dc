"""Contexts by WordNet synset, from a lexicon of a few synsets in Princeton's own format."""

import sys
from pathlib import Path

import pytest
from lexicon import write_lexicon

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.wordnet import wordnet_contexts

pytest.importorskip("nltk")


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A dict folder, and the ids of its nouns."""
    folder = tmp_path_factory.mktemp("wordnet") / "dict"
    return folder, write_lexicon(folder)


def entry(name: str, synset: str | None) -> ClassEntry:
    return ClassEntry(f"id of {name}", name, synset=synset)


def test_a_synset_gives_hypernyms_gloss_and_other_names(lexicon: tuple[Path, list[str]]) -> None:
    folder, ids = lexicon
    contexts = wordnet_contexts(folder)
    assert contexts(entry("crane", ids[4])) == (
        "a type of wading bird",
        "large long-necked wading bird",
        "a type of bird",
        "a type of animal",
    )
    assert contexts(entry("crane", ids[6])) == (
        "a type of lifting device",
        "lifts and moves heavy objects",
        "also called derrick",
    )
    assert contexts(entry("organism", ids[0])) == ("a living thing",)
    assert contexts(entry("crane", None)) == ()


@pytest.mark.parametrize("synset", ["n00000007", "crane.n.01", "n9", "x00000001"])
def test_a_synset_that_the_lexicon_lacks_is_named_with_its_class(
    lexicon: tuple[Path, list[str]], synset: str
) -> None:
    with pytest.raises(InputError, match=f"id of crane .crane.: the lexicon has no synset '{synset}'"):
        wordnet_contexts(lexicon[0])(entry("crane", synset))


def test_a_folder_that_is_no_lexicon_is_refused_with_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--wordnet .*: no WordNet there .*python -m nltk.downloader wordnet"
    ):
        wordnet_contexts(tmp_path)


def test_without_a_lexicon_or_nltk_the_message_tells_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"nltk has no WordNet installed.*python -m nltk.downloader wordnet"):
        wordnet_contexts(None)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(InputError, match=r"pip install '\.\[wordnet\]'"):
        wordnet_contexts(None)
