"""Demand: which images the pins mean, in what order, for which platforms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.platforms import ALL, DEFAULT, Platform, Wanted
from prewarm.core.reference import parse, parse_repository
from prewarm.core.settings import DOCKER_HUB, DOCKER_HUB_ENDPOINT, Newest, Pin, Settings, Upstream
from prewarm.core.usage import UsedImage
from prewarm.planning.demand import (
    Want,
    chosen,
    patterns,
    platforms_of,
    skipped_by,
    uncovered,
    wants,
)

AMD, ARM, S390 = (Platform("linux", name) for name in ("amd64", "arm64", "s390x"))
SETTINGS = Settings(None)
DIGEST = "sha256:" + "a" * 64


def pin(text: str, platforms: Wanted | None = None, line: int = 1) -> Pin:
    return Pin(parse(text), None, platforms, "images.yml", line)


def tagged(text: str, tags: tuple[str, ...] | Newest, line: int = 1) -> Pin:
    return Pin(parse_repository(text), tags, None, "images.yml", line)


def names(found: tuple[Want, ...]) -> list[str]:
    return [want.reference.familiar for want in found]


def test_wants_are_the_pins_in_their_order_each_where_it_is_named() -> None:
    pins = [pin("python:3", line=3), tagged("golang", ("1.22", "1.21"), 4), pin("alpine", line=9)]
    found = wants(SETTINGS, pins, {})
    assert names(found) == ["python:3", "golang:1.22", "golang:1.21", "alpine:latest"]
    assert [want.where for want in found] == [f"images.yml:{line}" for line in (3, 4, 4, 9)]
    assert all(want.pinned and want.sources == ("pin",) for want in found)
    assert {want.platforms for want in found} == {DEFAULT}


def test_wants_of_a_pattern_are_the_tags_that_it_means() -> None:
    pattern = tagged("golang", Newest(match="1.*", newest=2))
    found = wants(SETTINGS, [pattern, pin("alpine")], {pattern: ("1.23", "1.22")})
    assert names(found) == ["golang:1.23", "golang:1.22", "alpine:latest"]
    # Where the tags could not be listed the rest is wanted all the same.
    assert names(wants(SETTINGS, [pattern, pin("alpine")], {})) == ["alpine:latest"]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ((AMD,), (ARM,), (AMD, ARM)),
        ((AMD, ARM), (ARM, S390), (AMD, ARM, S390)),
        ((AMD,), (AMD,), (AMD,)),
        ((AMD,), ALL, ALL),
        (ALL, (AMD,), ALL),
    ],
)
def test_wants_of_an_image_pinned_twice_are_one_for_the_platforms_of_both(
    first: Wanted, second: Wanted, both: Wanted
) -> None:
    pins = [pin("golang:1", first, 2), pin("alpine", line=3), pin("golang:1", second, 4)]
    found = wants(SETTINGS, pins, {})
    assert names(found) == ["golang:1", "alpine:latest"]
    assert (found[0].platforms, found[0].where) == (both, "images.yml:2")


@given(st.lists(st.tuples(st.sampled_from(["a:1", "a:2", "b:1"]), st.sampled_from([AMD, ARM]))))
def test_wants_are_each_image_once_where_it_first_came(named: list[tuple[str, Platform]]) -> None:
    found = wants(SETTINGS, [pin(text, (platform,)) for text, platform in named], {})
    assert names(found) == list(dict.fromkeys(text for text, _ in named))
    for want in found:
        asked = {platform for text, platform in named if text == want.reference.familiar}
        assert set(want.platforms) == asked


@pytest.mark.parametrize(
    ("own", "registrys", "general", "found"),
    [
        ((ARM,), (S390,), (AMD,), (ARM,)),
        (None, (S390,), (AMD,), (S390,)),
        (None, None, (AMD, ARM), (AMD, ARM)),
        (None, None, None, DEFAULT),
        (None, ALL, (AMD,), ALL),
        ((AMD,), ALL, ALL, (AMD,)),
    ],
)
def test_platforms_of_a_pin_are_the_nearest_that_are_written(
    own: Wanted | None, registrys: Wanted | None, general: Wanted | None, found: Wanted
) -> None:
    hub = Upstream(DOCKER_HUB, DOCKER_HUB_ENDPOINT, platforms=registrys)
    settings = replace(SETTINGS, registries=(hub,), platforms=general)
    assert platforms_of(settings, pin("golang", own)) == found


@pytest.mark.parametrize(
    ("text", "platforms", "whole"),
    [
        ("golang:1", (AMD,), False),
        ("golang:1", ALL, True),
        (f"golang@{DIGEST}", (AMD,), True),
        (f"golang:1@{DIGEST}", (AMD,), True),
    ],
)
def test_whole_is_what_a_digest_names_or_all_platforms(
    text: str, platforms: Wanted, whole: bool
) -> None:
    (want,) = wants(SETTINGS, [pin(text, platforms)], {})
    assert want.whole is whole


def test_patterns_are_each_repository_once() -> None:
    newest = Newest(match="*", newest=1)
    pins = [
        tagged("golang", newest),
        tagged("golang", Newest(semver=">=1", newest=2)),
        tagged("python", newest),
        tagged("alpine", ("3.19",)),
        pin("busybox"),
    ]
    assert [str(found) for found in patterns(pins)] == [
        "docker.io/library/golang",
        "docker.io/library/python",
    ]


def test_chosen_are_the_named_images_as_the_pins_want_them() -> None:
    known = wants(SETTINGS, [pin("golang:1", (ARM,), 7), pin("alpine")], {})
    asked = [Pin(parse(text)) for text in ("busybox", "golang:1", "busybox")]
    found = chosen(known, asked, SETTINGS)
    assert names(found) == ["busybox:latest", "golang:1"]
    assert [want.platforms for want in found] == [DEFAULT, (ARM,)]
    assert [want.where for want in found] == ["command line", "images.yml:7"]
    assert all(want.pinned for want in found)


@pytest.mark.parametrize(
    ("patterns_", "hidden"),
    [
        ((), None),
        (("docker.io/library/*:*windowsservercore*",), None),
        (("quay.io/*", "docker.io/library/golang:*"), "docker.io/library/golang:*"),
        (("*",), "*"),
        (("golang:*",), None),
    ],
)
def test_skipped_by_the_first_pattern_that_matches_the_whole_name(
    patterns_: tuple[str, ...], hidden: str | None
) -> None:
    want = Want(parse("golang:1"), DEFAULT, ("history",), "group/project")
    assert skipped_by(want, patterns_) == hidden
    assert skipped_by(replace(want, sources=("history", "pin")), patterns_) is None


def used(jobs: int, *jobs_on: tuple[str, int], via: str | None = None) -> UsedImage:
    platforms = tuple(name for name, _ in jobs_on)
    name = "docker.io/library/golang:1"
    return UsedImage(name, ("image",), ("history",), jobs, 1, 1.0, platforms, via, 0, jobs_on)


@pytest.mark.parametrize(
    ("platforms", "use", "expected"),
    [
        ((AMD,), used(100, ("linux/amd64", 99), ("linux/arm64", 1)), {ARM: 0.01}),
        ((ARM,), used(100, ("linux/amd64", 75), ("linux/arm64/v8", 25)), {AMD: 0.75}),
        # A runner of both may run a job on either.
        ((AMD,), used(10, ("linux/amd64", 10), ("linux/arm64", 10)), {ARM: 1.0}),
        ((AMD, ARM), used(100, ("linux/amd64", 75), ("linux/arm64", 25)), {}),
        (ALL, used(100, ("linux/s390x", 100)), {}),
        ((AMD,), used(100), {}),
        ((ARM,), used(100), {AMD: 1.0}),
        ((AMD,), used(0, ("linux/arm64", 0)), {}),
        ((AMD,), used(5, ("nonsense", 5)), {}),
        ((AMD,), used(5, ("linux/arm64", 5), via="dependency-proxy"), {}),
    ],
)
def test_uncovered_is_the_share_of_the_jobs_that_ran_there(
    platforms: Wanted, use: UsedImage, expected: dict[Platform, float]
) -> None:
    want = Want(parse("golang:1"), platforms, ("history",), "CI")
    assert uncovered([want], [use]) == expected


def test_uncovered_shares_are_of_all_uses_of_wanted_images() -> None:
    want = Want(parse("golang:1"), (AMD,), ("history",), "CI")
    other = replace(used(900, ("linux/arm64", 900)), reference="docker.io/library/unwanted:1")
    node = replace(used(300, ("linux/amd64", 300)), reference="docker.io/library/node:1")
    wanted = [want, replace(want, reference=parse("node:1"))]
    uses = [used(100, ("linux/amd64", 96), ("linux/arm64", 4)), node, other]
    assert uncovered(wanted, uses) == {ARM: 0.01}
