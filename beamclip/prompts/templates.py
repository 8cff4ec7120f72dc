"""Prompt templates: named sets, and the user's own."""

import re
from collections.abc import Sequence
from functools import cache

from beamclip.errors import InputError
from beamclip.prompts.texts import check_text
from beamclip.spelling import did_you_mean

AUTO = "auto"
"""Stands for the templates that fit the teacher; see prompts.fitting."""
SLOT = "{}"
BENDING = "a(n) {}"
"""An article that adapts to the class: "a crane", "an owl"."""

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a(n) {}.",),
    "ensemble": (
        "a photo of a(n) {}.",
        "a close view of a(n) {}.",
        "a(n) {} seen from far away.",
        "a dark, grainy photo of a(n) {}.",
        "a bright, sharp photo of a(n) {}.",
        "a drawing of a(n) {}.",
        "a scene with a(n) {} in it.",
    ),
    "symbol": (
        "the symbol for {}.",
        "a pictogram of a(n) {}.",
        "a small colourful icon of a(n) {}.",
    ),
}
"""Set name -> templates; each holds `{}` once, for the class."""

OPEN_CLIP_SETS = {"openai7": "SIMPLE_IMAGENET_TEMPLATES", "openai80": "OPENAI_IMAGENET_TEMPLATES"}
"""Set name -> open_clip's constant, used verbatim: 7 and 80 templates for photographs."""

SET_NAMES = (*TEMPLATE_SETS, *OPEN_CLIP_SETS)

_ARTICLE = re.compile(r"\b([Aa])\(n\) $")


def resolve_templates(names: Sequence[str]) -> tuple[str, ...]:
    """Expand names of sets and literal templates into templates, without repetitions, in the order given.

    Raises:
        InputError: nothing is given, a name is neither that of a set nor a text with `{}` exactly once, a
            text is too long, or `auto` stands beside others.
        ValueError: `auto` has not been replaced by the templates that fit the teacher.
    """
    check_templates(names)
    if AUTO in names:
        raise ValueError("templates: auto must be replaced by the teacher's own first.")
    templates: dict[str, None] = {}
    for name in names:
        templates.update(dict.fromkeys(_of_set(name) or (name,)))
    return tuple(templates)


def check_templates(names: Sequence[str]) -> None:
    """Refuse what `resolve_templates` refuses, without importing open_clip; `auto` alone is accepted.

    Raises:
        InputError: as `resolve_templates`.
    """
    if not names:
        raise InputError("templates: none given. Give the name of a set or a text with {} in it.")
    if AUTO in names and len(names) > 1:
        raise InputError(f"templates: {AUTO} stands beside others. Give it alone, or leave it out.")
    for name in names:
        if name not in (AUTO, *SET_NAMES):
            _check_literal(name)


def fill(template: str, slot: str) -> str:
    """Put `slot` in place of the template's `{}`; "a(n)" before it becomes "an" before a vowel, else "a"."""
    before, after = template.split(SLOT)
    vowel = slot[:1].lower() in tuple("aeiou")
    return _ARTICLE.sub(r"\1n " if vowel else r"\1 ", before) + slot + after


def _of_set(name: str) -> tuple[str, ...]:
    return _open_clip_set(name) if name in OPEN_CLIP_SETS else TEMPLATE_SETS.get(name, ())


@cache
def _open_clip_set(name: str) -> tuple[str, ...]:
    # Imported here: open_clip takes seconds to import, and parsing options must not wait for it.
    from beamclip.openclip import open_clip

    return tuple(template(SLOT) for template in getattr(open_clip, OPEN_CLIP_SETS[name]))


def _check_literal(template: str) -> None:
    check_text(template, "templates")
    count = template.count(SLOT)
    if count == 1:
        return
    if count:
        raise InputError(
            f"templates: {template!r} holds {{}} {count} times. It stands for the class: keep one."
        )
    hint = did_you_mean(template, (AUTO, *SET_NAMES), f"The sets are {', '.join(SET_NAMES)}.")
    raise InputError(f"templates: {template!r} names no set of templates and holds no {{}}. {hint}")
