"""Decide which addresses a URL from an answer may lead to: none in a private network. No I/O."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


def _networks(*blocks: str) -> Collection[IPv4Network | IPv6Network]:
    return tuple(map(ip_network, blocks))


# The service itself may be in one of these networks.
_PRIVATE = (
    *map(_networks, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")),
    _networks("127.0.0.0/8", "::1/128"),
)
# Clouds hand out credentials at these addresses outside the link-local range.
_METADATA = _networks(
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "100.100.100.200", "168.63.129.16")
)
# Of IANA's special-purpose registries, and multicast, since `is_global` differs between versions of Python.
# 192.0.0.0/24 has the metadata of a cloud. In IPv6, only 2000::/3 is public.
_SPECIAL = _networks(
    *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24"),
    *("192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20"),
)
_PUBLIC_IPV6 = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")


def literal(host: str) -> str | None:
    """
    Return the address of a host that is one, in its usual form; ``None`` for a name.

    >>> literal("0x7f.1")
    '127.0.0.1'
    """
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    # resolvers accept these, too: 2130706433, 0177.0.0.1, 127.1
    if re.fullmatch(r"[0-9a-fx.]+", host, re.IGNORECASE | re.ASCII):
        try:
            return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
        except OSError:
            pass
    return None


def is_local_name(host: str) -> bool:
    """Return whether a name means this machine, whoever resolves it."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Return whether a host (a name or an address) is this machine."""
    address = literal(host)
    return is_local_name(host) if address is None else _target(address).is_loopback


def may_be_reached(address: str, service: Iterable[str]) -> bool:
    """
    Return whether an address is public, or in the same private network as the service.

    :param address: an IP address.
    :param service: the addresses of the service.
    """
    ip = _target(address)
    if _is_in(ip, _METADATA):
        return False
    for blocks in _PRIVATE:
        if _is_in(ip, blocks):
            return any(_is_in(_target(each), blocks) for each in service)
    return not _is_in(ip, _SPECIAL) and (isinstance(ip, IPv4Address) or ip in _PUBLIC_IPV6)


def _is_in(ip: IPv4Address | IPv6Address, blocks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(ip in block for block in blocks)


def _target(address: str) -> IPv4Address | IPv6Address:
    """Return the address that packets go to, since IPv6 can wrap an IPv4 address in several ways."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip.ipv4_mapped or ip.sixtofour or ip
    return ip
