"""Which proxy a URL is asked through."""

from __future__ import annotations

import pytest

from prewarm.core.net import is_loopback, proxy_for

SECURE = {"HTTPS_PROXY": "http://secure:1", "HTTP_PROXY": "http://plain:2"}


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://r.org", {}, None),
        ("https://r.org", SECURE, "http://secure:1"),
        ("http://r.org", SECURE, "http://plain:2"),
        ("http://r.org", {"HTTPS_PROXY": "http://secure:1"}, None),
        ("https://r.org", {"https_proxy": "proxy:3"}, "http://proxy:3"),
        ("https://r.org", {"HTTPS_PROXY": "http://a", "https_proxy": "http://b"}, "http://a"),
        ("https://r.org", {"HTTPS_PROXY": "", "ALL_PROXY": "http://all"}, "http://all"),
        ("http://r.org", {"all_proxy": "http://all"}, "http://all"),
    ],
)
def test_proxy_for_a_url_is_that_of_its_scheme(
    url: str, environ: dict[str, str], expected: str | None
) -> None:
    assert proxy_for(url, environ) == expected


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("r.org", "https://r.org", True),
        ("R.ORG", "https://r.org", True),
        ("r.org", "https://a.r.org", True),
        (".r.org", "https://a.r.org", True),
        ("*.r.org", "https://a.r.org", True),
        ("r.org", "https://evilr.org", False),
        ("a, r.org", "https://r.org", True),
        ("a r.org", "https://r.org", True),
        ("r.org:443", "https://r.org", True),
        ("r.org:5000", "https://r.org", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:5000", True),
        ("2001:db8::/32", "https://[2001:db8::1]", True),
        ("[2001:db8::1]:443", "https://[2001:db8::1]", True),
        ("*", "https://r.org", True),
        (",.,", "https://r.org", False),
    ],
)
def test_proxy_for_a_host_in_no_proxy_is_none(exceptions: str, url: str, direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert (proxy_for(url, {**SECURE, name: exceptions}) is None) is direct


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("128.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("::2", False),
        ("", False),
    ],
)
def test_is_loopback_tells_this_machine_from_others(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000"])
def test_proxy_for_loopback_is_none_whatever_is_set(host: str) -> None:
    environ = {**SECURE, "ALL_PROXY": "http://all"}
    assert proxy_for(f"http://{host}/v2/", environ) is None
