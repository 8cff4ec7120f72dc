"""Contexts of classes with a WordNet synset: its hypernyms, its gloss and its other names."""

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.contexts import ContextSource

HYPERNYMS = 3
"""Hypernyms taken above a synset; further ones are as general as "organism"."""

_ADVICE = (
    "Give --wordnet the dict folder of WordNet 3.0 from Princeton, or install the lexicon: "
    "python -m nltk.downloader wordnet"
)
_ID = re.compile(r"([nvars])(\d{8})")


@cache
def wordnet_contexts(folder: Path | None) -> ContextSource:
    """Make the source `wordnet`: a synset's nearest hypernym, gloss, other lemmas, further hypernyms.

    Opening a lexicon takes seconds, so a process does it once for each folder.

    Args:
        folder: Princeton's dict folder, in the version of the class list's synsets (3.0 for ImageNet's ids);
            None takes the lexicon that nltk has installed.

    Raises:
        InputError: nltk or the lexicon is missing. The source itself raises it for an unknown synset.
    """
    reader = _open_lexicon(folder)

    def contexts(entry: ClassEntry) -> tuple[str, ...]:
        if entry.synset is None:
            return ()
        synset = _find(reader, entry)
        above = [f"a type of {_plain(each.lemma_names()[0])}" for each in _hypernyms(synset)]
        gloss = synset.definition().split(";")[0].strip()
        lemmas = [_plain(lemma) for lemma in synset.lemma_names()]
        others = [f"also called {lemma}" for lemma in lemmas if lemma.lower() != entry.name.lower()]
        return (*above[:1], gloss, *others, *above[1:])

    return contexts


def _open_lexicon(folder: Path | None) -> Any:
    try:
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError as error:
        raise InputError(
            "context_source wordnet needs nltk, which is not installed. "
            "In the checkout: pip install '.[wordnet]'"
        ) from error
    if folder is None:
        try:
            nltk.corpus.wordnet.ensure_loaded()
        except LookupError as error:
            raise InputError(f"context_source wordnet: nltk has no WordNet installed. {_ADVICE}.") from error
        return nltk.corpus.wordnet
    if not (folder / "data.noun").is_file():
        raise InputError(f"--wordnet {folder}: no WordNet there (data.noun is missing). {_ADVICE}.")
    # nltk refuses to read outside the folders of this list.
    nltk.data.path.append(str(folder.resolve()))

    class Lexicon(WordNetCorpusReader):
        """An English lexicon: the map to other languages needs the lexicon that nltk installs."""

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    with warnings.catch_warnings():
        # nltk warns that other languages are missing.
        warnings.simplefilter("ignore")
        try:
            return Lexicon(str(folder.resolve()), None)
        except OSError as error:
            raise InputError(f"--wordnet {folder}: cannot be read as WordNet: {error}") from error


def _find(reader: Any, entry: ClassEntry) -> Any:
    match = _ID.fullmatch(str(entry.synset))
    with warnings.catch_warnings():
        # The error below says more.
        warnings.simplefilter("ignore")
        synset = reader.synset_from_pos_and_offset(match[1], int(match[2])) if match else None
    if synset is None:
        raise InputError(
            f"class {entry.id} ({entry.name}): the lexicon has no synset {entry.synset!r}. Write synsets as "
            "n02012849; the number belongs to one version of WordNet, ImageNet's to 3.0."
        )
    return synset


def _hypernyms(synset: Any) -> list[Any]:
    """The chain of first hypernyms, nearest first."""
    above: list[Any] = []
    while len(above) < HYPERNYMS:
        lowest = above[-1] if above else synset
        nearest = lowest.hypernyms() or lowest.instance_hypernyms()
        if not nearest:
            break
        above.append(nearest[0])
    return above


def _plain(lemma: str) -> str:
    return lemma.replace("_", " ")
