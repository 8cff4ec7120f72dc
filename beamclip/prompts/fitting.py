"""Find the templates that fit a text tower: those that look like the captions it was trained on.

A tower trained on bare names has never read "a photo of a crane.", and its embedding of it is of little use.
A model therefore carries a note about its captions (FITTING_FILE, beside its config), from which distillation
and scoring take their templates.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pydantic

from beamclip.errors import InputError
from beamclip.prompts.templates import SLOT, TEMPLATE_SETS, check_templates
from beamclip.prompts.texts import nfc

FITTING_FILE = "beamclip.json"
UNKNOWN_TEMPLATES = ("photo",)
"""Used if the captions of a text tower are unknown: most are trained on captions of photographs."""

EXAMPLES = 5
MOST_TEMPLATES = 8
MOST_WORDS = 64
"""Words of a caption that are searched for a name."""
LEAST_SHARE = 0.03
"""Share of the captions, and at least two of them, that must have a frame for it to become a template."""
FRAMED_SHARE = 0.5
"""Share of the captions that all templates together must cover; otherwise captions count as free text."""
NAME_WORDS = 4
"""Free captions of at most this many words (median) are taken for names."""

_WORDS = re.compile(r"\S+")
_ARTICLE = re.compile(r"\b([Aa])n? \{\}")
_BEFORE_A_NAME = re.compile(r"\b([Aa])n?$")
_PHOTO = re.compile(r"an? photo of\b", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionFacts:
    """Facts about the captions that a model was trained on."""

    looked_at: int
    """Number of captions behind the other figures."""
    examples: tuple[str, ...]
    median_words: float
    photo_share: float
    """Share of captions that begin with "a photo of", 0..1."""
    name_share: float | None
    """Share of captions that are just the name of a class, 0..1; None without a class list."""


@dataclass(frozen=True)
class Fitting:
    """The templates that fit a model's text tower, and why."""

    templates: tuple[str, ...]
    """Names of sets, or templates."""
    reason: str
    captions: CaptionFacts | None = None


def fitting_of(captions: Sequence[str], names: Iterable[str] = ()) -> Fitting:
    """Find the templates that fit a text tower trained on captions such as these.

    With class names, the frames that most captions put around a name, or before it, become templates. Without
    names or such frames, the beginning that most captions share becomes the template. If there is none, it is
    the bare name for short captions, and UNKNOWN_TEMPLATES for long ones.

    Args:
        captions: at least one.
        names: of the classes, if there is a class list.
    """
    texts = [" ".join(nfc(caption).split()) for caption in captions]
    known = {_folded(name) for name in names}
    frames = Counter(_frame(text, known) for text in texts) if known else Counter[str | None]()
    facts = CaptionFacts(
        looked_at=len(texts),
        examples=tuple(text[:80] for text in list(dict.fromkeys(texts))[:EXAMPLES]),
        median_words=float(median(len(text.split()) for text in texts)),
        photo_share=sum(bool(_PHOTO.match(text)) for text in texts) / len(texts),
        name_share=frames[SLOT] / len(texts) if known else None,
    )
    found = _by_frames(frames, len(texts)) or _by_frames(_cut_behind(frames), len(texts))
    templates, reason = found or _by_beginning(texts) or _by_length(facts)
    return Fitting(_named(templates), reason, facts)


def write_fitting(fitting: Fitting, directory: Path) -> None:
    """Write a model's note, FITTING_FILE, to its directory."""
    text = json.dumps(asdict(fitting), indent=2, ensure_ascii=False)
    (directory / FITTING_FILE).write_text(text + "\n", encoding="utf-8")


def read_fitting(directory: Path) -> Fitting | None:
    """Read the note in a model's directory; None if there is none.

    Raises:
        InputError: the note cannot be used.
    """
    file = directory / FITTING_FILE
    if not file.is_file():
        return None
    try:
        fitting = pydantic.TypeAdapter(Fitting).validate_json(file.read_bytes())
        check_templates(fitting.templates)
    except (OSError, pydantic.ValidationError, InputError) as error:
        raise InputError(
            f"{file}: says nothing usable about the model's captions ({str(error).splitlines()[0]}). "
            "Remove it, and give --templates yourself."
        ) from error
    return fitting


def _frame(text: str, names: set[str]) -> str | None:
    """Replace the longest name in a caption by {}; None if it holds no name."""
    words = list(_WORDS.finditer(text))[:MOST_WORDS]
    longest = max(len(name.split()) for name in names)
    for length in range(min(longest, len(words)), 0, -1):
        for first in range(len(words) - length + 1):
            start, end = words[first].start(), words[first + length - 1].end()
            # A full stop or comma at the end may follow the name, or be part of it.
            for stop in (end, end - 1):
                if _folded(text[start:stop]) in names and (stop == end or text[stop] in ".,;:!?"):
                    framed = f"{text[:start]}{SLOT}{text[stop:]}"
                    return _ARTICLE.sub(r"\1(n) {}", framed) if framed.count(SLOT) == 1 else None
    return None


def _folded(name: str) -> str:
    return " ".join(nfc(name).casefold().split())


def _by_frames(frames: Counter[str | None], total: int) -> tuple[tuple[str, ...], str] | None:
    common = [
        (frame, number)
        for frame, number in frames.most_common()
        if frame is not None and number >= max(2, LEAST_SHARE * total)
    ][:MOST_TEMPLATES]
    held = sum(number for _, number in common) / total
    if held < FRAMED_SHARE:
        return None
    if common[0][0] == SLOT and common[0][1] >= 0.9 * total:
        return (SLOT,), f"{100 * common[0][1] / total:.0f} % of its captions are the bare name of a class"
    frames_held = tuple(frame for frame, _ in common)
    return frames_held, f"{100 * held:.0f} % of its captions are the name of a class in one of these"


def _cut_behind(frames: Counter[str | None]) -> Counter[str | None]:
    """Cut off what follows the name in each frame: it may be a context that differs each time."""
    cut = Counter[str | None]()
    for frame, number in frames.items():
        cut[frame and frame.partition(SLOT)[0] + SLOT] += number
    return cut


def _by_beginning(texts: Sequence[str]) -> tuple[tuple[str, ...], str] | None:
    """Make a template of the beginning that most captions share."""
    for length in range(6, 0, -1):
        begins = Counter(
            _BEFORE_A_NAME.sub(r"\1(n)", " ".join(words[:length]))
            for text in texts
            if len(words := text.split()) > length
        )
        begin, number = begins.most_common(1)[0] if begins else ("", 0)
        if number >= FRAMED_SHARE * len(texts) and SLOT not in begin:
            ended = sum(text.endswith(".") for text in texts)
            stop = "." if ended >= FRAMED_SHARE * len(texts) else ""
            share = f"{100 * number / len(texts):.0f} %"
            return (f"{begin} {SLOT}{stop}",), f'{share} of its captions begin "{begin}"'
    return None


def _by_length(facts: CaptionFacts) -> tuple[tuple[str, ...], str]:
    short = facts.median_words <= NAME_WORDS
    templates, like = ((SLOT,), "names") if short else (UNKNOWN_TEMPLATES, "sentences")
    return templates, f"its captions have {facts.median_words:g} words (median), as {like} do"


def _named(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Replace templates that form a set by its name."""
    sets = {frozenset(texts): name for name, texts in TEMPLATE_SETS.items()}
    name = sets.get(frozenset(templates))
    return templates if name is None else (name,)
