"""The forms in which a model is named, apart from the code that loads one."""

from pathlib import Path

OPEN_CLIP, HUB, LOCAL_DIR = "open_clip", "hf-hub", "local-dir"


def split_address(address: str) -> tuple[str, str]:
    """(schema, what follows it) of a model's address; the schema of a plain path is "".

    `open_clip:` before one of open_clip's own schemas says nothing more.
    """
    schema, colon, rest = address.partition(":")
    if colon and schema == OPEN_CLIP and rest.startswith((f"{HUB}:", f"{LOCAL_DIR}:")):
        return split_address(rest)
    if colon and schema in (OPEN_CLIP, HUB, LOCAL_DIR):
        return schema, rest
    return "", address


def named_file(rest: str) -> Path | None:
    """The file of NAME/FILE, if there is one."""
    _, slash, file = rest.partition("/")
    try:
        path = Path(file).expanduser()
        # A tag has no suffix, whatever lies in the present folder.
        return path if slash and path.suffix and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # no path at all
        return None


def absolute_address(address: str) -> str:
    """The same model from any folder: a path that is there, also behind a schema, is written in full."""
    schema, rest = split_address(address)
    before = address[: len(address) - len(rest)]
    if schema != HUB and schema != OPEN_CLIP:
        path = Path(rest).expanduser()
        if rest and path.exists():
            return f"{before}{path.resolve()}"
    file = named_file(rest) if schema in ("", OPEN_CLIP) else None
    return f"{before}{rest.partition('/')[0]}/{file.resolve()}" if file else address
