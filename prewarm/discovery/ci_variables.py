"""Variables, filled in as GitLab and its runner do it.

First GitLab expands the values of variables in each other (`sort_and_expand_all`: `$X`, `${X}` and
`%X%`, what is undefined stays, `expand: false` is left alone), then the runner expands them once
more, and then the image's name, by Go's `os.Expand`: the docker executor twice, services once. The
runner puts nothing where a variable is undefined; here the spelling stays, so that nobody pulls a
name that was guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

LONGEST: Final = 8192
"""Characters of a value; one that grows longer counts as unknown (variables can be a bomb)."""
_DEEPEST: Final = 100
"""Variables in variables; what lies deeper counts as unknown."""

_GO: Final = re.compile(r"\$(?:\{([^}]*)\}|(\{)|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))", re.ASCII)
"""To be searched by `_matches` only: `${` without end, many times, takes quadratic time."""
_GO_OPEN: Final = re.compile(r"\$(?:(\{\})|(\{)|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))", re.ASCII)
"""The same, with the same groups, where no `}` follows (so that the first never matches)."""
_RAILS: Final = re.compile(
    r"\$\$|%%|\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}|%([A-Za-z_]\w*)%", re.ASCII
)
_SPECIAL: Final = frozenset("*#@!?-0123456789")
"""Shell's own parameters, which the runner replaces by nothing; `$$` is `$`."""

PER_RUN: Final = re.compile(
    r"CI_(?:COMMIT|PIPELINE|MERGE_REQUEST|EXTERNAL_PULL_REQUEST|BUILD|CONCURRENT|ENVIRONMENT)_\w+"
    r"|CI_JOB_(?:ID|URL|TOKEN|STARTED_AT)|GITLAB_USER_\w+",
    re.ASCII,
)
"""Variables that differ from run to run: an image so named was built by the pipeline itself."""

Lookup = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Variable:
    """The value of a variable, as written."""

    value: str
    raw: bool = False
    """`expand: false`: GitLab does not expand it."""


class TooLong(ValueError):  # noqa: N818 - the name says what the text is
    """A text grew beyond LONGEST characters."""


class Scope:
    """The variables that one job sees, those that beat others first."""

    def __init__(self, layers: Sequence[Mapping[str, Variable]]) -> None:
        self._layers = layers
        self._by_gitlab: dict[str, str | None] = {}
        self._by_runner: dict[str, str | None] = {}
        self._under_way: set[str] = set()

    def expand(self, text: str, passes: int = 1) -> str:
        """Return the text after so many passes of the runner; what is unknown keeps its spelling.

        Raises TooLong.
        """
        for _ in range(passes):
            text = go_expand(text, self.value)
        return text

    def value(self, name: str) -> str | None:
        """Return the variable as the runner has it; None where undefined, or without end."""
        if name not in self._by_runner:
            variable = self._find(name)
            value = self._gitlab(name)
            if value is not None and variable is not None and not variable.raw:
                value = _or_none(go_expand, value, self._gitlab)
            self._by_runner[name] = value
        return self._by_runner[name]

    def defined(self, name: str) -> bool:
        """Whether the variable has a value, even one that cannot be filled in."""
        return self._find(name) is not None

    def _gitlab(self, name: str) -> str | None:
        """Return the variable as GitLab sends it; None where undefined, or within itself."""
        if name in self._by_gitlab:
            return self._by_gitlab[name]
        variable = self._find(name)
        if variable is None or name in self._under_way or len(self._under_way) >= _DEEPEST:
            return None
        value: str | None = variable.value
        if not variable.raw:
            self._under_way.add(name)
            value = _or_none(_rails_expand, variable.value, self._inlined)
            self._under_way.discard(name)
        self._by_gitlab[name] = value
        return value

    def _inlined(self, name: str) -> str | None:
        """Return what GitLab puts in the place of the name in another value."""
        variable = self._find(name)
        return None if variable is None or variable.raw else self._gitlab(name)

    def _find(self, name: str) -> Variable | None:
        return next((layer[name] for layer in self._layers if name in layer), None)


def go_expand(text: str, lookup: Lookup) -> str:
    """Return the text after one pass of the runner (Go's os.Expand); raises TooLong."""

    def replaced(match: re.Match[str]) -> str | None:
        braced, unclosed, special, plain = match.groups()
        if unclosed or braced == "":
            return ""  # bad syntax, which Go eats
        name = braced if braced is not None else special or plain
        if name == "$":
            return "$"
        return "" if name in _SPECIAL else lookup(name)

    return _replace(_matches, text, replaced)


def unknown(text: str) -> tuple[str, ...]:
    """Return the names of the variables that are left in an expanded text, each once."""
    return tuple(dict.fromkeys(m[1] or m[4] for m in _matches(text) if m[1] or m[4]))


def without_unknown(text: str) -> str:
    """Return the text with nothing in the place of what is left, as the runner has it."""
    return go_expand(text, lambda _: "")


@lru_cache(maxsize=4096)
def names_in(text: str) -> frozenset[str]:
    """Return the names of all variables that a text may ask for, in any of the spellings."""
    if len(text) > LONGEST:
        return frozenset()
    asked: set[str] = set()

    def unset(name: str) -> str | None:
        asked.add(name)
        return None

    # Twice, as the runner does: `$$X` is `$X` after a pass and asks for X in the next.
    go_expand(go_expand(text, unset), unset)
    rails = {m[1] or m[2] or m[3] for m in _RAILS.finditer(text)}
    again = {m[1] or m[4] for m in _matches(text.replace("$$", "$"))}
    return frozenset(name for name in asked | rails | again if name)


def of_project(
    path: str,
    *,
    url: str,
    default_branch: str | None = None,
    registry_image: str | None = None,
    project_id: int | None = None,
) -> dict[str, str]:
    """Return the predefined variables that follow from the project's record (no request).

    `path` is `path_with_namespace`, `url` the instance's, `registry_image` the field
    `container_registry_image_prefix`. What differs from run to run is never among them.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (80 if parts.scheme == "http" else 443)
    namespace, _, name = path.rpartition("/")
    proxy = f"{host}:{port}/{{}}/dependency_proxy/containers"
    variables = {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_SERVER": "yes",
        "CI_SERVER_HOST": host,
        "CI_SERVER_PORT": str(port),
        "CI_SERVER_PROTOCOL": parts.scheme,
        "CI_SERVER_URL": url.rstrip("/"),
        "CI_SERVER_FQDN": parts.netloc.rpartition("@")[2],
        "CI_TEMPLATE_REGISTRY_HOST": "registry.gitlab.com",
        "CI_PROJECT_PATH": path,
        "CI_PROJECT_NAMESPACE": namespace,
        "CI_PROJECT_ROOT_NAMESPACE": namespace.partition("/")[0],
        "CI_PROJECT_NAME": name,
        "CI_PROJECT_PATH_SLUG": slug(path),
        "CI_PROJECT_NAMESPACE_SLUG": slug(namespace),
        "CI_PROJECT_URL": f"{url.rstrip('/')}/{path}",
        "CI_DEPENDENCY_PROXY_SERVER": f"{host}:{port}",
        "CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX": proxy.format(namespace.split("/")[0].lower()),
        "CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX": proxy.format(namespace.lower()),
    }
    if default_branch:
        variables["CI_DEFAULT_BRANCH"] = default_branch
        variables["CI_DEFAULT_BRANCH_SLUG"] = slug(default_branch)
    if project_id is not None:
        variables["CI_PROJECT_ID"] = str(project_id)
    if registry_image:
        variables["CI_REGISTRY_IMAGE"] = registry_image
        variables["CI_REGISTRY"] = registry_image.partition("/")[0]
    return variables


def slug(text: str) -> str:
    """Return the text as GitLab makes it fit for a host's name (Gitlab::Utils.slugify)."""
    return re.sub(r"[^a-z0-9]", "-", text.lower())[:63].strip("-")


def _rails_expand(text: str, lookup: Lookup) -> str:
    """Return the text after GitLab's expansion of a value; raises TooLong."""

    def replaced(match: re.Match[str]) -> str | None:
        name = match[1] or match[2] or match[3]
        return lookup(name) if name else None

    return _replace(_RAILS.finditer, text, replaced)


def _matches(text: str) -> Iterator[re.Match[str]]:
    """Yield what the runner replaces in the text, in linear time.

    Up to the last `}` every `${` has an end, and what is read to find it is not read again; after
    it none has one, and nothing is read to find it.
    """
    last = text.rfind("}") + 1
    yield from _GO.finditer(text, 0, last)
    yield from _GO_OPEN.finditer(text, last)


def _replace(
    matches: Callable[[str], Iterable[re.Match[str]]],
    text: str,
    replaced: Callable[[re.Match[str]], str | None],
) -> str:
    """Return the text with its matches replaced; None keeps one as it is.

    Raises TooLong, for a text that is too long already before anything is matched.
    """
    if len(text) > LONGEST:
        raise TooLong
    parts: list[str] = []
    length = end = 0
    for match in matches(text):
        new = replaced(match)
        parts += (text[end : match.start()], match[0] if new is None else new)
        length += len(parts[-1]) + len(parts[-2])
        if length > LONGEST:
            raise TooLong
        end = match.end()
    parts.append(text[end:])
    if length + len(parts[-1]) > LONGEST:
        raise TooLong
    return "".join(parts)


def _or_none(expand: Callable[[str, Lookup], str], text: str, lookup: Lookup) -> str | None:
    try:
        return expand(text, lookup)
    except TooLong:
        return None
