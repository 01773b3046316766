"""Which proxy a URL is asked through, by the usual variables; loopback never is."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether the host, without port, is this machine by its name or address."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy that the environment names for the URL; none for loopback, ever.

    Upper case counts before lower, as in Go and so in skopeo. NO_PROXY holds hosts, which stand
    for their subdomains too, `.domain`, `host:port`, addresses, networks or `*`.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if is_loopback(host) or _unproxied(host, port, _variable(environ, "NO_PROXY")):
        return None
    found = _variable(environ, f"{parts.scheme.upper()}_PROXY") or _variable(environ, "ALL_PROXY")
    if not found:
        return None
    return found if "://" in found else f"http://{found}"


def _variable(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.lower()) or "").strip()


def _unproxied(host: str, port: int, exceptions: str) -> bool:
    for entry in exceptions.lower().replace(",", " ").split():
        name, _, wanted = entry.rpartition(":")
        if wanted.isdecimal() and (":" not in name or name.endswith("]")):
            if int(wanted) != port:
                continue
            entry = name
        entry = entry.strip("[]").removeprefix("*.").strip(".")
        if entry == "*" or host == entry or (entry and host.endswith(f".{entry}")):
            return True
        try:
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False
