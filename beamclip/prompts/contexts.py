"""Contexts: what tells a class from another of the same name ("crane, a type of bird").

BeamCLIP (https://arxiv.org/abs/2301.02903) calls it context-based prompt augmentation. A source turns one
class into texts, most helpful first. To add one, write the function, enter it in `_SOURCES` and name it in
`ContextSource`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry

ContextSource = Literal["none", "file", "hierarchy"]


def contexts_of(entry: ClassEntry, source: ContextSource) -> tuple[str, ...]:
    """Contexts of one class, most helpful first; empty where the source knows none."""
    return _SOURCES[source](entry)


def require_contexts(classes: Sequence[ClassEntry], source: ContextSource) -> None:
    """Raise InputError if the source knows no context for any of the classes."""
    key = _KEYS_READ.get(source)
    if key is not None and not any(contexts_of(entry, source) for entry in classes):
        raise InputError(
            f"context_source is {source}, but 0 of {len(classes)} classes carry `{key}`. "
            f"Add `{key}` to the class list (YAML or JSON), or choose another context source."
        )


def _none(entry: ClassEntry) -> tuple[str, ...]:
    return ()


def _file(entry: ClassEntry) -> tuple[str, ...]:
    return entry.contexts


def _hierarchy(entry: ClassEntry) -> tuple[str, ...]:
    return tuple(f"a type of {parent}" for parent in entry.parents)


_SOURCES: dict[ContextSource, Callable[[ClassEntry], tuple[str, ...]]] = {
    "none": _none,
    "file": _file,
    "hierarchy": _hierarchy,
}
_KEYS_READ: dict[ContextSource, str] = {"file": "contexts", "hierarchy": "parents"}
"""Which key of a class list a source reads, where it reads one."""
