"""The rules of a security group, one for each source, and EC2's way to write them down."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from beamclip.cluster.cluster_file import Part
from beamclip.errors import InputError

_SOURCES = {
    "IpRanges": "CidrIp",
    "Ipv6Ranges": "CidrIpv6",
    "UserIdGroupPairs": "GroupId",
    "PrefixListIds": "PrefixListId",
}
"""The lists of sources in one of EC2's IpPermissions, and what names the source in their entries."""


@dataclass(frozen=True, order=True)
class Rule:
    """Traffic that may come in from one source."""

    protocol: str
    """tcp, udp, icmp; -1: all."""
    first_port: int
    last_port: int
    source: str
    """Addresses (203.0.113.7/32), or the id of a security group or of a list of addresses."""

    def __str__(self) -> str:
        if self.protocol == "-1":
            return f"everything from {self.source}"
        ports = f"{self.first_port}" + (f"-{self.last_port}" if self.last_port != self.first_port else "")
        return f"{self.protocol} {ports} from {self.source}"

    def permission(self) -> dict[str, Any]:
        """Return the rule as one of EC2's IpPermissions."""
        ports = {} if self.protocol == "-1" else {"FromPort": self.first_port, "ToPort": self.last_port}
        if self.source.startswith("sg-"):
            source = {"UserIdGroupPairs": [{"GroupId": self.source}]}
        elif self.source.startswith("pl-"):
            source = {"PrefixListIds": [{"PrefixListId": self.source}]}
        elif ":" in self.source:
            source = {"Ipv6Ranges": [{"CidrIpv6": self.source}]}
        else:
            source = {"IpRanges": [{"CidrIp": self.source}]}
        return {"IpProtocol": self.protocol, **ports, **source}


def parse_rules(permission: Part) -> Iterator[Rule]:
    """Yield the rules in one of EC2's IpPermissions.

    Raises:
        InputError: it lacks something, or an address is none.
    """
    protocol = str(permission.needed("IpProtocol"))
    everything = protocol == "-1"
    first, last = (-1, -1) if everything else (permission.port("FromPort"), permission.port("ToPort"))
    for kind, key in _SOURCES.items():
        for source in permission.parts(kind):
            name = str(source.needed(key))
            if kind in ("IpRanges", "Ipv6Ranges"):
                _check_addresses(name, source)
            yield Rule(protocol, first, last, name)


def _check_addresses(name: str, source: Part) -> None:
    try:
        ipaddress.ip_network(name)
        named = "/" in name
    except ValueError:
        named = False
    if not named:
        raise InputError(f"{source.where}: {name} are no addresses. Give them as in 203.0.113.7/32.")
