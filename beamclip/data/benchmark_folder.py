"""Data in the form of CLIP_benchmark: a folder of tars for each split, beside what all splits share.

    classnames.txt                            a name a line; labels are their numbers, from 0
    zeroshot_classification_templates.txt     a template a line, with {c} for the class
    dataset_type.txt                          `retrieval`, `multilabel`, or missing
    test/0.tar, test/1.tar, ...               x.webp (jpg, png) with x.cls, or with x.txt, a caption a line
    test/nshards.txt                          how many tars there are

The form is that of https://github.com/LAION-AI/CLIP_benchmark (build_wds_dataset of version 1.6.2), in which
its authors offer most of their data sets.
"""

import posixpath
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from beamclip.data.class_folders import class_folders
from beamclip.errors import InputError

SPLITS = frozenset({"train", "training", "test", "testing", "eval", "val", "valid", "validation", "dev"})
"""Names that folders of splits have."""
TRAINING = frozenset({"train", "training"})
"""Those that hold images to train on; the others hold images to score on."""

NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TYPE_FILE = "dataset_type.txt"
COUNT_FILE = "nshards.txt"

MOST_BYTES = 4 << 20
"""Most bytes that are read of any of these files."""


@dataclass(frozen=True)
class Benchmark:
    """What the files beside the splits say."""

    names: tuple[str, ...]
    """Names of the classes, in the order of their numbers; empty without classnames.txt."""
    templates: tuple[str, ...]
    """Prompt templates with {} for the class; empty without a file of them."""


def find_split(fs: Any, root: str, wanted: str) -> str | None:
    """Name of the folder of a split, or of the only one; None if no split of the folder holds tars.

    Args:
        wanted: name of the split.

    Raises:
        InputError: there are several splits, and none of them is the wanted one; or the only one holds images
            to train on where images to score on are wanted, or the other way round.
    """
    folders, files = class_folders(fs, root)
    if any(path.endswith((".tar", ".parquet")) for path in files):
        return None
    named = (path for path in folders if posixpath.basename(path) in SPLITS)
    splits = [posixpath.basename(path) for path in named if _holds_tars(fs, path)]
    if not splits:
        return None
    other_role = (splits[0] in TRAINING) != (wanted in TRAINING)
    if wanted not in splits and (len(splits) > 1 or other_role):
        held = (
            f"splits {', '.join(splits)}, and {wanted} is none of them"
            if splits[1:]
            else f"split {splits[0]} only"
        )
        raise InputError(
            f"{root}: holds the {held}. To use another than {wanted}, give its folder: "
            f"{posixpath.join(root, splits[0])}."
        )
    return wanted if wanted in splits else splits[0]


def _holds_tars(fs: Any, folder: str) -> bool:
    return any(path.endswith(".tar") for path in class_folders(fs, folder)[1])


def has_caption_lines(fs: Any, root: str, files: Collection[str]) -> bool:
    """Whether each line of a sample's text is a caption of its own, in the tars of one split.

    Args:
        root: folder of the split.
        files: names of the files in it.

    Raises:
        InputError: tars are missing, or the samples have several labels each.
    """
    kind = _kind(fs, root)
    if kind == "multilabel":
        raise InputError(
            f"{_beside(root)}: a data set of several labels a sample ({TYPE_FILE}), which beamclip cannot "
            "score. Give data with one label a sample."
        )
    if COUNT_FILE in files:
        _check_count(fs, root, files)
    return kind == "retrieval"


def _kind(fs: Any, root: str) -> str:
    if posixpath.basename(root.rstrip("/")) not in SPLITS:
        return ""
    return (_read(fs, posixpath.join(_beside(root), TYPE_FILE)) or "").strip().lower()


def _check_count(fs: Any, root: str, files: Collection[str]) -> None:
    path = posixpath.join(root, COUNT_FILE)
    said = (_read(fs, path) or "").strip()
    found = sum(name.endswith(".tar") for name in files)
    if not said.isdecimal():
        raise InputError(
            f"{path}: {said[:40]!r} is no number of tars. Write {found}, if that is all of them."
        )
    if int(said) > found:
        raise InputError(
            f"{root}: {found} of {int(said)} tars are there ({COUNT_FILE}). Bring the others, or correct "
            f"{COUNT_FILE}."
        )


def read_benchmark(fs: Any, root: str) -> Benchmark | None:
    """What the files beside the splits say; None if this is no data set of this form.

    Args:
        root: the data set's folder, or that of one of its splits.

    Raises:
        InputError: a file is not UTF-8, a class has no name, or a template has no place for the class.
    """
    root = root.rstrip("/")
    folder = _beside(root) if posixpath.basename(root) in SPLITS else root
    names = _read(fs, posixpath.join(folder, NAMES_FILE))
    templates = _read(fs, posixpath.join(folder, TEMPLATES_FILE))
    is_split = folder != root and fs.exists(posixpath.join(root, COUNT_FILE))
    if names is None and templates is None and not is_split:
        return None
    return Benchmark(
        _names(names or "", posixpath.join(folder, NAMES_FILE)),
        _templates(templates or "", posixpath.join(folder, TEMPLATES_FILE)),
    )


def _names(text: str, path: str) -> tuple[str, ...]:
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if "" in names:
        raise InputError(
            f"{path}: line {names.index('') + 1} is empty, and a label is the number of a line. Give the "
            "class a name."
        )
    return names


def _templates(text: str, path: str) -> tuple[str, ...]:
    templates = []
    for number, line in enumerate(text.splitlines(), 1):
        template = line.strip().replace("{c}", "{}")
        if template and template.count("{}") != 1:
            raise InputError(
                f"{path}: line {number}, {template[:60]!r}: write {{c}} once, in place of the class."
            )
        templates += [template] if template else []
    return tuple(templates)


def _beside(root: str) -> str:
    return posixpath.dirname(root.rstrip("/"))


def _read(fs: Any, path: str) -> str | None:
    try:
        content: bytes = fs.cat_file(path, end=MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
