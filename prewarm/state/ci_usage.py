"""The part of the ledger that remembers what CI used: runs, images, traces, logs and scans.

Runs are sums by project, job, runner, platform and day, never single jobs. What the jobs name is
kept beside them and joined when asked for, so a definition that is read late still counts for the
runs before it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import count, takewhile
from typing import Any, Final

from prewarm.core.errors import Problem
from prewarm.core.records import ImageUser, KnownProject, LogKey, PastScan, Ran
from prewarm.core.usage import (
    DAY,
    WHOLE,
    Count,
    DayUses,
    Key,
    Logged,
    Mark,
    Row,
    Runs,
    UnresolvedImage,
    UsedImage,
    daily,
    parts_of,
    unresolved,
    used,
)
from prewarm.state.database import Database

SCHEMA: Final = (
    """CREATE TABLE projects (
        id BIGINT PRIMARY KEY, path TEXT NOT NULL, mark BIGINT NOT NULL,
        counted DOUBLE PRECISION NOT NULL, head TEXT NOT NULL, head_job BIGINT NOT NULL,
        commit_sha TEXT NOT NULL, linted DOUBLE PRECISION NOT NULL, jobs TEXT NOT NULL,
        problems TEXT NOT NULL)""",
    # `newest` and `newest_failed` are ids of jobs whose traces may be read.
    """CREATE TABLE job_runs (
        project BIGINT NOT NULL, job TEXT NOT NULL, runner BIGINT NOT NULL,
        platform TEXT NOT NULL, day BIGINT NOT NULL, runs BIGINT NOT NULL,
        pull_failures BIGINT NOT NULL, last DOUBLE PRECISION NOT NULL, newest BIGINT NOT NULL,
        newest_failed BIGINT NOT NULL, PRIMARY KEY (project, job, runner, platform, day))""",
    "CREATE INDEX job_runs_day ON job_runs (day)",
    """CREATE TABLE job_images (
        project BIGINT NOT NULL, job TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
        reference TEXT, unresolved TEXT, source TEXT NOT NULL, certain BIGINT NOT NULL,
        platform TEXT, via TEXT, question TEXT NOT NULL)""",
    "CREATE INDEX job_images_project ON job_images (project, source)",
    """CREATE TABLE traces (
        project BIGINT NOT NULL, question TEXT NOT NULL, asked DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (project, question))""",
    "CREATE TABLE log_positions (source TEXT PRIMARY KEY, position TEXT NOT NULL)",
    """CREATE TABLE log_uses (
        project BIGINT NOT NULL, path TEXT NOT NULL, runner TEXT NOT NULL, kind TEXT NOT NULL,
        text TEXT NOT NULL, reference TEXT NOT NULL, via TEXT NOT NULL, platform TEXT NOT NULL,
        day BIGINT NOT NULL, runs BIGINT NOT NULL, last DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (project, runner, kind, text, platform, day))""",
    """CREATE TABLE scans (
        id TEXT PRIMARY KEY, started DOUBLE PRECISION NOT NULL, finished DOUBLE PRECISION NOT NULL,
        complete BIGINT NOT NULL, requests BIGINT NOT NULL, scope TEXT NOT NULL,
        problems TEXT NOT NULL, running TEXT NOT NULL, logged TEXT NOT NULL)""",
)

SCHEMA_PARTS: Final = (
    # How far each runner's history is counted while not all runners' is.
    """CREATE TABLE runner_marks (
        runner BIGINT NOT NULL, project BIGINT NOT NULL, mark BIGINT NOT NULL,
        counted DOUBLE PRECISION NOT NULL, PRIMARY KEY (runner, project))""",
)


def _anew(table: str, columns: str, *key: str) -> tuple[str, ...]:
    return (
        f"ALTER TABLE {table} RENAME TO old_{table}",
        f"""CREATE TABLE {table} (
            demand TEXT NOT NULL, {columns}, PRIMARY KEY (demand, {", ".join(key)}))""",
        f"INSERT INTO {table} SELECT '', * FROM old_{table}",  # noqa: S608 - ours
        f"DROP TABLE old_{table}",
    )


# `demand`: whose it is, in a state that hosts share whose CI is not the same; else empty.
SCHEMA_DEMANDS: Final = (
    "DROP INDEX job_runs_day",
    "DROP INDEX job_images_project",
    *_anew(
        "projects",
        """id BIGINT NOT NULL, path TEXT NOT NULL, mark BIGINT NOT NULL,
        counted DOUBLE PRECISION NOT NULL, head TEXT NOT NULL, head_job BIGINT NOT NULL,
        commit_sha TEXT NOT NULL, linted DOUBLE PRECISION NOT NULL, jobs TEXT NOT NULL,
        problems TEXT NOT NULL""",
        "id",
    ),
    *_anew(
        "job_runs",
        """project BIGINT NOT NULL, job TEXT NOT NULL, runner BIGINT NOT NULL,
        platform TEXT NOT NULL, day BIGINT NOT NULL, runs BIGINT NOT NULL,
        pull_failures BIGINT NOT NULL, last DOUBLE PRECISION NOT NULL, newest BIGINT NOT NULL,
        newest_failed BIGINT NOT NULL""",
        *("project", "job", "runner", "platform", "day"),
    ),
    "CREATE INDEX job_runs_day ON job_runs (demand, day)",
    "ALTER TABLE job_images ADD COLUMN demand TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX job_images_project ON job_images (demand, project, source)",
    *_anew(
        "traces",
        "project BIGINT NOT NULL, question TEXT NOT NULL, asked DOUBLE PRECISION NOT NULL",
        *("project", "question"),
    ),
    *_anew("log_positions", "source TEXT NOT NULL, position TEXT NOT NULL", "source"),
    *_anew(
        "log_uses",
        """project BIGINT NOT NULL, path TEXT NOT NULL, runner TEXT NOT NULL, kind TEXT NOT NULL,
        text TEXT NOT NULL, reference TEXT NOT NULL, via TEXT NOT NULL, platform TEXT NOT NULL,
        day BIGINT NOT NULL, runs BIGINT NOT NULL, last DOUBLE PRECISION NOT NULL""",
        *("project", "runner", "kind", "text", "platform", "day"),
    ),
    "ALTER TABLE scans ADD COLUMN demand TEXT NOT NULL DEFAULT ''",
    *_anew(
        "runner_marks",
        """runner BIGINT NOT NULL, project BIGINT NOT NULL, mark BIGINT NOT NULL,
        counted DOUBLE PRECISION NOT NULL""",
        *("runner", "project"),
    ),
)
DEMAND_TABLES: Final = (
    "job_runs",
    "job_images",
    "traces",
    "log_positions",
    "log_uses",
    "runner_marks",
    "projects",
    "scans",
)
"""The tables whose rows are of a demand."""
_UNASKED: Final = 90 * DAY
"""Seconds after which a demand that nobody has scanned for is forgotten."""


class Uses:
    """The statements; `Ledger` brings the database and its transactions."""

    _database: Database
    _demand = ""
    """Whose demand is read and written."""

    def _transaction(
        self, *, durable: bool = False, alone: str = ""
    ) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _reading(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    # History

    def known_projects(self) -> dict[int, KnownProject]:
        """Return every project that was ever read, by its id."""
        query = (
            "SELECT id, path, mark, counted, head, commit_sha, linted, jobs, problems FROM projects"
            " WHERE demand = :demand"
        )
        return {
            row[0]: KnownProject(
                row[0],
                row[1],
                Mark(row[2], row[3]),
                row[4],
                row[5],
                row[6],
                frozenset(json.loads(row[7])),
                _problems(row[8]),
            )
            for row in self._select(query)
        }

    def add_history(
        self,
        counts: Mapping[Key, Count],
        marks: Mapping[int, Mark],
        heads: Mapping[int, tuple[int, str]],
        paths: Mapping[int, str],
    ) -> None:
        """Add runs and move the marks of these projects, at once: no run counts twice."""
        with self._transaction():
            self._add_history(counts, marks, heads, paths)

    def add_part(
        self,
        runner: int,
        marks: Mapping[int, Mark],
        counts: Mapping[Key, Count],
        projects: Mapping[int, Mark],
        heads: Mapping[int, tuple[int, str]],
        paths: Mapping[int, str],
    ) -> None:
        """Add the runs of one runner and move its marks, at once; `projects` keep the marks given.

        The marks stand in for those of the projects until all runners have been read.
        """
        with self._transaction():
            self._add_history(counts, projects, heads, paths)
            self._database.executemany(
                """INSERT INTO runner_marks (demand, runner, project, mark, counted)
                   VALUES (:demand, :runner, :project, :mark, :counted)
                   ON CONFLICT (demand, runner, project) DO UPDATE SET
                       mark = excluded.mark, counted = excluded.counted""",
                [
                    {
                        "demand": self._demand,
                        "runner": runner,
                        "project": project,
                        "mark": mark.job,
                        "counted": mark.read,
                    }
                    for project, mark in marks.items()
                ],
            )

    def parts(self) -> dict[int, dict[int, Mark]]:
        """Return the marks of runners, by runner and project; none once all have been read."""
        found: dict[int, dict[int, Mark]] = {}
        query = "SELECT runner, project, mark, counted FROM runner_marks WHERE demand = :demand"
        for runner, project, mark, counted in self._select(query):
            found.setdefault(runner, {})[project] = Mark(mark, counted)
        return found

    def forget_parts(self) -> None:
        """Forget the marks of runners: those of the projects are as far now."""
        with self._transaction():
            self._do("DELETE FROM runner_marks WHERE demand = :demand")

    def _add_history(
        self,
        counts: Mapping[Key, Count],
        marks: Mapping[int, Mark],
        heads: Mapping[int, tuple[int, str]],
        paths: Mapping[int, str],
    ) -> None:
        demand = {"demand": self._demand}
        self._database.executemany(
            _ADD_RUNS, [demand | _run_values(*item) for item in counts.items()]
        )
        self._database.executemany(
            _MARK,
            [
                {
                    **demand,
                    "id": project,
                    "path": paths[project],
                    "mark": mark.job,
                    "counted": mark.read,
                    "head": heads.get(project, (0, ""))[1],
                    "head_job": heads.get(project, (0, ""))[0],
                }
                for project, mark in marks.items()
            ],
        )

    def ran_jobs(self, since: float) -> dict[int, tuple[Ran, ...]]:
        """Return the jobs that ran since then, by project."""
        found: dict[int, list[Ran]] = {}
        for project, job, *rest in self._select(
            """SELECT project, job, MAX(newest), MAX(newest_failed), CAST(SUM(runs) AS BIGINT)
               FROM job_runs
               WHERE demand = :demand AND day >= :day
               GROUP BY project, job ORDER BY project, job""",
            day=_day(since),
        ):
            found.setdefault(project, []).append(Ran(job, *rest))
        return {project: tuple(jobs) for project, jobs in found.items()}

    def add_pull_failure(self, project: int, job: str, number: int) -> None:
        """Count that a job, by its id the newest of its name, failed on a pull: its trace said."""
        with self._transaction():
            self._do(
                """UPDATE job_runs SET pull_failures = pull_failures + 1, newest_failed = :number
                   WHERE demand = :demand AND project = :project AND job = :job
                     AND newest = :number""",
                project=project,
                job=job,
                number=number,
            )

    # What the jobs name

    def save_definition(
        self,
        project: int,
        rows: Iterable[Row],
        jobs: Collection[str],
        commit: str,
        problems: Collection[Problem],
        linted: float,
    ) -> None:
        """Replace what the definition says; answers of traces stay."""
        with self._transaction():
            self._do(
                """DELETE FROM job_images
                   WHERE demand = :demand AND project = :project AND source <> 'trace'""",
                project=project,
            )
            self._add_images(project, rows)
            self._do(
                """UPDATE projects SET jobs = :jobs, commit_sha = :commit, linted = :linted,
                          problems = :problems WHERE demand = :demand AND id = :project""",
                project=project,
                jobs=json.dumps(sorted(jobs)),
                commit=commit,
                linted=linted,
                problems=json.dumps([asdict(problem) for problem in problems]),
            )

    def save_trace(self, project: int, question: str, rows: Iterable[Row], asked: float) -> None:
        """Remember a trace's answer, in the place of an older one to the same question."""
        with self._transaction():
            self._do(
                """DELETE FROM job_images
                   WHERE demand = :demand AND project = :project AND question = :question""",
                project=project,
                question=question,
            )
            self._add_images(project, rows)
            self._do(
                """INSERT INTO traces (demand, project, question, asked)
                   VALUES (:demand, :project, :question, :asked)
                   ON CONFLICT (demand, project, question) DO UPDATE SET asked = excluded.asked""",
                project=project,
                question=question,
                asked=asked,
            )

    def keep_answers(self, project: int, questions: Collection[str]) -> None:
        """Forget the answers to all other questions: the definition has changed since."""
        with self._transaction():
            for question in self.asked(project):
                if question not in questions:
                    for table in ("job_images", "traces"):
                        self._do(
                            f"DELETE FROM {table} WHERE demand = :demand"  # noqa: S608 - ours
                            " AND project = :project AND question = :question",
                            project=project,
                            question=question,
                        )

    def asked(self, project: int) -> dict[str, float]:
        """Return the questions that were put to traces, and when."""
        query = "SELECT question, asked FROM traces WHERE demand = :demand AND project = :project"
        return dict(self._select(query, project=project))

    def job_rows(self, project: int) -> list[Row]:
        """Return what is known of the images of a project's jobs."""
        query = f"{_ROWS} WHERE demand = :demand AND project = :project"
        return [_row(*values) for _, *values in self._select(query, project=project)]

    # Runners' logs

    def log_position(self, source: str) -> str | None:
        """Return where the reader of a log stopped."""
        query = "SELECT position FROM log_positions WHERE demand = :demand AND source = :source"
        return next((position for (position,) in self._select(query, source=source)), None)

    def add_logged(
        self, source: str, position: str | None, uses: Mapping[LogKey, tuple[int, float]]
    ) -> None:
        """Add the uses that a log told (how many, the last when), and move its position."""
        with self._transaction():
            self._database.executemany(
                _ADD_LOGGED,
                [
                    {**asdict(key), "demand": self._demand, "runs": runs, "last": last}
                    for key, (runs, last) in uses.items()
                ],
            )
            if position is not None:
                self._do(
                    """INSERT INTO log_positions (demand, source, position)
                       VALUES (:demand, :source, :position)
                       ON CONFLICT (demand, source) DO UPDATE SET position = excluded.position""",
                    source=source,
                    position=position,
                )

    # Scans

    def save_scan(self, scan: PastScan) -> None:
        """Record a scan that ended; only the newest complete ones are kept."""
        with self._transaction():
            self._database.execute(
                """INSERT INTO scans (id, started, finished, complete, requests, scope, problems,
                                      running, logged, token_expiry, demand)
                   VALUES (:id, :started, :finished, :complete, :requests, :scope, :problems,
                           :running, :logged, :token_expiry, :demand)""",
                {
                    "demand": self._demand,
                    "id": uuid.uuid4().hex,
                    "started": scan.started,
                    "finished": scan.finished,
                    "complete": int(scan.complete),
                    "requests": scan.requests,
                    "scope": scan.scope,
                    "problems": json.dumps([asdict(one) for one in scan.problems]),
                    "running": json.dumps(sorted(scan.running)),
                    "logged": json.dumps(sorted(scan.logged)),
                    "token_expiry": scan.token_expiry,
                },
            )

    def last_scan(self, *, complete: bool = False) -> PastScan | None:
        """Return the last scan, or the last that was complete."""
        query = """SELECT started, finished, complete, requests, scope, problems, running, logged,
                          token_expiry
                   FROM scans WHERE demand = :demand AND complete >= :least
                   ORDER BY started DESC LIMIT 1"""
        for row in self._select(query, least=int(complete)):
            started, finished, whole, requests, scope, problems, running, logged, expiry = row
            return PastScan(
                started,
                finished,
                bool(whole),
                requests,
                scope,
                _problems(problems),
                frozenset(json.loads(running)),
                frozenset(json.loads(logged)),
                expiry,
            )
        return None

    def forget_uses(self, before: float, projects: Collection[int] = ()) -> None:
        """Forget runs, uses and scans from before, and everything of these projects.

        So is the demand of a scope that nobody has scanned for long.
        """
        with self._transaction():
            for table in ("job_runs", "log_uses"):
                self._do(
                    f"DELETE FROM {table} WHERE demand = :demand AND day < :day",  # noqa: S608 - ours
                    day=_day(before),
                )
            self._do("DELETE FROM scans WHERE demand = :demand AND started < :at", at=before)
            for project in projects:
                for table in ("job_runs", "job_images", "traces", "log_uses", "runner_marks"):
                    self._do(
                        f"DELETE FROM {table} WHERE demand = :demand"  # noqa: S608 - ours
                        " AND project = :project",
                        project=project,
                    )
                self._do(
                    "DELETE FROM projects WHERE demand = :demand AND id = :project",
                    project=project,
                )
            unasked = "SELECT demand FROM scans GROUP BY demand HAVING MAX(started) < :at"
            for (demand,) in self._select(unasked, at=before - _UNASKED):
                for table in DEMAND_TABLES:
                    self._database.execute(
                        f"DELETE FROM {table} WHERE demand = :demand",  # noqa: S608 - ours
                        {"demand": demand},
                    )

    # Demand

    def used_images(
        self, since: float, project: int | None = None, now: float | None = None
    ) -> tuple[UsedImage, ...]:
        """Return the images that CI names, with their uses since then, the most used first.

        With `now`, in epoch seconds, each has the weights of the projects that use it.
        """
        with self._reading():
            rows, runs = self._rows_by_job(project), self._runs_by_job(since, project, now)
            paths = dict(self._select("SELECT id, path FROM projects WHERE demand = :demand"))
            return used(rows, runs, self._logged(since, project), now, paths)

    def daily_uses(self, since: float) -> dict[str, tuple[DayUses, ...]]:
        """Return by its reference on which days since then each image that CI names was used."""
        with self._reading():
            runs: dict[tuple[int, str], list[DayUses]] = {}
            for project, job, day, *sums in self._select(_DAY_RUNS, day=_day(since)):
                runs.setdefault((project, job), []).append(DayUses(day, project, *sums))
            return daily(self._rows_by_job(None), runs, self._logged(since, None))

    def image_users(self, reference: str, since: float) -> tuple[ImageUser, ...]:
        """Return the jobs that name an image (fully qualified), those that ran most first."""
        return tuple(
            ImageUser(path, job, via or None, runs, failures, last)
            for path, job, via, runs, failures, last in self._select(
                _USERS, reference=reference, day=_day(since)
            )
        )

    def unresolved_images(
        self, since: float, project: int | None = None
    ) -> tuple[UnresolvedImage, ...]:
        """Return the names that no image is known for, with the runs since then."""
        with self._reading():
            rows, runs = self._rows_by_job(project), self._runs_by_job(since, project)
            paths = dict(self._select("SELECT id, path FROM projects WHERE demand = :demand"))
            return unresolved(rows, runs, paths)

    def pull_failures(self, since: float) -> dict[int, int]:
        """Return how many jobs failed on a pull on each day, by days since the epoch (UTC).

        All that did since then, also those whose image nobody knows; days without any are left out.
        """
        query = """SELECT day, CAST(SUM(pull_failures) AS BIGINT) FROM job_runs
                   WHERE demand = :demand AND day >= :day AND pull_failures > 0
                   GROUP BY day ORDER BY day"""
        return dict(self._select(query, day=_day(since)))

    def open_names(self, since: float, fits: Callable[[str], bool]) -> tuple[UnresolvedImage, ...]:
        """Return the unresolved images whose text fits: as `unresolved_images`, at less cost."""
        with self._reading():
            query = """SELECT project, job, text FROM job_images
                       WHERE demand = :demand AND unresolved IS NOT NULL"""
            known: dict[str, bool] = {}
            rows, runs = {}, {}
            for project, job, text in self._select(query):
                if text not in known:
                    known[text] = fits(text)
                if known[text]:
                    one = {"project": project, "job": job}
                    named = self._select(_ROWS_OF_JOB, **one)
                    rows[project, job] = [_row(*values) for _, *values in named]
                    ran = self._select(_JOB_RUNS, day=_day(since), **one)
                    runs[project, job] = [Runs(*values) for values in ran]
            paths = dict(self._select("SELECT id, path FROM projects WHERE demand = :demand"))
            found = unresolved(rows, runs, paths)
        return tuple(one for one in found if known.get(one.text))

    def _rows_by_job(self, project: int | None) -> dict[tuple[int, str], list[Row]]:
        rows: dict[tuple[int, str], list[Row]] = {}
        query = f"""{_ROWS} WHERE demand = :demand AND project = COALESCE(:project, project)
                    ORDER BY project, job"""
        for number, *values in self._select(query, project=project):
            row = _row(*values)
            rows.setdefault((number, row.job), []).append(row)
        return rows

    def _runs_by_job(
        self, since: float, project: int | None, now: float | None = None
    ) -> dict[tuple[int, str], list[Runs]]:
        """Without `now` the weights mean nothing."""
        runs: dict[tuple[int, str], list[Runs]] = {}
        today = _day(now or since)
        for values in self._select(_RUNS, day=_day(since), project=project, today=today):
            run = Runs(*values)
            runs.setdefault((run.project, run.job), []).append(run)
        return runs

    def _logged(self, since: float, project: int | None) -> list[Logged]:
        return [
            Logged(number, path, kind, text, reference, via or None, platform or None, *sums)
            for number, path, kind, text, reference, via, platform, *sums in self._select(
                """SELECT project, path, kind, text, reference, via, platform,
                          CAST(SUM(runs) AS BIGINT), MAX(last), day
                   FROM log_uses
                   WHERE demand = :demand AND day >= :day AND project = COALESCE(:project, project)
                   GROUP BY project, path, kind, text, reference, via, platform, day""",
                day=_day(since),
                project=project,
            )
        ]

    def _add_images(self, project: int, rows: Iterable[Row]) -> None:
        demand = {"demand": self._demand}
        values = [demand | _row_values(project, row) for row in rows]
        self._database.executemany(_ADD_IMAGE, values)

    def _do(self, statement: str, **parameters: object) -> None:
        self._database.execute(statement, {"demand": self._demand, **parameters})

    def _select(self, query: str, **parameters: object) -> list[Any]:
        with self._reading():
            found = self._database.execute(query, {"demand": self._demand, **parameters})
            return found.fetchall()


_ADD_RUNS: Final = """
    INSERT INTO job_runs (demand, project, job, runner, platform, day, runs, pull_failures, last,
                          newest, newest_failed)
    VALUES (:demand, :project, :job, :runner, :platform, :day, :runs, :pull_failures, :last,
            :newest, :newest_failed)
    ON CONFLICT (demand, project, job, runner, platform, day) DO UPDATE SET
        runs = job_runs.runs + excluded.runs,
        pull_failures = job_runs.pull_failures + excluded.pull_failures,
        last = CASE WHEN job_runs.last > excluded.last THEN job_runs.last ELSE excluded.last END,
        newest = CASE WHEN job_runs.newest > excluded.newest THEN job_runs.newest
                      ELSE excluded.newest END,
        newest_failed = CASE WHEN job_runs.newest_failed > excluded.newest_failed
                             THEN job_runs.newest_failed ELSE excluded.newest_failed END"""
_MARK: Final = """
    INSERT INTO projects (demand, id, path, mark, counted, head, head_job, commit_sha, linted, jobs,
                          problems)
    VALUES (:demand, :id, :path, :mark, :counted, :head, :head_job, '', 0, '[]', '[]')
    ON CONFLICT (demand, id) DO UPDATE SET path = excluded.path, mark = excluded.mark,
        counted = excluded.counted,
        head = CASE WHEN excluded.head_job > projects.head_job THEN excluded.head
                    ELSE projects.head END,
        head_job = CASE WHEN excluded.head_job > projects.head_job THEN excluded.head_job
                        ELSE projects.head_job END"""
_ADD_IMAGE: Final = """
    INSERT INTO job_images (demand, project, job, kind, text, reference, unresolved, source,
                            certain, platform, via, question)
    VALUES (:demand, :project, :job, :kind, :text, :reference, :unresolved, :source, :certain,
            :platform, :via, :question)"""
_ADD_LOGGED: Final = """
    INSERT INTO log_uses (demand, project, path, runner, kind, text, reference, via, platform, day,
                          runs, last)
    VALUES (:demand, :project, :path, :runner, :kind, :text, :reference, :via, :platform, :day,
            :runs, :last)
    ON CONFLICT (demand, project, runner, kind, text, platform, day) DO UPDATE SET
        path = excluded.path, reference = excluded.reference, via = excluded.via,
        runs = log_uses.runs + excluded.runs,
        last = CASE WHEN log_uses.last > excluded.last THEN log_uses.last ELSE excluded.last END"""
_ROWS: Final = """
    SELECT project, job, kind, text, reference, unresolved, source, certain, platform, via, question
    FROM job_images"""
_ROWS_OF_JOB: Final = f"{_ROWS} WHERE demand = :demand AND project = :project AND job = :job"
# Added up by the database: a row for each job, not for each of its days.
_PARTS: Final = " ".join(
    f"WHEN {days} THEN {parts_of(days)}" for days in takewhile(parts_of, count(1))
)
_FADED: Final = f"""CASE WHEN day >= :today THEN {WHOLE}
                    ELSE CASE :today - day {_PARTS} ELSE 0 END END"""
_RUNS: Final = f"""
    SELECT project, job, platform, CAST(SUM(runs) AS BIGINT), CAST(SUM(pull_failures) AS BIGINT),
           MAX(last),
           CAST(SUM(runs * {_FADED}) AS BIGINT), CAST(SUM(pull_failures * {_FADED}) AS BIGINT)
    FROM job_runs
    WHERE demand = :demand AND day >= :day AND project = COALESCE(:project, project)
    GROUP BY project, job, platform"""  # noqa: S608 - only numbers of ours
_DAY_RUNS: Final = """
    SELECT project, job, day, CAST(SUM(runs) AS BIGINT), CAST(SUM(pull_failures) AS BIGINT)
    FROM job_runs WHERE demand = :demand AND day >= :day
    GROUP BY project, job, day"""
_JOB_RUNS: Final = """
    SELECT project, job, platform, runs, pull_failures, last FROM job_runs
    WHERE demand = :demand AND day >= :day AND project = :project AND job = :job"""

# Both sides keep an image once for each job, although definition and trace may both name it.
_USERS: Final = """
    SELECT COALESCE(projects.path, found.path), job, via, runs, failures, last
    FROM (
        SELECT named.project AS project, '' AS path, named.job AS job, via,
               CAST(COALESCE(SUM(runs), 0) AS BIGINT) AS runs,
               CAST(COALESCE(SUM(pull_failures), 0) AS BIGINT) AS failures,
               MAX(last) AS last
        FROM (SELECT DISTINCT project, job, via FROM job_images
              WHERE demand = :demand AND reference = :reference) AS named
        LEFT JOIN job_runs ON job_runs.demand = :demand AND job_runs.project = named.project
            AND job_runs.job = named.job AND day >= :day
        GROUP BY named.project, named.job, via
        UNION ALL
        SELECT project, MAX(path) AS path, '' AS job, via,
               CAST(SUM(runs) AS BIGINT) AS runs, 0 AS failures, MAX(last) AS last
        FROM log_uses WHERE demand = :demand AND reference = :reference AND day >= :day
        GROUP BY project, via
    ) AS found
    LEFT JOIN projects ON projects.demand = :demand AND projects.id = found.project
    ORDER BY runs DESC, 1, job"""


def _run_values(key: Key, count: Count) -> dict[str, Any]:
    return {
        "project": key.project,
        "job": key.job,
        "runner": key.runner,
        "platform": key.platform,
        "day": key.day,
        "runs": count.runs,
        "pull_failures": count.pull_failures,
        "last": count.last,
        "newest": count.newest,
        "newest_failed": count.newest_failed,
    }


def _row_values(project: int, row: Row) -> dict[str, Any]:
    return {
        "project": project,
        "job": row.job,
        "kind": row.kind,
        "text": row.text,
        "reference": row.reference,
        "unresolved": row.unresolved,
        "source": row.source,
        "certain": int(row.certain),
        "platform": row.platform,
        "via": row.via,
        "question": row.question,
    }


def _row(
    job: Any, kind: Any, text: Any, reference: Any, why: Any, source: Any, certain: Any, *rest: Any
) -> Row:
    return Row(job, kind, text, reference, why, source, bool(certain), *rest)


def _problems(text: str) -> tuple[Problem, ...]:
    return tuple(Problem(**fields) for fields in json.loads(text))


def _day(at: float) -> int:
    return int(at // DAY)
