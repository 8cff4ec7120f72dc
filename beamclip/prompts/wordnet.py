"""Contexts of classes with a WordNet synset: its hypernyms, its gloss and its other names."""

from functools import cache
from pathlib import Path

from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.contexts import ContextSource
from beamclip.prompts.lexicon import find_synset, first_lemma, hypernyms, open_lexicon, plain

HYPERNYMS = 3
"""Hypernyms taken above a synset; further ones are as general as "organism"."""


@cache
def wordnet_contexts(folder: Path | None) -> ContextSource:
    """Make the source `wordnet`: a synset's nearest hypernym, gloss, other lemmas, further hypernyms.

    Args:
        folder: see `open_lexicon`.

    Raises:
        InputError: as `open_lexicon`. The source itself raises it for an unknown synset.
    """
    lexicon = open_lexicon(folder)

    def contexts(entry: ClassEntry) -> tuple[str, ...]:
        if entry.synset is None:
            return ()
        synset = find_synset(lexicon, entry.synset, f"class {entry.id} ({entry.name})")
        above = [f"a type of {first_lemma(each)}" for each in hypernyms(synset, HYPERNYMS)]
        gloss = synset.definition().split(";")[0].strip()
        lemmas = [plain(lemma) for lemma in synset.lemma_names()]
        others = [f"also called {lemma}" for lemma in lemmas if lemma.lower() != entry.name.lower()]
        return (*above[:1], gloss, *others, *above[1:])

    return contexts
