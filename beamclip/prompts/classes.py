"""Class lists: text files with one name a line, or YAML and JSON lists of mappings.

A class is keyed by its id, never by its name, because names repeat: ImageNet has a crane that flies and one
that lifts. Every text is brought to Unicode's composed form (NFC), as are the labels that are compared with
ids.
"""

import json
import reprlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from beamclip.errors import InputError
from beamclip.files import parse_json, parse_yaml, read_text, write_whole
from beamclip.prompts.texts import check_text, nfc
from beamclip.spelling import did_you_mean


@dataclass(frozen=True)
class ClassEntry:
    """One class of a task."""

    id: str
    """Unique in its list."""
    name: str
    """Its name in prompts; may repeat."""
    contexts: tuple[str, ...] = ()
    """Texts that tell it from other classes of the same name, most helpful first."""
    parents: tuple[str, ...] = ()
    """Its ancestors in a label tree, nearest first."""
    synset: str | None = None
    """WordNet id, such as n02012849."""


KEYS = tuple(field.name for field in fields(ClassEntry))
LISTS_WITH_IDS = (".yaml", ".yml", ".json")
"""Suffixes of class lists whose entries have more than a name."""
_SUFFIXES = (".txt", *LISTS_WITH_IDS)
_NO_WRAPPING = 1 << 20
"""Characters of a line."""

IMAGENET_LISTS: dict[str, str | None] = {
    "imagenet1k": None,
    "imagenet-a": "imagenet_a_indices.txt",
    "imagenet-r": "imagenet_r_indices.txt",
}
"""Name of a class list -> timm's file of the ImageNet classes in it; None: all 1,000.

ImageNet-A is of https://arxiv.org/abs/1907.07174, ImageNet-R of https://arxiv.org/abs/2006.16241."""


def load_classes(path: Path | str) -> list[ClassEntry]:
    """Read a class list; the order of the file is the order of the class indices.

    Args:
        path: one of IMAGENET_LISTS, or a UTF-8 file. `.txt`: one name a line, id = name; blank lines and
            comments (`# like this`) are skipped. `.yaml`, `.yml`, `.json`: a list of mappings with `name`
            and optionally `id` (default: the name), `contexts`, `parents`, `synset`. A name that begins with
            # needs such a list.

    Raises:
        InputError: the file cannot be read, is empty, has an unknown key, a missing name, a text that is too
            long or a value of the wrong type, or two classes share an id. The message names the file and the
            line or entry, counted from 1.
    """
    path = Path(path)
    if str(path) in IMAGENET_LISTS:
        return _imagenet(IMAGENET_LISTS[str(path)])
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        names = ", ".join(IMAGENET_LISTS)
        raise InputError(
            f"{path}: a class list must end in {', '.join(_SUFFIXES)}; this ends in {suffix!r}. "
            f"{did_you_mean(str(path), IMAGENET_LISTS, f'Lists with a name are {names}.')}"
        )
    text = read_text(path)
    classes = _from_lines(text, path) if suffix == ".txt" else _from_items(_parse(path, text), path)
    if not classes:
        raise InputError(f"{path}: the list is empty. Give at least two classes.")
    _refuse_shared_ids(classes, path)
    return list(classes.values())


def save_classes(classes: Iterable[ClassEntry], path: Path) -> None:
    """Write a class list, which `load_classes` reads.

    Args:
        path: ends in one of LISTS_WITH_IDS.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(path, classes_text(classes, path.suffix))


def classes_text(classes: Iterable[ClassEntry], suffix: str) -> str:
    """Return a class list as the text of a file with this suffix: JSON with a class a line, else YAML."""
    filled = [{key: value for key, value in asdict(entry).items() if value} for entry in classes]
    if suffix.lower() != ".json":
        return yaml.dump(filled, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_NO_WRAPPING)
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in filled) + "\n]\n"


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """YAML dumper that writes the contexts and the parents of a class in a line each."""


_Dumper.add_representer(
    tuple, lambda dumper, texts: dumper.represent_sequence("tag:yaml.org,2002:seq", texts, flow_style=True)
)


def _imagenet(subset: str | None) -> list[ClassEntry]:
    """Classes of ImageNet, with its numbers as ids, open_clip's names and timm's WordNet ids."""
    # Imported here: both libraries take seconds to import, and most class lists are files.
    from importlib.resources import files

    from beamclip.openclip import open_clip

    folder = files("timm.data") / "_info"
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    numbers = range(len(synsets)) if subset is None else map(int, (folder / subset).read_text().split())
    names = open_clip.IMAGENET_CLASSNAMES
    return [ClassEntry(str(number), names[number], synset=synsets[number]) for number in numbers]


def named_classes(classes: Iterable[str | ClassEntry]) -> list[ClassEntry]:
    """Make a class list of names, each of which is its own id, or check a list of entries.

    Raises:
        InputError: one is neither or an unusable name, there is none, or two share an id.
    """
    numbered = {number: _named(item, number) for number, item in enumerate(classes, start=1)}
    if not numbered:
        raise InputError("classes: the list is empty. Give at least two classes.")
    _refuse_shared_ids(numbered, Path("classes"))
    return list(numbered.values())


def _named(item: str | ClassEntry, number: int) -> ClassEntry:
    if isinstance(item, ClassEntry):
        return item
    name = _text(item, "name", f"classes: entry {number}")
    if not name:
        raise InputError(f"classes: entry {number} has no name. Give it one, or leave it out.")
    return ClassEntry(name, name)


def _from_lines(text: str, path: Path) -> dict[int, ClassEntry]:
    """Line number -> class."""
    classes = {}
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.strip()
        if not name or name == "#" or name.startswith(("# ", "#\t", "##")):
            continue
        if name.startswith("#"):
            raise InputError(
                f"{path}: line {number}: {name[:40]!r} is a comment only with a space after the #. "
                f"A class of this name needs a YAML list: - name: {name[:40]!r}"
            )
        name = _checked(name, f"{path}: line {number}")
        classes[number] = ClassEntry(id=name, name=name)
    return classes


def _checked(text: str, where: str) -> str:
    check_text(text, where)
    return nfc(text)


def _parse(path: Path, text: str) -> list[Any]:
    parse = parse_json if path.suffix.lower() == ".json" else parse_yaml
    items = parse(text, str(path))
    if items is None:
        return []
    if not isinstance(items, list):
        raise InputError(f"{path} holds a {_kind(items)}; write a list of mappings, each with a `name`.")
    return items


def _from_items(items: list[Any], path: Path) -> dict[int, ClassEntry]:
    """Entry number -> class."""
    return {number: _entry(item, f"{path}: entry {number}") for number, item in enumerate(items, start=1)}


def _entry(item: Any, where: str) -> ClassEntry:
    if not isinstance(item, dict):
        raise InputError(
            f"{where} is the {_kind(item)} {_short(item)}; write a mapping, such as `name: crane`."
        )
    for key in item:
        if key not in KEYS:
            hint = did_you_mean(str(key)[:40], KEYS, f"Known keys: {', '.join(KEYS)}.")
            raise InputError(f"{where} has the unknown key {_short(key)}. {hint}")
    given = {key: value for key, value in item.items() if value is not None}
    name = _text(given.get("name", ""), "name", where)
    if not name:
        raise InputError(f"{where} has no name. Give it one: it is what the prompts call the class.")
    contexts, parents = (_texts(given.get(key, []), key, where) for key in ("contexts", "parents"))
    synset = _text(given.get("synset", ""), "synset", where) or None
    return ClassEntry(_id(given.get("id", name), where) or name, name, contexts, parents, synset)


def _id(value: Any, where: str) -> str:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_integer else _text(value, "id", where)


def _short(value: Any) -> str:
    """Abbreviate a value: with YAML's aliases, a few lines can stand for more than fits into memory."""
    return reprlib.repr(value)


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} must be text, not the {_kind(value)} {_short(value)}.")
    return _checked(value.strip(), f"{where}: {key}")


def _texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} must be a list of texts, not the {_kind(value)} {_short(value)}.")
    texts = tuple(_text(text, f"each of {key}", where) for text in value)
    if "" in texts:
        raise InputError(f"{where}: {key} holds an empty text. Remove it.")
    return texts


def _kind(value: Any) -> str:
    names = {str: "text", dict: "mapping", list: "list", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "value")


def _refuse_shared_ids(classes: dict[int, ClassEntry], path: Path) -> None:
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, entry in classes.items():
        numbers[entry.id].append(number)
    shared = {id_: found for id_, found in numbers.items() if len(found) > 1}
    if not shared:
        return
    id_, found = next(iter(shared.items()))
    names = ", ".join(dict.fromkeys(f'"{classes[number].name}"' for number in found))
    from_lines = path.suffix.lower() == ".txt"
    places = f"{'lines' if from_lines else 'entries'} {_listed(found)}"
    more = f" Further shared ids: {len(shared) - 1}." if len(shared) > 1 else ""
    advice = "Write a YAML list that gives" if from_lines else "Give"
    raise InputError(
        f"{path}: {len(found)} classes share the id {id_} ({names}): {places}.{more} "
        f"{advice} each class its own id; names may repeat."
    )


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
