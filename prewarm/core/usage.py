"""Usage: which images the jobs of history used, as values and joins.

What a project's jobs name is kept in `Row`s, one for each job in history; the runs are counted
apart, and `used` joins the two.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from prewarm.core.reference import InvalidReference, Reference, parse
from prewarm.core.settings import Mirror

DAY: Final = 86400
_NAME_MAX: Final = 500
_PARALLEL: Final = re.compile(r" \d{1,6}/\d{1,6}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the history of a project has been counted."""

    job: int = 0
    """The highest id counted."""
    read: float = 0.0
    """Starts up to this moment are counted; 0: none are."""


NEVER: Final = Mark()


@dataclass(slots=True)
class Count:
    """The runs of a job on a runner on one day."""

    runs: int = 0
    pull_failures: int = 0
    last: float = 0.0
    newest: int = 0
    """The highest job id, whose trace may be read."""
    newest_failed: int = 0
    """The highest id of those that failed on a pull; 0: none did."""


@dataclass(frozen=True, slots=True)
class Key:
    """What runs are counted by; `day` is days since the epoch (UTC)."""

    project: int
    job: str
    runner: int
    platform: str
    day: int


def plain(name: str) -> str:
    """Return a job's name without the ` 1/3` of `parallel:`, and cut to a sane length."""
    return _PARALLEL.sub("", name)[:_NAME_MAX]


_PARALLEL_NAME: Final = re.compile(r"(.+?)(?:: \[.*\]| [0-9]+/[0-9]+)", re.DOTALL)


def base_name(name: str) -> str:
    """Return the name in the definition of a job in history: without `: [a, b]` and ` 1/3`."""
    match = _PARALLEL_NAME.fullmatch(name)
    return match[1] if match else name


Kind = Literal["image", "service", "helper", "tool"]
Source = Literal["definition", "history", "trace"]
SOURCES: Final = ("definition", "history", "trace", "runner-log")
_SHOWN_AS: Final[Mapping[str, str]] = {"helper": "image", "tool": "image"}
"""Kinds that the contract does not tell apart."""
HALF_LIFE: Final = 7.0
"""Days after which a run weighs half as much."""
WHOLE: Final = 1_000_000
"""The parts of a run that weighs all."""
_PORT: Final = re.compile(r"(.+)_(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Row:
    """An image that a job in history names, or why none is known."""

    job: str
    kind: Kind
    text: str
    """As the runner asks for it; empty where no name is known."""
    reference: str | None
    unresolved: str | None
    """Why there is no reference. Neither of the two: the job needs no image."""
    source: Source
    certain: bool = True
    platform: str | None = None
    via: str | None = None
    question: str = ""
    """Of a trace's answer: to which question."""


@dataclass(frozen=True, slots=True)
class Runs:
    """How often a job ran on machines of one platform, within the history window."""

    project: int
    job: str
    platform: str
    runs: int
    pull_failures: int
    last: float
    weight: int = 0
    """The sum of the runs' `parts_of`."""
    failed: int = 0
    """That of those which failed to pull."""


@dataclass(frozen=True, slots=True)
class Logged:
    """Uses of an image that a runner's log told, within the history window."""

    project: int
    path: str
    kind: Kind
    text: str
    reference: str | None
    via: str | None
    platform: str | None
    runs: int
    last: float
    day: int = 0


@dataclass(frozen=True, slots=True)
class UsedImage:
    """An image that CI names, and how much it was used within the history window."""

    reference: str
    """Fully qualified."""
    kinds: tuple[str, ...]
    """`image`, `service` or both."""
    sources: tuple[str, ...]
    jobs: int
    """Jobs that ran with it; 0 where only a definition names it."""
    projects: int
    last_used: float | None
    platforms: tuple[str, ...]
    via: str | None
    """`dependency-proxy` or `virtual-registry`: those jobs ask GitLab, not the registry."""
    pull_failures: int
    jobs_on: tuple[tuple[str, int], ...] = ()
    """How many of the jobs ran on machines of each platform; a runner of several counts for each,
    one of an unknown platform for none."""
    weights: tuple[tuple[str, float], ...] = ()
    """The projects by their paths, each with its runs, which halve in weight every week; empty
    where the time was not given."""


@dataclass(frozen=True, slots=True)
class DayUses:
    """How often the jobs of one project used an image on one day."""

    day: int
    """Since the epoch."""
    project: int
    runs: int
    pull_failures: int = 0


@dataclass(frozen=True, slots=True)
class UnresolvedImage:
    """A name that no image is known for."""

    project: str
    job: str
    """The job's name in the definition."""
    kind: str
    text: str
    why: str
    jobs: int
    """Jobs that ran with it."""


def mirror_hosts(mirrors: Iterable[Mirror]) -> frozenset[str]:
    """Return the hosts under which jobs may name our mirrors."""
    urls = (url for mirror in mirrors for url in (mirror.url, mirror.client_url))
    return frozenset(urlsplit(url).netloc.rpartition("@")[2].lower() for url in urls)


def upstream_of(reference: Reference, hosts: Collection[str]) -> Reference:
    """Return the upstream image that a name on one of our mirrors stands for (CONTRACT, 2)."""
    if reference.registry not in hosts:
        return reference
    first, slash, rest = reference.repository.partition("/")
    port = _PORT.fullmatch(first)
    suffix = str(reference)[len(reference.name) :]
    if slash and port:
        text = f"{port[1]}:{port[2]}/{rest}"
    elif slash and ("." in first or first == "localhost"):
        text = reference.repository
    else:
        text = f"docker.io/{reference.repository}"
    try:
        return parse(text + suffix)
    except InvalidReference:
        return reference


@dataclass(slots=True)
class _Use:
    kinds: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    projects: set[int] = field(default_factory=set)
    platforms: Counter[str] = field(default_factory=Counter)
    """Each with the jobs that ran there."""
    weights: Counter[int] = field(default_factory=Counter)
    """By project, in millionths of a run."""
    failed: Counter[int] = field(default_factory=Counter)
    """By project, what the runs that failed to pull it weigh."""
    jobs: int = 0
    failures: int = 0
    last: float = 0.0

    def add_runs(self, runs: Iterable[Runs], platforms: Collection[str]) -> None:
        for one in runs:
            self.weights[one.project] += one.weight
            self.failed[one.project] += one.failed
            self.jobs += one.runs
            self.failures += one.pull_failures
            self.last = max(self.last, one.last)
            self.sources.add("history")
            for platform in platforms or filter(None, one.platform.split(",")):
                self.platforms[platform] += one.runs

    def add_logged(self, logged: Logged, now: float) -> None:
        self.weights[logged.project] += logged.runs * parts_of(int(now // DAY) - logged.day)
        self.projects.add(logged.project)
        self.kinds.add(logged.kind)
        self.sources.add("runner-log")
        self.jobs += logged.runs
        self.last = max(self.last, logged.last)
        if logged.platform:
            self.platforms[logged.platform] += logged.runs


def used(
    rows: Mapping[tuple[int, str], Sequence[Row]],
    runs: Mapping[tuple[int, str], Sequence[Runs]],
    logged: Iterable[Logged] = (),
    now: float | None = None,
    paths: Mapping[int, str] | None = None,
) -> tuple[UsedImage, ...]:
    """Return the images that the jobs used, the most used first; `now` is in epoch seconds.

    With `now` they have weights; those of the runs must be as of then.
    """
    at = now or 0.0
    names = dict(paths or {})
    found: dict[tuple[str, str | None], _Use] = {}
    for (project, job), named_there in rows.items():
        images: dict[tuple[str, str | None], list[Row]] = {}
        for row in named_there:
            if row.reference is not None:
                images.setdefault((row.reference, row.via), []).append(row)
        for key, mine in images.items():
            use = found.setdefault(key, _Use())
            use.projects.add(project)
            use.kinds.update(_SHOWN_AS.get(row.kind, row.kind) for row in mine)
            use.sources.update(row.source for row in mine)
            platforms = {row.platform for row in mine if row.platform}
            use.add_runs(runs.get((project, job), ()), platforms)
            use.platforms.update(dict.fromkeys(platforms, 0))
    for one in logged:
        if one.reference is not None:
            names.setdefault(one.project, one.path)
            found.setdefault((one.reference, one.via), _Use()).add_logged(one, at)
    alarms = _alarms(found.values())
    images_used = [
        _image(key, use, () if now is None else _weights(use, names, alarms))
        for key, use in found.items()
    ]
    return tuple(sorted(images_used, key=lambda one: (-one.jobs, one.reference, one.via or "")))


def decay(days: float) -> float:
    """Return what is left of a run's weight after so many days."""
    return math.pow(2.0, -days / HALF_LIFE)


LOUD: Final = 250
"""Runs that the failed pulls of a project stand for together: they met images that were not warm.

Jobs can be made to fail. So a project has no more of this than it has other runs, and its images
share it: one project cannot put many images before those that others use.
"""


def alarm(failed: float, other: float) -> float:
    """Return what a project's failed pulls add to its runs, all its images together.

    `failed` is what the failed runs weigh, `other` what the project's other runs do, in runs.
    """
    return min(LOUD * min(1.0, failed), max(0.0, other))


def parts_of(days: int) -> int:
    """Return the weight of a run so many days ago, of one to come that of today's, in millionths.

    Whole numbers add up alike in any order.
    """
    return round(WHOLE * decay(max(0, days)))


def daily(
    rows: Mapping[tuple[int, str], Sequence[Row]],
    runs: Mapping[tuple[int, str], Sequence[DayUses]],
    logged: Iterable[Logged] = (),
) -> dict[str, tuple[DayUses, ...]]:
    """Return by its reference when each image was used, the oldest first; the same uses as `used`.

    `runs` are those of each job. What only a definition names has none; what jobs ask GitLab for
    is left out.
    """
    found: dict[str, dict[tuple[int, int], list[int]]] = {}
    for (project, job), named_there in rows.items():
        for reference in {row.reference for row in named_there if row.via is None}:
            if reference is None:
                continue
            sums = found.setdefault(reference, {})
            for ran in runs.get((project, job), ()):
                day = sums.setdefault((ran.day, project), [0, 0])
                day[0] += ran.runs
                day[1] += ran.pull_failures
    for one in logged:
        if one.reference is not None and one.via is None:
            sums = found.setdefault(one.reference, {})
            sums.setdefault((one.day, one.project), [0, 0])[0] += one.runs
    return {
        reference: tuple(DayUses(*key, *sums[key]) for key in sorted(sums))
        for reference, sums in found.items()
    }


def _alarms(uses: Iterable[_Use]) -> dict[int, float]:
    """Return for each project what each of its failed pulls adds to the weight of an image."""
    failed: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    for use in uses:
        failed.update(use.failed)
        runs.update(use.weights)
    return {
        project: alarm(parts / WHOLE, (runs[project] - parts) / WHOLE) / parts
        for project, parts in failed.items()
        if parts
    }


def _weights(
    use: _Use, names: Mapping[int, str], alarms: Mapping[int, float]
) -> tuple[tuple[str, float], ...]:
    return tuple(
        sorted(
            (
                names.get(one, f"project {one}"),
                use.weights[one] / WHOLE + use.failed[one] * alarms.get(one, 0.0),
            )
            for one in use.projects
        )
    )


def _image(
    key: tuple[str, str | None], use: _Use, weights: tuple[tuple[str, float], ...]
) -> UsedImage:
    reference, via = key
    return UsedImage(
        reference,
        tuple(sorted(use.kinds)),
        tuple(source for source in SOURCES if source in use.sources),
        use.jobs,
        len(use.projects),
        use.last or None,
        tuple(sorted(use.platforms)),
        via,
        use.failures,
        tuple(sorted(use.platforms.items())),
        weights,
    )


def unresolved(
    rows: Mapping[tuple[int, str], Sequence[Row]],
    runs: Mapping[tuple[int, str], Sequence[Runs]],
    paths: Mapping[int, str],
) -> tuple[UnresolvedImage, ...]:
    """Return the names that no image is known for, those of the most runs first."""
    found: dict[tuple[int, str, str, str, str], int] = {}
    for (project, job), named_there in rows.items():
        answered = {row.kind for row in named_there if row.source == "trace" and row.certain}
        ran = sum(one.runs for one in runs.get((project, job), ()))
        for row in named_there:
            if row.unresolved is None or row.kind in answered or not (row.text or ran):
                continue
            shown = job if row.source == "history" else base_name(job)
            key = (project, shown, row.kind, row.text, row.unresolved)
            found[key] = found.get(key, 0) + ran
    ordered = sorted(found.items(), key=lambda item: (-item[1], paths[item[0][0]], *item[0][1:]))
    return tuple(UnresolvedImage(paths[key[0]], *key[1:], jobs) for key, jobs in ordered)
