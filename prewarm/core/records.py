"""Records: what the state remembers of images, copies and runs, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prewarm.core.errors import Problem
from prewarm.core.manifest import Descriptor
from prewarm.core.usage import Mark

STEP_SECONDS: Final = 120
"""How long after its reservation (or its last extension) a step may still send manifest GETs."""
REPORTS_KEPT: Final = 50
"""Of so many runs the report is remembered: one may be a megabyte, and a daemon runs often."""
SERIES_SECONDS: Final = 90 * 86400
"""How long the coverage and the moves of tags are remembered."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A row of the ledger that is in flight: the pulls and GETs that a step may spend."""

    id: str
    registry: str
    account: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a step may not start now."""

    kind: Literal["budget", "project-share", "upstream-quota", "state"]
    """`state`: the ledger cannot be reached."""
    until: float | None
    """Seconds until the own budget has room; None if never, or if nobody can know."""
    in_flight: bool
    """Other steps of the account are in flight: as they settle there may be room."""
    stale: bool = False
    """Steps were settled since the HEAD that reported was sent: a new HEAD may tell of more."""


@dataclass(frozen=True, slots=True)
class SeenTag:
    """What a tag upstream was when it was last asked for. Times are epoch seconds."""

    registry: str
    repository: str
    tag: str
    descriptor: Descriptor
    checked: float
    changed: float
    """When its present digest was first seen."""
    moves: int
    """How many times its digest has changed since it was first seen."""


@dataclass(frozen=True, slots=True)
class Written:
    """An image that prewarm put on a mirror."""

    mirror: str
    image: str
    """Fully qualified, as in the report: `docker.io/library/golang:bullseye`."""
    repository: str
    """On the mirror: `library/golang`."""
    tag: str | None
    """None for an image put there by its digest alone."""
    digest: str
    upstream_digest: str
    platforms: str
    bytes: int
    wall: float
    wanted: float
    """When a sync last wanted it, in epoch seconds."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A manifest that prewarm pushed to a mirror, or was about to."""

    repository: str
    """On the mirror: `library/golang`."""
    digest: str
    since: float
    """When that was, or when it lost the last tag that prewarm had put on it; epoch seconds."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a run did with an image: `action` and `code` as in the report."""

    run: str
    image: str
    action: str
    code: str
    pulls: int
    gets: int
    bytes: int
    seconds: float
    wall: float


@dataclass(frozen=True, slots=True)
class Known:
    """The last known state of an image on a mirror."""

    image: str
    mirror: str
    state: str
    digest: str | None
    wall: float


@dataclass(frozen=True, slots=True)
class Covered:
    """How many of CI's uses a mirror (all of them: '') served at a time (epoch seconds)."""

    at: float
    mirror: str
    served: int
    total: int

    @property
    def ratio(self) -> float | None:
        """The share from 0 to 1, to four digits; None where there was nothing to serve."""
        return round(self.served / self.total, 4) if self.total else None


@dataclass(frozen=True, slots=True)
class TagMove:
    """A digest that a tag upstream showed, and did not show when it was asked for the time before.

    The first that was ever seen of a tag is one, too, and so is an older one that it shows again.
    """

    registry: str
    repository: str
    tag: str
    digest: str
    at: float
    """Epoch seconds."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run and, once it has finished, its exit code and its report (JSON)."""

    id: str
    started: float
    finished: float | None
    exit_code: int | None
    report: str | None
    whole: bool = True
    """It was of all that is wanted, not only of images that a person named."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums since the state was made; they never fall."""

    actions: Mapping[str, int]
    """Images by what runs did with them (`copy`, `defer`, …), each once per run."""
    pulls: int
    """As charged, once a step is over."""
    bytes: int
    """Bytes of blobs that runs moved."""


@dataclass(frozen=True, slots=True)
class Told:
    """The last notice of an event that a channel took."""

    event: str
    channel: str
    about: frozenset[str]
    at: float
    """Epoch seconds."""


@dataclass(frozen=True, slots=True)
class KnownProject:
    """What is remembered of a project. Times are epoch seconds."""

    id: int
    path: str
    mark: Mark
    head: str
    """The commit of the newest job on the default branch."""
    commit: str
    """What `head` was when the definition was read last."""
    linted: float
    """When that was; 0 for never."""
    jobs: frozenset[str]
    """The jobs of the definition and, then, of history."""
    problems: tuple[Problem, ...]
    """Of the definition."""


@dataclass(frozen=True, slots=True)
class PastScan:
    """A scan that ended."""

    started: float
    finished: float
    complete: bool
    requests: int
    scope: str
    """A hash of what was to be read."""
    problems: tuple[Problem, ...]
    running: frozenset[int]
    """Jobs that ran then."""
    logged: frozenset[int]
    """Jobs that a runner's log told of and that history may not have shown yet."""
    token_expiry: float | None = None
    """When GitLab's token expires, in epoch seconds; infinite: never; None: nobody told."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A job's name in history, with the ids of those of its jobs whose traces tell most."""

    job: str
    newest: int
    newest_failed: int
    """0 where none failed on a pull."""
    runs: int = 0


@dataclass(frozen=True, slots=True)
class LogKey:
    """What the uses in runners' logs are counted by; empty texts where nothing is known."""

    project: int
    path: str
    runner: str
    kind: str
    text: str
    reference: str
    via: str
    platform: str
    day: int


@dataclass(frozen=True, slots=True)
class ImageUser:
    """A job that names an image, and how often it ran with it since a time."""

    project: str
    """Its path."""
    job: str
    """Its name in history; empty where a runner's log told, which names no jobs."""
    via: str | None
    """As in `UsedImage`."""
    jobs: int
    """How often it ran; 0 where only a definition names the image."""
    pull_failures: int
    last_used: float | None
    """Epoch seconds."""
