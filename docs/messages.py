"""Every message with which a command ends, read from the source: what raises it, and what it says.

A message is kept as its text with an ellipsis in place of each value.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RAISED = ("InputError", "FailedRunError", "UnscoredError")
ELLIPSIS = "…"


@dataclass(frozen=True)
class Message:
    """What a command says when it ends with an error."""

    text: str
    room: str
    """The package that raises it, `data` for example, or the module at the top of beamclip."""


def messages(package: Path) -> list[Message]:
    """Return every message of a package, each once, sorted by room and text."""
    found = set()
    for path in sorted(package.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        room = path.relative_to(package).parts[0].removesuffix(".py")
        found |= {Message(text, room) for text in _texts(module) if re.search(r"\w{3}", text)}
    return sorted(found, key=lambda message: (message.room, message.text))


def _texts(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
            for argument in node.args[:1]:
                yield from (" ".join(text.split()) for text in _said(argument, module))


def _said(node: ast.expr, module: ast.Module) -> list[str]:
    """Return what an expression may say: one text, or one for each `return` of a function of the module."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(_part(value, module) for value in node.values)]
    if isinstance(node, ast.Name):
        return [text for value in _assigned(node.id, module) for text in _said(value, module)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "without_secrets":
            return _said(node.args[0], module)
        return [text for value in _returned(node.func.id, module) for text in _said(value, module)]
    if isinstance(node, ast.IfExp):
        return _said(node.body, module) + _said(node.orelse, module)
    return []


def _part(value: ast.expr, module: ast.Module) -> str:
    """Return a literal part of a text, the text of a constant of the module, or an ellipsis."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    assert isinstance(value, ast.FormattedValue)
    named = value.value
    if isinstance(named, ast.Name) and named.id.lstrip("_").isupper():
        said = [text for each in _assigned(named.id, module) for text in _said(each, module)]
        if len(said) == 1:
            return said[0]
    return ELLIPSIS


def _assigned(name: str, module: ast.Module) -> list[ast.expr]:
    return [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]


def _returned(name: str, module: ast.Module) -> list[ast.expr]:
    return [
        statement.value
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name == name
        for statement in ast.walk(node)
        if isinstance(statement, ast.Return) and statement.value is not None
    ]
