"""The classes of a command: those of its class list, or of its labelled data; and what labels call them.

Free of torch, unless a class list or a data set of a library is named.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beamclip.commands.console import plural, print_stage
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
            check_labels(entries, address, column, listed=config.classes is not None)
    return entries


def check_labels(classes: Sequence[ClassEntry], address: str, label_column: str, *, listed: bool) -> None:
    """Check that the labels of a data set can be those of the classes, and say what is taken on trust.

    Args:
        listed: whether the classes are those of --classes, whose ids are labels by the word of the user; else
            they are those of other data or of a run, and numbers must be theirs by name.

    Raises:
        InputError: as `label_ids`, or nobody says which of the classes a number is.
    """
    ids = label_ids(classes, address, label_column)
    numbered = numbered_classes(address, label_column)
    if numbered is None:
        _note_other_folders(ids, address)
        return
    if not numbered.names:
        if not listed:
            raise InputError(
                f"{address}: its labels are numbers without names, and nobody says which of the classes they "
                "are. Give --classes, a list in the order of the numbers."
            )
        if ids != [entry.id for entry in classes]:
            print_stage("note", f"{address}: labels are taken as places in the class list, from 0")
        return
    differing = [
        f"{each.name!r} for {numbered.names[int(number)]!r}"
        for each, number in zip(classes, ids, strict=True)
        if number == each.id
        and number.isdecimal()
        and _plain(each.name) != _plain(numbered.names[int(number)])
    ]
    if differing and not listed:
        raise InputError(
            f"{address}: gives the numbers of the classes other names, such as {differing[0]}. Give "
            "--classes, a list with the names of all data, or score them one by one."
        )
    if differing:
        number = plural(len(differing), "class")
        print_stage("note", f"{address}: numbers decide, and the list renames {number}: {differing[0]}")


def _note_other_folders(ids: Sequence[str], address: str) -> None:
    """Name class folders whose images will be left out; other data say their labels when they are read."""
    folders, files = list_contents(address)
    if any(path.endswith((".tar", ".parquet")) for path in files):
        return
    names = {nfc(posixpath.basename(folder)) for folder in folders}
    others = sorted(names.difference(ids))
    # With none in common, the labels may be in metadata; if not, the command will end for want of images.
    if others and len(others) < len(names):
        number = plural(len(others), "class folder")
        print_stage("note", f"{address}: the class list lacks {number}, left out: {_some(others)}")


def label_ids(classes: Sequence[ClassEntry], address: str, label_column: str) -> list[str]:
    """What the labels of a data set call each class of a list: its id, a number, or its WordNet id.

    Numbers stand for the class whose id or name the data set gives that number. Ids that are all numbers are
    the labels, unless the data set gives the name of one of them to another number. Without names to compare,
    other ids stand in the order of the numbers. Class folders that are named by WordNet ids stand for the
    `synset` of a class.

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
    are_numbers = all(each.isdecimal() for each in ids)
    if not numbered.names:
        return ids if are_numbers else [str(place) for place in range(len(ids))]
    if are_numbers and _fit(classes, numbered.names):
        return ids
    return _numbers(classes, numbered.names, address)


def _fit(classes: Sequence[ClassEntry], names: Sequence[str]) -> bool:
    """Whether ids may be numbers of these names: each is one, and no class is named like another's number.

    A name that stands twice, in the list or in the data, says nothing.
    """
    plain, own = [_plain(name) for name in names], [_plain(entry.name) for entry in classes]
    here, there = Counter(own), Counter(plain)
    once = {name for name in here if here[name] == there[name] == 1}
    return all(
        int(entry.id) < len(plain) and (name not in once or plain[int(entry.id)] == name)
        for entry, name in zip(classes, own, strict=True)
    )


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
    are_numbers = all(entry.id.isdecimal() for entry in classes)
    own = by_id if set(by_id) & set(plain) and not are_numbers else by_name
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
