"""Where a registry may lead: the table of realms, redirects, Locations and addresses."""

from __future__ import annotations

import pytest

from prewarm.registry.destinations import (
    Destinations,
    Kind,
    Purpose,
    RefusedError,
    allowed,
    kind_of,
    written_kind,
)
from prewarm.registry.errors import Role


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        *[(text, "public") for text in ("8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8")],
        *[("64:ff9b::808:808", "public"), ("172.32.0.1", "public"), ("100.128.0.1", "public")],
        *[(text, "private") for text in ("10.0.0.1", "172.16.9.9", "192.168.1.1", "100.64.0.1")],
        *[(text, "private") for text in ("fd00::1", "fec0::1", "198.18.0.1", "::ffff:10.0.0.1")],
        *[(text, "private") for text in ("64:ff9b::a00:1", "2002:a00:1::")],
        *[(text, "loopback") for text in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")],
        *[(text, "loopback") for text in ("64:ff9b::7f00:1", "2002:7f00:1::")],
        *[(text, "reserved") for text in ("169.254.169.254", "fe80::1", "fe80::1%eth0")],
        *[(text, "reserved") for text in ("0.0.0.0", "::", "224.0.0.1", "ff02::1", "ff0e::1")],
        *[(text, "reserved") for text in ("255.255.255.255", "240.0.0.1", "192.0.2.1")],
        *[(text, "reserved") for text in ("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe")],
        *[(text, "reserved") for text in ("64:ff9b:1::a9fe:a9fe", "168.63.129.16", "192.0.0.192")],
        *[(text, "reserved") for text in ("100.100.100.200", "fd00:ec2::254")],
        *[(text, "loopback") for text in ("::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1")],
    ],
)
def test_kind_of_an_address(address: str, kind: Kind) -> None:
    assert kind_of(address) == kind


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        *[(text, "loopback") for text in ("localhost", "LOCALHOST.", "a.localhost", "127.1")],
        *[(text, "loopback") for text in ("2130706433", "0x7f.1", "0177.0.0.1", "0x7f000001")],
        *[(text, "loopback") for text in ("[::1]", "127.0.0.1.")],
        *[("2852039166", "reserved"), ("169.254.169.254.", "reserved"), ("0", "reserved")],
        *[("10.1", "private"), ("8.8.8.8", "public")],
        *[("cdn.example.org", None), ("10.0.0.1.example.org", None), ("", None)],
    ],
)
def test_written_kind_of_a_host_in_any_spelling(host: str, kind: Kind | None) -> None:
    assert written_kind(host) == kind


@pytest.mark.parametrize(
    ("role", "own", "kinds"),
    [
        ("upstream", None, {"public"}),
        ("upstream", "public", {"public"}),
        ("upstream", "private", {"public", "private"}),
        ("upstream", "loopback", {"public", "private", "loopback"}),
        ("upstream", "reserved", {"public"}),
        ("mirror", None, {"public"}),
        ("mirror", "public", {"public"}),
        ("mirror", "private", {"public", "private"}),
        ("mirror", "loopback", {"public", "private"}),
    ],
)
def test_allowed_networks(role: Role, own: Kind | None, kinds: set[Kind]) -> None:
    assert allowed(role, own) == kinds


NEAR, PLAIN, TLS = "http://127.0.0.1:5000", "http://r.example:5000", "https://r.example"


def followed(role: Role, origin: str, purpose: Purpose, location: str) -> bool:
    try:
        Destinations(role, origin).redirect(purpose, f"{origin}/v2/app/x", location)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "location", "upstream", "blob", "other"),
    [
        # May be followed by: an upstream, a mirror's blob, anything else of a mirror.
        (TLS, "/v2/app/y", True, True, True),
        (TLS, "https://r.example/y", True, True, True),
        (TLS, "https://r.example:443/y", True, True, True),
        (TLS, "https://cdn.example/y", True, True, False),
        (TLS, "https://r.example:8443/y", True, True, True),
        (TLS, "http://r.example/y", False, False, False),
        (TLS, "http://cdn.example/y", False, False, False),
        (TLS, "https://user@r.example/y", False, False, False),
        (TLS, "file:///etc/passwd", False, False, False),
        (TLS, "https://[", False, False, False),
        (TLS, "", False, False, False),
        (PLAIN, "https://cdn.example/y", True, True, False),
        (PLAIN, "http://cdn.example/y", True, False, False),
        (PLAIN, "http://r.example:9/y", True, False, False),
        (PLAIN, "https://r.example/y", True, True, True),
        (NEAR, "http://127.0.0.1:9/y", True, False, False),
        (NEAR, "http://localhost:5000/y", True, False, False),
        (NEAR, "https://127.0.0.1:9/y", True, True, False),
    ],
)
def test_redirect_by_role_and_purpose(
    origin: str, location: str, upstream: bool, blob: bool, other: bool
) -> None:
    assert followed("upstream", origin, "blob", location) is upstream
    assert followed("upstream", origin, "other", location) is upstream
    assert followed("mirror", origin, "blob", location) is blob
    assert followed("mirror", origin, "other", location) is other


@pytest.mark.parametrize(
    ("role", "origin", "realm", "asked", "named"),
    [
        # Whether the token server is asked, and whether its address needs no check.
        ("upstream", TLS, "https://r.example/token", True, True),
        ("upstream", TLS, "https://r.example:8443/token", True, True),
        ("upstream", TLS, "https://auth.example/token", True, False),
        ("upstream", TLS, "https://ours.example/token", True, True),
        ("upstream", TLS, "http://r.example/token", False, True),
        ("upstream", PLAIN, "http://r.example:5001/token", True, True),
        ("upstream", PLAIN, "http://ours.example/token", True, True),
        ("upstream", PLAIN, "http://auth.example/token", False, False),
        ("upstream", PLAIN, "https://auth.example/token", False, False),
        ("upstream", NEAR, "http://127.0.0.9:1/token", True, False),
        ("mirror", NEAR, "http://127.0.0.1:5000/token", True, True),
        ("mirror", NEAR, "http://127.0.0.1:5001/token", False, False),
        ("mirror", NEAR, "https://auth.example/token", False, False),
        ("mirror", PLAIN, "http://r.example:5001/token", True, True),
        ("mirror", PLAIN, "http://auth.example/token", False, False),
        ("mirror", TLS, "https://auth.example/token", True, False),
    ],
)
def test_token_server_of_a_challenge(
    role: Role, origin: str, realm: str, asked: bool, named: bool
) -> None:
    rule = Destinations(role, origin, "ours.example" if role == "upstream" else None)
    assert rule.is_named(realm) is named
    try:
        assert rule.token_server(realm) == realm
    except RefusedError:
        assert not asked
    else:
        assert asked


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/v2/a/blobs/uploads/1?_state=x", f"{TLS}/v2/a/blobs/uploads/1?_state=x"),
        ("http://r.example:5000/v2/a/blobs/uploads/1", f"{TLS}/v2/a/blobs/uploads/1"),
        ("https://evil.example/v2/a/blobs/uploads/1", None),
        ("//evil.example/v2/", None),
        ("https://r.example@evil.example/", None),
        ("https://[", None),
    ],
)
def test_upload_stays_at_the_origin(location: str, url: str | None) -> None:
    rule = Destinations("mirror", TLS)
    if url is None:
        with pytest.raises(RefusedError):
            rule.upload(f"{TLS}/v2/a/blobs/uploads/", location)
    else:
        assert rule.upload(f"{TLS}/v2/a/blobs/uploads/", location) == url
