"""A GitLab on loopback: the part of its REST API that discovery needs, over real HTTP.

Answers, errors, paging and rights are those of GitLab 17 (lib/api). Requests are in `access` by
kind; `faults` answer instead, for a path such as `/api/v4/projects/7/jobs`.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, unquote, urlencode

import yaml

from tests.sandbox.access import Access
from tests.sandbox.ci_load import Job, Lint, Load, Project, Recorded, Runner, UseKind, true_uses
from tests.sandbox.faults import Fault
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response

Role = Literal["guest", "reporter", "developer", "maintainer", "owner", "admin"]
_ROLES: Final = ("guest", "reporter", "developer", "maintainer", "owner", "admin")
_JSON: Final = {"Content-Type": "application/json"}
OFFSET_MAX: Final = 50_000
"""Rows after which GitLab refuses paging by number."""
_TOTAL_MAX: Final = 10_000
TOKEN: Final = "glpat-of-the-tests"


@dataclass(frozen=True, slots=True)
class Token:
    """A personal access token: whose it is and what it may."""

    user: str = "prewarm"
    role: Role = "reporter"
    """In every project of which the user is a member."""
    scopes: tuple[str, ...] = ("read_api",)
    expires: str | None = "2099-12-31"
    """A date; None for never."""

    def at_least(self, role: Role) -> bool:
        return _ROLES.index(self.role) >= _ROLES.index(role)


class _RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.response = _answer(body, status)


class Gitlab(Site):
    """Serves on a loopback port of its own until closed."""

    def __init__(
        self, *, latency: float = 0.0, version: str = "17.5.1-ee", byte_limit: bool = False
    ) -> None:
        super().__init__(latency)
        self.version = version
        self.byte_limit = byte_limit
        """Whether traces honour `byte_limit` and `byte_offset`; older GitLabs ignore them."""
        self.tokens: dict[str, Token] = {TOKEN: Token()}
        self.projects: dict[int, Project] = {}
        self.runners: dict[int, Runner] = {1: Runner(1)}
        self.group_variables: dict[str, dict[str, str]] = {}
        self.external: dict[str, Lint] = {}
        """Definitions elsewhere, for lint of an include: `file@group/project`, a URL, a template's
        name."""
        self.jobs = Recorded()
        self._load: Load | None = None
        self._groups: dict[str, int] = {}
        self._server = Server(self)
        self.url = self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    # --- what it holds ---

    def add_project(self, path: str, definition: str | Lint | None = None, **more: Any) -> Project:
        """Add a project and the groups above it; the definition is what lint answers."""
        number = max(self.projects, default=0) + 1
        lint = Lint(definition) if isinstance(definition, str) else definition
        more.setdefault("sha", f"{number:040x}")
        project = self.projects[number] = Project(number, path, lint, **more)
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self._groups.setdefault("/".join(parts[:depth]), 1000 + len(self._groups))
        return project

    def add_job(self, project: Project, name: str, **more: Any) -> Job:
        """Add a job of the project, the newest of all; it ran now unless `more` says otherwise."""
        now = time.time()
        more.setdefault("created", now)
        more.setdefault("started", now)
        more.setdefault("sha", project.sha)
        last = max(self.jobs.last, self._load.last if self._load else 0)
        job = Job(last + 1, project.id, name, **more)
        self.jobs.add(job)
        return job

    def populate(
        self,
        projects: int = 1000,
        active: int = 600,
        jobs: int = 50_000,
        unresolved: int = 300,
        *,
        days: float = 6.5,
        runners: int = 4,
    ) -> Load:
        """Fill an empty GitLab: jobs of the last days in the first `active` projects.

        Jobs are made when they are asked for. `unresolved` of the active projects have a job,
        `deploy`, whose image only its trace tells.
        """
        assert not self.projects
        assert unresolved <= active <= projects
        for number in range(1, projects + 1):
            self.add_project(f"team-{number % 20}/area-{number % 7}/app-{number}")
        for number in range(1, runners + 1):
            self.runners[number] = Runner(number, architecture=("amd64", "arm64")[number % 4 == 0])
        chosen = list(self.projects.values())[:active]
        self._load = Load(chosen, jobs, unresolved, time.time(), days, list(self.runners))
        return self._load

    def truth(self) -> Counter[tuple[str, UseKind]]:
        """Return how many jobs that ran used each image, by what it was used as."""
        load = self._load.all() if self._load else iter(())
        return true_uses(chain(load, self.jobs.all()))

    def requests(self) -> Counter[str]:
        """Return how many requests came, by kind: `projects`, `jobs`, `lint`, `trace`, …"""
        return Counter(entry.kind for entry in list(self.access))

    # --- answering ---

    def respond(self, request: Request) -> Response:
        try:
            for pattern, method, name in _ROUTES:
                found = pattern.fullmatch(request.path)
                if found and method == request.method:
                    token = self._authenticate(request)
                    call = _Call(self, request, token, [unquote(part) for part in found.groups()])
                    handler: Callable[[], Response] = getattr(call, name)
                    return handler()
        except _RefusedError as refused:
            return refused.response
        return _answer({"error": "404 Not Found"}, 404)

    def record(self, request: Request, status: int, account: str = "") -> None:
        secret = _secret(request)
        self.access.append(
            Access(
                time=time.time(),
                method=request.method,
                path=request.target,
                status=status,
                kind=_kind(request),
                host=request.host,
                client=request.client,
                account=account or (self.tokens[secret].user if secret in self.tokens else ""),
                user_agent=request.headers.get("user-agent", ""),
                authorization="Token" if secret else "",
                cookie="cookie" in request.headers,
                secret=secret,
            )
        )

    def _authenticate(self, request: Request) -> Token:
        token = self.tokens.get(_secret(request))
        if token is None:
            raise _RefusedError(401, {"message": "401 Unauthorized"})
        if token.expires and token.expires <= datetime.now(UTC).date().isoformat():
            raise _RefusedError(
                401,
                {"error": "invalid_token", "error_description": "Token is expired. You can either "
                 "do re-authorization or token refresh."},
            )  # fmt: skip
        own = request.path.endswith("/personal_access_tokens/self")
        wanted = ("api", "read_api") if request.method == "GET" else ("api",)
        user_only = request.path == "/api/v4/user" and "read_user" in token.scopes
        if not own and not user_only and not set(wanted) & set(token.scopes):
            raise _RefusedError(
                403,
                {
                    "error": "insufficient_scope",
                    "error_description": "The request requires higher privileges than provided by "
                    "the access token.",
                    "scope": " ".join(wanted),
                },
            )
        return token

    def find_project(self, name: str) -> Project | None:
        """Return the project with this id or path."""
        if name.isdigit():
            return self.projects.get(int(name))
        return next((each for each in self.projects.values() if each.path == name), None)

    def group_id(self, path: str) -> int | None:
        return self._groups.get(path)

    def groups(self) -> dict[str, int]:
        return dict(self._groups)

    def jobs_of_project(self, project: int, below: int) -> Iterator[Job]:
        older = self._load.of_project(project, below) if self._load else ()
        return chain(self.jobs.of_project(project, below), older)

    def jobs_of_runner(self, runner: int, below: int) -> Iterator[Job]:
        older = self._load.of_runner(runner, below) if self._load else ()
        return chain(self.jobs.of_runner(runner, below), older)

    def find_job(self, number: int) -> Job | None:
        return self.jobs.get(number) or (self._load.get(number) if self._load else None)


class _Call:
    """One request, its token and the names in its path."""

    def __init__(self, site: Gitlab, request: Request, token: Token, names: list[str]) -> None:
        self._site, self._request, self._token, self._names = site, request, token, names
        self._query = parse_qs(request.query, keep_blank_values=True)

    # --- about itself ---

    def version(self) -> Response:
        return _answer({"version": self._site.version, "revision": "0123456789a"})

    def user(self) -> Response:
        return _answer(
            {
                "id": 1,
                "username": self._token.user,
                "name": self._token.user,
                "state": "active",
                "is_admin": self._token.role == "admin",
            }
        )

    def own_token(self) -> Response:
        return _answer(
            {
                "id": 1,
                "name": "prewarm",
                "revoked": False,
                "active": True,
                "scopes": list(self._token.scopes),
                "user_id": 1,
                "expires_at": self._token.expires,
            }
        )

    # --- projects and groups ---

    def projects(self) -> Response:
        member_only = self._flag("membership")
        return self._page_projects(
            each
            for each in self._site.projects.values()
            if self._sees(each) and (each.member or not member_only)
        )

    def project(self) -> Response:
        return _answer(self._project_fields(self._project()))

    def group_projects(self) -> Response:
        path = self._group()
        deep = self._flag("include_subgroups")
        return self._page_projects(
            each
            for each in self._site.projects.values()
            if self._sees(each)
            and (each.namespace == path or (deep and each.namespace.startswith(path + "/")))
        )

    def groups(self) -> Response:
        return self._page([self._group_fields(path) for path in self._site.groups()])

    def group(self) -> Response:
        return _answer(self._group_fields(self._group()))

    def project_variables(self) -> Response:
        project = self._project()
        self._require("maintainer")
        return self._page(_variables(project.variables))

    def group_variables(self) -> Response:
        path = self._group()
        self._require("owner")
        return self._page(_variables(self._site.group_variables.get(path, {})))

    # --- jobs ---

    def project_jobs(self) -> Response:
        project = self._project()
        self._require("reporter")
        if not project.jobs_enabled:
            raise _RefusedError(403, {"message": "403 Forbidden"})
        scopes = set(self._query.get("scope[]", ()))
        return self._page_jobs(
            lambda below: self._site.jobs_of_project(project.id, below),
            lambda job: not scopes or job.status in scopes,
            self._job_fields,
        )

    def job(self) -> Response:
        return _answer(self._job_fields(self._job()))

    def trace(self) -> Response:
        content = self._job().read_trace()
        if self._site.byte_limit:
            start = int(self._first("byte_offset") or 0)
            length = self._first("byte_limit")
            content = content[start : start + int(length) if length else None]
        return Response(200, {"Content-Type": "text/plain; charset=UTF-8"}, content)

    def runner_jobs(self) -> Response:
        runner = self._runner()
        status = self._first("status")
        return self._page_jobs(
            lambda below: self._site.jobs_of_runner(runner.id, below),
            lambda job: not status or job.status == status,
            self._runner_job_fields,
        )

    # --- runners ---

    def own_runners(self) -> Response:
        known = self._site.runners.values() if self._token.at_least("maintainer") else ()
        return self._page([_runner_fields(each) for each in known if not each.shared])

    def all_runners(self) -> Response:
        self._require("admin")
        return self._page(self._online(list(self._site.runners.values())))

    def group_runners(self) -> Response:
        self._group()
        self._require("owner")
        return self._page(self._online(list(self._site.runners.values())))

    def project_runners(self) -> Response:
        self._project()
        self._require("maintainer")
        return self._page([_runner_fields(each) for each in self._site.runners.values()])

    def runner(self) -> Response:
        runner = self._runner()
        more = {
            "architecture": runner.architecture,
            "platform": runner.platform,
            "tag_list": list(runner.tags),
            "run_untagged": not runner.tags,
            "projects": [],
        }
        return _answer(_runner_fields(runner) | more)

    def runner_managers(self) -> Response:
        return self._page([_manager_fields(self._runner())])

    # --- lint ---

    def lint_own(self) -> Response:
        project = self._project()
        self._require("reporter")
        if project.default_branch is None:
            raise _RefusedError(404, {"message": "404 Repository Not Found"})
        ref = self._first("content_ref") or self._first("sha")
        if ref not in (None, project.default_branch, project.sha):
            raise _RefusedError(404, {"message": "404 Commit Not Found"})
        missing = Lint(None, False, ("Please provide content of .gitlab-ci.yml",))
        return _lint_answer(project.lint or missing)

    def lint_given(self) -> Response:
        self._project()
        self._require("developer")
        try:
            given = json.loads(self._request.body)["content"]
            content = yaml.safe_load(given)
        except (ValueError, KeyError, yaml.YAMLError):
            raise _RefusedError(400, {"error": "content is missing"}) from None
        include = content.get("include") if isinstance(content, dict) else None
        if include is None:
            return _lint_answer(Lint(given))
        found = self._site.external.get(_include_name(include))
        if found is None:
            error = f"Project `{include.get('project')}` not found or access denied! Make sure "
            error += "any includes in the pipeline configuration are correctly defined."
            found = Lint(None, False, (error,))
        return _lint_answer(found)

    # --- rights ---

    def _sees(self, project: Project) -> bool:
        return project.member or project.visibility != "private" or self._token.role == "admin"

    def _project(self) -> Project:
        project = self._site.find_project(self._names[0])
        if project is None or not self._sees(project):
            raise _RefusedError(404, {"message": "404 Project Not Found"})
        return project

    def _group(self) -> str:
        for path, number in self._site.groups().items():
            if self._names[0] in (path, str(number)):
                return path
        raise _RefusedError(404, {"message": "404 Group Not Found"})

    def _job(self) -> Job:
        project = self._project()
        self._require("reporter")
        job = self._site.find_job(int(self._names[1]))
        if job is None or job.project != project.id:
            raise _RefusedError(404, {"message": "404 Not found"})
        return job

    def _runner(self) -> Runner:
        runner = self._site.runners.get(int(self._names[0]))
        if runner is None:
            raise _RefusedError(404, {"message": "404 Runner Not Found"})
        self._require("admin" if runner.shared else "maintainer")
        return runner

    def _require(self, role: Role) -> None:
        if not self._token.at_least(role):
            raise _RefusedError(403, {"message": "403 Forbidden"})

    # --- fields ---

    def _project_fields(self, project: Project) -> dict[str, Any]:
        path = project.path
        namespace = {
            "id": self._site.group_id(project.namespace) or 1,
            "full_path": project.namespace,
            "path": project.namespace.rpartition("/")[2],
            "kind": "group",
        }
        simple = {
            "id": project.id,
            "path": path.rpartition("/")[2],
            "name": path.rpartition("/")[2],
            "path_with_namespace": path,
            "default_branch": project.default_branch,
            "web_url": f"{self._site.url}/{path}",
            "last_activity_at": _stamp(time.time()),
            "namespace": namespace,
        }
        if self._flag("simple"):
            return simple
        return simple | {
            "ci_config_path": project.ci_config_path,
            "container_registry_image_prefix": f"{project.registry_host}/{path.lower()}",
            "jobs_enabled": project.jobs_enabled,
            "builds_access_level": "enabled" if project.jobs_enabled else "disabled",
            "auto_devops_enabled": project.auto_devops,
            "archived": project.archived,
            "empty_repo": project.default_branch is None,
            "visibility": project.visibility,
            "shared_runners_enabled": True,
        }

    def _group_fields(self, path: str) -> dict[str, Any]:
        parent = self._site.group_id(path.rpartition("/")[0])
        return {
            "id": self._site.group_id(path),
            "path": path.rpartition("/")[2],
            "name": path.rpartition("/")[2],
            "full_path": path,
            "parent_id": parent,
        }

    def _basic_fields(self, job: Job) -> dict[str, Any]:
        started = job.started
        finished = None if started is None or job.status == "running" else started + 60
        fields: dict[str, Any] = {
            "id": job.id,
            "status": job.status,
            "stage": "test",
            "name": job.name,
            "ref": job.ref,
            "tag": False,
            "coverage": None,
            "allow_failure": False,
            "created_at": _stamp(job.created),
            "started_at": _stamp(started),
            "finished_at": _stamp(finished),
            "erased_at": None,
            "duration": None if finished is None else 60.0,
            "queued_duration": None if started is None else started - job.created,
            "user": {"id": 1, "username": "author"},
            "commit": {"id": job.sha, "short_id": job.sha[:8]},
            "pipeline": {
                "id": job.pipeline,
                "project_id": job.project,
                "sha": job.sha,
                "ref": job.ref,
                "status": "success",
                "source": job.source,
            },
            "web_url": f"{self._site.url}/-/jobs/{job.id}",
        }
        if job.failure_reason:
            fields["failure_reason"] = job.failure_reason
        return fields

    def _job_fields(self, job: Job) -> dict[str, Any]:
        runner = self._site.runners.get(job.runner) if job.runner is not None else None
        size = len(job.trace) if isinstance(job.trace, bytes) else 4096
        log = {"file_type": "trace", "size": size, "filename": "job.log", "file_format": None}
        return self._basic_fields(job) | {
            "artifacts": [] if job.started is None else [log],
            "runner": _runner_fields(runner) if runner else None,
            "runner_manager": _manager_fields(runner) if runner else None,
            "artifacts_expire_at": None,
            "archived": False,
            "tag_list": list(job.tags),
        }

    def _runner_job_fields(self, job: Job) -> dict[str, Any]:
        """As that list has them: the project, but neither runner nor tags nor artifacts."""
        project = self._site.projects[job.project]
        short = {
            "id": project.id,
            "path": project.path.rpartition("/")[2],
            "path_with_namespace": project.path,
        }
        return self._basic_fields(job) | {"project": short}

    def _online(self, runners: list[Runner]) -> list[dict[str, Any]]:
        status = self._first("status")
        return [
            _runner_fields(each)
            for each in runners
            if status is None or (status == "online") == each.online
        ]

    # --- paging ---

    def _first(self, name: str) -> str | None:
        return self._query.get(name, [None])[0]

    def _flag(self, name: str) -> bool:
        return (self._first(name) or "").lower() in ("true", "1", "yes")

    def _number(self, name: str, default: int) -> int:
        text = self._first(name) or ""
        return int(text) if text.isdigit() else default

    @property
    def _size(self) -> int:
        return max(1, min(100, self._number("per_page", 20)))

    def _keyset(self, default: str) -> bool:
        if self._first("pagination") != "keyset":
            return False
        if (self._first("order_by") or default) != "id":
            raise _RefusedError(405, {"error": _NO_KEYSET})
        return True

    def _page_projects(self, found: Iterable[Project]) -> Response:
        archived = self._first("archived")
        wanted = sorted(
            (each for each in found if archived is None or each.archived == self._flag("archived")),
            key=lambda each: each.id,
            reverse=(self._first("sort") or "desc") == "desc",
        )
        if not self._keyset("created_at"):
            return self._page([self._project_fields(each) for each in wanted])
        after = self._number("id_after", 0)
        before = self._number("id_before", 1 << 62)
        page = [each for each in wanted if after < each.id < before][: self._size]
        bound = "id_after" if self._first("sort") == "asc" else "id_before"
        # A full page has a next one, even if that turns out empty.
        more = {bound: page[-1].id} if len(page) == self._size else None
        return _answer([self._project_fields(each) for each in page], headers=self._next(more))

    def _page_jobs(
        self,
        jobs: Callable[[int], Iterator[Job]],
        wanted: Callable[[Job], bool],
        fields: Callable[[Job], dict[str, Any]],
    ) -> Response:
        """Page without a count, newest first, by cursor or by number."""
        keyset = self._keyset("id")
        page = max(1, self._number("page", 1))
        skipped = 0 if keyset else (page - 1) * self._size
        if skipped > OFFSET_MAX:
            raise _RefusedError(405, {"error": _NO_OFFSET})
        below = _cursor(self._first("cursor")) if keyset else 1 << 62
        matching = (job for job in jobs(below) if wanted(job))
        rows = list(islice(matching, skipped, skipped + self._size + 1))
        shown, rest = rows[: self._size], len(rows) > self._size
        more: dict[str, object] | None = None
        if rest:
            more = {"cursor": _as_cursor(shown[-1].id)} if keyset else {"page": page + 1}
        headers = self._next(more)
        if not keyset:
            headers |= self._numbers(page, rest)
        return _answer([fields(job) for job in shown], headers=headers)

    def _page(self, rows: list[dict[str, Any]]) -> Response:
        if self._first("pagination") == "keyset":
            raise _RefusedError(405, {"error": _NO_KEYSET})
        page = max(1, self._number("page", 1))
        start = (page - 1) * self._size
        if start > OFFSET_MAX:
            raise _RefusedError(405, {"error": _NO_OFFSET})
        rest = len(rows) > start + self._size
        headers = self._next({"page": page + 1} if rest else None) | self._numbers(page, rest)
        if len(rows) <= _TOTAL_MAX:
            headers |= {
                "X-Total": str(len(rows)),
                "X-Total-Pages": str(max(1, -(-len(rows) // self._size))),
            }
        return _answer(rows[start : start + self._size], headers=headers)

    def _numbers(self, page: int, rest: bool) -> dict[str, str]:
        return {
            "X-Page": str(page),
            "X-Per-Page": str(self._size),
            "X-Next-Page": str(page + 1) if rest else "",
            "X-Prev-Page": str(page - 1) if page > 1 else "",
        }

    def _next(self, more: Mapping[str, object] | None) -> dict[str, str]:
        if more is None:
            return {}
        query = {**self._query, **{name: [str(value)] for name, value in more.items()}}
        url = f"{self._request.scheme}://{self._request.host}{self._request.path}"
        return {"Link": f'<{url}?{urlencode(query, doseq=True)}>; rel="next"'}


_NO_KEYSET: Final = "Keyset pagination is not yet available for this type of request"
_NO_OFFSET: Final = (
    f"Offset pagination has a maximum allowed offset of {OFFSET_MAX} for requests that return "
    "objects of type Ci::Build. Remaining records can be retrieved using keyset pagination."
)
_ROUTES: Final = tuple(
    (re.compile("/api/v4" + path.replace("*", "([^/]+)")), method, name)
    for method, path, name in (
        ("GET", "/version", "version"),
        ("GET", "/user", "user"),
        ("GET", "/personal_access_tokens/self", "own_token"),
        ("GET", "/projects", "projects"),
        ("GET", "/projects/*", "project"),
        ("GET", "/projects/*/jobs", "project_jobs"),
        ("GET", "/projects/*/jobs/([0-9]+)", "job"),
        ("GET", "/projects/*/jobs/([0-9]+)/trace", "trace"),
        ("GET", "/projects/*/ci/lint", "lint_own"),
        ("POST", "/projects/*/ci/lint", "lint_given"),
        ("GET", "/projects/*/variables", "project_variables"),
        ("GET", "/projects/*/runners", "project_runners"),
        ("GET", "/groups", "groups"),
        ("GET", "/groups/*", "group"),
        ("GET", "/groups/*/projects", "group_projects"),
        ("GET", "/groups/*/variables", "group_variables"),
        ("GET", "/groups/*/runners", "group_runners"),
        ("GET", "/runners", "own_runners"),
        ("GET", "/runners/all", "all_runners"),
        ("GET", "/runners/([0-9]+)", "runner"),
        ("GET", "/runners/([0-9]+)/jobs", "runner_jobs"),
        ("GET", "/runners/([0-9]+)/managers", "runner_managers"),
    )
)
_KINDS: Final = {
    "project_jobs": "jobs",
    "lint_own": "lint",
    "lint_given": "lint",
    "own_runners": "runners",
    "all_runners": "runners",
    "group_runners": "runners",
    "project_runners": "runners",
    "project_variables": "variables",
    "group_variables": "variables",
    "group_projects": "projects",
    "own_token": "token",
}


def _kind(request: Request) -> str:
    """Return what a request asks for, for the log: `projects`, `jobs`, `runner_jobs`, `lint`, …"""
    for pattern, method, name in _ROUTES:
        if method == request.method and pattern.fullmatch(request.path):
            return _KINDS.get(name, name)
    return "other"


def _secret(request: Request) -> str:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    return request.headers.get("private-token") or bearer


def _answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, {**_JSON, **(headers or {})}, json.dumps(body).encode())


def _lint_answer(lint: Lint) -> Response:
    return _answer(
        {
            "valid": lint.valid,
            "errors": list(lint.errors),
            "warnings": list(lint.warnings),
            "merged_yaml": lint.merged_yaml,
            "includes": [],
        }
    )


def _include_name(include: Any) -> str:
    if not isinstance(include, dict):
        return str(include)
    if "project" in include:
        return f"{include.get('file')}@{include['project']}"
    return str(include.get("remote") or include.get("template") or include.get("local"))


def _variables(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "value": value,
            "variable_type": "env_var",
            "protected": False,
            "masked": False,
            "raw": False,
            "environment_scope": "*",
        }
        for key, value in values.items()
    ]


def _runner_fields(runner: Runner) -> dict[str, Any]:
    return {
        "id": runner.id,
        "description": f"fleet-{runner.id}",
        "ip_address": None,
        "active": True,
        "paused": False,
        "is_shared": runner.shared,
        "runner_type": "instance_type" if runner.shared else "group_type",
        "name": "gitlab-runner",
        "online": runner.online,
        "status": _status(runner),
    }


def _manager_fields(runner: Runner) -> dict[str, Any]:
    return {
        "id": runner.id * 10,
        "system_id": f"s_{runner.id:012x}",
        "version": "17.5.0",
        "revision": "c4f1a7d2",
        "platform": runner.platform,
        "architecture": runner.architecture,
        "contacted_at": _stamp(runner.contacted),
        "status": _status(runner),
    }


def _status(runner: Runner) -> str:
    if runner.stale:
        return "stale"
    return "online" if runner.online else "offline"


def _stamp(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_cursor(number: int) -> str:
    return base64.urlsafe_b64encode(json.dumps({"id": str(number), "_kd": "n"}).encode()).decode()


def _cursor(text: str | None) -> int:
    if not text:
        return 1 << 62
    try:
        return int(json.loads(base64.urlsafe_b64decode(text))["id"])
    except (ValueError, KeyError, TypeError):
        raise _RefusedError(400, {"error": "cursor is invalid"}) from None


# --- what goes wrong ---


def too_many_requests(path: str = "*", retry_after: int | None = None, **more: Any) -> Fault:
    """Return GitLab's 429, with Retry-After (seconds) or, as its application limits, without."""
    headers = {"Content-Type": "text/plain"}
    if retry_after is not None:
        headers |= {"Retry-After": str(retry_after), "RateLimit-Remaining": "0"}
    return Fault(path=path, status=429, headers=headers, body=b"Retry later\n", **more)


def bad_gateway(path: str = "*", **more: Any) -> Fault:
    """Return what nginx answers before a GitLab that does not."""
    body = b"<html><head><title>502 Bad Gateway</title></head><body>GitLab is not responding</body>"
    return Fault(path=path, status=502, headers={"Content-Type": "text/html"}, body=body, **more)


def forbidden(project: Project, below: str = "*", **more: Any) -> Fault:
    """Return the refusal of everything below one project, or of one path there."""
    return Fault(
        path=f"/api/v4/projects/{project.id}/{below}",
        status=403,
        headers=_JSON,
        body=b'{"message":"403 Forbidden"}',
        **{"count": None, **more},
    )


def rubbish(path: str = "*", **more: Any) -> Fault:
    """Return a 200 that is no JSON, as a login page or a captive portal sends it."""
    return Fault(path=path, status=200, headers=_JSON, body=b"<html>sign in</html>", **more)
