"""Contexts: what tells a class from another of the same name ("crane, a type of bird").

BeamCLIP (https://arxiv.org/abs/2301.02903) calls it context-based prompt augmentation; where contexts come
from and how they are written is this project's choice. A source is a function that turns one class into
texts, most helpful first. Two sources read the class list. The others need a lexicon (prompts.wordnet) or
counted captions (data.cooccurrence), so the caller passes them in.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice, zip_longest

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.spelling import did_you_mean

ContextSource = Callable[[ClassEntry], tuple[str, ...]]
"""Maps a class to its contexts, most helpful first; empty if the source knows none."""

NONE = "none"
WORDNET = "wordnet"
CAPTIONS = "captions"
_LACKING = {
    "file": "carry `contexts`. Add them to the class list (YAML or JSON)",
    "hierarchy": "carry `parents`. Add them to the class list (YAML or JSON)",
    WORDNET: "carry a `synset`. Add it to the class list (YAML or JSON)",
    CAPTIONS: "occur in the captions by their names. Give captions that name them (--context-columns)",
}
"""Name of a source -> end of the message "0 classes ..." if it has no contexts at all, with advice."""


def file_contexts(entry: ClassEntry) -> tuple[str, ...]:
    """Return the contexts that the class list gives."""
    return entry.contexts


def hierarchy_contexts(entry: ClassEntry) -> tuple[str, ...]:
    """Return "a type of ..." for each parent of the class, nearest first."""
    return tuple(f"a type of {parent}" for parent in entry.parents)


def source_names(context_source: str) -> tuple[str, ...]:
    """Split an option such as `hierarchy+captions` into names of sources; empty for `none`.

    Raises:
        InputError: a name is unknown or repeated, or `none` is combined with another.
    """
    names = tuple(name.strip() for name in context_source.split("+"))
    for name in names:
        if name not in (NONE, *_LACKING):
            known = [NONE, *_LACKING]
            hint = did_you_mean(name, known, f"The sources are {', '.join(known)}.")
            raise InputError(f"context_source {context_source!r}: there is no source {name!r}. {hint}")
    if len(set(names)) < len(names) or (NONE in names and len(names) > 1):
        raise InputError(
            f"context_source {context_source!r}: give each source once, joined by +, or {NONE} alone."
        )
    return () if names == (NONE,) else names


def class_contexts(
    classes: Sequence[ClassEntry],
    context_source: str,
    count: int,
    external_sources: Mapping[str, ContextSource] | None = None,
) -> list[tuple[str, ...]]:
    """Return the first contexts of each class, in the order of the classes.

    Several sources take turns: the first context of each, the second of each, and so on, without repetitions.

    Args:
        context_source: names of sources, joined by +.
        count: contexts a class, at most.
        external_sources: the sources that need more than the class list, by name.

    Raises:
        InputError: as `source_names`; or `count` is negative; or contexts are requested, and there is no
            source, or a source has none for any class.
        ValueError: a source is missing from `external_sources`.
    """
    names = source_names(context_source)
    if count < 0:
        raise InputError(f"num_contexts is {count}; it must be 0 or more.")
    if count == 0:
        return [()] * len(classes)
    if not names:
        raise InputError(
            f"num_contexts is {count}, but context_source is {NONE}. "
            "Choose a context source, or set num_contexts to 0."
        )
    known = {"file": file_contexts, "hierarchy": hierarchy_contexts, **(external_sources or {})}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"the source {missing[0]} was not given.")
    found = [[known[name](entry) for entry in classes] for name in names]
    for name, contexts in zip(names, found, strict=True):
        if not any(contexts):
            raise InputError(
                f"context_source is {context_source}, but 0 of {len(classes)} classes {_LACKING[name]}, "
                "or choose another context source."
            )
    return [tuple(islice(_in_turn(of_class), count)) for of_class in zip(*found, strict=True)]


def _in_turn(sources: Sequence[Sequence[str]]) -> list[str]:
    turns = chain.from_iterable(zip_longest(*sources))
    return list(dict.fromkeys(context for context in turns if context is not None))
