"""What a failed copy means: code, cause and cure, from skopeo's words and what the gate met.

skopeo's words only ever raise a suspicion against a mirror: whoever pushes an image chooses some of
them. `MirrorSite.check` is the proof. `tests/unit/sync/test_causes.py` has the texts of skopeo
1.9.3 to 1.18, as seen against registry 2.8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from prewarm.core.errors import PrewarmError, RegistryError
from prewarm.registry.errors import BAD_UPLOAD

Side = Literal["source", "mirror"]


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a copy failed."""

    error: PrewarmError
    side: Side
    """Where: while an image was read, or while a mirror was asked or written to."""
    passing: bool
    """Whether it may be gone at a second try."""
    uploading: bool = False
    """Whether a blob was being sent to the mirror."""
    reached: bool = True
    """Whether skopeo got so far as to ask the mirror about this image."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What the words must hold, and what they mean: a cause may hold `{status}` and `{request}`."""

    pattern: str
    code: str
    cause: str
    cure: str
    passing: bool = True


_LOG: Final = "see the mirror's log; run again"
_MIRROR: Final = (
    _Rule(
        r"digest invalid|DIGEST_INVALID|provided digest did not match uploaded content",
        "mirror-bad-upload",
        "the mirror received other bytes than were sent (digest invalid)",
        BAD_UPLOAD,
    ),
    _Rule(
        r"no space left|disk quota exceeded",
        "mirror-full",
        "no space left on device",
        "free or add disk on the mirror; broken uploads lie in the _uploads folders of its storage",
    ),
    _Rule(
        # Its answer to the end of an upload of which it could not keep the beginning.
        r"blob upload (?:invalid|unknown)",
        "mirror-server-error",
        "the mirror lost a part of an upload",
        _LOG,
    ),
    _Rule(
        r"\b405\b|unsupported|[Mm]ethod not allowed",
        "mirror-read-only",
        "the mirror answered 405 (method not allowed) to {request}",
        "end its read-only maintenance; a proxy cannot be a push mirror",
        passing=False,
    ),
    _Rule(
        r"unauthorized|authentication required|\b401\b",
        "mirror-unauthorized",
        "the mirror answered unauthorized to {request}",
        "",  # as the caller knows where logins are kept
        passing=False,
    ),
    _Rule(
        r"denied|\b403\b",
        "mirror-denied",
        "the mirror answered denied to {request}: this account may not push there",
        "give the account the right to push",
        passing=False,
    ),
    _Rule(
        r"server gave HTTP response to HTTPS client",
        "mirror-plain-http",
        "the mirror does not speak TLS on this port",
        "write its url with http://, or give it a certificate",
        passing=False,
    ),
    _Rule(
        r"x509|certificate|tls: ",
        "mirror-tls",
        "certificate verify failed",
        "set ca: of the mirror in images.yml",
        passing=False,
    ),
    _Rule(
        r"connection refused|no such host|network is unreachable|no route to host|"
        r"dial tcp[^\"]*i/o timeout",
        "mirror-unreachable",
        "connection refused, or the mirror cannot be reached",
        "start the mirror, or check the network",
    ),
    _Rule(
        r"context deadline exceeded",
        "timeout",
        "the copy took longer than its timeout",
        "check the network between upstream, this host and the mirror",
        passing=False,
    ),
    _Rule(
        r"i/o timeout|[Tt]imeout",
        "mirror-timeout",
        "connection timed out",
        "check the mirror's load and the network; run again",
    ),
    _Rule(
        r"(?:status|StatusCode|registry|repository[^:]*):? (?P<status>5\d\d)\b",
        "mirror-server-error",
        "the mirror answered {status} to {request}",
        _LOG,
    ),
    _Rule(
        r"StatusCode: (?P<status>413)\b",
        "mirror-bad-answer",
        "the mirror answered {status} (request entity too large) to {request}",
        "raise the limit of the proxy before the mirror (nginx: client_max_body_size)",
        passing=False,
    ),
    _Rule(
        r"EOF|reset by peer|broken pipe",
        "mirror-reset",
        "connection reset by peer",
        _LOG,
    ),
)
_MAY_PASS: Final = frozenset(rule.code for rule in _MIRROR if rule.passing)
"""Failures of a mirror that may be gone at a second try."""
_SOURCE: Final = (
    _Rule(
        r"[Dd]igest did not match|does not match (?:provided manifest digest|expected sha256)",
        "bad-digest",
        "the bytes that upstream sent are not those of the digest",
        "run again; if it stays so, the image is broken upstream",
    ),
    _Rule(
        r"unsupported",
        "unsupported-manifest",
        "skopeo cannot copy an image with a layer or config of this media type",
        "build the image with a current tool, or pin another tag of it",
        passing=False,
    ),
    _Rule(
        r"context deadline exceeded",
        "timeout",
        "the copy took longer than its timeout",
        "check the network between upstream, this host and the mirror",
        passing=False,
    ),
    _Rule(
        r"EOF|reset by peer|broken pipe|connection refused",
        "reset",
        "the copy broke off",
        "run again",
    ),
)

_READING: Final = re.compile(
    r"initializing (?:image from )?source |reading (?:manifest|config|blob|signatures)|"
    r"happened during read|[Dd]igest did not match|"
    r"does not match (?:provided manifest digest|expected)"
)
"""Words about the source: the image, as it comes from the gate."""
_WRITING: Final = re.compile(
    r"^(?:copying [^:]+: )?(?:writing (?:blob|manifest)|uploading |trying to reuse blob|"
    r"checking whether a blob|initializing destination |pinging container registry )"
)
"""What words about a mirror begin with."""
_UPLOAD: Final = re.compile(r"writing blob|initiating layer upload|uploading layer")


def last_words(stderr: str) -> str:
    """Return skopeo's own last message: the `msg` of its fatal line, else its last line."""
    fatal = re.findall(r'level=fatal msg="((?:[^"\\]|\\.)*)"', stderr)
    lines = [line for line in stderr.splitlines() if line.strip() and "level=debug" not in line]
    words: str = fatal[-1] if fatal else (lines[-1] if lines else "")
    # Signed query strings have no place in a report.
    return re.sub(r"\?[^\s\"\\]*", "?…", words.replace('\\"', '"'))[:500]


def panic(stderr: str) -> str | None:
    """Return the line with which the Go runtime ended skopeo; None where it did not."""
    found = re.search(r"^(?:panic|fatal error): .*", stderr, re.MULTILINE)
    return found[0][:200] if found else None


def cause_of(
    stderr: str,
    where: str,
    *,
    login: str = "log in to the mirror with skopeo login",
    source: RegistryError | None = None,
    mirror: RegistryError | None = None,
) -> Cause:
    """Return why a copy to `where`, a repository of a mirror, failed.

    `source` is what the gate met while it read the image and could not mend; `mirror` is the
    mirror's own last refusal, where it is known better than by skopeo's words. `login` is the cure
    where a login is required.
    """
    words = last_words(stderr)
    if source is not None:
        # It may be another mirror's: this one, to which it was copied, is not to blame.
        code = source.code.removeprefix("mirror-")
        error = PrewarmError(code, source.text, source.cure)
        return Cause(error, "source", code in {"reset", "server-error", "unreachable"})
    if (line := panic(stderr)) is not None:
        text = f"{where}: skopeo crashed: {line}"
        return Cause(
            PrewarmError("copy", text, "run again; if it stays so, install a newer skopeo"),
            "source",
            True,
        )
    nameless = _nameless(words)
    writing = _WRITING.search(nameless) is not None and _READING.search(nameless) is None
    side: Side = "mirror" if writing else "source"
    uploading = writing and _UPLOAD.search(nameless) is not None
    reached = "pinging container registry" not in nameless
    if mirror is not None and _READING.search(nameless) is None:
        return Cause(mirror, "mirror", mirror.code in _MAY_PASS, uploading, reached)
    for rule in _MIRROR if writing else _SOURCE:
        if found := re.search(rule.pattern, nameless):
            told = {"request": _request(nameless), **found.groupdict()}
            text = f"{where}: {rule.cause.format(**told)}"
            error = PrewarmError(rule.code, text, rule.cure or login)
            return Cause(error, side, rule.passing, uploading, reached)
    text = f"{where}: skopeo failed: {words or 'without a word'}"
    return Cause(PrewarmError("copy", text, "run again with -v"), side, True, uploading, reached)


def _nameless(words: str) -> str:
    """Return the words without what anybody may have chosen: names of images, quoted text."""
    bare = re.sub(r'"[^"]*"', '"…"', words)
    return re.sub(r"(?!i/o )[^\s\",]+/[^\s\",]*", "…", bare)


def _request(words: str) -> str:
    """Return what skopeo asked of the mirror."""
    if "pinging container registry" in words:
        return "GET /v2/"
    if "writing manifest" in words:
        return "the manifest"
    return "an upload" if _UPLOAD.search(words) else "a HEAD of a blob"
