"""CI's history: the jobs that ran, counted by project, name, runner and day, never kept.

Each job counts exactly once, though pages overlap and jobs start late: one is counted by the scan
that first sees it started. A mark for each project says what that was: the highest job id counted,
and the moment up to which starts were counted. What lies below the id but started after that moment
is counted by the next scan; that is why a scan reads on for a while below its mark.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeGuard

from prewarm.core.platforms import normalise, well_formed
from prewarm.core.settings import Runners
from prewarm.core.usage import _NAME_MAX, DAY, NEVER, Count, Key, Mark, plain

OVERLAP: Final = 6 * 3600
"""Seconds below a mark that are read again: jobs may wait so long for a runner or a person.

One that a person starts later than that after its pipeline began is never counted, unless the whole
history is read for the first time: GitLab lists jobs by age alone, and asking for each that waits
would cost a request for every manual job that nobody starts.
"""
NAMES_MAX: Final = 2000
"""Names of jobs that are told apart in one project and scan; names may be made up by a script."""
RUNNING_MAX: Final = 20_000
"""Jobs that are remembered as running, in case they fail on a pull later."""
_PULL_FAILURE: Final = "image_pull_failure"
_SHA: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SYSTEMS: Final = {"darwin": "linux", "freebsd": "linux"}
"""Runners on these start containers of another system."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as a list of jobs shows it; times are epoch seconds."""

    id: int
    project: int
    name: str
    """Without the ` 1/3` of `parallel:`, whose jobs all are one."""
    created: float
    started: float | None
    """None: it never ran."""
    running: bool
    pull_failed: bool
    """The runner could not pull an image (`image_pull_failure`, runners since 16.1)."""
    ref: str
    sha: str
    runner: int
    """0 where the list does not tell."""
    shared: bool
    platform: str
    """Of the machine that ran it: `linux/arm64`, several joined by commas, empty if unknown."""
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner: what its own list of jobs leaves out."""

    id: int
    shared: bool = False
    platform: str = ""
    tags: frozenset[str] = frozenset()


def read_job(
    fields: Mapping[str, Any], project: int | None = None, runner: Runner | None = None
) -> Job | None:
    """Return the job that GitLab's JSON tells of, None where it is not one.

    `project` and `runner` are what the list itself is of, where the entries do not repeat it.
    """
    number, name = fields.get("id"), fields.get("name")
    created = time_of(fields.get("created_at"))
    owner = project if project is not None else as_map(fields.get("project")).get("id")
    if not (is_id(number) and is_id(owner) and isinstance(name, str) and name and created):
        return None
    own = runner or _runner(fields)
    sha = as_map(fields.get("commit")).get("id") or as_map(fields.get("pipeline")).get("sha")
    return Job(
        number,
        owner,
        plain(name),
        created,
        time_of(fields.get("started_at")),
        fields.get("status") == "running",
        fields.get("failure_reason") == _PULL_FAILURE,
        str(fields.get("ref") or "")[:_NAME_MAX],
        sha if isinstance(sha, str) and _SHA.fullmatch(sha) else "",
        own.id,
        own.shared,
        own.platform,
        own.tags if runner else tags_of(fields.get("tag_list")),
    )


def _runner(fields: Mapping[str, Any]) -> Runner:
    runner, manager = as_map(fields.get("runner")), as_map(fields.get("runner_manager"))
    number = runner.get("id")
    return Runner(
        number if is_id(number) else 0,
        runner.get("is_shared") is True,
        platform_of([manager]),
    )


def platform_of(managers: Iterable[Any]) -> str:
    """Return the platforms of a runner's machines, in which containers of theirs run."""
    found = set()
    for fields in managers:
        system, architecture = as_map(fields).get("platform"), as_map(fields).get("architecture")
        if not isinstance(architecture, str) or not architecture:
            continue
        system = system.lower() if isinstance(system, str) and system else "linux"
        if well_formed(system, architecture):
            found.add(str(normalise(_SYSTEMS.get(system, system), architecture)))
    return ",".join(sorted(found))


def counts(job: Job, wanted: Runners) -> bool:
    """Whether the job's runner is one of those that `gitlab.runners` names."""
    if wanted.ids and job.runner not in wanted.ids:
        return False
    if not wanted.shared and job.shared:
        return False
    return job.tags.issuperset(wanted.tags)


@dataclass(slots=True)
class Tally:
    """Counts jobs of the history; what it holds grows with names and days, not with jobs."""

    since: float
    """The start of the history window; older starts do not count."""
    until: float
    """The moment of this scan; what starts later is counted by the next."""
    marks: Mapping[int, Mark]
    """Of the projects to count; jobs of others are foreign."""
    branches: Mapping[int, str | None] = field(default_factory=dict)
    """Their default branches."""
    wanted: Runners = Runners()  # noqa: RUF009 - frozen
    parts: Mapping[int, Mapping[int, Mark]] = field(default_factory=dict)
    """Marks by runner and project, where a scan ended before it had read all runners."""
    logged: Collection[int] = frozenset()
    """Jobs whose images a runner's log told: their runs are counted there."""
    were_running: Collection[int] = frozenset()
    """Jobs that ran when they were counted."""
    counts: dict[Key, Count] = field(default_factory=dict)
    heads: dict[int, tuple[int, str]] = field(default_factory=dict)
    """The newest job on each default branch, and its commit."""
    highest: dict[tuple[int, int], int] = field(default_factory=dict)
    """The highest job id counted, by project and runner."""
    running: set[int] = field(default_factory=set)
    crowded: set[int] = field(default_factory=set)
    """Projects with too many names of jobs."""
    foreign: int = 0
    """Jobs of other projects that were read in vain."""
    _names: dict[int, dict[str, str]] = field(default_factory=dict)

    def floor(self, projects: Iterable[int], runner: int = 0) -> float:
        """Return the time of creation below which no job can count; each has to be read so far.

        With a runner: no job that it ran.
        """
        part = self.parts.get(runner, {})
        marks = ((self.marks[project], part.get(project, NEVER)) for project in projects)
        read = min((max(mark.read, other.read) for mark, other in marks), default=0.0)
        return max(self.since, read) - OVERLAP

    def is_new(self, job: Job) -> bool:
        """Whether the job ran in the window and no scan has counted it."""
        return self._in_window(job) and not self._is_known(job)

    def _in_window(self, job: Job) -> bool:
        return job.started is not None and self.since <= job.started <= self.until

    def _is_known(self, job: Job) -> bool:
        marks = (
            self.marks.get(job.project, NEVER),
            self.parts.get(job.runner, {}).get(job.project, NEVER),
        )
        return any(job.id <= mark.job and (job.started or 0) <= mark.read for mark in marks)

    def take(self, job: Job) -> None:
        """Count the job, if it ran, is wanted and has not been counted yet."""
        if job.project not in self.marks:
            self.foreign += 1
            return
        if job.ref and job.ref == self.branches.get(job.project) and job.sha:
            self.heads[job.project] = max(self.heads.get(job.project, (0, "")), (job.id, job.sha))
        started = job.started
        if started is None or not self._in_window(job):
            return
        known = self._is_known(job)
        if known and job.id not in self.were_running:
            return
        if not counts(job, self.wanted):
            return
        if job.running and len(self.running) < RUNNING_MAX:
            self.running.add(job.id)
        runs = 0 if known or job.id in self.logged else 1
        self._count(job, started, runs)
        place = job.project, job.runner
        self.highest[place] = max(self.highest.get(place, 0), job.id)

    def _count(self, job: Job, started: float, runs: int) -> None:
        if not runs and not job.pull_failed:
            return
        names = self._names.setdefault(job.project, {})
        if job.name not in names and len(names) >= NAMES_MAX:
            self.crowded.add(job.project)
            return
        name = names.setdefault(job.name, job.name)  # one text for all its runs
        key = Key(job.project, name, job.runner, job.platform, int(started // DAY))
        count = self.counts.setdefault(key, Count())
        count.runs += runs
        count.pull_failures += job.pull_failed
        count.last = max(count.last, started)
        count.newest = max(count.newest, job.id)
        if job.pull_failed:
            count.newest_failed = max(count.newest_failed, job.id)

    def marks_after(self, projects: Iterable[int]) -> dict[int, Mark]:
        """Return the marks of projects whose history has now been read."""
        highest: dict[int, int] = {}
        for (project, _), number in self.highest.items():
            highest[project] = max(highest.get(project, 0), number)
        for part in self.parts.values():
            for project, mark in part.items():
                highest[project] = max(highest.get(project, 0), mark.job)
        return {
            project: Mark(
                max(self.marks[project].job, highest.get(project, 0)),
                max(self.marks[project].read, self.until),
            )
            for project in projects
        }

    def take_part(self, runner: int) -> tuple[dict[Key, Count], dict[int, Mark]]:
        """Take out the counts of a runner whose jobs have now been read, and return its marks."""
        keys = [key for key in self.counts if key.runner == runner]
        before = self.parts.get(runner, {})
        marks = {
            project: Mark(
                max(before.get(project, NEVER).job, self.highest.get((project, runner), 0)),
                max(before.get(project, NEVER).read, self.until),
            )
            for project in self.marks
        }
        return {key: self.counts.pop(key) for key in keys}, marks

    def names(self, project: int) -> frozenset[str]:
        """Return the names of the jobs that were counted for a project."""
        return frozenset(self._names.get(project, ()))


def excludes(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """Return what a project's whole path fits that one of the globs names.

    `*` and `?` stay within a part, `**` crosses `/`; `sandbox/**` is everything below `sandbox`.
    """
    parts = []
    for pattern in patterns:
        pieces = re.findall(r"\*\*|\*|\?|[^*?]+", pattern.strip("/"))
        known = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
        parts.append("".join(known.get(piece) or re.escape(piece) for piece in pieces))
    return re.compile("|".join(f"(?:{part})" for part in parts), re.IGNORECASE) if parts else None


def tags_of(value: object) -> frozenset[str]:
    """Return a list of tags from GitLab's JSON."""
    tags = value if isinstance(value, list) else []
    return frozenset(tag for tag in tags if isinstance(tag, str))


def is_id(value: object) -> TypeGuard[int]:
    """Whether the value is an id that a database can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 62


def as_map(value: object) -> Mapping[str, Any]:
    """Return the value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def time_of(value: object) -> float | None:
    """Return a time from GitLab's JSON in epoch seconds, None where it is none."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return None
