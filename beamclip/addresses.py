"""Addresses as they may be written down: without what would let a reader in.

`s3://KEY:SECRET@bucket/x` and `https://host/x?X-Amz-Signature=...` give access to whoever reads them in
config.yaml, in MLflow or on a model's card. What is left out leaves a mark, by which a command that reads the
address again can ask for it.
"""

import contextlib
import re
from collections.abc import Iterator

from beamclip.errors import InputError

MARK = "***"

_USER = re.compile(
    # https://user:password@host/x. The port of a host is no password: host:9000/x@y stays.
    r"""(?P<scheme>://)(?:[^\s/?#'"<>]*|[^\s/?#:@\['"<>]*:(?!\d+/)[^\s?#'"<>]*)@"""
    # Path() makes one slash of two.
    r"""|(?P<short>\w:/)[^\s/?#:@'"<>]+:[^\s?#'"<>]*@"""
)
_QUERY = re.compile(r"""(\w:/{1,2}[^\s?'"<>]*)\?([^\s'"<>]*[^\s'"<>:.,;)])""")
_SECRET = re.compile(
    r"(?:^|[&;#])[^&;=]*(?:sig|token|secret|pass|pwd|credential|key|auth|policy)[^&;=]*=", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """An address, or any text that holds addresses, without user names, passwords and signed queries.

    A query is left out as a whole where one of its names is that of a signature, token or key, as in the
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
    """Tell whatever goes wrong inside of the address: each store has its own errors, to the user all are one.

    Args:
        advice: what to do, in a sentence.

    Raises:
        InputError: in one line.
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
