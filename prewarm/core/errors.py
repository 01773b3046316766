"""The failures a user can meet, each with its code, its cause and its cure.

Everything that a user or a server can do wrong becomes a `PrewarmError`; only `cli` turns one into
text and an exit code. Any other exception is a bug of ours (exit 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning"]
TEXT_MAX: Final = 500
"""Characters of a text: names, labels and answers of servers in it are as long as anybody likes."""
_TAIL: Final = 150


def shortened(text: str, most: int = TEXT_MAX) -> str:
    """Return the text; a longer one without its middle, since a cause stands at the end."""
    if len(text) <= most:
        return text
    tail = min(_TAIL, most // 3)
    return f"{text[: most - tail - 1]}…{text[len(text) - tail :]}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as a value: `error` in the JSON report."""

    code: str
    text: str
    cure: str

    def __post_init__(self) -> None:
        _shorten(self, "code", "text", "cure")

    def __str__(self) -> str:
        return f"{self.text}; {self.cure}" if self.cure else self.text


class PrewarmError(Exception):
    """A failure that says what is wrong and what to do about it.

    `code` is for machines and listed in docs/codes.md, `text` names the thing and the cause, `cure`
    says what to type or change. None of them ever holds a secret, and none is longer than TEXT_MAX.
    """

    exit_code = 1

    def __init__(self, code: str, text: str, cure: str) -> None:
        code, text, cure = shortened(code), shortened(text), shortened(cure)
        super().__init__(f"{text}; {cure}" if cure else text)
        self.code = code
        self.text = text
        self.cure = cure

    @property
    def failure(self) -> Failure:
        """The same as a value."""
        return Failure(self.code, self.text, self.cure)


class UsageError(PrewarmError):
    """Wrong usage, configuration or state: nothing was done (exit 2)."""

    exit_code = 2


class AlreadyRunningError(PrewarmError):
    """Another sync holds the state or one of the mirrors (exit 75, as EX_TEMPFAIL)."""

    exit_code = 75


class RegistryError(PrewarmError):
    """A registry, upstream or mirror, did not do what it was asked.

    `answered` is true when the server may have counted the request: it answered with anything but
    429, or the connection broke after the request was sent. It is false when the connection was
    refused or the answer was 429, so that a reservation may be released (DESIGN.md, 2).
    """

    def __init__(
        self,
        code: str,
        text: str,
        cure: str,
        *,
        status: int | None = None,
        answered: bool = True,
        retry_after: float | None = None,
        elsewhere: bool = False,
    ) -> None:
        super().__init__(code, text, cure)
        self.status = status
        """The HTTP status, or None when there was no answer."""
        self.answered = answered
        self.retry_after = retry_after
        """Seconds that the server asked us to wait, from Retry-After."""
        self.elsewhere = elsewhere
        """Whether it came from another host, to which the registry had redirected the request."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person should know: one line of `problems` in the JSON report."""

    severity: Severity
    code: str
    where: str
    """The thing: `images.yml:12`, `docker.io`, a mirror's URL, `group/project`."""
    problem: str
    cure: str

    def __post_init__(self) -> None:
        _shorten(self, "code", "where", "problem", "cure")

    def __str__(self) -> str:
        told = self.problem
        if not told.startswith((f"{self.where}: ", f"{self.where}/", f"{self.where} ")):
            told = f"{self.where}: {told}"
        return f"{told}; {self.cure}" if self.cure else told

    @property
    def line(self) -> str:
        """A problem of images.yml as `FILE:LINE: key: problem, cure` (CONTRACT, 1)."""
        return ", ".join(filter(None, (f"{self.where}: {self.problem}", self.cure)))


class ConfigError(UsageError):
    """`images.yml` has errors; all of them are in `problems`, one line each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("config", "images.yml has problems", "")
        # All of them, each a line.
        self.text = "\n".join(str(problem) for problem in problems)
        self.args = (self.text,)


def _shorten(value: Failure | Problem, *names: str) -> None:
    for name in names:
        if len(text := getattr(value, name)) > TEXT_MAX:
            object.__setattr__(value, name, shortened(text))


def problem_json(problem: Problem) -> dict[str, str]:
    return {
        "severity": problem.severity,
        "code": problem.code,
        "where": problem.where,
        "problem": problem.problem,
        "cure": problem.cure,
    }
