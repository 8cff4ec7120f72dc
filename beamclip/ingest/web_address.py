"""Turn an address like `http://bücher.example/a picture.jpg` into the one that a browser would request."""

import re
import unicodedata
from urllib.parse import quote

_SCHEME = re.compile("https?:", re.IGNORECASE)
_AUTHORITY = re.compile(r"(https?:)//([^/?#]*)([^?#]*)(\?[^#]*)?", re.IGNORECASE | re.DOTALL)
_EDGES = "".join(map(chr, range(0x21)))
_KEPT_IN_PATH = "!$%&'()*+,-./:;=@[\\]_|~"
_KEPT_IN_QUERY = "!$%&()*+,-./:;=?@[\\]^_`{|}~"


def web_address(url: str) -> str:
    """Return a URL in ASCII, as browsers send it (https://url.spec.whatwg.org).

    Spaces and controls at the ends, tabs and line breaks are removed; a URL that is not http or https is
    otherwise left as it is. Characters that path and query may not contain are percent-encoded as UTF-8 (a
    `%` stays), the host name is IDNA-encoded, `\\` becomes `/`, and what follows `#` is left out.
    """
    url = re.sub(r"[\t\r\n]", "", url.strip(_EDGES))
    if not _SCHEME.match(url):
        return url
    before, mark, query = url.partition("#")[0].partition("?")
    match = _AUTHORITY.match(before.replace("\\", "/") + mark + query)
    if match is None:
        return url
    scheme, authority, path, query = match.groups(default="")
    try:
        path, query = quote(path, safe=_KEPT_IN_PATH), quote(query, safe=_KEPT_IN_QUERY)
        return f"{scheme}//{_ascii_host(authority)}{path}{query}"
    except UnicodeError:
        return url


def _ascii_host(authority: str) -> str:
    """Lower-case a host that is not ASCII, and encode such labels as Punycode; user names and ports stay."""
    if authority.isascii():
        return authority
    user, at, host = authority.rpartition("@")
    host, colon, port = host.partition(":")
    # Nearly the mapping of UTS 46: `ß` stays, soft hyphens go, and an ideographic full stop is a full stop.
    host = unicodedata.normalize("NFKC", host.replace("\u00ad", "").lower()).lower().replace("\u3002", ".")
    labels = (
        label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in host.split(".")
    )
    return f"{user}{at}{'.'.join(labels)}{colon}{port}"
