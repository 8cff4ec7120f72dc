"""Normalise and check the texts that users give for prompts."""

import unicodedata

from beamclip.errors import InputError

MOST_CHARACTERS = 1000
"""Longest name, context or template. A text tower reads some 77 tokens of all of them together, and a
tokenizer's time may grow with the square of a text's length."""


def nfc(text: str) -> str:
    """Compose a text's letters: macOS writes folder names decomposed, editors write lists composed."""
    return unicodedata.normalize("NFC", text)


def check_text(text: str, where: str) -> None:
    """Raise InputError if a text is too long for a prompt, or cannot be encoded as UTF-8."""
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"{where}: {len(text):,} characters, beginning with {text[:40]!r}. "
            f"Give {MOST_CHARACTERS:,} or fewer: a text tower reads only some 77 tokens of a prompt."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {text[:40]!r} holds half of a surrogate pair at character {error.start + 1}. "
            "Write the character itself."
        ) from error
