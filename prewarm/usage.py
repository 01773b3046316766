"""Usage: which images the jobs of history used, from what definitions, traces and logs say (pure).

What a project's jobs name is kept in `Row`s, one for each job in history; the runs are counted
apart, and `used` joins the two.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Final, Literal
from urllib.parse import urlsplit

from prewarm.definitions import Definition, JobImage, base_name, read_definition
from prewarm.evaluate import Evaluation
from prewarm.expansion import PER_RUN, unknown
from prewarm.history import DAY, plain
from prewarm.reference import InvalidReference, Reference, parse
from prewarm.settings import Mirror
from prewarm.traces import Trace

Kind = Literal["image", "service", "helper", "tool"]
Source = Literal["definition", "history", "trace"]
SOURCES: Final = ("definition", "history", "trace", "runner-log")
_SHOWN_AS: Final[Mapping[str, str]] = {"helper": "image", "tool": "image"}
"""Kinds that the contract does not tell apart."""
_CONTAINERS: Final = re.compile(r"docker|kubernetes")
"""Executors that start a container for the job."""
TOOLS_MAX: Final = 20
"""Images of build tools that one trace may add: its author controls every word."""
TRACE_IMAGES_MAX: Final = 50
"""Images that one trace may name."""
NAMES_MAX: Final = 500
"""Images that the definition of one project may name, and those of its jobs that ran."""
UNUSED_MAX: Final = 200
"""Images that it may name for jobs that never ran."""
ROWS_MAX: Final = 10_000
"""Jobs with an image that are kept of one project."""
TEXT_MAX: Final = 500
"""Characters of a name that are kept."""
HALF_LIFE: Final = 7.0
"""Days after which a run weighs half as much."""
WHOLE: Final = 1_000_000
"""The parts of a run that weighs all."""
_PORT: Final = re.compile(r"(.+)_(\d{1,5})")

BARE: Final = "names no image: the runner's own default is used"
ABSENT: Final = (
    "the job is not in the project's definition (a child pipeline, perhaps, or a policy)"
)


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
class Question:
    """What only a trace can tell: the image of some jobs of a project, alike in the definition."""

    key: str
    """Changes with what the definition says of them."""
    jobs: tuple[str, ...]
    """All jobs that the answer holds for."""
    sample: bool = False
    """The image is known; the trace is to confirm it."""


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


# --- names ---


@lru_cache(4096)
def named(text: str, registry_prefix: str | None = None) -> JobImage:
    """Return what an expanded name of an image means, as in a definition."""
    known = {"CI_REGISTRY_IMAGE": registry_prefix} if registry_prefix else {}
    (image, *_) = read_definition({"job": {"image": text}}, known).images
    return image


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


def reference_of(image: JobImage, hosts: Collection[str]) -> str | None:
    """Return what is to be pulled, fully qualified; None where that is not known."""
    return None if image.reference is None else str(upstream_of(image.reference, hosts))


# --- definitions ---


def definition_rows(definition: Definition | Evaluation, hosts: Collection[str]) -> list[Row]:
    """Return what a definition says of the jobs that come from it, by their names in history."""
    rows: dict[Row, None] = {}
    for image in definition.images:
        row = Row(
            "",
            image.kind,
            image.text,
            reference_of(image, hosts),
            image.unresolved,
            "definition",
            image.certain,
            image.platform,
            image.via,
        )
        if image.guessed and image.reference is not None:
            # No demand for a guess: a trace is asked first (`questions`).
            row = replace(row, text=image.guessed, reference=None, unresolved=image.guess)
        rows |= dict.fromkeys(replace(row, job=plain(name)) for name in image.names)
    bare = frozenset(definition.bare)
    for name in definition.jobs:
        if base_name(name) in bare or name in bare:
            rows[Row(plain(name), "image", "", None, BARE, "definition")] = None
    return list(rows)


def absent_rows(rows: Iterable[Row], ran: Iterable[str], why: str = ABSENT) -> list[Row]:
    """Return rows for the jobs that ran and that the definition does not name."""
    known = {row.job for row in rows if row.source != "trace"}
    return [Row(job, "image", "", None, why, "history") for job in ran if job not in known]


def bounded(rows: Iterable[Row], runs: Mapping[str, int]) -> tuple[list[Row], int]:
    """Return the rows that are kept of one project, and how many names are left out.

    What jobs ran with goes first, the most runs first, then what only the definition names.
    `runs` has the runs of each job.
    """
    kept: list[Row] = []
    names: set[str] = set()
    unused = 0
    left_out: set[str] = set()
    for row in sorted(rows, key=lambda row: -runs.get(row.job, 0)):
        name = row.reference or row.text
        if name and name not in names:
            is_unused = not runs.get(row.job)
            if len(names) >= NAMES_MAX or (is_unused and unused >= UNUSED_MAX):
                left_out.add(name)
                continue
            names.add(name)
            unused += is_unused
        if len(kept) < ROWS_MAX:
            text = row.text if len(row.text) <= TEXT_MAX else row.text[: TEXT_MAX - 1] + "…"
            kept.append(replace(row, text=text))
    return kept, len(left_out - names)


# --- what to ask traces ---


def questions(rows: Sequence[Row], ran: Collection[str]) -> list[Question]:
    """Return what is unknown of the jobs that ran and that a trace can tell, each once."""
    by_job: dict[str, list[Row]] = {}
    for row in rows:
        if row.source != "trace" and row.unresolved is not None and _askable(row):
            by_job.setdefault(row.job, []).append(row)
    groups: dict[str, list[str]] = {}
    for job, open_rows in by_job.items():
        # Jobs that are in no definition may differ in everything.
        own = any(row.source == "history" for row in open_rows)
        groups.setdefault(_key(job if own else base_name(job), open_rows), []).append(job)
    return [
        Question(key, tuple(jobs))
        for key, jobs in groups.items()
        if any(job in ran for job in jobs)
    ]


def _askable(row: Row) -> bool:
    """Whether a trace may hold an image to pull: not where the pipeline builds it itself."""
    if row.text and "$" not in row.text:
        return False
    left = unknown(row.text)
    return not any(PER_RUN.fullmatch(name) or name == "CI_REGISTRY_IMAGE" for name in left)


def samples(rows: Sequence[Row], ran: Iterable[str], share: int = 20) -> list[Question]:
    """Return questions about one in `share` of the jobs whose image is known; always the same."""
    images: dict[str, list[Row]] = {}
    for row in rows:
        if row.source != "trace" and row.kind == "image":
            images.setdefault(row.job, []).append(row)
    found = []
    for job in ran:
        mine = images.get(job, [])
        if len(mine) == 1 and mine[0].reference is not None and mine[0].certain:
            key = f"sample {_key(job, mine)}"
            if int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % share == 0:
                found.append(Question(key, (job,), sample=True))
    return found


def _key(name: str, rows: Iterable[Row]) -> str:
    told = "\n".join(sorted(f"{row.kind} {row.source} {row.text}" for row in rows))
    return f"{name} {hashlib.sha256(told.encode()).hexdigest()[:12]}"


def trace_rows(
    question: Question, trace: Trace, registry_prefix: str | None, hosts: Collection[str]
) -> list[Row]:
    """Return what a trace answers, for every job that the question is about."""
    rows: dict[Row, None] = {}
    tools = 0
    for seen in trace.images:
        if seen.kind == "tool":
            tools += 1
        image = named(seen.text, registry_prefix)
        reference = reference_of(image, hosts)
        if reference is None or tools > TOOLS_MAX or len(rows) >= TRACE_IMAGES_MAX:
            continue
        certain = seen.trust == "runner"
        row = Row("", seen.kind, seen.text, reference, None, "trace", certain, None, image.via)
        rows[row] = None
    if trace.executor and not _CONTAINERS.search(trace.executor):
        rows[Row("", "image", "", None, None, "trace")] = None
    told = (replace(row, job=job, question=question.key) for job in question.jobs for row in rows)
    return list(islice(told, ROWS_MAX))


def disagreement(question: Question, rows: Iterable[Row], told: Iterable[Row]) -> str | None:
    """Return how a trace contradicts the definition, for people; None where it does not."""
    (job,) = question.jobs
    expected = {
        row.reference
        for row in rows
        if row.job == job and row.kind == "image" and row.source == "definition"
    }
    ran = {row.reference for row in told if row.job == job and row.kind == "image"}
    if not ran or ran & expected:
        return None
    names = " and ".join(sorted(filter(None, expected)))
    return f"job {job!r}: the definition says {names}, its trace {' and '.join(map(str, ran))}"


# --- joining ---


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
