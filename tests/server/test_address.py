"""Whose request it is."""

import dataclasses
from typing import Any

import pytest

from interp import settings
from pages.server import address


def scope(peer: str, *forwarded: str) -> dict[str, Any]:
    return {"client": (peer, 1234), "headers": [(b"x-forwarded-for", each.encode("latin-1")) for each in forwarded]}


@pytest.fixture(autouse=True)
def proxies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(request, "param", 0)
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, proxies=number))


def test_without_proxies_what_a_visitor_writes_is_not_believed() -> None:
    assert address.of(scope("198.51.100.1", "203.0.113.7")) == "198.51.100.1"
    assert address.of({"client": None, "headers": []}) == ""


@pytest.mark.parametrize(
    ("proxies", "forwarded", "expected"),
    [
        (1, ["203.0.113.7"], "203.0.113.7"),
        (1, ["10.9.9.9, 203.0.113.7"], "203.0.113.7"),  # the left one was written by the visitor
        (1, ["10.9.9.9", "203.0.113.7"], "203.0.113.7"),  # in two headers
        (2, ["1.1.1.1, 203.0.113.7, 192.0.2.5"], "203.0.113.7"),
        (2, ["203.0.113.7"], "203.0.113.7"),
        (1, ["203.0.113.7:4711"], "203.0.113.7"),
        (1, ["[2001:db8:1:2:3:4:5:6]:4711"], "2001:db8:1:2::/64"),
        (1, ["2001:db8:1:2:ffff::1"], "2001:db8:1:2::/64"),
        (1, ["::ffff:203.0.113.7"], "203.0.113.7"),
        (1, ["unknown"], "192.0.2.9"),
        (1, ["<script>"], "192.0.2.9"),
        (1, [], "192.0.2.9"),
    ],
    indirect=["proxies"],
)
def test_behind_proxies_the_address_that_the_outermost_of_ours_saw(
    proxies: None, forwarded: list[str], expected: str
) -> None:
    assert address.of(scope("192.0.2.9", *forwarded)) == expected


def test_two_machines_of_one_customer_are_one_address() -> None:
    assert address.of(scope("2001:db8:1:2::1")) == address.of(scope("2001:db8:1:2:aaaa::9"))
    assert address.of(scope("2001:db8:1:2::1")) != address.of(scope("2001:db8:1:3::1"))


def test_near_is_this_machine_or_its_network_and_never_what_came_through_an_unknown_proxy() -> None:
    for peer in ("127.0.0.1", "::1", "172.18.0.4", "10.1.2.3", "fd00::1"):
        assert address.is_near(scope(peer)), peer
    for peer in ("203.0.114.7", "2a00:1450::1", ""):
        assert not address.is_near(scope(peer)), peer
    assert not address.is_near(scope("172.18.0.4", "127.0.0.1"))


@pytest.mark.parametrize("proxies", [1], indirect=True)
def test_near_behind_a_proxy_is_whom_the_proxy_saw(proxies: None) -> None:
    assert not address.is_near(scope("172.18.0.4", "127.0.0.1, 198.41.0.4"))
    assert address.is_near(scope("172.18.0.4", "10.0.0.8"))


def test_a_page_without_a_visitor_is_nobodys() -> None:
    assert address.of_visit() == "nobody"
