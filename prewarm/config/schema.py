"""The keys of `images.yml`, declared once: what each accepts, means and is by default.

From this declaration come the validation (`config`), the JSON Schema that the package ships
(`images.schema.json`), the commented sample of `prewarm init` and the reference in the docs, so
that they cannot disagree. The keys themselves are fixed by CONTRACT.md, 2.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from prewarm.core.platforms import ALL, parse_platform
from prewarm.core.reference import (
    InvalidReference,
    Reference,
    parse,
    parse_registry,
    parse_repository,
    valid_tag,
)
from prewarm.core.tags import check_semver
from prewarm.core.text import Refused, parse_duration

VERSION: Final = 1
"""The version of the file that this prewarm reads."""

Json = dict[str, Any]
Fault = tuple[str, str, str]
"""A broken rule between keys: the key that is to blame, the problem and the cure."""


# What a value can be


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar, read from its spelling in the file."""

    says: str
    """Completes "must be …": `a duration such as 6h`."""
    parse: Callable[[str], Any]
    """Returns the value; ValueError: it is not what `says` says; Refused: in its own words."""
    schema: Json
    cure: str
    secret: bool = False
    """The text may hold a secret: no problem ever quotes it."""
    null: bool = False
    """A bare `null` is a text as any other."""


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping whose keys are known."""

    keys: tuple[Key, ...]
    check: Callable[[Mapping[str, Any]], Iterator[Fault]] | None = None
    """The rules between keys, asked with what is written; a value that is wrong is None."""
    schema: Json = field(default_factory=dict)
    """What JSON Schema can say of those rules."""

    def find(self, name: str) -> Key | None:
        return next((key for key in self.keys if key.name == name), None)


@dataclass(frozen=True, slots=True)
class Many:
    """A list."""

    item: Text | Either
    least: int = 0


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names that the user gives to mappings whose keys are known."""

    name: Text
    item: Keys
    example: str


@dataclass(frozen=True, slots=True)
class Either:
    """One of several forms, told apart by whether the value is a text, a list or a mapping."""

    says: str
    text: Text | None = None
    many: Many | None = None
    keys: Keys | None = None
    offer: Callable[[str], str] | None = None
    """Returns what to write instead of a word (or of nothing) that is none of the forms."""


Kind = Text | Keys | Many | Named | Either


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the file."""

    name: str
    kind: Kind
    meaning: str
    example: str = ""
    """The value as YAML; empty where the keys below it have examples of their own."""
    default: str = ""
    """The default as the file would spell it, or in words; empty where there is none."""
    required: bool = False


# Scalars

_BYTES: Final = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
    "KB": 1000,
}
_BYTES_MAX: Final = 2**60
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kKMGT]i?B|B)", re.ASCII)
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_CLOCK: Final = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_EVERY: Final = re.compile(r"every +(\S+)")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_HOST_PORT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
_AUTHORITY: Final = re.compile(rf"{_HOST_PORT.pattern}|\[[0-9A-Fa-f:.]+\](?::[0-9]{{1,5}})?")
_GITLAB_PATH: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_CREDENTIALS: Final = re.compile(r"://[^/]*@|:[^/@:]*@(?!sha(?:256|384|512):)")
_SHOWN_MAX: Final = 60

_NO_SECRET: Final = "secrets are never in this file: use authfile or token_file"  # noqa: S105 - prose


def may_hold_secret(text: str) -> bool:
    """Whether the text looks like a URL or a login with a password in it."""
    return _CREDENTIALS.search(text) is not None


def shown(text: str) -> str:
    """Return the text for a problem: quoted, cut, on one line and never with a password."""
    if may_hold_secret(text):
        return "a text that may hold a password (not shown)"
    return repr(text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…")


def parse_size(text: str) -> int:
    """Return the bytes of `10GiB` (binary), `500MB` (decimal) or `1.5GiB`."""
    match = _SIZE.fullmatch(text)
    if not match or match[2] not in _BYTES:
        raise ValueError(text)
    size = (
        float(match[1]) * _BYTES[match[2]] if "." in match[1] else int(match[1]) * _BYTES[match[2]]
    )
    if size > _BYTES_MAX:
        raise Refused("is larger than 1024 PiB", "write a smaller one")
    return int(size)


def _above_zero(parse: Callable[[str], int]) -> Callable[[str], int]:
    def parse_above_zero(text: str) -> int:
        value = parse(text)
        if value <= 0:
            raise Refused("must be more than nothing", "write a larger one")
        return value

    return parse_above_zero


def _number(least: int, most: int = 10**9) -> Text:
    def parse_number(text: str) -> int:
        if not _NUMBER.fullmatch(text):
            raise ValueError(text)
        if not least <= int(text) <= most:
            says = f"at least {least}" if int(text) < least else f"at most {most}"
            raise Refused(f"must be {says}, not {text}", f"write from {least} to {most}")
        return int(text)

    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Text("a whole number", parse_number, schema, "write digits only, such as 4")


def _choice(*words: str) -> Text:
    def parse_choice(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    says = " or ".join(words) if len(words) < 3 else "one of " + ", ".join(words)
    return Text(says, parse_choice, {"enum": list(words)}, f"write {says}")


def _truth(text: str) -> bool:
    """Read a truth as YAML 1.1 and 1.2 spell it."""
    lower = text.lower()
    if lower in {"true", "yes", "on"}:
        return True
    if lower in {"false", "no", "off"}:
        return False
    raise ValueError(text)


def _line(text: str) -> str:
    """Accept a text of one line that is not empty."""
    if not text.strip() or not text.isprintable():
        raise ValueError(text)
    return text


def _path(text: str) -> Path:
    """Accept a file's path; the reader makes it absolute."""
    if "://" in text:
        raise Refused("must be a path, not a URL", "name a file on this machine")
    if text.startswith("~") and not text.startswith("~/"):
        raise Refused("names another user's home folder", "write the path in full, or ~/…")
    return Path(_line(text))


def _file_pattern(text: str) -> str:
    _path(text)
    return text


def _url(*, path: bool, exact: bool = False) -> Callable[[str], str]:
    """Return the reader of an http(s) URL without login, query and fragment.

    An `exact` one keeps a `/` at its end: there servers redirect who leaves it out.

    No message quotes the URL: a password could stand anywhere in it.
    """

    def parse_url(text: str) -> str:
        scheme, separator, rest = text.partition("://")
        if scheme not in {"http", "https"} or not separator:
            raise Refused(
                "must begin with http:// or https://", "write https://host or http://host:port"
            )
        authority, slash, tail = rest.partition("/")
        if "@" in authority:
            raise Refused("holds a user or a password", f"take it out; {_NO_SECRET}")
        if re.search(r"[?#]", rest):
            raise Refused("has a query or a fragment", "leave out ? or # and what follows")
        if not tail.isprintable() or " " in tail or not _AUTHORITY.fullmatch(authority):
            raise Refused(
                "names no host that can be read", "write https://host or http://host:port"
            )
        try:
            port = urlsplit(text).port
        except ValueError:
            port = 0
        if port == 0:
            raise Refused("names no host and port that can be read", "a port is 1 to 65535")
        if tail.strip("/") and not path:
            raise Refused(
                "has a path, and a mirror lies at the root: dockerd asks nowhere else",
                "leave out what follows the host",
            )
        url = f"{scheme}://{authority.lower()}{slash}{tail}"
        return url if exact else url.rstrip("/")

    return parse_url


def _realm(text: str) -> str:
    if not _HOST_PORT.fullmatch(text):
        raise ValueError(text)
    return text.lower()


def _state(text: str) -> Path | str:
    """Accept a file's path or a `postgresql://` URL without a password."""
    if "://" not in text:
        return _path(text)
    try:
        parts = urlsplit(_line(text))
        names = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    except ValueError:
        raise Refused("is a URL that cannot be read", "write postgresql://user@host/name") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise Refused("must be a path or a postgresql:// URL", "write postgresql://user@host/name")
    login, at, _ = parts.netloc.rpartition("@")
    if (at and ":" in unquote(login)) or any("password" in name for name in names):
        raise Refused("holds a password", "take it out; prewarm reads it from pgpass (PGPASSFILE)")
    return text


def _host_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(text)
    return text


def _runner_log(text: str) -> Path | str:
    """Accept a file's path or `journal:UNIT`."""
    if not text.startswith("journal:"):
        return _path(text)
    if not re.fullmatch(r"journal:[A-Za-z0-9@_.:\\-]+", text):
        raise ValueError(text)
    return text


def _gitlab_path(text: str) -> str:
    if not _GITLAB_PATH.fullmatch(text):
        raise ValueError(text)
    return text


def _timezone(text: str) -> str:
    from zoneinfo import ZoneInfo  # only files with a timezone pay for it

    try:
        return ZoneInfo(text).key
    except (ValueError, OSError, KeyError):
        raise ValueError(text) from None


def _time_of_day(text: str) -> str:
    """Return `19:00` or `every 6h` in its one spelling."""
    if match := _CLOCK.fullmatch(text):
        return f"{int(match[1]):02}:{match[2]}"
    match = _EVERY.fullmatch(text)
    if not match:
        raise ValueError(text)
    if parse_duration(match[1]) < 60:
        raise Refused("comes more often than every minute", "write every 1m or more")
    return f"every {match[1]}"


def _refused_reference(text: str, error: InvalidReference) -> Refused:
    if may_hold_secret(text):
        return Refused("is no image's name and may hold a password", _NO_SECRET)
    return Refused(f"{shown(text)} {error.problem}", error.cure)


def _image(text: str) -> Reference:
    """Return the reference as written: without tag and digest where the text has none."""
    try:
        try:
            reference = parse_repository(text)
        except InvalidReference:
            reference = parse(text)
        _ = reference.mirror_repository  # raises where the name has no path of its own on a mirror
    except InvalidReference as error:
        raise _refused_reference(text, error) from None
    return reference


def _registry(text: str) -> str:
    try:
        name = parse_registry(text)
    except InvalidReference as error:
        raise _refused_reference(text, error) from None
    if name.startswith("["):
        raise Refused(
            f"{shown(text)} is an IPv6 address, which no path on a mirror can hold",
            "give the registry a DNS name",
        )
    return name


def _offer_platforms(text: str) -> str:
    try:
        names = [str(parse_platform(name.strip())) for name in text.split(",")]
    except ValueError:
        names = ["linux/amd64"]
    return f"[{', '.join(names)}]"


def _offer_budget(text: str) -> str:
    """Offer a limit: whoever wrote a number wants one, and `none` would take it away."""
    return f"{{pulls: {text if _NUMBER.fullmatch(text) else 200}, window: 6h}}"


def _offer_tags(text: str) -> str:
    if valid_tag(text):
        return f'["{text}"]'
    return '{match: "3.*"} for a pattern, or a list such as ["3.12", "3.13"]'


def _tag(text: str) -> str:
    if not valid_tag(text):
        raise ValueError(text)
    return text


def _semver(text: str) -> str:
    try:
        check_semver(text)
    except ValueError as error:
        problem, _, cure = str(error).partition("; ")
        raise Refused(problem, cure or 'write a range such as ">=3.12"') from None
    return text


_STRING: Final[Json] = {"type": "string", "minLength": 1}
_WORD: Final[Json] = {"type": ["string", "number"], "minLength": 1}
"""A text that YAML may take for a number, as the tag 3.10."""

_DURATION_SCHEMA: Final[Json] = {"type": "string", "pattern": "^0*[1-9][0-9]*[smhdw]$"}
DURATION: Final = Text(
    "a duration such as 6h",
    _above_zero(parse_duration),
    _DURATION_SCHEMA,
    "write a number and one of s m h d w",
)
_SIZE_SCHEMA: Final[Json] = {
    "type": "string",
    "pattern": r"^[0-9]+(\.[0-9]+)? ?(B|[kKMGT]B|[KMGT]iB)$",
}
SIZE: Final = Text(
    "a size such as 10GiB",
    _above_zero(parse_size),
    _SIZE_SCHEMA,
    "write a number and a unit: GiB, GB, MiB, MB",
)
_TRUTH: Final = Text("true or false", _truth, {"type": "boolean"}, "write true or false")
_PATH: Final = Text("a file's path", _path, _STRING, "name a file on this machine")
_ARGUMENT: Final = Text("a text of one line", _line, _WORD, "write one word of the command", True)
_GLOB: Final = Text("a pattern of one line", _line, _WORD, "write a pattern with * and ?")
_URL: Final = Text(
    "a URL",
    _url(path=True),
    {"type": "string", "pattern": r"^https?://[^/@?#\s]+(/[^?#\s]*)?$"},
    "write https://host or http://host:port",
    secret=True,
)
_ROOT_URL: Final = Text(
    "a URL",
    _url(path=False),
    {"type": "string", "pattern": r"^https?://[^/@?#\s]+/*$"},
    "write https://host or http://host:port",
    secret=True,
)
_GROUP: Final = Text(
    "a path such as group/subgroup",
    _gitlab_path,
    {"type": ["string", "integer"], "pattern": f"^{_GITLAB_PATH.pattern}$"},
    "write the path that stands in its address after the host",
)
_PLATFORM: Final = Text(
    "a platform such as linux/arm64",
    parse_platform,
    {"type": "string", "pattern": r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){1,2}$"},
    "write os/architecture or os/architecture/variant",
)
_IMAGE: Final = Text("the name of an image", _image, _STRING, "write a name such as golang:1.22")
_TAG: Final = Text(
    "a tag",
    _tag,
    {"type": ["string", "number"], "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"},
    'write a literal tag; a pattern goes into tags: {match: "3.*"}',
    null=True,
)
_WHEN: Final = Text(
    'a time such as "19:00" or "every 6h"',
    _time_of_day,
    {
        "type": "string",
        "pattern": r"^(([01]?[0-9]|2[0-3]):[0-5][0-9]|every +[0-9]+[smhdw])$",
    },
    "write HH:MM, or every and a duration",
)


# Rules between keys


def _check_budget(values: Mapping[str, Any]) -> Iterator[Fault]:
    pulls, reserve = values.get("pulls"), values.get("reserve")
    if pulls is not None and reserve is not None and reserve > pulls:
        yield (
            "reserve",
            f"is {reserve}, more than the {pulls} pulls it is a part of",
            f"write at most {pulls}",
        )


def _check_newest(values: Mapping[str, Any]) -> Iterator[Fault]:
    if ("match" in values) == ("semver" in values):
        yield "", "needs one of match and semver", 'write {match: "3.*"} or {semver: ">=3.12"}'


def _check_pin(values: Mapping[str, Any]) -> Iterator[Fault]:
    image = values.get("image")
    if "tags" not in values or not isinstance(image, Reference):
        return
    if image.tag is not None or image.digest is not None:
        yield (
            "tags",
            "is given although image has a tag or a digest",
            f"write image: {image.without_selector().familiar}, or leave out tags",
        )


def _check_notify(values: Mapping[str, Any]) -> Iterator[Fault]:
    if "command" not in values and "webhook" not in values:
        yield "", "says not whom to tell", "write command or webhook"


# The keys

PLATFORMS: Final = Either(
    "all, or a list of platforms",
    text=_choice(ALL),
    many=Many(_PLATFORM, least=1),
    offer=_offer_platforms,
)
BUDGET: Final = Keys(
    (
        Key("pulls", _number(0), "pulls per window; 0: HEADs only", "200", required=True),
        Key("window", DURATION, "length of the rolling window", "6h", "6h"),
        Key("reserve", _number(0), "pulls of these that stay for the CI jobs", "20", "0"),
    ),
    _check_budget,
)
NEWEST: Final = Keys(
    (
        Key("match", _GLOB, "a shell glob on the whole tag", '"3.*"'),
        Key(
            "semver",
            Text("a range such as >=3.12", _semver, _WORD, 'write a range such as ">=3.12"'),
            "a range of versions",
            '">=3.12"',
        ),
        Key("newest", _number(1), "only so many, the highest", "3", "all that match"),
    ),
    _check_newest,
    {"oneOf": [{"required": ["match"]}, {"required": ["semver"]}]},
)
MIRROR: Final = Keys(
    (
        Key(
            "url",
            _ROOT_URL,
            "where prewarm writes; http:// is plain HTTP, wanted",
            "https://mirror.example.org",
            required=True,
        ),
        Key("client_url", _ROOT_URL, "where runners read", "https://mirror.example.org", "the url"),
        Key(
            "mode",
            _choice("push", "pull-through"),
            "push: a plain registry:2; pull-through: one with proxy: (Docker Hub's images alone)",
            "push",
            "push",
        ),
        Key(
            "role",
            _choice("target", "source"),
            "source: another site's mirror, only read",
            "target",
            "target",
        ),
        Key("ca", _PATH, "the CA that signed its certificate", "/etc/ssl/mirror-ca.pem"),
        Key(
            "storage",
            _PATH,
            "its folder where that is local: free space is read",
            "/var/lib/docker-registry",
        ),
        Key("min_free", SIZE, "stop filling when less is free there", "10GiB"),
        Key("max_size", SIZE, "prune down to this size", "400GiB"),
        Key(
            "keep",
            DURATION,
            "prune no tag that CI used in this time",
            "30d",
            "30d, at least gitlab.history",
        ),
    )
)
REGISTRY: Final = Keys(
    (
        Key(
            "endpoint",
            _URL,
            "where it is asked; a path is a repository prefix",
            "https://registry-1.docker.io",
            "the registry's own host",
        ),
        Key("ca", _PATH, "the CA that signed its certificate", "/etc/ssl/upstream-ca.pem"),
        Key(
            "budget",
            Either(
                "none, or pulls, window and reserve",
                text=_choice("none"),
                keys=BUDGET,
                offer=_offer_budget,
            ),
            "pulls that prewarm may spend, or none: no limit",
            "{pulls: 200, window: 6h, reserve: 20}",
            "docker.io: as it reports, a fifth in reserve; others: none",
        ),
        Key("platforms", PLATFORMS, "what to mirror of each", "[linux/amd64]", "the general ones"),
        Key(
            "realm",
            Text(
                "a host such as gitlab.com",
                _realm,
                {"type": "string", "pattern": f"^{_HOST_PORT.pattern}$"},
                "write host or host:port",
            ),
            "its token server, where that is another host",
            "auth.docker.io",
            "built in for docker.io and registry.gitlab.com",
        ),
    )
)
RUNNERS: Final = Keys(
    (
        Key("ids", Many(_number(1)), "runners by number", "[12, 34]", "[]"),
        Key(
            "tags",
            Many(Text("a tag", _line, _WORD, "write a runner's tag, such as docker")),
            "runners by tag",
            "[docker]",
            "[]",
        ),
        Key("shared", _TRUTH, "the instance's own runners too", "false", "true"),
    )
)
GITLAB: Final = Keys(
    (
        Key("url", _URL, "the instance", "https://gitlab.example.org", required=True),
        Key("ca", _PATH, "the CA that signed its certificate", "/etc/ssl/gitlab-ca.pem"),
        Key(
            "token_file",
            _PATH,
            "a file that holds the token, read_api is enough",
            "/etc/prewarm/gitlab-token",
            "$CREDENTIALS_DIRECTORY/gitlab-token, $PREWARM_GITLAB_TOKEN",
        ),
        Key("groups", Many(_GROUP), "with their subgroups", "[mediawiki, repos/releng]", "[]"),
        Key(
            "projects",
            Many(_GROUP),
            "single projects",
            "[infra/tools]",
            "where groups too is empty: those the token's user is a member of",
        ),
        Key(
            "scope",
            _choice("member", "all"),
            "all: every visible project, only where you own the instance",
            "member",
            "member",
        ),
        Key("runners", RUNNERS, "only jobs of these runners count"),
        Key("exclude", Many(_GLOB), "projects left out; ** crosses /", '["sandbox/**"]', "[]"),
        Key("history", DURATION, "how far back jobs count", "14d", "14d"),
        Key("rescan", DURATION, "sync scans when the last scan is older", "12h", "12h"),
        Key(
            "traces",
            _choice("never", "unresolved", "sample"),
            "read the heads of job logs: never, unresolved or sample",
            "unresolved",
            "unresolved",
        ),
        Key(
            "variables",
            _TRUTH,
            "read CI variables (needs Maintainer; of groups, Owner)",
            "false",
            "false",
        ),
        Key(
            "dependency_proxy",
            _choice("report", "map"),
            "its images: only report, or map to docker.io",
            "report",
            "report",
        ),
        Key(
            "runner_logs",
            Many(
                Text(
                    "a file's path or journal:UNIT",
                    _runner_log,
                    _STRING,
                    "write /path/to/log or journal:gitlab-runner",
                )
            ),
            "files or journal:UNIT with FF_LOG_IMAGES_CONFIGURED_FOR_JOB",
            "[journal:gitlab-runner]",
            "[]",
        ),
    )
)
LIMITS: Final = Keys(
    (
        Key("parallel", _number(1, 64), "copies at once", "4", "4"),
        Key("checks", _number(1, 256), "HEADs at once per registry", "16", "16"),
        Key("image_size", SIZE, "a larger image is skipped", "10GiB", "10GiB"),
        Key("pulls_per_image", _number(1), "an image that costs more is skipped", "32", "32"),
        Key(
            "pulls_per_project",
            _number(1),
            "per window, for images that one project alone uses",
            "50",
            "50",
        ),
        Key("heads_per_minute", _number(1), "HEADs per registry", "3000", "3000"),
        Key("run_time", DURATION, "a sync starts nothing new after this time", "5h", "5h"),
    )
)
NOTIFY: Final = Keys(
    (
        Key(
            "command",
            Many(_ARGUMENT, least=1),
            "started without a shell, with the notice (JSON) on stdin",
            "[/usr/local/bin/page]",
        ),
        Key(
            "webhook",
            replace(_URL, parse=_url(path=True, exact=True)),
            "a URL that gets the notice (JSON) by POST",
            "https://chat.example.org/hook",
        ),
        Key(
            "on",
            Many(_choice("failure", "mirror-full", "budget"), least=1),
            "what is worth telling",
            "[failure, mirror-full, budget]",
            "[failure]",
        ),
    ),
    _check_notify,
    {"anyOf": [{"required": ["command"]}, {"required": ["webhook"]}]},
)
PIN: Final = Keys(
    (
        Key("image", _IMAGE, "the name, docker.io's where short", "python", required=True),
        Key(
            "tags",
            Either(
                "a list of tags, or match or semver",
                many=Many(_TAG, least=1),
                keys=NEWEST,
                offer=_offer_tags,
            ),
            'literal, or {match: "3.*", newest: 3}, or {semver: ">=3.12", newest: 5}',
            '["3.12", "3.13"]',
            "latest",
        ),
        Key("platforms", PLATFORMS, "what to mirror of it", "[linux/amd64]", "the registry's"),
    ),
    _check_pin,
)
IMAGES: Final = Key(
    "images",
    Many(Either("an image's name, or image, tags and platforms", text=_IMAGE, keys=PIN)),
    "Pins: kept warm whatever CI uses, first in line.",
)


def _version(text: str) -> int:
    number: int = _number(0).parse(text)
    if number > VERSION:
        raise Refused(
            f"is {number}, and this prewarm reads version {VERSION}", "it needs a newer prewarm"
        )
    if number < VERSION:
        raise Refused("is a version that never was", f"write version: {VERSION}")
    return number


_VERSION = Text("a whole number", _version, {"const": VERSION}, f"write version: {VERSION}")

FILE: Final = Keys(
    (
        Key("version", _VERSION, "The version of this file.", "1", required=True),
        Key(
            "mirrors",
            Many(Either("a URL, or url and more", text=_ROOT_URL, keys=MIRROR), least=1),
            "The registries near your runners that are kept warm.",
            required=True,
        ),
        IMAGES,
        Key(
            "registries",
            Named(
                Text(
                    "a registry's host",
                    _registry,
                    {"type": "string", "pattern": r"^[^/@\s\[]+$"},
                    "write host or host:port, such as quay.io",
                ),
                REGISTRY,
                "docker.io",
            ),
            "Upstreams that may be mirrored; written, it replaces the default.",
            default="docker.io alone",
        ),
        Key(
            "platforms",
            PLATFORMS,
            "What to mirror of each image; all: the index is kept byte for byte.",
            "[linux/amd64]",
            "per image, the architectures of the runners that used it, else linux/amd64",
        ),
        Key("gitlab", GITLAB, "Where the images that CI uses are found."),
        Key(
            "include",
            Many(Text("a pattern of paths", _file_pattern, _STRING, "write images.d/*.yml")),
            "More files, with images: only.",
            "[images.d/*.yml]",
            "[]",
        ),
        Key(
            "skip",
            Many(_GLOB),
            "Never mirrored, unless pinned; * crosses /.",
            '["docker.io/library/*:*windowsservercore*"]',
            "[]",
        ),
        Key("limits", LIMITS, "How much at once, and how much at most."),
        Key("recheck", DURATION, "At least so often is a quiet tag asked.", "1d", "1d"),
        Key(
            "schedule",
            Either("a time, or a list of times", text=_WHEN, many=Many(_WHEN)),
            'When prewarm run syncs: times of day, or "every 6h".',
            '["19:00", "01:05"]',
            "every 6h",
        ),
        Key(
            "timezone",
            Text(
                "a time zone such as Europe/Berlin",
                _timezone,
                _STRING,
                "write a name from the tz database, such as UTC",
            ),
            "Of the times of day in schedule.",
            "Europe/Berlin",
            "the machine's",
        ),
        Key(
            "authfile",
            _PATH,
            "Logins for registries, as skopeo login writes them.",
            "/etc/prewarm/auth.json",
            "where skopeo looks",
        ),
        Key(
            "state",
            Text(
                "a path or a postgresql:// URL",
                _state,
                _STRING,
                "write a path such as /var/lib/prewarm/prewarm.db",
                secret=True,
            ),
            "What is remembered: a SQLite file, or postgresql://prewarm@db/prewarm for many hosts.",
            "/var/lib/prewarm/prewarm.db",
            "$STATE_DIRECTORY, else /var/lib/prewarm or the XDG state folder",
        ),
        Key(
            "host",
            Text(
                "a name of letters, digits, dots and dashes",
                _host_name,
                {"type": "string", "pattern": f"^{_NAME.pattern}$"},
                "write a name such as runner-7",
            ),
            "What this host is called in notices and a shared state; no two are called the same.",
            "runner-7",
            "the machine's name",
        ),
        Key(
            "metrics",
            _PATH,
            "A file for node_exporter's textfile collector, written after every sync.",
            "/var/lib/node_exporter/textfile/prewarm.prom",
        ),
        Key("notify", NOTIFY, "Whom to tell, and of what."),
    )
)
INCLUDED: Final = Keys((Key("version", _VERSION, "The version of this file.", "1"), IMAGES))
"""A file that `include` names."""


# What comes from the declaration


def json_schema() -> Json:
    """Return the JSON Schema (2020-12) of `images.yml`, for editors and other programs.

    It is for values as YAML 1.2 reads them, and never refuses what prewarm accepts in the usual
    spelling; rules that JSON Schema cannot say (names of images, duplicates) are prewarm's alone.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "images.yml of prewarm",
        "description": "Which container images prewarm keeps warm, from where and where.",
        **_schema_of(FILE),
    }


def json_schema_text() -> str:
    """Return the text of `images.schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _schema_of(kind: Kind) -> Json:
    match kind:
        case Text():
            return dict(kind.schema)
        case Many():
            least: Json = {"minItems": kind.least} if kind.least else {}
            return {"type": "array", "items": _schema_of(kind.item), **least}
        case Named():
            return {
                "type": "object",
                "propertyNames": _schema_of(kind.name),
                "additionalProperties": _or_null(_schema_of(kind.item)),
            }
        case Either():
            forms = [form for form in (kind.text, kind.many, kind.keys) if form is not None]
            return {"anyOf": [_schema_of(form) for form in forms]}
        case Keys():
            required = [key.name for key in kind.keys if key.required]
            return {
                "type": "object",
                "properties": {key.name: _schema_of_key(key) for key in kind.keys},
                **({"required": required} if required else {}),
                "additionalProperties": False,
                **kind.schema,
            }


def _schema_of_key(key: Key) -> Json:
    default = f" (default: {key.default})" if key.default else ""
    schema = _schema_of(key.kind)
    if isinstance(key.kind, Many | Keys | Named) and not key.required:
        schema = _or_null(schema)
    return {"description": key.meaning + default, **schema}


def _or_null(schema: Json) -> Json:
    """Allow a list or a mapping that is written as nothing, as when all of it is commented out."""
    return {**schema, "type": [schema["type"], "null"]}


def every_key(kind: Kind = FILE, path: str = "") -> Iterator[tuple[str, Key]]:
    """Yield every key with its path (`gitlab.runners.ids`, `mirrors[].url`), in order."""
    match kind:
        case Keys():
            for key in kind.keys:
                inner = f"{path}.{key.name}" if path else key.name
                yield inner, key
                yield from every_key(key.kind, inner)
        case Many():
            yield from every_key(kind.item, f"{path}[]")
        case Named():
            yield from every_key(kind.item, f"{path}.<name>")
        case Either():
            for form in (kind.many, kind.keys):
                if form is not None:
                    yield from every_key(form, path)
        case Text():
            pass


_WIDTH: Final = 100
_ASIDE: Final = 40
"""Where the explanation begins beside a key that is short enough."""

_TOP: Final = """\
# images.yml: which container images prewarm keeps warm, and where.
# `prewarm check` says what is wrong with it, `prewarm sync --dry-run` what it would do.
version: 1

# The registries near your runners that are kept warm: one pull feeds all.
mirrors:
  - http://127.0.0.1:5000
"""
_PINS: Final = """
# Pins: kept warm whatever CI uses, first in line. Short names are docker.io's.
images:
  - golang:bullseye
  - image: python
    tags: ["3.12", "3.13"]
"""
_REST: Final = """
# All that follows is optional: an example of each key, and its default where it has one.
"""


def example() -> str:
    """Return the commented sample that `prewarm init` writes: valid as it is, and short on top.

    A line that begins with `#` and a letter, or `#` and two blanks, is YAML: take away the `#`.
    """
    mirror = _commented_item(MIRROR)
    pin = _commented_item(PIN)
    rest: list[str] = []
    for key in FILE.keys:
        if key.name not in {"version", "mirrors", "images"}:
            rest += ["", *_wrapped("# ", _explained(key)), *_commented(key, "", explain=False)]
    return "\n".join(
        [_TOP + "\n".join(mirror), _PINS + "\n".join(pin), _REST + "\n".join(rest), ""]
    )


def _explained(key: Key) -> str:
    if key.default in {"", "[]", key.example}:
        return key.meaning
    return f"{key.meaning.rstrip('.')} (default: {key.default})."


def _commented_item(kind: Keys) -> list[str]:
    """Return an entry of a list with all its keys, as commented YAML."""
    lines = [line for key in kind.keys for line in _commented(key, "    ", explain=True)]
    first = f"#    {kind.keys[0].name}:"
    return [line.replace("#    ", "#  - ", 1) if line.startswith(first) else line for line in lines]


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


def _commented(key: Key, indent: str, *, explain: bool) -> list[str]:
    """Return a key with all that is below it, as commented YAML."""
    value = f" {key.example}" if key.example else ""
    lines = [f"#{indent}{key.name}:{value}"]
    if explain:
        note = _explained(key).rstrip(".")
        aside = f"{lines[0]:<{_ASIDE}}  # {note}"
        above = [*_wrapped(f"#{indent}# ", note), *lines]
        lines = [aside] if len(aside) <= _WIDTH else above
    if key.example:
        return lines
    deeper = indent + "  "
    item = key.kind
    if isinstance(item, Named):
        lines.append(f"#{deeper}{item.example}:")
        deeper += "  "
        item = item.item
    if isinstance(item, Keys):
        lines += [line for inner in item.keys for line in _commented(inner, deeper, explain=True)]
    return lines
