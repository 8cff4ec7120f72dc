"""Write a class list: of labelled images, from WordNet, or one that a library ships."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from beamclip.commands.class_list import class_list
from beamclip.commands.console import plural, print_stage
from beamclip.commands.contexts import CONTEXTS_ADVICE
from beamclip.commands.options import ClassesConfig
from beamclip.data.label_names import LABEL
from beamclip.data.listing import class_folder_names
from beamclip.data.torchvision_sets import is_torchvision
from beamclip.errors import InputError
from beamclip.option_texts import check_required
from beamclip.prompts.classes import (
    IMAGENET_LISTS,
    LISTS_WITH_IDS,
    ClassEntry,
    classes_text,
    load_classes,
    named_classes,
    save_classes,
)
from beamclip.prompts.lexicon import open_lexicon
from beamclip.prompts.taxonomy import folder_classes, hyponym_classes, with_parents

FIRST = 3
"""Classes that are printed."""


def write_classes(config: ClassesConfig) -> Path:
    """Write a class list, print what is in it, and return its path.

    Raises:
        InputError: an option or its source cannot be used, the list would have fewer than two classes, or the
            file exists or cannot be written.
    """
    out = _checked(config)
    classes = named_classes(_classes(config))
    if len(classes) < 2:
        raise InputError(f"--out {out}: would hold one class, {classes[0].name!r}. Give two or more.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_classes(classes, out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}). Give another.") from error
    _print_classes(classes, out)
    return out


def _checked(config: ClassesConfig) -> Path:
    """Check what can be checked before anything is read; return the path of the list."""
    check_required(config)
    assert config.out is not None, "check_required() refuses it"
    if sum(map(bool, (config.folder, config.synsets, config.names))) != 1:
        raise InputError("classes come from one place. Give one of --folder, --synsets and --names.")
    if config.depth is not None and not config.synsets:
        raise InputError("--depth is a number of levels below --synsets. Give both, or leave it out.")
    if config.wordnet and not (config.synsets or config.parents):
        raise InputError(
            "--wordnet is read for --synsets and for --parents. Give one of them, or leave it out."
        )
    if config.out.suffix.lower() not in LISTS_WITH_IDS:
        raise InputError(
            f"--out {config.out}: a list with ids ends in {', '.join(LISTS_WITH_IDS)}. Give such a name."
        )
    if config.out.exists():
        raise InputError(f"--out {config.out}: exists. Delete it, or give another name.")
    return config.out


def _classes(config: ClassesConfig) -> list[ClassEntry]:
    if config.synsets:
        return hyponym_classes(open_lexicon(config.wordnet), config.synsets, config.depth)
    classes = _of_folder(config.folder) if config.folder else _of_library(str(config.names))
    if not config.parents:
        return classes
    if not any(entry.synset for entry in classes):
        raise InputError(
            f"--parents: none of {plural(len(classes), 'class')} has a synset, by which WordNet knows it. "
            "Leave it out, and write the parents into the list."
        )
    return with_parents(open_lexicon(config.wordnet), classes)


def _of_folder(address: str) -> list[ClassEntry]:
    numbered = class_list(None, address, LABEL).entries
    return numbered or folder_classes(class_folder_names(address), address)


def _of_library(name: str) -> list[ClassEntry]:
    if is_torchvision(name):
        classes = class_list(None, name, LABEL).entries
        if not classes:
            raise InputError(
                f"{name}: torchvision does not name its classes. Write a list in the order of their numbers."
            )
        return classes
    if name not in IMAGENET_LISTS:
        lists = ", ".join(IMAGENET_LISTS)
        raise InputError(f"--names {name}: no list has this name. Give {lists} or torchvision:NAME.")
    return load_classes(name)


def _print_classes(classes: Sequence[ClassEntry], out: Path) -> None:
    synsets, placed = (
        sum(map(bool, each)) for each in ([c.synset for c in classes], [c.parents for c in classes])
    )
    print_stage("classes", f"{len(classes):,}, {synsets:,} with a synset, {placed:,} with parents")
    _print_unnamed(classes)
    _print_shared_names(classes)
    print(classes_text(classes[:FIRST], out.suffix).rstrip())
    print(out)


def _print_unnamed(classes: Sequence[ClassEntry]) -> None:
    unnamed = [entry.id for entry in classes if entry.name == entry.synset]
    if unnamed:
        number = plural(len(unnamed), "class")
        print_stage("note", f"{number} named by synset, first {unnamed[0]}: --parents names them by WordNet")


def _print_shared_names(classes: Sequence[ClassEntry]) -> None:
    ids = defaultdict(list)
    for entry in classes:
        ids[entry.name].append(entry.id)
    shared = {name: own for name, own in ids.items() if len(own) > 1}
    if shared:
        name, own = next(iter(shared.items()))
        number = plural(sum(map(len, shared.values())), "class")
        print_stage("names", f"{len(shared):,} shared by {number}, first {name} ({', '.join(own[:3])})")
        print_stage("", f"{CONTEXTS_ADVICE}.")
