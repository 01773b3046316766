"""Reads the history of jobs from GitLab: through the runners where the token may, else by project.

Through the runners it costs a request for a hundred jobs, whatever the number of projects. What ran
on runners that were deleted since is not to be had that way: the newest jobs of a few projects tell
whether there are such.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from prewarm.core.errors import PrewarmError
from prewarm.core.settings import Gitlab
from prewarm.discovery.gitlab_client import AT_ONCE, Client, GitlabRefusal, group_path, project_path
from prewarm.discovery.history import (
    OVERLAP,
    Job,
    Runner,
    Tally,
    as_map,
    counts,
    is_id,
    platform_of,
    read_job,
    tags_of,
    time_of,
)

KEYSET: Final = {"pagination": "keyset", "order_by": "id"}
REPORTER: Final = "the role Reporter in the project"
_FEW: Final = 10
"""Projects for which looking for runners would cost more than it saves."""
_FOREIGN_MAX: Final = 5_000
"""Jobs of other projects that reading by runner may bring, above a page for each project."""
_WORTH: Final = 5
"""Pages of a runner's jobs from which on they are written down before all runners are read."""
_ASKED_MAX: Final = 100
"""Runners whose tags are asked for one by one."""
_REFUSED_MAX: Final = 3
"""Refusals in a row after which no more tags are asked for."""


class TooForeign(Exception):  # noqa: N818 - the name says what the jobs are
    """The runners work so much for others that the projects are quicker to ask one by one."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The runners of a GitLab."""

    runners: tuple[Runner, ...]
    """Those whose jobs count."""
    known: frozenset[int]
    """All that are listed."""


class Tags:
    """Learns the tags of the runners that jobs name, each once, from any thread."""

    def __init__(self, client: Client, report: Callable[[str, PrewarmError], None]) -> None:
        self._client = client
        self._report = report
        self._lock = threading.Lock()
        self._known: dict[int, frozenset[str] | None] = {}
        self._refused = 0
        """Refusals in a row."""
        self._told = False

    def of(self, job: Job) -> frozenset[str]:
        """Return the tags of the runner that ran a job; where they are hidden, the job's own.

        A runner has all tags of its jobs, so that only counts too few. Raises GitlabRefusal for
        GitLab as a whole, and Stopped.
        """
        if not job.runner:
            return job.tags
        with self._lock:
            if job.runner not in self._known:
                self._known[job.runner] = self._ask(job.runner)
            tags = self._known[job.runner]
        return job.tags if tags is None else tags

    def _ask(self, runner: int) -> frozenset[str] | None:
        if self._refused < _REFUSED_MAX and len(self._known) < _ASKED_MAX:
            try:
                fields = as_map(self._client.get(f"/runners/{runner}"))
            except GitlabRefusal as refusal:
                if refusal.whole:
                    raise
                self._refused += 1
            else:
                self._refused = 0
                return tags_of(fields.get("tag_list"))
        if not self._told:
            self._told = True
            self._report(
                "gitlab.runners.tags",
                PrewarmError(
                    "runner-tags",
                    "the tags of some runners are not to be read; their jobs count by the tags "
                    "that the jobs ask for",
                    "let the token's user own the runners, or name them in gitlab.runners.ids",
                ),
            )
        return None


def read_project(client: Client, tally: Tally, project: int, tags: Tags) -> None:
    """Count the new jobs of one project; raises GitlabRefusal and Stopped."""
    floor = tally.floor([project])
    for jobs in _pages(client, project_path(project, "jobs"), project=project):
        for job in jobs:
            asked = tally.wanted.tags and tally.is_new(job)
            tally.take(replace(job, tags=tags.of(job)) if asked else job)
        if jobs and jobs[-1].created < floor:
            break


def tells_all(client: Client, tally: Tally, fleet: Fleet, projects: Collection[int]) -> bool:
    """Whether the newest jobs of these projects ran on runners that are listed.

    GitLab keeps a job when its runner is deleted, but lists it nowhere but in its project. It is
    a sample, a request for each project: what fell out of all their first pages is not noticed.
    Raises GitlabRefusal for GitLab as a whole, and Stopped.
    """
    if tally.wanted.ids:
        return True  # a job whose runner nobody knows does not count

    def told(project: int) -> bool:
        try:
            jobs = next(_pages(client, project_path(project, "jobs"), project=project), [])
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            return True
        return all(
            job.runner in fleet.known or not tally.is_new(job) or not counts(job, tally.wanted)
            for job in jobs
        )

    with ThreadPoolExecutor(AT_ONCE, "sample") as pool:
        return all(list(pool.map(told, projects)))


def read_runners(
    client: Client, tally: Tally, runners: Sequence[Runner], done: Callable[[Runner], None]
) -> bool:
    """Count the new jobs of all projects; False where they are not to be had this way after all.

    `done` is called, one call at a time, when a runner with many jobs has been read. Raises
    GitlabRefusal for GitLab as a whole, and Stopped.
    """
    most = _FOREIGN_MAX + 100 * len(tally.marks)
    lock = threading.Lock()

    def read(runner: Runner) -> None:
        floor = tally.floor(tally.marks, runner.id)
        pages = 0
        for jobs in _pages(client, f"/runners/{runner.id}/jobs", runner=runner):
            pages += 1
            with lock:
                for job in jobs:
                    tally.take(job)
                if tally.foreign > most:
                    raise TooForeign
            if jobs and jobs[-1].created < floor:
                break
        if pages >= _WORTH:
            with lock:
                done(runner)

    with ThreadPoolExecutor(AT_ONCE, "runners") as pool:
        futures = [pool.submit(read, runner) for runner in runners]
        try:
            for future in futures:
                try:
                    future.result()
                except GitlabRefusal as refusal:
                    if refusal.status != 404:  # a runner may be gone by now
                        raise
        except (GitlabRefusal, TooForeign) as error:
            pool.shutdown(cancel_futures=True)
            if isinstance(error, GitlabRefusal) and error.whole:
                raise
            return False
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return True


def _pages(
    client: Client, path: str, *, project: int | None = None, runner: Runner | None = None
) -> Iterator[list[Job]]:
    """Yield the pages of a list of jobs, the newest first."""
    last = 1 << 62
    for page in client.pages(path, need=REPORTER, sort="desc", **KEYSET):
        jobs = [job for row in page if (job := read_job(row, project, runner)) is not None]
        if jobs and jobs[0].id >= last:
            raise GitlabRefusal(
                "gitlab-answer", f"{path}: its pages do not follow each other", "upgrade GitLab"
            )
        last = jobs[-1].id if jobs else last
        yield jobs


def find_runners(client: Client, settings: Gitlab, projects: int, since: float) -> Fleet | None:
    """Return the runners through which all wanted jobs can be read; None where they cannot.

    `projects` is their number, `since` where the history begins. Raises GitlabRefusal for GitLab as
    a whole, and Stopped.
    """
    if projects <= _FEW:
        return None
    try:
        rows = _rows(client, settings)
        if rows is None:
            return None
        wanted = [row for row in rows if _may_have_run(row, settings)]
        if len(wanted) > max(projects, 2 * _FEW):
            return None
        with ThreadPoolExecutor(AT_ONCE, "runners") as pool:
            found = list(pool.map(lambda row: _runner(client, settings, row, since), wanted))
    except GitlabRefusal as refusal:
        if refusal.whole:
            raise
        return None
    tags = settings.runners.tags
    return Fleet(
        tuple(runner for runner in found if runner is not None and runner.tags.issuperset(tags)),
        frozenset(row["id"] for row in rows),
    )


def _rows(client: Client, settings: Gitlab) -> list[Mapping[str, Any]] | None:
    wanted = settings.runners
    if wanted.ids:
        rows = [client.get(f"/runners/{number}") for number in wanted.ids]
    else:
        try:
            rows = [row for page in client.pages("/runners/all") for row in page]
        except GitlabRefusal as refusal:
            if refusal.status != 403 or refusal.whole or not settings.groups:
                raise
            rows = _owned(client, settings.groups)
            if wanted.shared and any(row.get("is_shared") for row in rows):
                return None  # only an administrator may read what those ran
    return [row for row in rows if isinstance(row, dict) and is_id(row.get("id"))]


def _may_have_run(row: Mapping[str, Any], settings: Gitlab) -> bool:
    shared = settings.runners.shared or row.get("is_shared") is not True
    return shared and row.get("status") != "never_contacted"


def _owned(client: Client, groups: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the runners of groups and of the projects in them, each once."""
    # Project runners are in no group's list, but in that of the groups' owner.
    listed = [group_path(group, "runners") for group in groups] + ["/runners"]
    found = (row for path in listed for page in client.pages(path) for row in page)
    return list({row.get("id"): row for row in found}.values())


def _runner(
    client: Client, settings: Gitlab, row: Mapping[str, Any], since: float
) -> Runner | None:
    """Return a runner with its tags, where those matter, and its machines' platforms.

    None for one that has been silent since before the history begins.
    """
    number = row["id"]
    if settings.runners.tags and "tag_list" not in row:
        row = {**row, **as_map(client.get(f"/runners/{number}"))}
    try:
        pages = client.pages(f"/runners/{number}/managers")
        managers = [manager for page in pages for manager in page]
    except GitlabRefusal as refusal:
        if refusal.status != 404:  # GitLab knows managers since 16.0
            raise
        managers = [client.get(f"/runners/{number}")]
    # A stale runner is silent for a week or for months, by GitLab's version; it has run before.
    contacts = [time_of(as_map(manager).get("contacted_at")) for manager in managers]
    silent = all(at is not None and at < since - OVERLAP for at in contacts)
    if row.get("status") == "stale" and contacts and silent:
        return None
    return Runner(
        number,
        row.get("is_shared") is True,
        platform_of(managers),
        tags_of(row.get("tag_list")),
    )
