"""Tenants: which part of a state that several hosts share is one host's own.

A host sees the rows of the mirrors that it fills. A mirror on loopback is another one on each host;
any other is the same for all. CI's uses are one demand for all hosts whose `gitlab:` asks for the
same jobs; hosts that differ in that, as by their runners, each have a demand of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prewarm.core.net import is_loopback
from prewarm.core.settings import Gitlab, Settings


@dataclass(frozen=True, slots=True)
class Site:
    """A host among those that share a state."""

    host: str
    """Its name, which no other has."""
    mirrors: Mapping[str, str]
    """The URLs of the mirrors that it fills, by their names in the state."""
    demand: str
    """Which demand is its own; empty where it has no GitLab."""

    def name_of(self, mirror: str) -> str:
        """Return the name of a mirror, or with '' of all mirrors of the site together."""
        return mirror_name(mirror, self.host) if mirror else f"@{self.host}"

    def own(self, text: str) -> str:
        """Return a key that is no other host's."""
        return f"{text}@{self.host}"


def site_of(settings: Settings, host: str) -> Site:
    """Return the site that a configuration makes of a host."""
    gitlab = settings.gitlab
    return Site(
        host,
        {
            mirror_name(mirror.url, host): mirror.url
            for mirror in settings.mirrors
            if mirror.role == "target"
        },
        demand_of(gitlab, host) if gitlab is not None else "",
    )


def mirror_name(url: str, host: str) -> str:
    """Return what a mirror is called in a shared state: on loopback with the name of its host."""
    name = canonical(url)
    return f"{name}@{host}" if is_loopback(urlsplit(name).hostname or "") else name


def canonical(url: str) -> str:
    """Return a mirror's URL in the one spelling that its lock is named after.

    All names of this machine are one: to lock a port too many costs a wait, one too few the lock.
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    host = (parts.hostname or "").rstrip(".")
    host = "localhost" if is_loopback(host) else host
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def scope_of(settings: Gitlab) -> str:
    """Return a hash of what a scan reads: another one means that the last scan tells too little."""
    told = [
        settings.url,
        sorted(settings.groups),
        sorted(settings.projects),
        settings.scope,
        sorted(settings.exclude),
        [sorted(settings.runners.ids), sorted(settings.runners.tags), settings.runners.shared],
        settings.variables,
        sorted(settings.runner_logs),
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def demand_of(settings: Gitlab, host: str) -> str:
    """Return the name of the demand that a scan by these settings adds to.

    The logs of runners are read on the host where they lie: they make the demand the host's own.
    """
    told = [
        scope_of(settings),
        settings.history,
        settings.traces,
        host if settings.runner_logs else "",
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
