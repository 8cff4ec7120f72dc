"""The classes of a command: those of its class list, or of its labelled data; and what labels call them.

Free of torch, unless a class list or a data set of a library is named.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.data.label_names import NumberedClasses, numbered_classes
from beamclip.data.listing import list_contents, list_labelled
from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry, load_classes
from beamclip.prompts.texts import check_text, nfc


@dataclass(frozen=True)
class ClassList:
    """Classes, and the templates that came with them."""

    entries: list[ClassEntry]
    templates: tuple[str, ...] = ()
    """Prompt templates that the data set brings; empty where it has none."""


def class_list(given: Path | None, address: str | None, label_column: str) -> ClassList:
    """The classes of a list or, without one, those that a labelled data set numbers and names.

    Args:
        given: --classes.
        address: the labelled data, if any.
        label_column: name of the field of labels.

    Returns:
        No entries where neither says what the classes are.

    Raises:
        InputError: the list or the data cannot be used.
    """
    numbered = numbered_classes(address, label_column) if address is not None else None
    templates = numbered.templates if numbered else ()
    if given is not None:
        return ClassList(load_classes(given), templates)
    return ClassList(_entries(numbered, address), templates) if numbered else ClassList([])


def _entries(numbered: NumberedClasses, address: str | None) -> list[ClassEntry]:
    for number, name in enumerate(numbered.names):
        check_text(name, f"{address}: class {number}")
    return [ClassEntry(str(number), nfc(name)) for number, name in enumerate(numbered.names)]


def scored_classes(config: DistillConfig | PretrainConfig) -> list[ClassEntry]:
    """The classes of a training, whose labelled data, if any, are checked; none if nobody says what they are.

    Raises:
        InputError: as `class_list`, `list_labelled` and `label_ids`, or there are images to score on, and no
            classes.
    """
    column = config.scoring.label_column
    addresses = [each for each in (config.scoring.eval_data, config.validation.val_data) if each is not None]
    entries = class_list(config.classes, addresses[0] if addresses else None, column).entries
    if config.scoring.eval_data is not None and not entries:
        raise InputError("--eval-data is given, but no --classes FILE to score its labels with.")
    for address in addresses:
        list_labelled(address, allow_missing=config.stream.allow_missing_shards)
        if entries:  # none: check_validation() refuses --val-data
            label_ids(entries, address, column)
    return entries


def label_ids(classes: Sequence[ClassEntry], address: str, label_column: str) -> list[str]:
    """What the labels of a data set call each class of a list: its id, a number, or its WordNet id.

    Numbers stand for the class whose id or name the data set gives that number. A list whose ids are all
    numbers is taken at its word; so is one without names to compare, whose order must be that of the numbers.
    Class folders that are named by WordNet ids stand for the `synset` of a class.

    Args:
        address: of the labelled data.
        label_column: name of the field of labels.

    Raises:
        InputError: none of the names is that of a class, or two classes have the same one.
    """
    ids = [entry.id for entry in classes]
    numbered = numbered_classes(address, label_column)
    if numbered is None:
        return _folder_ids(classes, address) or ids
    if all(each.isdecimal() for each in ids):
        return ids
    if not numbered.names:
        return [str(place) for place in range(len(ids))]
    return _numbers(classes, numbered.names, address)


def _folder_ids(classes: Sequence[ClassEntry], address: str) -> list[str] | None:
    """WordNet ids, where the class folders are named by them and not by ids of the list."""
    if not all(entry.synset for entry in classes):
        return None
    names = {posixpath.basename(folder) for folder in list_contents(address)[0]}
    synsets = [str(entry.synset) for entry in classes]
    by_synset = names.isdisjoint(entry.id for entry in classes) and not names.isdisjoint(synsets)
    return synsets if by_synset else None


def _numbers(classes: Sequence[ClassEntry], names: Sequence[str], address: str) -> list[str]:
    """The number of each class, by its id, else by its name; none for a class that the data lack."""
    by_id, by_name = ([_plain(entry.id) for entry in classes], [_plain(entry.name) for entry in classes])
    plain = [_plain(name) for name in names]
    own = by_id if set(by_id) & set(plain) else by_name
    number = {name: str(place) for place, name in enumerate(plain)}
    shared = [name for name in set(own) & set(plain) if Counter(own)[name] > 1 or Counter(plain)[name] > 1]
    if shared:
        raise InputError(
            f"--classes: {sorted(shared)[0]!r} names several classes, here or in {address}. Give each class "
            "its number in the labels as id."
        )
    if not set(own) & set(plain):
        raise InputError(
            f"--classes: no class is one of {address}, whose labels are the numbers of {_some(names)}. The "
            f"list has {_some(entry.name for entry in classes)}. Give one with the names of the data, or "
            "with the numbers as ids."
        )
    # The id of a class that is not among the data must not be taken for one of the numbers.
    return [number.get(name, f"{entry.id} ") for name, entry in zip(own, classes, strict=True)]


def _plain(name: str) -> str:
    """A name for comparisons: without regard to case, and to underscores in place of spaces."""
    return " ".join(nfc(name).replace("_", " ").casefold().split())


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return f"{', '.join(shown[:3])}{', ...' if shown[3:] else ''}"
