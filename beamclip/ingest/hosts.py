"""Which web addresses a download may reach: public hosts over http or https.

A URL list is written by strangers. Without a check it can make a cluster read the metadata service
of its cloud, a database on the same network, or a file of the node. Two checks work together:

- `url_refusal` looks at the text of a URL, before any name is resolved, and on every redirect.
- `host_addresses` looks at the addresses a name resolves to and returns exactly those the caller
  then connects to. A name that answers differently the second time (DNS rebinding) gains nothing,
  and every other spelling of an address (decimal, octal, hexadecimal, percent-encoded) ends here too.

"Private" stands for every address outside the public internet: private, loopback, link-local,
shared (RFC 6598), multicast, reserved, documentation and unspecified ranges of IPv4 and IPv6, and the
addresses at which clouds serve their machines although they look public.

Ports are checked too: a public address may belong to a router or a neighbour whose other services trust
whoever can reach them.
"""

import ipaddress
import socket
from collections.abc import Container
from urllib.parse import SplitResult, unquote, urlsplit

PRIVATE_ADDRESS = "refused: private address"
REFUSED_PORT = "refused: port"
OTHER_SCHEME = "refused: other scheme"
MALFORMED_URL = "malformed URL"

WEB_PORTS = (80, 443, 8000, 8008, 8080, 8081, 8088, 8443, 8888)
"""Ports on which web servers usually listen."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEMES = ("ftp", "file", "data", "blob", "about", "javascript", "s3", "gs", "ipfs")
"""Schemes that lists contain, counted by name; all others are counted as OTHER_SCHEME."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Missing in the ipaddress module of some or all Python versions.
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        [
            "168.63.129.16/32",  # Azure's platform services
            "192.0.0.0/24",  # RFC 6890; Oracle Cloud's metadata are at 192.0.0.192
            "192.88.99.0/24",  # relays of 6to4, deprecated
            "fec0::/10",  # site-local, deprecated
            "64:ff9b:1::/48",  # local NAT64, RFC 8215
            "3fff::/20",  # documentation, RFC 9637
            "5f00::/16",  # segment routing, RFC 9602
        ],
    )
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedURL(ValueError):
    """A URL this process must not fetch; the message is the reason that the counts show.

    Not an OSError on purpose: urllib would wrap one into a URLError and change the message.
    """


def is_public(address: str) -> bool:
    """True when an IP address in its usual notation belongs to the public internet.

    IPv6 addresses that carry an IPv4 address (mapped, 6to4, NAT64) are judged by the latter.

    Raises:
        ValueError: `address` is not an IP address.
    """
    ip = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    # is_global alone calls most multicast ranges and some reserved ones public.
    return ip.is_global and not (ip.is_private or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def url_refusal(url: str | None, *, allow_private: bool, ports: Container[int] = WEB_PORTS) -> str | None:
    """Return the reason why a URL must not be fetched, judged by its text alone, or None.

    `allow_private` permits addresses outside the public internet and all ports; schemes other than http and
    https, and credentials in the URL, are refused all the same.
    """
    parts = _split(url)
    if parts is None:
        return MALFORMED_URL
    if parts.scheme not in ("http", "https"):
        return f"refused: scheme {parts.scheme}" if parts.scheme in _SCHEMES else OTHER_SCHEME
    if not parts.hostname:
        return MALFORMED_URL
    if "@" in parts.netloc:
        return "refused: credentials in the URL"
    if allow_private:
        return None
    address = _literal_address(parts.hostname)
    if (address is not None and not is_public(address)) or _is_localhost(parts.hostname):
        return PRIVATE_ADDRESS
    port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    return None if port in ports else REFUSED_PORT


def host_addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses of a host, in the resolver's order; all of them public unless `allow_private`.

    Raises:
        RefusedURL: at least one of them is not public: DNS rebinding shows as a name that mixes both kinds.
        OSError: the name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(address) for address in addresses):
        raise RefusedURL(PRIVATE_ADDRESS)
    return addresses


def _split(url: str | None) -> SplitResult | None:
    if not url:
        return None
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - the property raises for a port that is no number
    except ValueError:
        return None
    return parts if parts.scheme else None


def _literal_address(host: str) -> str | None:
    """The usual notation of a host that is an IP address in any spelling the C library accepts."""
    host = unquote(host).rstrip(".")
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError, ValueError):
        return None


def _is_localhost(host: str) -> bool:
    """By RFC 6761 these names always mean this machine; checked here so that the reason is not their port."""
    return f".{host.rstrip('.')}".endswith(".localhost")


def _unwrap(ip: IPAddress) -> IPAddress:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
