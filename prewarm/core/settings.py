"""The values that `images.yml` holds once it is read: plain, frozen and complete.

`config` reads the file into these; nothing else knows that it was YAML. Durations are seconds,
sizes are bytes, defaults of the contract are filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from prewarm.core.errors import Problem
from prewarm.core.platforms import Wanted
from prewarm.core.reference import Reference

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_ENDPOINT: Final = "https://registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Mirror:
    """A registry near the runners that is kept warm (`target`) or only read (`source`)."""

    url: str
    client_url: str
    mode: Literal["push", "pull-through"] = "push"
    role: Literal["target", "source"] = "target"
    ca: Path | None = None
    storage: Path | None = None
    min_free: int | None = None
    max_size: int | None = None
    keep: int = 30 * 86400

    @property
    def through(self) -> bool:
        """Whether it is a pull-through cache: it fetches for itself, nothing is pushed to it."""
        return self.mode == "pull-through"

    def serves(self, registry: str) -> bool:
        """Whether it can hold images of a registry: a pull-through cache has Docker Hub's alone.

        registry:2 caches one upstream (`proxy.remoteurl`), and clients ask a mirror's root for
        Docker Hub's images.
        """
        return not self.through or registry == DOCKER_HUB


@dataclass(frozen=True, slots=True)
class Allowance:
    """A written budget: `pulls` per rolling `window` seconds, of which `reserve` stay unspent."""

    pulls: int
    window: int = 6 * 3600
    reserve: int = 0


@dataclass(frozen=True, slots=True)
class Upstream:
    """A registry that may be mirrored."""

    name: str
    """The canonical host, as in references: `docker.io`, `quay.io`, `registry.example.org:5000`."""
    endpoint: str
    """Where it is asked: scheme, host, port and perhaps a path, which is a repository prefix."""
    ca: Path | None = None
    budget: Allowance | Literal["none"] | None = None
    """None where not written: docker.io then follows what it reports, others have no limit."""
    platforms: Wanted | None = None
    realm: str | None = None
    """Host (or host:port) of the token server, where it is another host than the registry's."""


@dataclass(frozen=True, slots=True)
class Newest:
    """Which tags of a repository a pin means: the `newest` of those that match.

    Exactly one of `match` (a shell glob) and `semver` (a range such as `>=3.12`) is set; `newest`
    None means every tag that matches.
    """

    match: str | None = None
    semver: str | None = None
    newest: int | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """An entry of `images:`: a repository with literal tags, a digest, or a pattern of tags."""

    reference: Reference
    """With its tag or digest where the entry is one image; without where `tags` says which."""
    tags: tuple[str, ...] | Newest | None = None
    platforms: Wanted | None = None
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """`images.yml:12`, or the command line where a person named the image there."""
        return f"{self.file}:{self.line}" if self.file else "command line"


@dataclass(frozen=True, slots=True)
class Runners:
    ids: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    shared: bool = True


@dataclass(frozen=True, slots=True)
class Gitlab:
    """Where CI's demand is read from."""

    url: str
    ca: Path | None = None
    token_file: Path | None = None
    groups: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    scope: Literal["member", "all"] = "member"
    runners: Runners = field(default_factory=Runners)
    exclude: tuple[str, ...] = ()
    history: int = 14 * 86400
    rescan: int = 12 * 3600
    traces: Literal["never", "unresolved", "sample"] = "unresolved"
    variables: bool = False
    dependency_proxy: Literal["report", "map"] = "report"
    runner_logs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    parallel: int = 4
    checks: int = 16
    image_size: int = 10 * 2**30
    pulls_per_image: int = 32
    pulls_per_project: int = 50
    heads_per_minute: int = 3000
    run_time: int = 5 * 3600


@dataclass(frozen=True, slots=True)
class Notify:
    command: tuple[str, ...] = ()
    webhook: str | None = None
    on: tuple[str, ...] = ("failure",)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of `images.yml` and what it includes."""

    path: Path | None
    """The file read, absolute."""
    mirrors: tuple[Mirror, ...] = ()
    registries: tuple[Upstream, ...] = (Upstream(DOCKER_HUB, DOCKER_HUB_ENDPOINT),)
    platforms: Wanted | None = None
    gitlab: Gitlab | None = None
    pins: tuple[Pin, ...] = ()
    skip: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    recheck: int = 86400
    schedule: tuple[str, ...] = ()
    timezone: str | None = None
    authfile: Path | None = None
    state: str | None = None
    """As written: an absolute path or a postgresql:// URL; None where the rules decide."""
    host: str | None = None
    """What this host is called in notices and in a shared state; None: as the machine is."""
    metrics: Path | None = None
    notify: Notify | None = None
    problems: tuple[Problem, ...] = ()
    """What is wrong with included files: the rest is done (exit 1)."""
