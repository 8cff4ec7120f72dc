"""Addresses as they may be stored: without user names, passwords and signatures.

`s3://KEY:SECRET@bucket/x` and `https://host/x?X-Amz-Signature=...` give access to whoever reads them in
config.yaml, in MLflow or on a model's card. A mark stands for what was left out, so that a command that reads
the address again can ask for it.
"""

import contextlib
import re
from collections.abc import Iterator

from beamclip.errors import InputError

MARK = "***"

_USER = re.compile(
    # https://user:password@host/x. The port of a host is no password: host:9000/x@y stays.
    r"""(?P<scheme>://)(?:[^\s/?#'"<>]*|[^\s/?#:@\['"<>]*:(?!\d+/)[^\s?#'"<>]*)@"""
    # Path() turns two slashes into one.
    r"""|(?P<short>\w:/)[^\s/?#:@'"<>]+:[^\s?#'"<>]*@"""
)
_QUERY = re.compile(r"""(\w:/{1,2}[^\s?'"<>]*)\?([^\s'"<>]*[^\s'"<>:.,;)])""")
_SECRET = re.compile(
    r"(?:^|[&;#])[^&;=]*(?:sig|token|secret|pass|pwd|credential|key|auth|policy)[^&;=]*=", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """Return a text without the user names, passwords and signed queries of the addresses in it.

    A query is left out as a whole if one of its parameters is named like a signature, token or key, as in the
    presigned addresses of S3, GCS and Azure; any other query stays.
    """
    return _QUERY.sub(
        _shown_query, _USER.sub(lambda found: f"{found['scheme'] or found['short']}{MARK}@", text)
    )


def lacks_secrets(address: str) -> bool:
    """Whether `without_secrets` has left something out of this address."""
    return f"/{MARK}@" in address or f"?{MARK}" in address


@contextlib.contextmanager
def reachable(address: object, advice: str) -> Iterator[None]:
    """Turn any error inside into an InputError about the address, since each store has its own errors.

    Args:
        advice: last sentence of the message: what to do.

    Raises:
        InputError: something inside failed; one that was raised inside passes as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        cause = " ".join(str(said).split())[:200].rstrip(".")
        raise InputError(without_secrets(f"{address}: cannot be read ({cause}). {advice}")) from error


def _shown_query(found: re.Match[str]) -> str:
    return f"{found[1]}?{MARK}" if _SECRET.search(found[2]) else found[0]
