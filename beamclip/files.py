"""Read small files that a user gives, and write files in one step.

A file that is given may hold anything. It is accepted only if it is a regular file of a sane size, in UTF-8,
whose content is neither nested too deeply nor, with its YAML aliases expanded, too large. Everything else is
an `InputError` of one line.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import yaml

from beamclip.errors import InputError

MOST_BYTES = 64 << 20
"""Largest file that a user may give, by default."""
MOST_DEPTH = 50
"""Levels of mappings and lists inside each other; a few hundred would reach Python's recursion limit."""

_JSON_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_TOO_DEEP = f"nested more than {MOST_DEPTH} levels deep"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML loader that leaves all scalars but null as the text in the file.

    YAML 1.1 would read the class `no` as False, the id 0012 as ten, 1e-3 as text and 2026-02-30 as an error;
    the caller, who knows the wanted type, converts the text.
    """

    yaml_implicit_resolvers: ClassVar = {
        start: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# Where `<<` is not a key, it is a text too.
TextLoader.add_constructor(_MERGE, yaml.SafeLoader.construct_yaml_str)


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        InputError: it is missing, not a regular file, not readable, too large, or not UTF-8.
    """
    try:
        # Opening a pipe waits for its writer; /dev/zero has no end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if path.is_dir() else "no regular file"
            raise InputError(f"{path}: cannot be read (it is {kind}). Give a file.")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}). Give an existing file.") from error
    if len(content) > most_bytes:
        raise InputError(
            f"{path}: is larger than {most_bytes:,} bytes, the most that is read of such a file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: line {line}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from error


def read_yaml(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Return the content of a YAML file: mappings, lists, texts and None; see `TextLoader`.

    Raises:
        InputError: as `read_text`, or as `parse_yaml`.
    """
    return parse_yaml(read_text(path, most_bytes), str(path), most_bytes)


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        InputError: as `read_text`, or as `parse_json`.
    """
    return parse_json(read_text(path, most_bytes), str(path))


def parse_yaml(text: str, source: str, most_nodes: int = MOST_BYTES) -> Any:
    """Return the content of a YAML text: mappings, lists, texts and None; see `TextLoader`.

    Args:
        source: named in the messages.
        most_nodes: limit on texts, lists and mappings, aliases expanded: a kilobyte can hold a billion.

    Raises:
        InputError: it is not YAML, a mapping repeats a key, or the content is too deep, too large, contains
            itself or holds half a character; mostly with the line.
    """
    try:
        _check_events(yaml.parse(text, Loader=TextLoader), most_nodes)
        content = yaml.load(text, Loader=TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a tag that does not fit
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} is" if mark else "this is"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{source}: {where} not valid YAML: {problem[:200].rstrip('.')}.") from error
    return _without_surrogates(content, text, source)


def parse_json(text: str, source: str) -> Any:
    """Return the content of a JSON text.

    Args:
        source: named in the messages.

    Raises:
        InputError: it is not JSON, too deep, or holds half a character or a number of thousands of digits.
    """
    depth = 0
    for token in _JSON_TOKENS.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > MOST_DEPTH:
            line = text.count("\n", 0, token.start()) + 1
            raise InputError(f"{source}: line {line} is {_TOO_DEEP}.")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: line {error.lineno} is not valid JSON: {error.msg}.") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise InputError(f"{source}: a number in it has thousands of digits.") from error
    return _without_surrogates(content, text, source)


def _check_events(events: Iterable[Any], most_nodes: int) -> None:
    """Refuse YAML that is too deep, too large or endless, before anything is built from it.

    Raises:
        yaml.YAMLError: names the place.
    """
    nodes = 0
    sizes: dict[str | None, int] = {}
    parents: list[_Open] = []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            ended = parents.pop()
            if ended.anchor:
                sizes[ended.anchor] = nodes - ended.nodes_before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        problem = parents[-1].add(event) if parents else None
        if isinstance(event, yaml.AliasEvent):
            if any(each.anchor == event.anchor for each in parents):
                problem = f"*{event.anchor} contains itself"
            # An unknown alias is an error that the parser reports itself.
            nodes += sizes.get(event.anchor, 0)
        else:
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                parents.append(_Open(event, nodes - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        if len(parents) > MOST_DEPTH:
            problem = _TOO_DEEP
        if nodes > most_nodes:
            problem = f"with its aliases expanded, more than {most_nodes:,} values"
        if problem:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Open:
    """A list or mapping whose end has not come yet."""

    def __init__(self, event: Any, nodes_before: int) -> None:
        self.anchor = event.anchor
        self.nodes_before = nodes_before
        self._keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
        self._is_key = True

    def add(self, event: Any) -> str | None:
        """Add the next child; return what is wrong with it, if anything is."""
        is_key = self._is_key
        self._is_key = not is_key
        if self._keys is None or not is_key or not isinstance(event, yaml.ScalarEvent):
            return None
        if event.value in self._keys and event.value != "<<":
            return f"the key {event.value!r} is given twice"
        self._keys.add(event.value)
        return None


def _without_surrogates(content: Any, text: str, source: str) -> Any:
    """Return the content; refuse half a surrogate pair, which can be neither printed nor written."""
    if _ESCAPED_SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("unicode_escape").decode()
            raise InputError(f"{source}: {half} is half a character. Write the whole one.") from error
    return content


def write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file in one step: a reader sees the old file or the new one, never a part.

    Args:
        content: the text, or a function that writes the file to the path it is given. Either way the file has
            the permissions of any new file (safetensors alone would make it readable only to its owner).
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        draft.touch()
        mode = stat.S_IMODE(draft.stat().st_mode)
        if isinstance(content, str):
            draft.write_text(content, encoding="utf-8")
        else:
            content(draft)
            draft.chmod(mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
