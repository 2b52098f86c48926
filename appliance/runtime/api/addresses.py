"""How many connections each address holds, so that one address cannot take them all."""

from __future__ import annotations

import ipaddress
from collections import Counter

_NETWORK = 64
"""Leading bits of an IPv6 address that one caller has the rest of."""


class Addresses:
    """most: connections of one address; 0: any number. This machine's own are not counted: they
    are its user's, or those of a proxy that speaks for many."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: Counter[str] = Counter()

    def take(self, host: str) -> bool:
        """False when the address has all that it may hold. `leave` belongs to what was taken."""
        if self.most and self._held[host] >= self.most:
            return False
        if host:
            self._held[host] += 1
        return True

    def leave(self, host: str) -> None:
        self._held[host] -= 1
        if self._held[host] <= 0:
            del self._held[host]


def counted_as(peer: object) -> str:
    """What a socket's peer is counted under; empty when it is not counted."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return ""
    if address.version == 6:
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return ""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network(f"{address}/{_NETWORK}", strict=False))
