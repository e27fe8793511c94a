"""Whose request this is: an address behind as many proxies as are believed; IPv6 by its /64, one customer's."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from interp import settings


def of(scope: Mapping[str, Any]) -> str:
    """The address of a request: "203.0.113.7", "2001:db8:1:2::/64", or "" where the server knows none."""
    forwarded = b", ".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    peer = (scope.get("client") or ("", 0))[0]
    return _address(peer, forwarded.decode("latin-1"), settings.SETTINGS.proxies)


def of_visit() -> str:
    """The same inside a run of a page, or the id of the session where that says nothing: on this machine, in a test."""
    forwarded = ", ".join(st.context.headers.get_all("X-Forwarded-For"))
    found = _address(st.context.ip_address or "", forwarded, settings.SETTINGS.proxies)
    context = get_script_run_ctx()
    return found or (context.session_id if context else "nobody")


def is_near(scope: Mapping[str, Any]) -> bool:
    """Whether a request comes from this machine or its private network, with no proxy that we don't know between."""
    if not settings.SETTINGS.proxies and any(
        name in (b"x-forwarded-for", b"forwarded") for name, _ in scope["headers"]
    ):
        return False
    found = _ip(of(scope).removesuffix("/64"))
    return found is not None and (found.is_loopback or found.is_private)


@lru_cache(4096)
def _address(peer: str, forwarded: str, proxies: int) -> str:
    """Every proxy adds whom it got the request from at the right, so the one that the outermost of ours saw stands
    `proxies` from the right. What is left of it anyone may have written; what is no address counts as the peer."""
    entries = [each for each in forwarded.split(",") if each.strip()]
    named = _ip(entries[-min(proxies, len(entries))]) if proxies and entries else None
    found = named or _ip(peer)
    if found is None:
        return peer
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, perhaps with a port or in brackets; an IPv4 address in IPv6's clothes is one."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found
