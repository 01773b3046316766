"""Tags: which ones a pattern means, in what order, and that no pattern is slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.settings import Newest
from prewarm.core.tags import check_semver, glob_match, newest

PYTHON = [
    "3.11", "3.11.9", "3.12", "3.12.0", "3.12.7",
    "3.13", "3.13.1", "3.14-rc", "3.14.0a1", "3.14.0b2",
    "3.14.0rc1", "3.14.0rc10", "3.14.0rc2", "3", "2.7",
    "3.12-slim", "3.13-slim", "3.14.0rc1-slim", "3.13-slim-bookworm", "3.12-slim-bookworm",
    "3.12-alpine", "3.13-alpine", "3.12-alpine3.20", "3.13-alpine3.9", "3.13-alpine3.20",
    "latest", "slim", "alpine",
]  # fmt: skip


@pytest.mark.parametrize(
    ("match", "count", "wanted"),
    [
        # The pattern's own suffix, none included; numbers as numbers.
        ("3.*", 3, "3.13.1 3.13 3.12.7"),
        ("3.*", 1, "3.13.1"),
        ("3.1?", 2, "3.13 3.12"),
        ("3.1[12]", 5, "3.12 3.11"),
        ("3.1[!3]*", 2, "3.12.7 3.12"),
        ("3.*.*", 2, "3.13.1 3.12.7"),
        ("3*", 1, "3.13.1"),
        ("*", 2, "3.13.1 3.13"),
        ("[0-9]*", 1, "3.13.1"),
        ("*.7", 2, "3.12.7 2.7"),
        ("3.*-slim", 2, "3.13-slim 3.12-slim"),
        ("3.*slim", 1, "3.13-slim"),
        ("*-slim", 1, "3.13-slim"),
        ("3.*-slim-bookworm", 1, "3.13-slim-bookworm"),
        # A glob in the numbers of the suffix: the suffix is fixed but for them.
        ("3.13-alpine3.*", 1, "3.13-alpine3.20"),
        ("3.*-alpine3.*", 2, "3.13-alpine3.20 3.13-alpine3.9"),
        # A glob for the suffix: the highest of each.
        ("3.*-*", 1, "3.13-alpine3.20 3.13-slim-bookworm 3.13-slim 3.13-alpine"),
        ("3.*-alpine*", 1, "3.13-alpine3.20 3.13-alpine"),
        ("3.*slim*", 1, "3.13-slim-bookworm 3.13-slim"),
        # Pre-releases only where the pattern names them.
        ("3.14*", 9, ""),
        ("3.14.0rc*", 2, "3.14.0rc10 3.14.0rc2"),
        ("3.14*rc*", 9, "3.14.0rc10 3.14.0rc2 3.14.0rc1 3.14-rc"),
        ("3.14-rc", 1, "3.14-rc"),
        ("3.*-rc", 1, "3.14-rc"),
        ("*rc*-slim", 1, "3.14.0rc1-slim"),
        ("3.14.0a*", 1, "3.14.0a1"),
        ("3.14.0b?", 1, "3.14.0b2"),
        # No glob: the tag itself.
        ("latest", 3, "latest"),
        ("3.14.0rc1", 1, "3.14.0rc1"),
        ("none", 3, ""),
        ("9.*", 3, ""),
    ],
)
def test_newest_match_with_count_takes_the_highest_of_the_suffix(
    match: str, count: int, wanted: str
) -> None:
    found = newest(PYTHON, Newest(match=match, newest=count))
    assert sorted(found) == sorted(wanted.split())


@pytest.mark.parametrize(
    ("match", "tags", "wanted"),
    [
        ("*", "v1.2.0 v1.10.0 v1.9.0", "v1.10.0"),
        ("v1.*", "v1.2.0 v1.10.0 v1.9.0 1.11.0", "v1.10.0"),
        ("*", "20240101 20231231 20240102-slim", "20240101"),
        ("2024*", "2024-01-15 2024-02-01 2024-02-01-slim 2023-12-31", "2024-02-01"),
        ("17-3.*", "17-3.4 17-3.5 17-3.10 17-3.5-alpine 17-master", "17-3.10"),
        ("17-3.*-alpine", "17-3.4-alpine 17-3.5 17-3.5-alpine", "17-3.5-alpine"),
        ("bookworm-*", "bookworm-20240101 bookworm-20240210 bookworm-slim bookworm-2024-slim",
         "bookworm-20240210"),
        ("*", "bookworm-20240101 12.5", "12.5"),
        ("1.*", "1.08 1.9 1.010", "1.010"),
        ("1.*", f"1.{10**100} 1.{10**100 + 1}", f"1.{10**100 + 1}"),
        ("1.0-*", "1.0-b10 1.0-b9", "1.0-b10"),
        ("*", "2.0-dev 2.0-SNAPSHOT 2.0-nightly 2.0-pre1 2.0-M1 2.0-beta.2 2.0-ea-24 1.9", "1.9"),
        ("*-dev", "2.0-dev 1.9-dev 2.1", "2.0-dev"),
        ("*-alpine", "1.0-alpine 1.1-alpine-rc1 1.1-rc1-alpine", "1.0-alpine"),
        ("*SNAPSHOT", "1.0-SNAPSHOT 1.1", "1.0-SNAPSHOT"),
        ("nightly-*", "nightly-20240101 nightly-20240102", "nightly-20240102"),
        ("*-*", "nightly-20240101 main-20240102", "main-20240102"),
    ],
)  # fmt: skip
def test_newest_match_kinds_of_versions_takes_the_highest(
    match: str, tags: str, wanted: str
) -> None:
    assert newest(tags.split(), Newest(match=match, newest=1)) == (wanted,)


def test_newest_match_without_count_takes_every_match_newest_first() -> None:
    found = newest(PYTHON, Newest(match="3.14*"))
    assert found == (
        "3.14.0rc10", "3.14.0rc2", "3.14.0rc1-slim", "3.14.0rc1", "3.14-rc", "3.14.0b2", "3.14.0a1"
    )  # fmt: skip
    assert newest(PYTHON, Newest(match="*")) == newest(PYTHON[::-1], Newest(match="*"))
    assert {*newest(PYTHON, Newest(match="*"))} == {*PYTHON}


@pytest.mark.parametrize(
    ("semver", "wanted"),
    [
        (">=3.12", "3.13.1 3.13 3.12.7 3.12 3.12.0"),
        (">3.12", "3.13.1 3.13"),
        (">3.12.0", "3.13.1 3.13 3.12.7"),
        ("<3.12", "3.11.9 3.11 3 2.7"),
        ("<=3.12", "3.12.7 3.12 3.12.0 3.11.9 3.11 3 2.7"),
        ("<=3.12.0", "3.12 3.12.0 3.11.9 3.11 3 2.7"),
        (">=3.11,<3.12", "3.11.9 3.11"),
        (">=3.11 <3.12", "3.11.9 3.11"),
        (">= 3.11, < 3.12", "3.11.9 3.11"),
        (">=v3.13", "3.13.1 3.13"),
        ("3.12", "3.12.7 3.12 3.12.0"),
        ("=3.12", "3.12.7 3.12 3.12.0"),
        ("==3.12.0", "3.12 3.12.0"),
        ("3.12.x", "3.12.7 3.12 3.12.0"),
        ("3.12.*", "3.12.7 3.12 3.12.0"),
        ("2.x", "2.7"),
        ("2.X.X", "2.7"),
        ("^3.12", "3.13.1 3.13 3.12.7 3.12 3.12.0"),
        ("^3.12.7", "3.13.1 3.13 3.12.7"),
        ("~3.12", "3.12.7 3.12 3.12.0"),
        ("~>3.12.1", "3.12.7"),
        ("~2", "2.7"),
        ("2 || 3.13", "3.13.1 3.13 2.7"),
        ("<3||>=3.13.1", "3.13.1 2.7"),
        (">=3.12 !=3.12", "3.13.1 3.13"),
        (">=3.13 !=3.13.0", "3.13.1"),
        (">=3.11.9 <3.12.1", "3.12 3.12.0 3.11.9"),
        (">=9", ""),
        # Pre-releases of a version that the range names so; a following release always.
        (">=3.14.0rc2", "3.14.0rc10 3.14.0rc2"),
        (">=3.14.0-rc.2 <4", "3.14.0rc10 3.14.0rc2"),
        ("=3.14.0b2", "3.14.0b2"),
        (">3.14.0b2 <=3.14.0rc1", "3.14.0rc1 3.14-rc"),
        (">=3.13.0rc1", "3.13.1 3.13"),
        ("<3.14.0a2 >3.13.1", "3.14.0a1"),
        (">3.13 <=3.14.0a1", ""),
    ],
)
def test_newest_semver_range_takes_what_is_in_it(semver: str, wanted: str) -> None:
    check_semver(semver)
    assert newest(PYTHON, Newest(semver=semver)) == tuple(wanted.split())


@pytest.mark.parametrize(
    ("semver", "wanted"),
    [
        ("^0.2.3", "0.2.10 0.2.3"),
        ("^0.0.3", "0.0.3"),
        ("^0.0", "0.0.4 0.0.3"),
        ("^0", "0.3.0 0.2.10 0.2.3 0.0.4 0.0.3"),
        ("~0.2.3", "0.2.10 0.2.3"),
        ("*", "1.0.0.1 v1.0.0 0.3.0 0.2.10 0.2.3 0.0.4 0.0.3"),
        (">1.0.0", "1.0.0.1"),
        ("1.0.0", "v1.0.0"),
    ],
)
def test_newest_semver_zero_and_four_parts_follow_npm(semver: str, wanted: str) -> None:
    tags = "0.0.3 0.0.4 0.2.3 0.2.10 0.3.0 v1.0.0 1.0.0.1 1.1-slim x1.2 latest"
    assert newest(tags.split(), Newest(semver=semver)) == tuple(wanted.split())


def test_newest_semver_with_count_takes_the_highest() -> None:
    assert newest(PYTHON, Newest(semver=">=3.12", newest=2)) == ("3.13.1", "3.13")


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "||", "3 ||", "1.2 - 2.0", "latest", "3-slim", ">=", ">=a", "=>3", ">>3",
        "3.x.1", "3.x-rc1", "*-rc1", "<*", ">x", "!=*", "3..1", "3.", ".3", "3.12;4", "^^3",
        "\u0663", "rc1", "3.12-foo", "1" * 200, "3.12\x1b[0m",
    ],
)  # fmt: skip
def test_check_semver_text_that_is_no_range_is_refused_with_a_cure(text: str) -> None:
    with pytest.raises(ValueError, match="write comparators such as") as caught:
        check_semver(text)
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="write comparators"):
        newest(["3"], Newest(semver=text))


def test_newest_hostile_tags_are_left_out() -> None:
    tags = ["3.1", "3.2\n", "3.3/../x", "3." + "4" * 200, "3.\u0665", "", "3.6\x1b[0m", "3.1"]
    assert newest(tags, Newest(match="*")) == ("3.1",)
    assert newest(tags, Newest(semver="3")) == ("3.1",)


@pytest.mark.parametrize("rule", [Newest(match="*-*", newest=3), Newest(semver=">=3", newest=3)])
def test_newest_hundred_thousand_tags_is_fast(rule: Newest) -> None:
    suffixes = ("", "-slim", "-alpine3.19", "rc1", "-rc.1-x")
    tags = [f"{a}.{b}.{c}{end}" for a in range(20) for b in range(100) for c in range(10)
            for end in suffixes]  # fmt: skip
    started = time.process_time()
    assert newest(tags, rule)[0].startswith("19.99.9")
    assert time.process_time() - started < 5


@given(st.lists(st.from_regex(r"[v0-9][0-9a-c._-]{0,6}", fullmatch=True), max_size=12), st.data())
def test_newest_order_of_the_input_does_not_matter(tags: list[str], data: st.DataObject) -> None:
    rule = Newest(match=data.draw(st.sampled_from(["*", "1*", "*-*", "*a*"])), newest=2)
    shuffled = data.draw(st.permutations(tags))
    found = newest(tags, rule)
    assert found == newest(shuffled, rule)
    assert {*found} <= {*newest(tags, Newest(match=rule.match))} <= {*tags}


@given(st.text("39.*?[]!-_arcsx^", max_size=12), st.integers(1, 3))
def test_newest_any_pattern_takes_only_what_matches(pattern: str, count: int) -> None:
    found = newest(PYTHON, Newest(match=pattern, newest=count))
    assert all(glob_match(pattern, tag) for tag in found)


@given(st.text("0139.x*<>=!~^|, vrca-", max_size=15))
def test_check_semver_any_text_is_read_or_refused(text: str) -> None:
    try:
        check_semver(text)
    except ValueError as error:
        assert "write comparators" in str(error)  # noqa: PT017 - both ends are right
    else:
        assert {*newest(PYTHON, Newest(semver=text))} <= {*PYTHON}


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("docker.io/library/*:*windowsservercore*",
         "docker.io/library/golang:1.22-windowsservercore-ltsc2022", True),
        ("docker.io/library/*:*windowsservercore*", "docker.io/library/golang:1.22", False),
        ("docker.io/*", "docker.io/a/b/c:1", True),
        ("golang", "golang", True),
        ("golang", "xgolang", False),
        ("golang", "golangx", False),
        ("go*", "Golang", False),
        ("a?c", "a/c", True),
        ("a?c", "ac", False),
        ("[a-c]x", "bx", True),
        ("[!a-c]x", "bx", False),
        ("[!a-c]x", "dx", True),
        ("[]]", "]", True),
        ("[", "[", True),
        ("a.c", "abc", False),
        ("a+", "aa", False),
        ("*", "", True),
        ("*", "a\nb", True),
        ("a", "a\n", False),
        ("", "", True),
        ("", "a", False),
    ],
)  # fmt: skip
def test_glob_match_pattern_fits_the_whole_text(pattern: str, text: str, fits: bool) -> None:
    assert glob_match(pattern, text) is fits


def simple_match(pattern: str, text: str) -> bool:
    """The definition of `*` and `?`, as plainly as it can be said."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(simple_match(pattern[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and pattern[0] in {"?", text[0]} and simple_match(pattern[1:], text[1:])


@given(st.text("ab/*?", max_size=6), st.text("ab/", max_size=8))
def test_glob_match_stars_and_marks_mean_what_they_say(pattern: str, text: str) -> None:
    assert glob_match(pattern, text) is simple_match(pattern, text)


@given(st.text(max_size=8) | st.text("[]!^-&|~a-z\\*", max_size=10), st.text(max_size=8))
def test_glob_match_any_pattern_is_taken(pattern: str, text: str) -> None:
    assert glob_match(pattern, text) in {True, False}


def test_glob_match_many_stars_does_not_backtrack() -> None:
    started = time.process_time()
    assert not glob_match("*a" * 100 + "b", "a" * 5000)
    assert not glob_match("*" * 1000 + "b", "a" * 5000)
    assert time.process_time() - started < 2
