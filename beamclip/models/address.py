"""Parsing of model addresses, kept apart from the code that loads models and imports torch."""

from pathlib import Path

OPEN_CLIP, HUB, LOCAL_DIR, TIMM = "open_clip", "hf-hub", "local-dir", "timm"


def split_address(address: str) -> tuple[str, str]:
    """Split a model's address into (schema, rest); the schema of a plain path is "".

    `open_clip:` before another schema is dropped.
    """
    schema, colon, rest = address.partition(":")
    if colon and schema == OPEN_CLIP and rest.startswith((f"{HUB}:", f"{LOCAL_DIR}:")):
        return split_address(rest)
    if colon and schema in (OPEN_CLIP, HUB, LOCAL_DIR, TIMM):
        return schema, rest
    return "", address


def named_file(rest: str) -> Path | None:
    """Return the file in NAME/FILE; None if there is no such file."""
    _, slash, file = rest.partition("/")
    try:
        path = Path(file).expanduser()
        # A tag has no suffix: a file in the current folder that happens to have its name is not meant.
        return path if slash and path.suffix and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # not a usable path
        return None


def absolute_address(address: str) -> str:
    """Make an existing path in an address absolute, so that it names the same model from any folder."""
    schema, rest = split_address(address)
    before = address[: len(address) - len(rest)]
    if schema not in (HUB, OPEN_CLIP, TIMM):
        path = Path(rest).expanduser()
        if rest and path.exists():
            return f"{before}{path.resolve()}"
    file = named_file(rest) if schema in ("", OPEN_CLIP, TIMM) else None
    return f"{before}{rest.partition('/')[0]}/{file.resolve()}" if file else address
