"""Decides which addresses a URL from an answer may lead to: none in a private network. No I/O."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_PRIVATE = tuple(
    ip_network(block)
    for block in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
# Where clouds give credentials to whoever asks, outside the link-local range.
_METADATA = {ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")}
_NAT64 = ip_network("64:ff9b::/96")


def literal(host: str) -> str | None:
    """
    Give the address that a host is itself, however it is written; ``None`` for a name.

    >>> literal("0x7f.1")
    '127.0.0.1'
    """
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    # what resolvers take for an address: 2130706433, 0177.0.0.1, 127.1
    if re.fullmatch(r"[0-9a-fx.]+", host, re.IGNORECASE | re.ASCII):
        try:
            return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
        except OSError:
            pass
    return None


def is_local_name(host: str) -> bool:
    """Tell whether a name means this machine, whoever resolves it."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Tell whether a host, a name or an address, is this machine itself."""
    address = literal(host)
    return is_local_name(host) if address is None else _meant(address).is_loopback


def may_be_reached(address: str, own: Iterable[str]) -> bool:
    """
    Tell whether an address is public, or in the same private network as the service itself.

    :param address: an IP address.
    :param own: the addresses of the service.
    """
    ip = _meant(address)
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
        return False
    if ip.is_loopback:
        return any(_meant(each).is_loopback for each in own)
    for block in _PRIVATE:
        if ip in block:
            return any(_meant(each) in block for each in own)
    return ip.is_global and not ip.is_reserved and not (isinstance(ip, IPv6Address) and ip.is_site_local)


def _meant(address: str) -> IPv4Address | IPv6Address:
    """Give the address that packets go to: IPv6 has several ways to wrap one of IPv4."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip.ipv4_mapped or ip.sixtofour or ip
    return ip
