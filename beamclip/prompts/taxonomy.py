"""Classes with WordNet synsets: those of class folders, those below a synset, and their parents.

A class has the same name wherever its synset is found: open_clip's if it is one of the 1,000 of ImageNet,
since those are written for prompts, else the first lemma.
"""

import contextlib
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.lexicon import (
    IMAGENET_VERSION,
    find_synset,
    first_lemma,
    hypernyms,
    named_synset,
    synset_id,
)
from beamclip.prompts.texts import check_text, nfc

_FOLDER = re.compile(r"n\d{8}")
"""Names of ImageNet's class folders."""


def folder_classes(folders: Sequence[str], source: str) -> list[ClassEntry]:
    """Make a class of each class folder, whose name is the id.

    A folder that is named by a synset has that synset, and its name if ImageNet has it among its 21,000; else
    it keeps its id as name. Of another folder the name is its own, with spaces for underscores.

    Args:
        source: named in the messages.

    Raises:
        InputError: the name of a folder cannot be an id.
    """
    for folder in folders:
        check_text(folder, f"{source}: class folder")
        if folder != folder.strip():
            raise InputError(
                f"{source}: class folder {folder!r}: ids neither begin nor end with spaces. Rename it."
            )
    ids = [nfc(folder) for folder in folders]
    named = imagenet_names(id_ for id_ in ids if _FOLDER.fullmatch(id_))
    return [
        ClassEntry(id_, named.get(id_, id_), synset=id_)
        if _FOLDER.fullmatch(id_)
        else ClassEntry(id_, id_.replace("_", " ").strip() or id_)
        for id_ in ids
    ]


def imagenet_names(synsets: Iterable[str]) -> dict[str, str]:
    """Return the names of those synsets that are among the 21,000 of ImageNet.

    Args:
        synsets: ids of WordNet 3.0, such as n02012849.
    """
    asked = list(synsets)
    if not asked:
        return {}
    # Imported here: both libraries take seconds to import, and most class lists need neither.
    from beamclip.openclip import open_clip, timm

    info = timm.data.ImageNetInfo()
    known = dict(zip(info.label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    for synset in asked:
        if synset not in known:
            with contextlib.suppress(KeyError):
                known[synset] = info.label_name_to_description(synset).split(",")[0]
    return {synset: known[synset] for synset in asked if synset in known}


def hyponym_classes(lexicon: Any, synsets: Sequence[str], depth: int | None) -> list[ClassEntry]:
    """Make classes of the synsets below some, with their parents, in the order of their ids.

    Args:
        lexicon: see `lexicon.open_lexicon`.
        synsets: ids such as n02084071, or names such as dog.n.01.
        depth: levels below these at which classes are taken, and above that what has nothing below; None
            takes only what has nothing below.

    Raises:
        InputError: the lexicon lacks a synset.
    """
    found = {synset_id(each): each for name in synsets for each in _below(named_synset(lexicon, name), depth)}
    # Other versions give these numbers to other synsets.
    names = imagenet_names(found) if lexicon.get_version() == IMAGENET_VERSION else {}
    return with_parents(lexicon, [ClassEntry(id_, names.get(id_, id_), synset=id_) for id_ in sorted(found)])


def _below(top: Any, depth: int | None) -> list[Any]:
    """The synsets `depth` levels below one, and those before that without hyponyms; each is met once."""
    found, seen, waiting = list[Any](), {top}, deque([(top, 0)])
    while waiting:
        synset, level = waiting.popleft()
        below = synset.hyponyms() if level != depth else []
        if not below:
            found.append(synset)
        new = [each for each in below if each not in seen]
        seen.update(new)
        waiting.extend((each, level + 1) for each in new)
    return found


def with_parents(lexicon: Any, classes: Iterable[ClassEntry]) -> list[ClassEntry]:
    """Give the classes that have a synset its hypernyms as parents, up to the top of WordNet.

    A class that is named by its synset gets the first lemma as name.

    Raises:
        InputError: the lexicon lacks a synset.
    """
    return [entry if entry.synset is None else _placed(lexicon, entry, entry.synset) for entry in classes]


def _placed(lexicon: Any, entry: ClassEntry, id_: str) -> ClassEntry:
    synset = find_synset(lexicon, id_, f"class {entry.id} ({entry.name})")
    name = first_lemma(synset) if entry.name == id_ else entry.name
    return replace(entry, name=name, parents=tuple(map(first_lemma, hypernyms(synset))))
