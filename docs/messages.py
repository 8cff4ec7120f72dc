"""Every message with which a command ends, read from the source: what raises it, and what it says.

A message is kept as its text with an ellipsis in place of each value.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

RAISED = (
    *("InputError", "FailedRunError", "UnscoredError", "TrainingError", "NonFiniteLossError"),
    *("CheckpointError", "OtherOrderError", "CacheError", "MissingShardError", "UnansweredShardError"),
    *("NothingToShowError", "UnreadableListError"),
)
ELLIPSIS = "…"
ROOT = Path(__file__).parents[1]


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
        found |= {Message(text, room) for _, texts in _raised(module) for text in texts if _has_words(text)}
    return sorted(found, key=lambda message: (message.room, message.text))


def passed_on(package: Path) -> list[str]:
    """Return the lines that raise an error whose text is all of another error, as the source has them."""
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node, texts in _raised(ast.parse(text)):
            if not any(map(_has_words, texts)):
                found.append(f"{path.name}: {ast.get_source_segment(text, node)}")
    return found


def _has_words(text: str) -> bool:
    return re.search(r"\w{3}", text) is not None


def _raised(module: ast.Module) -> Iterator[tuple[ast.Call, list[str]]]:
    """Yield each call that makes an error, and what that error may say."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
            texts = [text for argument in node.args[:1] for text in _said(argument, module)]
            yield node, [" ".join(text.split()) for text in texts]


def _said(node: ast.expr, module: ast.Module) -> list[str]:
    """Return what an expression may say: one text, or one for each `return` of a function of the module."""
    if isinstance(node, ast.Constant):
        return [] if node.value is None else [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return _joined(node.values, module)
    if isinstance(node, ast.FormattedValue):
        return _said(node.value, module) if _is_text(node.value, module) else []
    if isinstance(node, ast.Name):
        return [text for value in _assigned(node.id, module) for text in _said(value, module)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "without_secrets":
            return _said(node.args[0], module)
        return [text for value, place in _returned(node.func.id, module) for text in _said(value, place)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rstrip":
        return _said(node.func.value, module)
    if isinstance(node, ast.IfExp):
        return _said(node.body, module) + _said(node.orelse, module)
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in _said(value, module)]
    if isinstance(node, ast.BinOp):
        return _joined([node.left, node.right], module)
    return []


def _joined(parts: Iterable[ast.expr], module: ast.Module) -> list[str]:
    """Return every text that the parts make one after the other."""
    return ["".join(texts) for texts in product(*(_said(part, module) or [ELLIPSIS] for part in parts))]


def _is_text(node: ast.expr, module: ast.Module) -> bool:
    """Whether a value in a text is a text of its own: a constant of the module, or what a function says."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_").isupper() and len(_assigned(node.id, module)) == 1
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _assigned(name: str, module: ast.Module) -> list[ast.expr]:
    return [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]


def _returned(name: str, module: ast.Module) -> Iterator[tuple[ast.expr, ast.Module]]:
    """Yield what a function returns, of the module or imported from another one, and the module it is in."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            for statement in ast.walk(node):
                if isinstance(statement, ast.Return) and statement.value is not None:
                    yield statement.value, module
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            path = ROOT / f"{str(node.module).replace('.', '/')}.py"
            if path.is_file():
                yield from _returned(name, _parsed(path))


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
