"""What registries say in headers, right and hostile."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.budget import Limit
from prewarm.registry.headers import (
    content_range,
    date,
    next_link,
    parse_challenges,
    read_limit,
    retry_after,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            ['Bearer realm="https://a.org/token",service="r",scope="repository:a/b:pull,push"'],
            [
                (
                    "bearer",
                    {
                        "realm": "https://a.org/token",
                        "service": "r",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (['Basic realm="a \\"b\\", c"'], [("basic", {"realm": 'a "b", c'})]),
        (
            ['BEARER Realm = "x" , service=plain, Basic realm="y"'],
            [("bearer", {"realm": "x", "service": "plain"}), ("basic", {"realm": "y"})],
        ),
        (
            ['Basic realm="y"', 'Bearer realm="x"'],
            [("basic", {"realm": "y"}), ("bearer", {"realm": "x"})],
        ),
        (["Negotiate, NTLM"], [("negotiate", {}), ("ntlm", {})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        (['realm="x"', "", ", ,", '"', "=?"], []),
    ],
)
def test_parse_challenges_of_a_header_yields_all(
    values: list[str], expected: list[tuple[str, dict[str, str]]]
) -> None:
    found = [
        (challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(values)
    ]
    assert found == expected


@given(st.text(alphabet='Bb=,;"\\ \tx/:', max_size=80))
def test_parse_challenges_of_anything_ends_without_an_error(text: str) -> None:
    for challenge in parse_challenges([text]):
        assert challenge.scheme == challenge.scheme.lower() != ""


@pytest.mark.parametrize(
    ("limit", "remaining", "expected"),
    [
        ("100;w=21600", "76;w=21600", Limit(100, 21600, 76, "192.0.2.7")),
        ("100", "-3;w=3600", Limit(100, 3600, -3, "192.0.2.7")),
        ("", "5", Limit(None, None, 5, "192.0.2.7")),
        ("x;w=y", " 5 ; w = 60 ", Limit(None, 60, 5, "192.0.2.7")),
        ("100;w=21600", "", None),
        ("100;w=21600", "many", None),
        ("100;w=21600", "9" * 5000, None),
    ],
)
def test_read_limit_of_docker_hubs_headers(
    limit: str, remaining: str, expected: Limit | None
) -> None:
    headers = {
        "ratelimit-limit": limit,
        "ratelimit-remaining": remaining,
        "docker-ratelimit-source": "192.0.2.7",
    }
    assert read_limit(headers) == expected


def test_read_limit_without_headers_is_none() -> None:
    assert read_limit({}) is None


def test_read_limit_with_a_source_that_is_none_leaves_it_out() -> None:
    limit = read_limit({"ratelimit-remaining": "1", "docker-ratelimit-source": "a b\x1b[31m"})
    assert limit == Limit(None, None, 1, "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('</v2/a/tags/list?last=b&n=2>; rel="next"', "/v2/a/tags/list?last=b&n=2"),
        ('<a>; rel="prev", <b>; title="x"; rel=next', "b"),
        ("<a>; rel=nextish", None),
        ("</v2/a>", None),
        ("", None),
    ],
)
def test_next_link_of_a_link_header(value: str, expected: str | None) -> None:
    assert next_link(value) == expected


@pytest.mark.parametrize(
    ("value", "date", "expected"),
    [
        ("30", "", 30.0),
        ("0", "", 0.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:29:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "", None),
        ("Wed, 21 Oct 2026 07:28:00", "Wed, 21 Oct 2026 07:28:00 -0000", 0.0),
        ("-1", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value: str, date: str, expected: float | None) -> None:
    assert retry_after({"retry-after": value, "date": date}) == expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_retry_after_of_anything_is_none_or_not_negative(value: str, date: str) -> None:
    found = retry_after({"retry-after": value, "date": date})
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 5-9/10", (5, 10)),
        ("bytes 5-9/*", (5, None)),
        ("bytes */10", None),
        ("5-9/10", None),
        ("", None),
    ],
)
def test_content_range_of_a_206(value: str, expected: tuple[int, int | None] | None) -> None:
    assert content_range(value) == expected


@pytest.mark.parametrize(
    "hostile",
    ["<a>; rel=" + " " * 60_000, "<" * 60_000, ";=" * 30_000, 'a="' + "\\" * 60_000, " " * 60_000],
)
def test_headers_of_a_hostile_server_cost_little_time(hostile: str) -> None:
    began = time.process_time()
    next_link(hostile)
    parse_challenges([hostile])
    read_limit({"ratelimit-remaining": "1" + hostile, "ratelimit-limit": "1;" + hostile})
    retry_after({"retry-after": hostile, "date": hostile})
    content_range(hostile)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Tue, 24 Nov 2026 12:00:00 GMT", 1795521600.0),
        ("Tue, 24 Nov 2026 13:00:00 +0100", 1795521600.0),
        ("yesterday", None),
        ("Tue, 99 Nov 2026 12:00:00 GMT", None),
        ("", None),
    ],
)
def test_date_is_what_the_server_tells_or_nothing(value: str, expected: float | None) -> None:
    assert date({"date": value}) == expected


@given(st.text())
def test_date_of_anything_never_raises(value: str) -> None:
    date({"date": value})
