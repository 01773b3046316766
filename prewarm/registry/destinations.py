"""Where a registry may send prewarm: the one rule for realms, redirects and Locations.

A server names other URLs in its answers. Each is checked twice: here, before anything is sent, by
what is written in it; and by `transport` once connected, by the address of the peer, since a name
can resolve to anything. Only what images.yml names itself is exempt from the second check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Literal
from urllib.parse import urljoin, urlsplit, urlunsplit

from prewarm.core.net import is_loopback
from prewarm.registry.errors import Role

Kind = Literal["public", "private", "loopback", "reserved"]
"""What network an address is of. Link-local, multicast and the like are reserved."""
Purpose = Literal["blob", "other"]
"""What a redirected request asks for."""

_PRIVATE: Final = tuple(
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        "100.64.0.0/10",  # RFC 6598, behind a carrier's NAT
        "198.18.0.0/15",  # RFC 2544; resolvers of tunnels answer such addresses for every name
        *("fc00::/7", "fec0::/10"),  # RFC 4193, and the site-local addresses before it
    )
)
_IN_IPV6: Final = tuple(
    ip_network(text)
    for text in (
        *("64:ff9b::/96", "64:ff9b:1::/48"),  # RFC 6052 and 8215, NAT64
        *("::/96", "::ffff:0:0:0/96"),  # RFC 4291 and 2765, as old systems write them
    )
)
"""Networks of IPv6 whose addresses stand for the IPv4 address in their last 32 bits."""
_METADATA: Final = frozenset(
    map(
        ip_address,
        # Azure, Oracle, Alibaba and AWS: services of the cloud's host that give out credentials.
        ("168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254"),
    )
)
_REALMS: Final = {
    "registry-1.docker.io": "auth.docker.io",
    "index.docker.io": "auth.docker.io",
    "registry.gitlab.com": "gitlab.com",
}
"""Token servers that are known to belong to a host although they are another."""
_NO_URL: Final = (
    "it redirects to no URL, or from TLS to plain http, which is not followed",
    "check the storage and http.host in the registry's configuration",
)


class RefusedError(Exception):
    """A URL that is not followed: `text` is the cause, `cure` what a person can do."""

    def __init__(self, text: str, cure: str) -> None:
        super().__init__(text)
        self.text = text
        self.cure = cure


@dataclass(frozen=True, slots=True)
class Destinations:
    """The rule for one registry: `origin` is scheme, host and port that images.yml names."""

    role: Role
    origin: str
    realm: str | None = None
    """The token server's `host[:port]` that images.yml names."""
    _host: str = field(init=False)
    _plain: bool = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.origin)
        object.__setattr__(self, "_host", parts.hostname or "")
        object.__setattr__(self, "_plain", parts.scheme == "http")

    def is_named(self, url: str) -> bool:
        """Whether images.yml names the server: its address is then whatever it is."""
        return origin_of(url) == origin_of(self.origin) or self.is_token_server(url)

    def is_token_server(self, url: str) -> bool:
        """Whether a token server belongs to the registry, by its host."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if self.role == "mirror" and is_loopback(host):
            # Every service of this machine is on that host.
            return origin_of(url) == origin_of(self.origin)
        own = {self._host, self.realm, _REALMS.get(self._host)}
        return host in own or parts.netloc.lower() in own

    def shows_login(self, realm: str) -> bool:
        """Whether the registry's credentials may be shown to the token server."""
        parts = urlsplit(realm)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            return False
        return self.is_token_server(realm)

    def token_server(self, realm: str) -> str:
        """Return the URL of the token server that a challenge names."""
        url = http_url(realm)
        if url is None or (url.startswith("http:") and not self._plain):
            raise RefusedError(
                "its challenge names no token server that can be asked over TLS",
                "check the realm in the registry's configuration",
            )
        exposed = self._plain and (self.role == "mirror" or not is_loopback(self._host))
        if exposed and not self.is_token_server(url):
            host = urlsplit(url).netloc
            raise RefusedError(
                f"over plain http it names a token server on another host, {host}, "
                "which is not asked",
                f"write realm: {host} if it belongs to the registry, or give the registry TLS"
                if self.role == "upstream"
                else "give the mirror TLS, or a token server on its own host",
            )
        return url

    def redirect(self, purpose: Purpose, url: str, location: str) -> str:
        """Return where the answer to a GET or HEAD of the URL leads."""
        target = joined(url, location) if location else None
        if target is None or (url.startswith("https:") and target.startswith("http:")):
            raise RefusedError(*_NO_URL)
        if self.role == "upstream" or origin_of(target) in {origin_of(url), origin_of(self.origin)}:
            return target
        secure = target.startswith("https:")
        same = urlsplit(target).hostname == self._host and not is_loopback(self._host)
        if secure and (purpose == "blob" or same):
            return target
        host = urlsplit(target).netloc
        raise RefusedError(
            f"it redirects to {host}; a mirror's redirects are followed for blobs over TLS only",
            "set storage.redirect.disable: true in the mirror's configuration",
        )

    def page(self, url: str, link: str) -> str:
        """Return the next page of a list: always at the registry's own origin."""
        following = joined(url, link)
        if following is None or origin_of(following) != origin_of(self.origin):
            raise RefusedError("its list of tags goes on at another host", "check it")
        return following

    def upload(self, start: str, location: str) -> str:
        """Return the URL of an upload that was begun: always at the registry's own origin."""
        target = joined(start, location)
        if target is None or urlsplit(target).hostname != self._host:
            raise RefusedError(
                "it sends uploads to another host",
                "set http.host in its configuration, or X-Forwarded-Host in the proxy before it",
            )
        # Behind a proxy that ends TLS a registry may name the wrong scheme or port.
        parts = urlsplit(target)
        return self.origin + urlunsplit(("", "", parts.path, parts.query, ""))


def allowed(role: Role, own: Kind | None) -> frozenset[Kind]:
    """Return the networks that a registry at an address of this kind may lead to; None: unknown.

    A public one leads to public addresses only. One on a private network may have its storage
    there, and one on this machine anywhere but on link-local and reserved addresses; a mirror never
    leads to another service of this machine.
    """
    kinds: set[Kind] = {"public"}
    if own in {"private", "loopback"}:
        kinds.add("private")
    if own == "loopback" and role == "upstream":
        kinds.add("loopback")
    return frozenset(kinds)


def kind_of(text: str) -> Kind:
    """Return what network an address is of; one in IPv6 that stands for an IPv4 one is that."""
    address = _unwrapped(ip_address(text.partition("%")[0]))
    if address.is_loopback:
        return "loopback"
    if address in _METADATA:
        return "reserved"
    if any(address.version == one.version and address in one for one in _PRIVATE):
        return "private"
    if address.is_multicast or address.is_unspecified or not address.is_global:
        return "reserved"
    return "public"


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    if any(address in network for network in _IN_IPV6) and int(address) > 1:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address


def written_kind(host: str) -> Kind | None:
    """Return the kind of an address that stands for a host, in any spelling; None for a name."""
    if is_loopback(host):
        return "loopback"
    host = host.strip("[]").rstrip(".")
    try:
        return kind_of(host)
    except ValueError:
        pass
    try:
        return kind_of(str(IPv4Address(_number(host))))
    except ValueError:
        return None


def _number(host: str) -> int:
    """Return an IPv4 address as resolvers read it, such as 2130706433, 0x7f.1 or 0177.0.0.1."""
    *front, last = (
        int(part, 16 if part[:2].lower() == "0x" else 8 if part[:1] == "0" else 10)
        for part in host.split(".")
    )
    if len(front) > 3 or any(not 0 <= part <= 255 for part in front):
        raise ValueError(host)
    if not 0 <= last < 256 ** (4 - len(front)):
        raise ValueError(host)
    return (int.from_bytes(bytes(front), "big") << 8 * (4 - len(front))) + last


def http_url(text: str) -> str | None:
    """Return the URL without its fragment; None if it is no http URL that can be asked."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    odd = any(ord(letter) <= 32 or ord(letter) == 127 for letter in text)
    if odd or parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return None
    return urlunsplit((parts.scheme, parts.netloc, parts.path, parts.query, ""))


def joined(url: str, location: str) -> str | None:
    """Return where a location leads from the URL; None if it is no URL that can be asked."""
    try:
        return http_url(urljoin(url, location))
    except ValueError:
        return None


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port, by which URLs are of one origin (RFC 6454)."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port
