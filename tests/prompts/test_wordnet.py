"""Contexts by WordNet synset, from a lexicon of a few synsets in Princeton's own format."""

import sys
from pathlib import Path

import pytest

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.wordnet import wordnet_contexts

pytest.importorskip("nltk")

NOUNS = [
    # Lemmas, hypernym by place, gloss.
    (["organism"], None, "a living thing"),
    (["animal", "beast"], 0, "a living organism that can move"),
    (["bird"], 1, "warm-blooded egg-laying vertebrate; it has feathers"),
    (["wading_bird", "wader"], 2, "a long-legged bird"),
    (["crane"], 3, 'large long-necked wading bird; "a crane stood in the marsh"'),
    (["lifting_device"], None, "a device that lifts"),
    (["Crane", "derrick"], 5, "lifts and moves heavy objects"),
]


def line(offset: int, above: int | None, lemmas: list[str], gloss: str) -> str:
    words = " ".join(f"{lemma} 0" for lemma in lemmas)
    pointers = "000" if above is None else f"001 @ {above:08d} n 0000"
    return f"{offset:08d} 03 n {len(lemmas):02x} {words} {pointers} | {gloss}  \n"


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A dict folder, and the ids of NOUNS."""
    folder = tmp_path_factory.mktemp("wordnet") / "dict"
    folder.mkdir(mode=0o755)
    head = "  1 This software and database is WordNet 3.0 Copyright  \n"
    text, offsets = head, list[int]()
    for lemmas, above, gloss in NOUNS:
        offsets.append(len(text))
        text += line(offsets[-1], None if above is None else offsets[above], lemmas, gloss)
    senses: dict[str, list[str]] = {}
    for (lemmas, _, _), offset in zip(NOUNS, offsets, strict=True):
        for lemma in lemmas:
            senses.setdefault(lemma.lower(), []).append(f"{offset:08d}")
    index = [f"{lemma} n {len(own)} 1 @ {len(own)} 0 {' '.join(own)}  \n" for lemma, own in senses.items()]
    for name in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{name}").write_text(text if name == "noun" else head)
        (folder / f"index.{name}").write_text(head + "".join(index if name == "noun" else []))
        (folder / f"{name}.exc").write_text("")
    names = ["adj.all", "adj.pert", "adv.all", "noun.Tops"]
    (folder / "lexnames").write_text("".join(f"{i:02d}\t{name}\t1\n" for i, name in enumerate(names)))
    return folder, [f"n{offset:08d}" for offset in offsets]


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
