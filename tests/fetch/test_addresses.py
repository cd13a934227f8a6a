"""Which addresses may be connected to: by every notation, and whatever a name server says."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.fetch.addresses import is_allowed

CLOSED = [
    ipaddress.ip_network(one)
    for one in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3",
    )
]  # fmt: skip
PRIVATE = st.one_of([st.ip_addresses(network=network) for network in CLOSED])


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
)
def test_is_allowed_loopback_only_by_option(address):
    assert not is_allowed(address, allow_loopback=False)
    assert is_allowed(address, allow_loopback=True)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:10.0.0.1",
        "64:ff9b::a00:1", "2002:a00:1::", "198.18.0.1",
        "192.0.0.192", "168.63.129.16", "192.88.99.1", "64:ff9b:1::a00:1", "::ffff:0:10.0.0.1",
        "::10.0.0.1", "2001:0:808:808::1", "2002:808:808::1", "3fff::1", "5f00::1", "4000::1",
        "64:ff9b::a9fe:a9fe", "2606:4700::1%inner.example",
    ],
)  # fmt: skip
def test_is_allowed_addresses_off_the_public_web_never(address):
    assert not is_allowed(address, allow_loopback=True)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1"])
def test_is_allowed_public_addresses(address):
    assert is_allowed(address, allow_loopback=False)


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_is_allowed_mapped_address_is_judged_like_its_inner_one(address):
    allowed = is_allowed(str(address), False)
    assert is_allowed(f"::ffff:{address}", False) == allowed
    assert is_allowed(f"64:ff9b::{address}", False) == allowed
    if allowed:
        assert address.is_global
        assert not address.is_private


@settings(deadline=None)
@given(st.ip_addresses(v=6))
def test_is_allowed_ipv6_address_is_one_that_ipaddress_calls_global(address):
    inside = address.ipv4_mapped or address in ipaddress.ip_network("64:ff9b::/96")
    if is_allowed(str(address), False) and not inside:
        assert address.is_global
        assert not (address.is_multicast or address.is_reserved or address.is_site_local)


@settings(deadline=None)
@given(PRIVATE)
def test_is_allowed_private_ipv4_address_in_no_ipv6_form(address):
    number = int(address)
    high, low = number >> 16, number & 0xFFFF
    forms = [
        str(address), f"::ffff:{address}", f"::ffff:{high:x}:{low:x}", f"::{address}",
        f"0:0:0:0:0:FFFF:{high:X}:{low:X}", f"::ffff:0:{address}", f"64:ff9b::{high:x}:{low:x}",
        f"64:ff9b:1::{address}", f"2002:{high:x}:{low:x}::1", f"2001:0:{high:x}:{low:x}::1",
        f"2001:0:1:1:1:1:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
    ]  # fmt: skip
    assert not [form for form in forms if is_allowed(form, False)]


def test_is_allowed_keeps_to_no_list_of_the_interpreter():
    # newer patches of Python call these private, 3.11.7 does not
    assert not is_allowed("192.0.0.192", True)
    assert not is_allowed("64:ff9b:1::1", True)
