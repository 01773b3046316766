"""Platforms: their normal form, and the texts that name one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.platforms import Platform, normalise, parse_platform, well_formed


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64/v2"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        (" linux/amd64 ", "linux/amd64"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/aarch64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm/v5", "linux/arm/v5"),
        ("linux/arm/8", "linux/arm/v8"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("linux/i386/x", "linux/386"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("linux/riscv64", "linux/riscv64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_parse_platform_text_gives_the_normal_form(text: str, normal: str) -> None:
    assert str(parse_platform(text)) == normal


@pytest.mark.parametrize(
    "text",
    ["", "linux", "/", "linux/", "/amd64", "linux//v7", "linux/arm/v7/x", "linux amd64", "all",
     "linux/amd64,linux/arm64", "li\nux/amd64", "linux/\x1b[0m", "linux/" + "a" * 65],
)  # fmt: skip
def test_parse_platform_text_that_names_none_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="os/architecture") as caught:
        parse_platform(text)
    assert str(caught.value).isprintable()


def test_parse_platform_parts_fill_the_fields() -> None:
    assert parse_platform("linux/arm/v6") == Platform("linux", "arm", "v6")


@pytest.mark.parametrize(
    ("parts", "right"),
    [
        (("linux", "arm64"), True),
        (("Linux",), True),
        (("linux/amd64",), False),
        (("a,b",), False),
        (("linux", ""), False),
        (("a b",), False),
        (("a\n",), False),
    ],
)
def test_well_formed_parts_are_told(parts: tuple[str, ...], right: bool) -> None:
    assert well_formed(*parts) is right


systems = st.sampled_from(["linux", "Linux", "windows", "freebsd"])
architectures = st.sampled_from(
    [
        "amd64",
        "x86_64",
        "x86-64",
        "arm64",
        "aarch64",
        "arm",
        "armhf",
        "armel",
        "i386",
        "386",
        "s390x",
    ]
)
variants = st.sampled_from(["", "v1", "v2", "5", "v5", "6", "v6", "7", "v7", "8", "v8", "V8"])


@given(systems, architectures, variants)
def test_normalise_twice_is_the_same_as_once(os: str, architecture: str, variant: str) -> None:
    once = normalise(os, architecture, variant)
    assert normalise(once.os, once.architecture, once.variant) == once
    assert parse_platform(str(once)) == once


@given(st.text(max_size=20) | st.text("linuxarm64/v7 ", max_size=16))
def test_parse_platform_any_text_is_read_or_refused(text: str) -> None:
    try:
        platform = parse_platform(text)
    except ValueError:
        return
    assert parse_platform(str(platform)) == platform
