"""References: names of images, read as docker reads them, and their path on a mirror.

The grammar and the normalisation are distribution/reference's (regexp.go, normalize.go). Three
things are stricter, so that a reference has one spelling and one path on a mirror: hosts are
lower-cased, a host that would then read as a path on Docker Hub is refused, and so is a host longer
than DNS allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import Final

DOCKER_HUB: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_HUB_HOSTS: Final = frozenset({"index.docker.io", "registry-1.docker.io"})
_OFFICIAL: Final = "library/"
_HOST_MAX: Final = 253
_NAME_MAX: Final = 255
"""Of the path after the host, with `library/`; and of a whole path on a mirror (registry:2)."""
_SHOWN_MAX: Final = 120

_DOMAIN = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = re.compile(rf"(?:{_DOMAIN}(?:\.{_DOMAIN})*|\[[a-f0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f]")
_PORT_LIKE_END = re.compile(r".*_[0-9]+")

_PATH_CURE = "use a-z and 0-9, with single . _ - between them, such as team/app"


class InvalidReference(ValueError):  # noqa: N818 - the name says what it is
    """A text that names no image, or none that can be mirrored; its str is one printable line.

    `text` is what was read, cut to a length for people and without what looks like a password.
    """

    def __init__(self, text: str, problem: str, cure: str) -> None:
        self.text = _shown(text)
        self.problem = problem
        self.cure = cure
        super().__init__(f"{self.text!r} {problem}; {cure}")

    def __reduce__(self) -> tuple[type[InvalidReference], tuple[str, str, str]]:
        return type(self), (self.text, self.problem, self.cure)


@total_ordering
@dataclass(frozen=True, slots=True)
class Reference:
    """An image, or a repository where it has neither tag nor digest.

    Made by `parse` and `parse_repository`, and then always valid and in its one canonical spelling.
    """

    registry: str
    """The host in lower case, with its port where written; Docker Hub is always `docker.io`."""
    repository: str
    """The path on the registry: `library/golang`."""
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The repository in full: `docker.io/library/golang`."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The reference as docker prints it: `golang:bullseye`.

        The host stays where docker would read the short form as another image.
        """
        if self.registry != DOCKER_HUB:
            return str(self)
        short = self.repository.removeprefix(_OFFICIAL)
        if "/" in short:
            short = self.repository
        first, slash, _ = short.partition("/")
        if (slash and _is_host(first)) or (not self._suffix and _IDENTIFIER.fullmatch(short)):
            return str(self)
        return short + self._suffix

    @property
    def mirror_repository(self) -> str:
        """The path of the repository on a mirror; no two repositories have the same.

        Docker Hub's lie at the root, others under their host. Raises InvalidReference for a name
        that has no path of its own there (CONTRACT, 2).
        """
        first = self.repository.partition("/")[0]
        if self.registry.startswith("["):
            raise InvalidReference(
                str(self),
                "has an IPv6 address for a host, which no path on a mirror can hold",
                "give the registry a DNS name and use that",
            )
        if self.registry != DOCKER_HUB:
            path = f"{folder_of(self.registry)}/{self.repository}"
        elif _is_host(first) or _PORT_LIKE_END.fullmatch(first):
            raise InvalidReference(
                str(self),
                f"cannot be mirrored: {_quoted(first)} would be another registry's host there",
                "pull it from Docker Hub directly, or copy it to another name there",
            )
        elif self.repository == INDEX_REPOSITORY:
            raise InvalidReference(
                str(self),
                "cannot be mirrored: prewarm keeps its own data under that name there",
                "pull it from Docker Hub directly, or copy it to another name there",
            )
        else:
            path = self.repository
        if len(path) > _NAME_MAX:
            raise InvalidReference(
                str(self),
                f"cannot be mirrored: its path there is longer than {_NAME_MAX} characters",
                "shorten the repository's name",
            )
        return path

    @property
    def selector(self) -> str:
        """What selects the manifest in `/v2/<name>/manifests/<selector>`: the digest if any."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{self.digest}" if self.digest is not None else "")

    def __str__(self) -> str:
        return self.name + self._suffix

    def __lt__(self, other: Reference) -> bool:
        """By name, then tag, then digest; what is absent comes first (None has no order)."""
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, str, str, str]:
        return (self.registry, self.repository, self.tag or "", self.digest or "")

    def with_tag(self, tag: str) -> Reference:
        """Return this repository at that tag and no digest; InvalidReference if it is no tag."""
        if not valid_tag(tag):
            raise InvalidReference(tag, *_tag_problem(tag))
        return replace(self, tag=tag, digest=None)

    def without_selector(self) -> Reference:
        """Return the repository alone."""
        return replace(self, tag=None, digest=None)


def parse(text: str) -> Reference:
    """Return the image that the text names; `latest` where it has neither tag nor digest.

    Raises InvalidReference, and nothing else, whatever the text.
    """
    reference = _read(text)
    if reference.tag is None and reference.digest is None:
        return replace(reference, tag=DEFAULT_TAG)
    return reference


def parse_repository(text: str) -> Reference:
    """Return the repository that the text names; InvalidReference if it has a tag or a digest."""
    reference = _read(text)
    if reference.tag is not None or reference.digest is not None:
        raise InvalidReference(
            text,
            "has a tag or a digest where only a repository is wanted",
            f"write {_quoted(reference.without_selector().familiar)} and give the tags apart",
        )
    return reference


def parse_registry(text: str) -> str:
    """Return the canonical host[:port] that the text names; InvalidReference if it names none.

    `index.docker.io` and `registry-1.docker.io` are `docker.io` (CONTRACT, 2).
    """
    if problem := _host_problem(text):
        raise InvalidReference(text, *problem)
    host = text.lower()
    return DOCKER_HUB if host in _HUB_HOSTS else host


def folder_of(registry: str) -> str:
    """Return the folder that a registry has on a mirror, where it is not Docker Hub."""
    return registry.replace(":", "_")


def is_registry(host: str, name: str) -> bool:
    """Whether a URL's host[:port] is the registry that references know by the name."""
    host = host.lower()
    return host == name or (name == DOCKER_HUB and host in _HUB_HOSTS)


def valid_tag(text: str) -> bool:
    """Whether the text can be a tag."""
    return _TAG.fullmatch(text) is not None


def _read(text: str) -> Reference:
    """Return the reference as written, without the default tag (ParseNormalizedNamed)."""
    _refuse_foreign(text)
    first, slash, rest = text.partition("/")
    if slash and _is_host(first):
        if problem := _host_problem(first):
            raise InvalidReference(text, *problem)
        registry = parse_registry(first)
    else:
        registry, rest = DOCKER_HUB, text
    named, at, digest = rest.partition("@")
    repository, colon, tag = named.partition(":")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = _OFFICIAL + repository
    if problem := _path_problem(repository):
        raise InvalidReference(text, *problem)
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidReference(
            text, "has a digest that is none", "a digest is sha256: and 64 of 0-9a-f"
        )
    if colon and not valid_tag(tag):
        raise InvalidReference(text, *_tag_problem(tag))
    return Reference(registry, repository, tag if colon else None, digest if at else None)


def _is_host(first: str) -> bool:
    """Whether docker takes the part before the first slash for a host (splitDockerDomain)."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def _refuse_foreign(text: str) -> None:
    """Raise InvalidReference for texts that people write and that are no references at all."""
    if not text:
        raise InvalidReference(text, "is empty", "write the name of an image, such as golang:1.22")
    if _UNPRINTABLE.search(text):
        raise InvalidReference(text, "holds white space or control characters", "take them out")
    if not text.isascii():
        raise InvalidReference(
            text, "holds characters that no image's name has", "type it anew in ASCII"
        )
    if "://" in text:
        raise InvalidReference(
            text, "is a URL, not an image", "leave out the scheme: registry.example.org/team/app"
        )
    if "$" in text:
        raise InvalidReference(
            text, "holds a variable that nothing filled in", "write its value in its place"
        )
    if _IDENTIFIER.fullmatch(text):
        raise InvalidReference(
            text,
            "is an image's id, not its name",
            "write the repository in front: name@sha256:…",
        )


def _host_problem(text: str) -> tuple[str, str] | None:
    """Return problem and cure of a registry's host, None where it is right."""
    host = text.lower()
    if not text.isascii() or not _HOST.fullmatch(host):
        return "has a host that is none", "write host or host:port, such as quay.io"
    if len(host) > _HOST_MAX:
        return f"has a host longer than {_HOST_MAX} characters", "no DNS name is that long"
    if not _is_host(host):
        return (
            f"has {_quoted(text)} for a host, which in lower case is a name on Docker Hub",
            f"write {_quoted(host)} for Docker Hub, else the host with its domain or port",
        )
    return None


def _path_problem(path: str) -> tuple[str, str] | None:
    """Return problem and cure of a repository's path, None where it is right."""
    own = path.removeprefix(_OFFICIAL)
    if not own:
        return "has no repository", "write the name of an image, such as golang:1.22"
    if own != own.lower():
        return "has upper-case letters in its repository", f"write {_quoted(own.lower())}"
    if not _PATH.fullmatch(path):
        return f"has {_quoted(own)}, which is no repository", _PATH_CURE
    if len(path) > _NAME_MAX:
        return f"has a repository longer than {_NAME_MAX} characters", "shorten it"
    return None


def _tag_problem(tag: str) -> tuple[str, str]:
    return (
        f"has {_quoted(tag)}, which is no tag",
        "a tag is 1 to 128 of A-Z a-z 0-9 _ . - and starts with neither . nor -",
    )


def _shown(text: str) -> str:
    """Return the text for an error: cut, and without what may be the user and password of a host.

    An `@` belongs to a digest only where no `/` follows and `sha` does, or where no `:` precedes.
    """
    before, at, after = text.rpartition("@")
    if at and ("/" in after or (":" in before and not after.startswith("sha"))):
        scheme, separator, _ = before.rpartition("://")
        text = f"{scheme}{separator}***@{after}"
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"


def _quoted(text: str) -> str:
    return repr(_shown(text))


PROBE_REPOSITORY: Final = "prewarm/probe"
"""Where uploads are begun and cancelled to see that a mirror takes them, and where probes lie."""
INDEX_REPOSITORY: Final = "prewarm/indexes"
"""The repository on a mirror for the upstream indexes that reduced ones were made from, as blobs.

Not that of the image: registry:2 answers with a blob where a manifest of that digest is asked for
(measured on 2.8.2), so clients would get an index there of which some platforms are missing.
"""
