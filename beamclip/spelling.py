"""Suggestions for a name that was mistyped or given in part, for messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def close_names(word: str, names: Iterable[str], count: int = 4) -> list[str]:
    """Return the names that the word most likely stands for, best first; none if nothing is close.

    Names that begin with the word come first, shortest first, then those that are spelled like it. Case
    does not matter; no name is close to an empty word.
    """
    if not word:
        return []
    by_lower = {name.lower(): name for name in names}
    begun = sorted((name for name in by_lower if name.startswith(word.lower())), key=lambda n: (len(n), n))
    spelled = get_close_matches(word.lower(), by_lower, n=count)
    return [by_lower[name] for name in dict.fromkeys(begun[:count] + spelled)][:count]


def did_you_mean(word: str, names: Iterable[str], otherwise: str, count: int = 1) -> str:
    """Return "Did you mean a or b?" with up to `count` names, or `otherwise` if nothing is close."""
    close = close_names(word, names, count)
    return f"Did you mean {or_list(close)}?" if close else otherwise


def or_list(names: Iterable[str]) -> str:
    """Join names for a message: "a, b or c"."""
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
