"""Tags: which of a repository's many tags a pattern of `images.yml` means.

A tag is read as prefix, numbers, perhaps a pre-release, and suffix: `v3.13.0rc1-slim` is 3.13.0,
rc 1, `-slim`. Numbers go on over `.`, `-` and `_` (`2024-01-15`, `17-3.5`). Two tags have the same
suffix when they differ in numbers only: `-alpine3.19` and `-alpine3.20` are one kind of image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from prewarm.core.reference import valid_tag
from prewarm.core.settings import Newest

_RANKS: Final = {
    **dict.fromkeys(("dev", "snapshot", "nightly", "canary", "edge", "unstable"), 0),
    **dict.fromkeys(("alpha", "a"), 1),
    **dict.fromkeys(("beta", "b", "milestone", "m", "ea", "preview", "pre"), 2),
    **dict.fromkeys(("rc", "cr"), 3),
}
"""How near a pre-release is to the release; that itself is `_FINAL`."""
_FINAL: Final = (4,)
_WORDS = "|".join(word for word in _RANKS if len(word) > 1)
_SEPARATORS: Final = "-._"


def _pre_release(number: str) -> re.Pattern[str]:
    """Return the expression for the pre-release in what follows a version.

    A word stands alone anywhere (`-rc`, `-slim-rc.1`), `a1` and `b2` right after the version, and
    so does `-M1`; a `-b10` is a build, not a beta.
    """
    return re.compile(
        rf"(?:(?:^|[-._]|(?<=[*?\]]))(?P<word>(?i:{_WORDS}))(?![A-Za-z])"
        rf"|^(?:(?P<letter>[ab])|[-._]?M)(?={number}))"
        rf"(?:[-._]?(?P<numbers>{number}))?"
    )


_VERSION = re.compile(
    r"(?P<prefix>[^0-9]*)(?P<numbers>[0-9]+(?:\.[0-9]+|[-_][0-9]+(?![0-9A-Za-z]))*)(?P<rest>.*)"
)
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_PRE = _pre_release(_NUMBERS.pattern)

_WILD = r"(?:\*|\?|\[!?\]?[^\]]*\])"
_RUN = re.compile(rf"(?:[0-9]|{_WILD})(?:[0-9.]|{_WILD})*(?:[-_](?=[0-9])(?:[0-9.]|{_WILD})+)*")
"""The part of a pattern that stands for numbers: `3.*`, `17-3.?`."""
_PRE_IN_PATTERN = _pre_release(rf"(?:[0-9.]|{_WILD})+")


def glob_match(pattern: str, text: str) -> bool:
    """Whether the shell glob fits the whole text: `*`, `?`, `[a-z]`, `[!a-z]`; `*` crosses `/`.

    The time is at most the product of the lengths: Python's translation never backtracks into an
    earlier `*`.
    """
    return fnmatchcase(text, pattern)


def newest(tags: Iterable[str], rule: Newest) -> tuple[str, ...]:
    """Return the tags that the rule means, each once, the newest first.

    With `match` and no `newest`: all that match. With `newest`: the highest by numbers of those
    that have the pattern's own suffix (`3.*` none, `3.*-slim` that one); where a glob stands for
    the suffix (`3.*-*`), the highest of each. Pre-releases only where the pattern names one, and
    tags without a number only where the pattern has no glob.

    With `semver`: tags that are a version, perhaps after a `v`, and in the range; pre-releases
    only of a version that the range itself names with a pre-release, as npm has it. Raises
    ValueError for a range that `check_semver` refuses.

    Equal versions (3.12, 3.12.0): the less precise tag first, since that is the one that moves.
    Texts that are no tags are left out.
    """
    versions = [_read(tag) for tag in {*tags} if valid_tag(tag)]
    if rule.semver is not None:
        alternatives = _read_range(rule.semver)
        found = [version for version in versions if _in_range(version, alternatives)]
        groups: Callable[[_Version], tuple[str, str]] = _all_alike
    else:
        pattern = "*" if rule.match is None else rule.match
        found = [version for version in versions if glob_match(pattern, version.tag)]
        groups = _all_alike
        if rule.newest is not None and re.search(_WILD, pattern):
            form = _read_pattern(pattern)
            found = [version for version in found if form.means(version)]
            groups = _kind
    return tuple(version.tag for version in _highest(found, rule.newest, groups))


def check_semver(text: str) -> None:
    """Raise ValueError, with the cure, where the text is no range that we read.

    Ranges are npm's without hyphen ranges: comparators `> >= < <= = !=`, `^1.2`, `~1.2`, `1.x`,
    `1.*` and `*`, joined by commas or spaces (and) or `||` (or).
    """
    _read_range(text)


@dataclass(frozen=True, slots=True)
class _Version:
    """A tag, taken apart."""

    tag: str
    prefix: str
    numbers: tuple[int, ...]
    """Empty for a tag without any."""
    stage: tuple[int, ...]
    """The rank and the numbers of a pre-release, else `_FINAL`."""
    suffix: str

    @property
    def order(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where the version stands among others: 3.12 and 3.12.0 are equal."""
        return _plain(self.numbers), self.stage

    @property
    def age(self) -> tuple[object, ...]:
        """The sort key, total: higher is newer."""
        return (
            bool(self.numbers),
            *self.order,
            _integers(self.suffix),
            -len(self.numbers),
            self.tag,
        )


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What a glob says about the form of the tags that are meant."""

    fixed_prefix: bool
    suffix: str | None
    """In the form of `_kind`; None where a glob stands for it."""
    pre_releases: bool

    def means(self, version: _Version) -> bool:
        """Whether a tag that the glob matches is of the form that it means."""
        if not version.numbers or (version.stage != _FINAL and not self.pre_releases):
            return False
        if self.suffix is None:
            return True
        prefix, suffix = _kind(version)
        return suffix == self.suffix and (self.fixed_prefix or not prefix)


def _read(tag: str) -> _Version:
    found = _VERSION.fullmatch(tag)
    if found is None:
        return _Version(tag, "", (), _FINAL, tag)
    prefix, rest = found["prefix"], found["rest"]
    stage: tuple[int, ...] = _FINAL
    if pre := _PRE.search(rest):
        stage = _stage(pre)
        rest = rest[: pre.start()] + rest[pre.end() :]
    elif pre := _PRE.search(prefix):
        stage = _stage(pre)
    prefix = "" if prefix in {"v", "V"} else prefix
    return _Version(tag, prefix, _integers(found["numbers"]), stage, rest)


def _stage(pre: re.Match[str]) -> tuple[int, ...]:
    word = (pre["word"] or pre["letter"] or "m").lower()
    return (_RANKS[word], *_integers(pre["numbers"] or ""))


def _read_pattern(pattern: str) -> _Pattern:
    run = _RUN.search(pattern)
    assert run is not None, "the pattern has a wildcard"
    head = pattern[: run.start()]
    tail, pre_releases = _PRE_IN_PATTERN.subn("", pattern[run.end() :])
    spans = any(not re.search("[0-9]", part[0]) for part in _RUN.finditer(tail))
    return _Pattern(
        fixed_prefix=bool(head),
        suffix=None if spans else _RUN.sub("#", tail).lstrip(_SEPARATORS),
        pre_releases=pre_releases > 0 or _PRE_IN_PATTERN.search(head) is not None,
    )


def _kind(version: _Version) -> tuple[str, str]:
    """Return prefix and suffix with their numbers taken out: tags of a kind compete."""
    return version.prefix, _NUMBERS.sub("#", version.suffix).lstrip(_SEPARATORS)


def _all_alike(_version: _Version) -> tuple[str, str]:
    return "", ""


def _highest(
    versions: list[_Version], count: int | None, group: Callable[[_Version], tuple[str, str]]
) -> list[_Version]:
    """Return the versions newest first, of each group no more than count."""
    versions.sort(key=lambda version: version.age, reverse=True)
    if count is None:
        return versions
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for version in versions:
        kind = group(version)
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= count:
            kept.append(version)
    return kept


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall("[0-9]+", text))


def _plain(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers without zeros at the end, so that 3.12 equals 3.12.0."""
    end = len(numbers)
    while end and numbers[end - 1] == 0:
        end -= 1
    return numbers[:end]


_Order = tuple[tuple[int, ...], tuple[int, ...]]

_LOWEST: Final = (-1,)
"""The stage before every pre-release: what npm writes `-0`."""
_COMPARATOR = re.compile(
    r"(?P<operator>>=|<=|!=|==|>|<|=|\^|~>|~|)v?"
    r"(?:(?P<numbers>[0-9]{1,128}(?:\.[0-9]{1,128})*)(?P<open>(?:\.[xX*])+)?|(?:[xX*](?:\.[xX*])*))"
    r"(?P<pre>-?[A-Za-z][0-9A-Za-z.-]*)?"
)
_SEMVER_CURE = (
    "write comparators such as >=3.12 <4, ^3.12, ~3.12 or 3.x, with || between alternatives, "
    "or use match for tags with a suffix"
)


@dataclass(frozen=True, slots=True)
class _Comparator:
    """The versions from `low` on and below `high`, or, negated, all the others."""

    low: _Order
    high: _Order | None
    negated: bool
    named: tuple[int, ...] | None
    """The version whose pre-releases are allowed, since it was written with one."""


def _in_range(version: _Version, alternatives: list[list[_Comparator]]) -> bool:
    """Whether the tag is a plain version that satisfies one of the alternatives."""
    if not version.numbers or version.prefix or version.suffix:
        return False
    order = version.order
    return any(
        all(
            (one.low <= order and (one.high is None or order < one.high)) != one.negated
            for one in alternative
        )
        and (version.stage == _FINAL or any(one.named == order[0] for one in alternative))
        for alternative in alternatives
    )


def _read_range(text: str) -> list[list[_Comparator]]:
    alternatives = []
    for part in text.split("||"):
        words = re.sub(r"([<>=^~])\s+", r"\1", part).replace(",", " ").split()
        if not words:
            raise ValueError(f"{_cut(text)} has an empty range; {_SEMVER_CURE}")
        alternatives.append([_read_comparator(word) for word in words])
    return alternatives


def _read_comparator(text: str) -> _Comparator:
    found = _COMPARATOR.fullmatch(text)
    pre = _PRE.fullmatch(found["pre"]) if found and found["pre"] else None
    if found is None or (found["pre"] and (pre is None or not found["numbers"] or found["open"])):
        raise ValueError(f"{_cut(text)} is no comparator of versions; {_SEMVER_CURE}")
    operator = found["operator"]
    if found["numbers"] is None:
        if operator in {"<", ">", "!="}:
            raise ValueError(f"{_cut(text)} can never be true; {_SEMVER_CURE}")
        return _Comparator(((), _LOWEST), None, negated=False, named=None)
    numbers = _integers(found["numbers"])
    stage = _stage(pre) if pre else _FINAL
    partial = pre is None and (found["open"] is not None or len(numbers) < 3)
    low, high = _bounds(operator, numbers, stage, partial)
    return _Comparator(low, high, operator == "!=", _plain(numbers) if pre else None)


def _bounds(
    operator: str, numbers: tuple[int, ...], stage: tuple[int, ...], partial: bool
) -> tuple[_Order, _Order | None]:
    """Return the first version that the comparator takes and the first above that it does not.

    A partial version stands for all that begin with it: `>3.12` starts at 3.13, `<=3.12` takes
    3.12.9.
    """
    start = (_plain(numbers), stage)
    last = len(numbers) - 1
    # Nothing lies between a stage and the same with one more, negative, number.
    after = (_above(numbers, last), _LOWEST) if partial else (start[0], (*stage, -1))
    nothing: _Order = ((), _LOWEST)
    match operator:
        case ">=":
            return start, None
        case ">":
            return (after[0], _FINAL) if partial else after, None
        case "<":
            return nothing, start
        case "<=":
            return nothing, after
        case "^":
            digit = next((place for place, number in enumerate(numbers) if number), last)
            return start, (_above(numbers, digit), _LOWEST)
        case "~" | "~>":
            return start, (_above(numbers, min(1, last)), _LOWEST)
        case _:
            return start, after


def _above(numbers: tuple[int, ...], place: int) -> tuple[int, ...]:
    """Return the lowest numbers above all that are equal up to that place."""
    return (*numbers[:place], numbers[place] + 1)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
