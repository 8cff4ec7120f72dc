"""Small files that a user gives, read whole, and files that a command leaves, written whole.

Anything may stand in a file that was given: it is read only if it is a regular file of a sane size, in UTF-8,
and if what it says is neither deeper nor, with its aliases written out, larger than such a file needs. All
else is an `InputError` of one line.
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
"""Of a list that a user gives."""
MOST_DEPTH = 50
"""Mappings and lists inside each other; at a few hundred, Python's own limit on calls would be met."""

_JSON_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_TOO_DEEP = f"nested more than {MOST_DEPTH} levels deep"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose scalars stay the text that stands in the file, all but null.

    YAML 1.1 would read the class `no` as False, the id 0012 as ten, 1e-3 as text and 2026-02-30 as an error;
    whoever knows the type that is wanted converts the text.
    """

    yaml_implicit_resolvers: ClassVar = {
        start: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# Where `<<` is no key, it is a text too.
TextLoader.add_constructor(_MERGE, yaml.SafeLoader.construct_yaml_str)


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        InputError: it is missing, no regular file, not readable, too large, or not UTF-8.
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
    """What a YAML file says: mappings, lists, texts and None; see `TextLoader`.

    Raises:
        InputError: as `read_text`, or as `parse_yaml`.
    """
    return parse_yaml(read_text(path, most_bytes), str(path), most_bytes)


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """What a JSON file says.

    Raises:
        InputError: as `read_text`, or as `parse_json`.
    """
    return parse_json(read_text(path, most_bytes), str(path))


def parse_yaml(text: str, source: str, most_nodes: int = MOST_BYTES) -> Any:
    """What a YAML text says: mappings, lists, texts and None; see `TextLoader`.

    Args:
        source: named in the messages.
        most_nodes: texts, lists and mappings in it, aliases written out: a kilobyte can say a billion.

    Raises:
        InputError: it is no YAML, a key stands twice in a mapping, or it is too deep, too large or holds
            itself; with the line.
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
    """What a JSON text says.

    Args:
        source: named in the messages.

    Raises:
        InputError: it is no JSON, too deep, or holds a number of thousands of digits.
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
    """Refuse, before anything is built, what would be too deep, too large or without end.

    Raises:
        yaml.YAMLError: with the place.
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
                problem = f"*{event.anchor} holds itself"
            # One that is unknown is an error of the parser's own.
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
            problem = f"with its aliases written out, more than {most_nodes:,} values"
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
        """Take the next child; says what is wrong with it, if anything is."""
        is_key = self._is_key
        self._is_key = not is_key
        if self._keys is None or not is_key or not isinstance(event, yaml.ScalarEvent):
            return None
        if event.value in self._keys and event.value != "<<":
            return f"the key {event.value!r} stands there twice"
        self._keys.add(event.value)
        return None


def _without_surrogates(content: Any, text: str, source: str) -> Any:
    """The content, unless it holds half a character, which can be neither printed nor written."""
    if _ESCAPED_SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("unicode_escape").decode()
            raise InputError(f"{source}: {half} is half a character. Write the whole one.") from error
    return content


def write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file in one step: a reader meets the old file or the new one, never a half.

    Args:
        content: its text, or what writes it to the path that it is given. Either way it is as readable as
            any new file (safetensors would make one that is readable to its owner alone).
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
