"""Reads the history of jobs from GitLab: through the runners where the token may, else by project.

Through the runners it costs a request for a hundred jobs, whatever the number of projects.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from prewarm.gitlab_client import AT_ONCE, Client, GitlabRefusal, group_path, project_path
from prewarm.history import Job, Runner, Tally, as_map, is_id, platform_of, read_job, tags_of
from prewarm.settings import Gitlab

KEYSET: Final = {"pagination": "keyset", "order_by": "id"}
REPORTER: Final = "the role Reporter in the project"
_FEW: Final = 10
"""Projects for which looking for runners would cost more than it saves."""
_FOREIGN_MAX: Final = 5_000
"""Jobs of other projects that reading by runner may bring, above a page for each project."""
_GONE: Final = frozenset({"stale", "never_contacted"})
"""States of runners that ran nothing lately."""


class TooForeign(Exception):  # noqa: N818 - the name says what the jobs are
    """The runners work so much for others that the projects are quicker to ask one by one."""


def read_project(client: Client, tally: Tally, project: int) -> None:
    """Count the new jobs of one project; raises GitlabRefusal and Stopped."""
    floor = tally.floor([project])
    for jobs in _pages(client, project_path(project, "jobs"), project=project):
        for job in jobs:
            tally.take(job)
        if jobs and jobs[-1].created < floor:
            break


def read_runners(client: Client, tally: Tally, runners: Sequence[Runner]) -> bool:
    """Count the new jobs of all projects; False where they are not to be had this way after all.

    Raises GitlabRefusal for GitLab as a whole, and Stopped.
    """
    floor = tally.floor(tally.marks)
    most = _FOREIGN_MAX + 100 * len(tally.marks)
    lock = threading.Lock()

    def read(runner: Runner) -> None:
        for jobs in _pages(client, f"/runners/{runner.id}/jobs", runner=runner):
            with lock:
                for job in jobs:
                    tally.take(job)
                if tally.foreign > most:
                    raise TooForeign
            if jobs and jobs[-1].created < floor:
                break

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


def find_runners(client: Client, settings: Gitlab, projects: int) -> list[Runner] | None:
    """Return the runners through which all wanted jobs can be read; None where they cannot.

    `projects` is their number. Raises GitlabRefusal for GitLab as a whole, and Stopped.
    """
    if projects <= _FEW:
        return None
    try:
        rows = _rows(client, settings)
        if rows is None or len(rows) > max(projects, 2 * _FEW):
            return None
        with ThreadPoolExecutor(AT_ONCE, "runners") as pool:
            found = list(pool.map(lambda row: _runner(client, settings, row), rows))
    except GitlabRefusal as refusal:
        if refusal.whole:
            raise
        return None
    return [runner for runner in found if runner.tags.issuperset(settings.runners.tags)]


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
    return [
        row
        for row in rows
        if isinstance(row, dict)
        and is_id(row.get("id"))
        and row.get("status") not in _GONE
        and (wanted.shared or row.get("is_shared") is not True)
    ]


def _owned(client: Client, groups: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the runners of groups and of the projects in them, each once."""
    # Project runners are in no group's list, but in that of the groups' owner.
    listed = [group_path(group, "runners") for group in groups] + ["/runners"]
    found = (row for path in listed for page in client.pages(path) for row in page)
    return list({row.get("id"): row for row in found}.values())


def _runner(client: Client, settings: Gitlab, row: Mapping[str, Any]) -> Runner:
    """Return a runner with its tags, where those matter, and its machines' platforms."""
    number = row["id"]
    if settings.runners.tags and "tag_list" not in row:
        row = as_map(client.get(f"/runners/{number}"))
    try:
        pages = client.pages(f"/runners/{number}/managers")
        managers = [manager for page in pages for manager in page]
    except GitlabRefusal as refusal:
        if refusal.status != 404:  # GitLab knows managers since 16.0
            raise
        managers = [client.get(f"/runners/{number}")]
    tags = row.get("tag_list")
    return Runner(
        number,
        row.get("is_shared") is True,
        platform_of(managers),
        tags_of(tags),
    )
