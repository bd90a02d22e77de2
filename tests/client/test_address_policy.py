"""Where a URL from an answer may lead, and where not."""

from __future__ import annotations

import pytest

from airflow_provider_rungen.client.address_policy import is_local_name, literal, may_be_reached

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
# Beside those of the special blocks: metadata services, and what hides an address in another one.
NEVER = [
    *("169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0", "fd00:ec2::23", "fd20:ce::254"),
    *("fd00:42::42", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "2002:a9fe:a9fe::"),
    *("64:ff9b::a9fe:a9fe", "::", "ff02::1", "fec0::1", "::127.0.0.1", "2001:0:a9fe:a9fe::"),
]
LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::127.0.0.1"]
BLOCKS = [
    ["10.0.0.1", "10.255.255.255", "::ffff:10.1.1.1", "64:ff9b::10.0.0.1"],
    ["172.16.0.1", "172.31.255.255"],
    ["192.168.0.1", "192.168.255.1", "2002:c0a8:1::"],
    ["100.64.0.1", "100.127.255.255"],
    ["fd12::1", "fc00::1"],
]
SERVICES = ["93.184.216.34", "2606:2800:220:1::1", "127.0.0.1", *(block[0] for block in BLOCKS)]

# Of each special block, the first and the last address; beside them stand public ones, unless it is None.
EDGES = [
    ("0.0.0.0", "0.255.255.255", None, "1.0.0.0"),  # noqa: S104
    ("169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0"),
    ("192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"),
    ("192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"),
    ("192.31.196.0", "192.31.196.255", "192.31.195.255", "192.31.197.0"),
    ("192.52.193.0", "192.52.193.255", "192.52.192.255", "192.52.194.0"),
    ("192.88.99.0", "192.88.99.255", "192.88.98.255", "192.88.100.0"),
    ("192.175.48.0", "192.175.48.255", "192.175.47.255", "192.175.49.0"),
    ("198.18.0.0", "198.19.255.255", "198.17.255.255", "198.20.0.0"),
    ("198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"),
    ("203.0.113.0", "203.0.113.255", "203.0.112.255", "203.0.114.0"),
    ("224.0.0.0", "255.255.255.255", "223.255.255.255", None),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", None, None),
    ("100::", "100::ffff:ffff:ffff:ffff", None, None),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2000:ffff::", "2001:200::"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db7::", "2001:db9::"),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "2620:4f:7fff::", "2620:4f:8001::"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3ffe::", "3fff:1000::"),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, None),
    ("fe80::", "ff00::", None, None),
]


@pytest.mark.parametrize(("first", "last", "before", "after"), EDGES)
def test_special_blocks_are_refused_to_their_edges(
    first: str, last: str, before: str | None, after: str | None
) -> None:
    for own in ([], SERVICES, [first, last]):
        assert not may_be_reached(first, own)
        assert not may_be_reached(last, own)
        assert all(may_be_reached(beside, own) for beside in (before, after) if beside)
    if "." in first:
        assert not may_be_reached(f"::ffff:{first}", [])
        assert not may_be_reached(f"64:ff9b::{first}", [])


@pytest.mark.parametrize("address", PUBLIC)
@pytest.mark.parametrize("own", [None, *SERVICES])
def test_what_is_public_may_be_reached(address: str, own: str | None) -> None:
    assert may_be_reached(address, [own] if own else [])


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("own", [*SERVICES, "169.254.169.254", "0.0.0.0"])  # noqa: S104
def test_some_are_never_reached(address: str, own: str) -> None:
    assert not may_be_reached(address, [own])


@pytest.mark.parametrize("address", LOOPBACK)
def test_this_machine_is_reached_only_by_a_service_on_it(address: str) -> None:
    assert may_be_reached(address, ["127.0.0.1"])
    assert may_be_reached(address, ["93.184.216.34", "::1"])
    assert not any(may_be_reached(address, [own]) for own in SERVICES if own != "127.0.0.1")
    assert not may_be_reached(address, [])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0])
def test_a_private_network_is_reached_only_by_a_service_in_it(block: list[str]) -> None:
    for address in block:
        assert may_be_reached(address, [block[-1]])
        assert not may_be_reached(address, [])
        assert not any(may_be_reached(address, [own]) for own in SERVICES if own != block[0])


@pytest.mark.parametrize(
    ("hosts", "address"),
    [
        (("2130706433", "0177.0.0.1", "0x7f000001", "0X7F.1", "127.1", "127.0.0.1."), "127.0.0.1"),
        *((("10.0.0.1",), "10.0.0.1"), (("::1",), "::1"), (("fe80::1%eth0",), "fe80::1")),
        (("storage.example", "face.cafe", "1.2.3.4.5", ""), None),
    ],
)
def test_an_address_is_known_however_it_is_written(hosts: tuple[str, ...], address: str | None) -> None:
    assert {literal(host) for host in hosts} == {address}


def test_names_of_this_machine_are_known() -> None:
    assert all(map(is_local_name, ["localhost", "LocalHost.", "a.localhost"]))
    assert not any(map(is_local_name, ["localhost.example", "notlocalhost", ""]))
