"""The scan: asks a GitLab which images its CI really used, and remembers it.

Cheapest first: runners' logs, the list of projects, the history of jobs, definitions, and one trace
for what is still unknown. Every step is written down when it is done, so a scan that is ended goes
on where it stopped; one project's failure is a problem of that project.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any, Final, Protocol, TypeVar

from prewarm.core.errors import PrewarmError, Problem, Severity
from prewarm.core.records import LogKey, PastScan
from prewarm.core.settings import Gitlab, Mirror
from prewarm.core.usage import DAY, NEVER, Mark, mirror_hosts
from prewarm.discovery.definitions import Namer, Project
from prewarm.discovery.evidence import named, reference_of
from prewarm.discovery.gitlab_client import (
    ALONE,
    AT_ONCE,
    Client,
    GitlabRefusal,
    Stopped,
    TimeBounds,
    Token,
    group_path,
    project_path,
)
from prewarm.discovery.history import NAMES_MAX, Runner, Tally, excludes, is_id
from prewarm.discovery.jobs import (
    KEYSET,
    REPORTER,
    Tags,
    find_runners,
    read_project,
    read_runners,
    tells_all,
)
from prewarm.discovery.runner_log import Claims, LogReader, Use
from prewarm.discovery.scan_result import Scan
from prewarm.state.clock import Clock
from prewarm.state.ledger import Ledger
from prewarm.state.tenant import scope_of

_PATH_MAX: Final = 1024
"""Characters of a path of a project, a file or a branch."""
KEPT: Final = 28 * DAY
"""Seconds that uses are remembered at least, for the forecast."""
_LATE: Final = 600.0
"""Seconds after a runner's log line within which history may not show the job yet."""

_SAMPLE: Final = 12
"""Projects that are asked whether the runners tell of all their jobs."""

_In = TypeVar("_In")


class Progress(Protocol):
    """Somebody who watches."""

    def phase(self, name: str, total: int | None) -> None:
        """What follows, and how many steps it takes, where that is known."""
        ...

    def step(self) -> None:
        """One step is done."""
        ...


def scan_due(settings: Gitlab, ledger: Ledger, now: float) -> bool:
    """Whether `sync` is to scan: no complete scan of this scope is younger than `rescan`."""
    last = ledger.last_scan(complete=True)
    if last is None or last.scope != scope_of(settings):
        return True
    return not 0 <= now - last.finished < settings.rescan


def scan(
    settings: Gitlab,
    token: Token | None,
    ledger: Ledger,
    clock: Clock,
    *,
    stop: threading.Event,
    progress: Progress,
    mirrors: Iterable[Mirror] = (),
    environ: Mapping[str, str] | None = None,
    only: str | None = None,
    bounds: TimeBounds = ALONE,
) -> Scan:
    """Read what is new of the scope, or of one project, and return the whole window's uses.

    The caller holds the lock of the state. `environ` tells proxies and CAs. Raises PrewarmError
    for what concerns GitLab as a whole, or the token; what was read until then is kept.
    """
    hosts = mirror_hosts(mirrors)
    with Client(settings, token, environ or {}, stop, bounds=bounds) as client:
        started = _Scan(settings, client, ledger, clock, progress, hosts, environ or {})
        return started.run(only, has_token=token is not None)


def token_expiry(told: object) -> float | None:
    """Return when a token expires by GitLab's answer about it (personal_access_tokens/self).

    In epoch seconds: the start of the day that `expires_at` names, in UTC; infinite where it never
    expires, None where that is not told.
    """
    expires = told.get("expires_at", "") if isinstance(told, dict) else ""
    if expires is None:
        return math.inf
    try:
        day = date.fromisoformat(str(expires))
    except ValueError:
        return None
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


class _Scan:
    """One scan, under way."""

    def __init__(
        self,
        settings: Gitlab,
        client: Client,
        ledger: Ledger,
        clock: Clock,
        progress: Progress,
        hosts: Collection[str],
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._progress = progress
        self._hosts = hosts
        self._environ = environ
        self._now = clock().wall
        self._since = self._now - settings.history
        self._last = ledger.last_scan()
        self._token_expiry = self._last.token_expiry if self._last is not None else None
        self._excluded = excludes(settings.exclude)
        self._hidden: set[int] = set()
        """Projects that `exclude` names."""
        self._whole = True
        """The list of projects is complete."""
        self._problems: dict[Problem, None] = {}
        self._running: set[int] = set()
        self._logged: dict[int, float] = {}
        self._names_before: dict[int, frozenset[str]] = {}
        self._new_names: dict[int, frozenset[str]] = {}
        self._denied = 0
        self._active: dict[int, str] = {}
        """When something happened in a project, as GitLab writes it."""
        self._parts = ledger.parts()
        self._tags = Tags(client, self._report)
        self._lock = threading.Lock()

    def run(self, only: str | None, *, has_token: bool) -> Scan:
        """Do one after the other what makes a scan."""
        ended = False
        projects: dict[int, Project] = {}
        try:
            self._read_logs()
            self._progress.phase("projects", None)
            if has_token and only is None:
                self._ask_about_token()
            projects = self._list_one(only) if only is not None else self._list()
            self._read_history(projects)
            self._read_definitions(projects)
            ended = True
        except Stopped:
            pass
        except PrewarmError as error:
            self._report(self._client.url, error, "error")
            self._record(complete=False, read=False)
            raise
        return self._finish(projects, ended=ended, only=only)

    def _finish(self, projects: Mapping[int, Project], *, ended: bool, only: str | None) -> Scan:
        """Record the scan, and tell what the window now holds."""
        known = self._ledger.known_projects()
        for number in projects:
            if number in known:
                self._problems |= dict.fromkeys(known[number].problems)
        problems = tuple(self._problems)
        complete = ended and self._whole
        self._record(complete=complete and only is None, read=ended and only is None)
        if only is None:
            oldest = self._now - max(KEPT, self._settings.history)
            self._ledger.forget_uses(oldest, self._hidden & known.keys())
        project = next(iter(projects), -1) if only is not None else None
        return Scan(
            self._ledger.used_images(self._since, project),
            self._ledger.unresolved_images(self._since, project),
            problems,
            self._client.sent,
            complete,
            self._clock().wall,
        )

    def _record(self, *, complete: bool, read: bool) -> None:
        """Write down the scan, and which jobs the next one has to know, where history was read."""
        logged: Collection[int] = self._logged.keys()
        running = self._running
        if read:
            logged = {job for job, time in self._logged.items() if time > self._now - _LATE}
        elif self._last is not None:
            running = running | self._last.running
        self._ledger.save_scan(
            PastScan(
                self._now,
                self._clock().wall,
                complete,
                self._client.sent,
                scope_of(self._settings),
                tuple(self._problems),
                frozenset(running),
                frozenset(logged),
                self._token_expiry,
            )
        )

    def _report(self, where: str, error: PrewarmError, severity: Severity = "warning") -> None:
        problem = Problem(severity, error.code, where, error.text, error.cure)
        with self._lock:
            self._problems[problem] = None

    def _each(
        self,
        name: str,
        items: Sequence[_In],
        work: Callable[[_In], None],
        where: Callable[[_In], str],
    ) -> None:
        """Do the work for each item, several at once; a refusal is a problem of that item.

        Raises what concerns GitLab as a whole, and Stopped.
        """
        self._progress.phase(name, len(items))

        def guarded(item: _In) -> None:
            try:
                work(item)
            except GitlabRefusal as refusal:
                if refusal.whole:
                    raise
                self._report(where(item), refusal)
            self._progress.step()

        with ThreadPoolExecutor(AT_ONCE, name) as pool:
            futures = [pool.submit(guarded, item) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask_about_token(self) -> None:
        """Note when the token expires; some kinds of tokens cannot ask that."""
        try:
            self._token_expiry = token_expiry(self._client.get("/personal_access_tokens/self"))
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise

    # --- runners' logs ---

    def _read_logs(self) -> None:
        """Take what runners' logs tell; the jobs in them count there and nowhere else."""
        if self._last is not None:
            self._logged = dict.fromkeys(self._last.logged, self._last.started)
        known = self._ledger.known_projects() if self._settings.runner_logs else {}
        claims = Claims({number: project.path for number, project in known.items()})
        for source in self._settings.runner_logs:
            position = self._ledger.log_position(source)
            # A log that is new to us must not count again what history has counted.
            since = self._since
            if position is None and self._last is not None:
                since = max(since, self._last.started)
            uses: dict[LogKey, tuple[int, float]] = {}
            reader = LogReader(source, position, since=since, now=self._now, environ=self._environ)
            try:
                for use in reader:
                    if claims.believed(use):
                        self._take_logged(use, uses)
            except PrewarmError as error:
                self._report(source, error, "error")
            self._ledger.add_logged(source, reader.position, uses)

    def _take_logged(self, use: Use, uses: dict[LogKey, tuple[int, float]]) -> None:
        time = use.time if use.time is not None else self._now
        self._logged[use.job] = time
        image = named(use.text)
        key = LogKey(
            use.project,
            use.project_path or "",
            use.runner or "",
            use.kind,
            use.text,
            reference_of(image, self._hosts) or "",
            image.via or "",
            use.platform or "",
            int(time // DAY),
        )
        if key.reference and not self._excludes(key.path):
            runs, last = uses.get(key, (0, 0.0))
            uses[key] = runs + 1, max(last, time)

    # --- projects ---

    def _list_one(self, path: str) -> dict[int, Project]:
        project = _project(self._client.get(project_path(path), need=REPORTER))
        if project is None:
            raise PrewarmError(
                "gitlab-not-found",
                f"{path} runs no CI: it is archived or empty, or its jobs are switched off",
                "name another project",
            )
        return {project.id: project}

    def _list(self) -> dict[int, Project]:
        """Return the projects of the scope that can run jobs."""
        found: dict[int, Project] = {}
        for fields in self._records():
            project = _project(fields)
            if project is None:
                continue
            if self._excludes(project.path):
                self._hidden.add(project.id)
            else:
                found[project.id] = project
                self._active[project.id] = str(fields.get("last_activity_at") or "")
        return found

    def _excludes(self, path: str) -> bool:
        return self._excluded is not None and self._excluded.fullmatch(path) is not None

    def _records(self) -> Iterator[Mapping[str, Any]]:
        settings = self._settings
        for group in settings.groups:
            # Not by keyset, which GitLab does not offer here.
            query = {"include_subgroups": "true", "with_shared": "false", "archived": "false"}
            pages = self._client.pages(
                group_path(group, "projects"), order_by="id", sort="asc", **query
            )
            yield from self._part(group, pages, "error")
        for name in settings.projects:
            path = project_path(name)
            records = ([self._client.get(each, need=REPORTER)] for each in (path,))
            yield from self._part(name, records, "warning")
        if not settings.groups and not settings.projects:
            own = {"membership": "true"} if settings.scope == "member" else {}
            for page in self._client.pages("/projects", archived="false", **KEYSET, **own):
                yield from page

    def _part(
        self, name: str, pages: Iterator[list[Any]], severity: Severity
    ) -> Iterator[Mapping[str, Any]]:
        """Yield what a group or project of the scope lists; a refusal is a problem of it alone."""
        try:
            for page in pages:
                yield from page
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            self._whole = False
            self._report(name, refusal, severity)

    # --- history ---

    def _read_history(self, projects: Mapping[int, Project]) -> None:
        """Count the jobs that are new, through the runners where the token may."""
        known = self._ledger.known_projects()
        marks = {number: known[number].mark if number in known else NEVER for number in projects}
        self._names_before = {
            number: frozenset(one.job for one in ran)
            for number, ran in self._ledger.ran_jobs(0.0).items()
        }
        together = self._read_together(projects, marks)
        left = [number for number in projects if number not in together]

        def read(project: Project) -> None:
            tally = self._tally([project.id], marks, projects)
            try:
                read_project(self._client, tally, project.id, self._tags)
            except GitlabRefusal as refusal:
                with self._lock:
                    self._denied += refusal.status == 403
                raise
            self._save(tally, projects)

        self._each("jobs", [projects[number] for number in left], read, _path)
        if projects and self._denied == len(projects):
            raise GitlabRefusal(
                "gitlab-rights",
                f"{self._client.url}: the token may read the jobs of no project",
                "give its user the role Reporter in the projects",
                status=403,
                whole=True,
            )

    def _read_together(
        self, projects: Mapping[int, Project], marks: Mapping[int, Mark]
    ) -> Collection[int]:
        """Count the new jobs of all projects but a few new ones; return those that are done."""
        fleet = find_runners(self._client, self._settings, len(projects), self._since)
        if fleet is None or not fleet.runners:
            return ()
        new = [number for number in projects if marks[number] == NEVER]
        # A few new projects are asked by themselves, lest every runner is read all through.
        apart = set(new) if len(new) <= max(20, len(projects) // 20) else set()
        together = {number for number in projects if number not in apart} or set(projects)
        tally = self._tally(together, marks, projects)
        self._progress.phase("jobs", None)
        if not tells_all(self._client, tally, fleet, self._sample(together)):
            return ()

        def done(runner: Runner) -> None:
            self._save_part(tally, runner.id, projects)

        if not read_runners(self._client, tally, fleet.runners, done):
            return ()
        self._save(tally, projects)
        self._ledger.forget_parts()
        return together

    def _sample(self, numbers: Collection[int]) -> list[int]:
        """Choose the projects in which most happens, and others that change from day to day."""
        ordered = sorted(numbers, key=lambda number: (self._active.get(number, ""), number))
        ordered.reverse()
        first, rest = ordered[: _SAMPLE // 2], ordered[_SAMPLE // 2 :]
        step = max(1, len(rest) // (_SAMPLE // 2))
        return first + rest[int(self._now // DAY) % step :: step][: _SAMPLE // 2]

    def _tally(
        self, numbers: Collection[int], marks: Mapping[int, Mark], projects: Mapping[int, Project]
    ) -> Tally:
        return Tally(
            self._since,
            self._now,
            {number: marks[number] for number in numbers},
            {number: projects[number].branch for number in numbers},
            self._settings.runners,
            self._parts,
            self._logged.keys(),
            self._last.running if self._last else frozenset(),
        )

    def _save(self, tally: Tally, projects: Mapping[int, Project]) -> None:
        """Write down the history of the tally's projects, all of which has now been read."""
        read = tally.marks.keys()
        paths = {number: projects[number].path for number in read}
        self._ledger.add_history(tally.counts, tally.marks_after(read), tally.heads, paths)
        with self._lock:
            self._running |= tally.running
            self._add_names(tally, read)
        for number in tally.crowded:
            text = f"runs jobs of more than {NAMES_MAX} names; those beyond do not count"
            cure = "see what makes up the names of its jobs"
            self._report(paths[number], PrewarmError("crowded", text, cure))

    def _save_part(self, tally: Tally, runner: int, projects: Mapping[int, Project]) -> None:
        """Write down the history of one runner, all of whose jobs have now been read."""
        counts, marks = tally.take_part(runner)
        met = {key.project for key in counts}
        paths = {number: projects[number].path for number in met}
        before = {number: tally.marks[number] for number in met}
        self._ledger.add_part(runner, marks, counts, before, tally.heads, paths)
        with self._lock:
            self._running |= tally.running
            self._parts[runner] = self._parts.get(runner, {}) | marks
            self._add_names(tally, met)

    def _add_names(self, tally: Tally, numbers: Iterable[int]) -> None:
        for number in numbers:
            new = tally.names(number) - self._names_before.get(number, frozenset())
            self._new_names[number] = self._new_names.get(number, frozenset()) | new

    # --- definitions and traces ---

    def _read_definitions(self, projects: Mapping[int, Project]) -> None:
        ran = self._ledger.ran_jobs(self._since)
        known = self._ledger.known_projects()
        namer = Namer(
            self._settings,
            self._client,
            self._ledger,
            self._hosts,
            self._now,
            self._running,
            self._report,
        )

        def settle(project: Project) -> None:
            new = self._new_names.get(project.id, frozenset())
            namer.settle(project, known[project.id], ran[project.id], new)

        active = [projects[number] for number in ran if number in projects and number in known]
        self._each("definitions", active, settle, _path)


def _path(project: Project) -> str:
    return project.path


def _short(text: Any) -> str | None:
    """Return a text of no more characters than GitLab allows for any path."""
    return text if isinstance(text, str) and len(text) <= _PATH_MAX else None


def _project(fields: Any) -> Project | None:
    """Return the project that a record tells of; None for one that can run no job."""
    if not isinstance(fields, dict):
        return None
    number, path = fields.get("id"), fields.get("path_with_namespace")
    if not is_id(number) or not (path := _short(path)):
        return None
    off = fields.get("jobs_enabled") is False or fields.get("builds_access_level") == "disabled"
    if off or fields.get("archived") is True or fields.get("empty_repo") is True:
        return None
    prefix, branch = fields.get("container_registry_image_prefix"), fields.get("default_branch")
    config = fields.get("ci_config_path")
    return Project(
        number,
        path,
        _short(branch),
        _short(prefix),
        _short(config) or "",
        fields.get("auto_devops_enabled") is True,
    )
