"""What registries say in the headers of their answers.

Every value here was written by a server and is hostile: what does not fit its grammar is left out,
nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from prewarm.core.budget import Limit

_LONGEST: Final = 8192
"""Characters of a header that are read; longer than any honest challenge or link."""
_WORD: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER = re.compile(rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')
_SCHEME = re.compile(rf"({_WORD})(?=[\s,]|$)")
_GAP = re.compile(r"[\s,]*")
_COUNT = re.compile(r"\s*(-?[0-9]{1,12})\s*(?:;\s*w\s*=\s*([0-9]{1,9}))?\s*(?:[;,].*)?", re.DOTALL)
_SOURCE = re.compile(r"[0-9A-Za-z.:_%-]{1,128}")
_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[A-Za-z*]+\s*=\s*(?:"[^"]*"|[^\s,;"]*))*)')
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a 401 offers (RFC 9110, 11.6.1)."""

    scheme: str
    """In lower case: `bearer`, `basic`."""
    parameters: Mapping[str, str]
    """Names in lower case; of a name given twice the first counts."""


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all WWW-Authenticate headers of an answer, in their order."""
    return tuple(challenge for value in values for challenge in _challenges(value[:_LONGEST]))


def _challenges(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _end(_GAP.match(value, position))) < len(value):
        parameter = _PARAMETER.match(value, position)
        scheme = None if parameter else _SCHEME.match(value, position)
        if parameter:
            name, quoted, plain = parameter.groups()
            text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            if found:
                found[-1][1].setdefault(name.lower(), text)
            position = parameter.end()
        elif scheme:
            found.append((scheme[1].lower(), {}))
            position = scheme.end()
        else:
            comma = value.find(",", position)
            position = len(value) if comma < 0 else comma
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _end(match: re.Match[str] | None) -> int:
    assert match is not None  # the pattern matches nothing, too
    return match.end()


def read_limit(headers: Mapping[str, str]) -> Limit | None:
    """Return the quota that the answer reports; None without `ratelimit-remaining` (no limit).

    The form is Docker Hub's: `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600`.
    """
    remaining = _COUNT.fullmatch(headers.get("ratelimit-remaining", "")[:128])
    if remaining is None:
        return None
    limit = _COUNT.fullmatch(headers.get("ratelimit-limit", "")[:128])
    window = (limit[2] if limit else None) or remaining[2]
    source = headers.get("docker-ratelimit-source", "").strip()
    return Limit(
        limit=int(limit[1]) if limit else None,
        window=int(window) if window else None,
        remaining=int(remaining[1]),
        source=source if _SOURCE.fullmatch(source) else "",
    )


def next_link(value: str) -> str | None:
    """Return the target of the `Link` with `rel="next"`, as it stands there; None without one."""
    for target, parameters in _LINK.findall(value[:2048]):
        if re.search(r";\s*rel\s*=\s*\"?next\"?\s*(?:;|$)", parameters, re.IGNORECASE):
            return str(target)
    return None


def http_date(text: str) -> float | None:
    """Return a date of HTTP in seconds since the epoch; None where it is none."""
    try:
        at = parsedate_to_datetime(text[:64])
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def date(headers: Mapping[str, str]) -> float | None:
    """Return the time that the answer tells, in seconds since the epoch; None without a `Date`."""
    return http_date(headers.get("date", ""))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks to wait; None without it.

    A date is measured from the server's own `Date`, so that its clock and ours need not agree.
    """
    value = headers.get("retry-after", "")[:64].strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    until, now = http_date(value), date(headers)
    return None if until is None or now is None else max(0.0, until - now)


def content_range(value: str) -> tuple[int, int | None] | None:
    """Return (first byte, size of the whole or None) of a `Content-Range`; None if it is none."""
    match = _RANGE.fullmatch(value.strip())
    if match is None:
        return None
    return int(match[1]), None if match[3] == "*" else int(match[3])
