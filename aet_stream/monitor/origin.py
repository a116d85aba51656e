"""Under which address people see the monitor: its name, its scheme, and the reverse proxy that may stand between.

A page of another site must reach nothing here: neither under a name that it has made up for this address (DNS rebinding, seen in
Host), nor from its own (seen in Origin). What a proxy says of the browser's side (X-Forwarded-Host, -Proto, -For) is believed of
`trusted_proxies` only.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from aet_stream.config import Monitor
from aet_stream.naming import shown

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(?::(\d{1,5}))?")
_USUAL_PORT = {"http": "80", "https": "443"}
LONGEST = 200
"""Of what a client sends, so many characters are repeated to anybody."""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def only_this_computer(settings: Monitor) -> bool:
    """Is nobody else let in? Whoever names a proxy, or a name to be reached under, expects others."""
    return is_loopback(settings.host) and not settings.trusted_proxies and not settings.names


@dataclass(frozen=True, slots=True)
class Asked:
    """How one request came here."""

    peer: str
    """Address of who has connected."""
    client: str
    """Address of whom it is for: the peer's own, or what a trusted proxy says."""
    scheme: str
    """http or https, as the browser sees it."""
    host: str
    """Name and perhaps port, as the browser sees it."""
    by_proxy: bool
    """The peer is a trusted proxy."""

    @property
    def confidential(self) -> bool:
        """Does a browser take this for a "potentially trustworthy origin" (W3C, Secure Contexts)?"""
        return self.scheme == "https" or is_loopback(_name(self.host).strip("[]"))


class Entrance:
    """Judges every request by the settings."""

    def __init__(self, settings: Monitor) -> None:
        own = [] if settings.host in ("", "0.0.0.0", "::") else [settings.host]
        names = ["127.0.0.1", "localhost", "::1", *own, *settings.names]
        self._names = {f"[{name}]" if ":" in name else name.rstrip(".") for name in map(str.lower, names)}
        self._trusted = [ipaddress.ip_network(one) for one in settings.trusted_proxies]

    def asked(self, scope: Scope) -> Asked:
        headers, peer = Headers(scope=scope), (scope.get("client") or ("",))[0]
        by_proxy = self._trusts(peer)

        def said(name: str) -> str:
            """What the nearest proxy says: each may add to what the one before it said."""
            return ",".join(headers.getlist(f"x-forwarded-{name}")).rpartition(",")[2].strip().lower() if by_proxy else ""

        secure = said("proto") == "https" if said("proto") else scope["scheme"] in ("https", "wss")
        host = said("host") or headers.get("host", "").lower()
        return Asked(peer, said("for") or peer, "https" if secure else "http", host, by_proxy)

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._trusted)

    def unknown_name(self, scope: Scope) -> str:
        """Why nothing is answered under this name; empty if it is one of ours.

        Both names are judged, the proxy's and the browser's: a page that has made up a name could add X-Forwarded-Host, never change Host.
        """
        for host in (Headers(scope=scope).get("host", ""), self.asked(scope).host):
            name = _name(host.lower())
            if not name:
                return f"{_quoted(host)} is no host name"
            if name not in self._names:
                return (
                    f"this monitor does not answer to the name {_quoted(name)}: "
                    f'if people reach it under that name, set monitor.names = ["{name}"]'
                )
        return ""

    def foreign_page(self, scope: Scope, page: str | None) -> str:
        """Why the page that asks (its origin, or an address of it) is none of ours; empty if it is, or if no page asks.

        Scripts send no Origin, and are judged by their token alone.
        """
        if page is None:
            return ""
        asked = self.asked(scope)
        here = _origin(f"{asked.scheme}://{asked.host}")
        if here and _origin(page.lower()) == here:
            return ""
        if page == "null":
            return "the browser does not say which page asks (Origin: null): nothing in between may set Referrer-Policy: no-referrer"
        seen = f"a page of {_quoted(page)} asks, but the monitor was reached as {_quoted(f'{asked.scheme}://{asked.host}')}"
        if asked.by_proxy:
            return f"{seen}: let the proxy at {asked.peer} send X-Forwarded-Host and X-Forwarded-Proto as the browser sees them"
        return (
            f"{seen}: if that is the same, behind a reverse proxy, let that send X-Forwarded-Host and X-Forwarded-Proto, "
            f'and set monitor.trusted_proxies = ["{asked.peer}"]'
        )


def _name(host: str) -> str:
    """Of `name[:port]` the name; empty where it is none."""
    found = _HOST.fullmatch(host)
    return found[1] if found else ""


def _origin(address: str) -> tuple[str, str, str] | None:
    """Scheme, name, port (RFC 6454) of an address; None where it is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    found = _HOST.fullmatch(parts.netloc)
    if parts.scheme not in _USUAL_PORT or not found:
        return None
    return parts.scheme, found[1], found[2] or _USUAL_PORT[parts.scheme]


def _quoted(text: str) -> str:
    return f'"{shown(text[:LONGEST])}"'
