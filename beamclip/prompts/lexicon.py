"""WordNet by nltk: a lexicon, its synsets by their ids or names, and what lies above a synset."""

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from beamclip.errors import InputError

IMAGENET_VERSION = "3.0"
"""Version of WordNet whose numbers the class folders of ImageNet have as names."""

_ADVICE = (
    "Give --wordnet the dict folder of WordNet 3.0 from Princeton, or install the lexicon: "
    "python -m nltk.downloader wordnet"
)
_ID = re.compile(r"([nvars])(\d{8})")
_NAME = re.compile(r".+\.[nvars]\.\d+")


@cache
def open_lexicon(folder: Path | None) -> Any:
    """Open a lexicon; that takes seconds, so a process does it once for each folder.

    Args:
        folder: Princeton's dict folder, in the version of the class list's synsets (3.0 for ImageNet's ids);
            None takes the lexicon that nltk has installed.

    Returns:
        nltk's WordNetCorpusReader.

    Raises:
        InputError: nltk or the lexicon is missing.
    """
    try:
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError as error:
        raise InputError(
            "WordNet needs nltk, which is not installed. In the checkout: pip install '.[wordnet]'"
        ) from error
    if folder is None:
        try:
            nltk.corpus.wordnet.ensure_loaded()
        except LookupError as error:
            raise InputError(f"nltk has no WordNet installed. {_ADVICE}.") from error
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


def find_synset(lexicon: Any, synset: str, where: str) -> Any:
    """Return the synset with an id such as n02012849.

    Args:
        where: begins the message.

    Raises:
        InputError: the lexicon lacks it.
    """
    match = _ID.fullmatch(synset)
    with warnings.catch_warnings():
        # The error below says more.
        warnings.simplefilter("ignore")
        found = lexicon.synset_from_pos_and_offset(match[1], int(match[2])) if match else None
    if found is None:
        raise InputError(
            f"{where}: the lexicon has no synset {synset!r}. Write synsets as n02012849; the number belongs "
            f"to one version of WordNet, ImageNet's to {IMAGENET_VERSION}."
        )
    return found


def named_synset(lexicon: Any, name: str) -> Any:
    """Return the synset with an id such as n02084071, or with a name such as dog.n.01.

    Raises:
        InputError: the lexicon lacks it.
    """
    if _NAME.fullmatch(name) is None:
        return find_synset(lexicon, name, "--synsets")
    from nltk.corpus.reader.wordnet import WordNetError

    try:
        return lexicon.synset(name)
    except (WordNetError, KeyError) as error:
        raise InputError(
            f"--synsets: the lexicon has no synset {name!r}. Write synsets as dog.n.01, the first sense of "
            "the noun dog, or as n02084071."
        ) from error


def synset_id(synset: Any) -> str:
    """Return the id of a synset, such as n02012849."""
    return f"{synset.pos()}{synset.offset():08d}"


def first_lemma(synset: Any) -> str:
    """Return the most usual word for a synset, with spaces."""
    return plain(synset.lemma_names()[0])


def plain(lemma: str) -> str:
    """Return a lemma with spaces for WordNet's underscores."""
    return lemma.replace("_", " ")


def hypernyms(synset: Any, most: int | None = None) -> list[Any]:
    """Return the chain of first hypernyms, nearest first; `most` of them, or all up to the top."""
    above: list[Any] = []
    while most is None or len(above) < most:
        lowest = above[-1] if above else synset
        nearest = lowest.hypernyms() or lowest.instance_hypernyms()
        # Two verbs of WordNet 3.0 are each other's hypernyms.
        if not nearest or nearest[0] in (synset, *above):
            break
        above.append(nearest[0])
    return above
