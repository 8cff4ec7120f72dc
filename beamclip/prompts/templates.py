"""Prompt templates: named sets, and the user's own."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from beamclip.errors import InputError

SLOT = "{}"

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "ensemble": (
        "a photo of a {}.",
        "a close view of a {}.",
        "a {} seen from far away.",
        "a dark, grainy photo of a {}.",
        "a bright, sharp photo of a {}.",
        "a drawing of a {}.",
        "a scene with a {} in it.",
    ),
    "symbol": (
        "the symbol for {}.",
        "a pictogram of a {}.",
        "a small colourful icon of a {}.",
    ),
}
"""Set name -> templates; in each, `{}` stands once, for the class."""

_ARTICLE = re.compile(r"\b([Aa]) $")


def resolve_templates(names: Sequence[str]) -> tuple[str, ...]:
    """Expand names of sets and literal templates into templates, without repetitions, in the order given.

    Raises:
        InputError: nothing is given, or one is neither the name of a set nor a text with `{}` exactly once.
    """
    if not names:
        raise InputError("templates: none given. Give the name of a set or a text with {} in it.")
    templates: dict[str, None] = {}
    for name in names:
        templates.update(dict.fromkeys(TEMPLATE_SETS.get(name) or (_literal(name),)))
    return tuple(templates)


def fill(template: str, slot: str) -> str:
    """Put `slot` where the template says `{}`; an article "a" before it becomes "an" before a vowel."""
    before, after = template.split(SLOT)
    if slot[:1].lower() in tuple("aeiou"):
        before = _ARTICLE.sub(r"\1n ", before)
    return before + slot + after


def _literal(template: str) -> str:
    count = template.count(SLOT)
    if count == 1:
        return template
    if count:
        raise InputError(
            f"templates: {template!r} holds {{}} {count} times. It stands for the class: keep one."
        )
    close = get_close_matches(template, TEMPLATE_SETS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"The sets are {', '.join(TEMPLATE_SETS)}."
    raise InputError(f"templates: {template!r} names no set of templates and holds no {{}}. {hint}")
