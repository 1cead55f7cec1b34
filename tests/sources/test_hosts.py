"""Which hosts and addresses a model may come from over https."""

from __future__ import annotations

import pytest

from service.errors import FetchError
from service.sources.hosts import AllowList, split_host


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("example.com", ("example.com", 443)),
        ("example.com:8443", ("example.com", 8443)),
        ("10.0.0.1:8443", ("10.0.0.1", 8443)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
        ("[2001:db8::1]", ("2001:db8::1", 443)),
        ("2001:db8::1", ("2001:db8::1", 443)),
    ],
)
def test_a_host_has_its_port_or_that_of_https(text: str, split: tuple[str, int]) -> None:
    assert split_host(text) == split


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "2001:db8::1"])
def test_no_host_is_allowed_unless_it_is_listed(host: str) -> None:
    with pytest.raises(FetchError, match=r"is not among the hosts of SCORER_MODEL_HTTPS_HOSTS \(none\)"):
        AllowList.from_text("").verify_host(host, 443)


@pytest.mark.parametrize("host", ["www.example.com", "example.com.evil.org", "example.co", "xample.com"])
def test_a_host_is_allowed_as_it_is_written_and_no_other(host: str) -> None:
    allowed = AllowList.from_text("example.com")
    allowed.verify_host("example.com", 443)
    with pytest.raises(FetchError, match=r"example\.com:443"):
        allowed.verify_host(host, 443)


def test_another_port_is_another_host() -> None:
    with pytest.raises(FetchError):
        AllowList.from_text("example.com").verify_host("example.com", 8443)


INNER = [
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "127.0.0.1",
    "100.64.0.1",
    "198.18.0.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:10.1.2.3",
    "::ffff:127.0.0.1",
    "64:ff9b::10.1.2.3",
    "2002:0a01:0203::1",
]
METADATA = [
    "169.254.169.254",
    "169.254.170.23",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
]


@pytest.mark.parametrize("address", INNER + METADATA)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """In whatever way they are written: mapped, translated (NAT64) and tunnelled (6to4) ones lead to the same machine."""
    assert not AllowList.from_text("example.com").has_address(address)


@pytest.mark.parametrize("address", METADATA)
def test_no_list_opens_the_address_that_hands_out_credentials(address: str) -> None:
    everything = "example.com,0.0.0.0/0,::/0,169.254.169.254,169.254.0.0/16,fe80::/10,fd00::/8"
    assert not AllowList.from_text(everything).has_address(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_public_addresses_need_no_mention(address: str) -> None:
    assert AllowList.from_text("example.com").has_address(address)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("models.corp,10.1.2.3", "10.1.2.3"),
        ("models.corp,10.0.0.0/8", "10.1.2.3"),
        ("models.corp,10.0.0.0/8", "::ffff:10.1.2.3"),
        ("127.0.0.1:8443", "127.0.0.1"),
        ("[::1]:8443", "::1"),
        ("models.corp,fd12:3456::/32", "fd12:3456::1"),
    ],
)
def test_an_address_within_is_opened_by_its_own_mention(text: str, address: str) -> None:
    allowed = AllowList.from_text(text)
    assert allowed.has_address(address)
    assert not allowed.has_address("192.168.7.7")
