"""What a stand-in was asked: one `Access` for each request, and the questions tests put to them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

_PATHS: Final = (
    ("manifest", re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)")),
    ("upload", re.compile(r"/v2/(?P<repository>.+)/blobs/uploads(?:/(?P<reference>.*))?")),
    ("blob", re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<reference>[^/]+)")),
    ("tags", re.compile(r"/v2/(?P<repository>.+)/tags/list")),
    ("v2", re.compile(r"/v2/?")),
    ("catalog", re.compile(r"/v2/_catalog")),
    ("token", re.compile(r"/token")),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a path of the distribution API means."""

    kind: str
    """`manifest`, `blob`, `upload`, `tags`, `catalog`, `token`, `v2` or `other`."""
    repository: str = ""
    reference: str = ""
    """A tag or a digest."""


def read_path(path: str) -> Target:
    """Return what a path (without its query) asks for."""
    for kind, pattern in _PATHS:
        if found := pattern.fullmatch(path):
            parts = found.groupdict(default="")
            return Target(kind, parts.get("repository", ""), parts.get("reference", ""))
    return Target("other")


@dataclass(frozen=True, slots=True)
class Access:
    """One request, as the server saw it; the raw secrets are kept out of the repr."""

    time: float
    """Seconds since the epoch at which the answer was decided."""
    method: str
    path: str
    """With the query."""
    status: int
    """0 where the connection was cut before an answer."""
    kind: str = "other"
    repository: str = ""
    reference: str = ""
    host: str = ""
    """The Host header."""
    client: str = ""
    """The address it came from."""
    account: str = ""
    """Who the server took the client for; empty for anonymous."""
    user_agent: str = ""
    authorization: str = ""
    """The scheme alone: `Basic`, `Bearer` or empty."""
    cookie: bool = False
    secret: str = field(default="", repr=False)
    """The raw Authorization header, for tests that look for leaks."""


class AccessLog(list[Access]):
    """The requests in the order in which their answers were decided.

    An entry is written before the first byte of its answer, so a client that has its answer finds
    its request here.
    """

    def of(self, kind: str, method: str = "", repository: str = "") -> list[Access]:
        """Return the requests of a kind, perhaps of one method and one repository."""
        return [
            entry
            for entry in list(self)
            if entry.kind == kind
            and method in ("", entry.method)
            and repository in ("", entry.repository)
        ]

    def gets(self, repository: str = "") -> list[Access]:
        """Return the manifest GETs, whatever their status: what Docker Hub may count."""
        return self.of("manifest", "GET", repository)

    def heads(self, repository: str = "") -> list[Access]:
        """Return the manifest HEADs, which cost nothing."""
        return self.of("manifest", "HEAD", repository)

    def writes(self) -> list[Access]:
        """Return what changes a registry for its clients: starting or ending an upload does not."""
        return [
            entry
            for entry in list(self)
            if entry.method in ("PUT", "PATCH")
            or (entry.method == "DELETE" and entry.kind != "upload")
            or (entry.method == "POST" and entry.status == 201)
        ]

    def statuses(self) -> Counter[int]:
        """Return how often each status was answered."""
        return Counter(entry.status for entry in list(self))
