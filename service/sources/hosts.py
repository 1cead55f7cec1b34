"""Where a model may come from over https: hosts on a list, at addresses that are public or on the list as well.

A name alone is not enough: whoever controls its DNS could point it at the cloud's metadata service or at a neighbour in
the cluster (DNS rebinding; TorchServe's CVE-2023-43654 needed no more). So the address is checked that is then connected to.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from service.errors import FetchError
from service.sources.remote import listed

HTTPS_PORT = 443
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# No list opens these. The clouds hand out credentials at link-local addresses, AWS also at fd00:ec2::254 (metadata) and
# fd00:ec2::23 (Pod Identity).
NEVER: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text) for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "0.0.0.0/8", "::/128")
)
# RFC 6052 and RFC 3056: an IPv4 address in an IPv6 one, which the network takes out again.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class AllowList:
    """The hosts of SCORER_MODEL_HTTPS_HOSTS; one that is written as an address or a network opens that address as well."""

    hosts: frozenset[tuple[str, int]]
    networks: tuple[Network, ...]

    @classmethod
    def from_text(cls, text: str) -> AllowList:
        entries = [split_host(entry) for entry in text.split(",") if entry]
        networks = []
        for host, _ in entries:
            try:
                networks.append(ipaddress.ip_network(host))
            except ValueError:
                continue  # a name
        return cls(frozenset(entries), tuple(networks))

    def verify_host(self, host: str, port: int) -> None:
        if (host, port) not in self.hosts:
            hosts = listed([f"{name}:{number}" for name, number in sorted(self.hosts)])
            raise FetchError(f"{host}:{port} is not among the hosts of SCORER_MODEL_HTTPS_HOSTS ({hosts})")

    def has_address(self, text: str) -> bool:
        """Whether this address may be connected to."""
        address = innermost(ipaddress.ip_address(text.partition("%")[0]))
        if address.is_multicast or any(address in network for network in NEVER):
            return False
        return address.is_global or any(address in network for network in self.networks)


def split_host(text: str) -> tuple[str, int]:
    """`example.com`, `example.com:8443`, `[::1]:8443`, `::1`, `10.0.0.0/8`."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, int(port.removeprefix(":") or HTTPS_PORT)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, int(port)
    return text, HTTPS_PORT


def innermost(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address
