"""Finds out what the jobs of one project name: by lint, by its files, by traces for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

import yaml

from prewarm.core.errors import PrewarmError, Problem
from prewarm.core.records import KnownProject, Ran
from prewarm.core.settings import Gitlab
from prewarm.core.text import counted
from prewarm.core.usage import DAY, Row, plain
from prewarm.discovery import ci_yaml
from prewarm.discovery.checkout import Unavailable
from prewarm.discovery.ci_evaluate import Evaluation, evaluate
from prewarm.discovery.ci_jobs import Definition, read_definition
from prewarm.discovery.ci_variables import of_project
from prewarm.discovery.evidence import (
    ABSENT,
    NAMES_MAX,
    ROWS_MAX,
    UNUSED_MAX,
    Question,
    absent_rows,
    bounded,
    definition_rows,
    disagreement,
    questions,
    samples,
    trace_rows,
)
from prewarm.discovery.gitlab_client import (
    NEED_API,
    Client,
    GitlabRefusal,
    group_path,
    project_path,
)
from prewarm.discovery.job_log import read as read_trace
from prewarm.state.ledger import Ledger

RELINT: Final = 7 * DAY
"""Seconds after which a definition, or a trace, is read again: what it draws on may have moved."""
TRACE_HEAD: Final = 32 << 10
"""Bytes of a trace that are read: the runner names its images in the first ten thousand."""
TRACES_PER_PROJECT: Final = 50
"""Traces read of one project and scan; the others have their turn in the next."""
SAMPLES: Final = 100
"""Traces that confirm what is known already, in one scan."""
_FILES_MAX: Final = 20
"""Requests for files of one definition that lint does not give."""
_PROBLEMS_MAX: Final = 20
"""Problems of one definition that are told."""
_CI_FILE: Final = ".gitlab-ci.yml"
_AUTO_DEVOPS: Final = "Auto-DevOps.gitlab-ci.yml"
_READER: Final = "the role Reporter in the project"
_UNREAD: Final = "the project's definition could not be read"


@dataclass(frozen=True, slots=True)
class Project:
    """A project of the scope, as its record shows it."""

    id: int
    path: str
    branch: str | None
    """The default one; None where the repository is empty."""
    registry_prefix: str | None
    config_path: str
    """Empty for the usual file; `file@group/project` or a URL for one elsewhere."""
    auto_devops: bool


@dataclass(frozen=True, slots=True)
class _Read:
    """What came of an attempt to read a definition."""

    definition: Definition | Evaluation | None
    problems: tuple[Problem, ...] = ()
    settled: bool = True
    """Asking again soon would tell nothing new."""


def is_due(known: KnownProject, new_names: Collection[str], now: float) -> bool:
    """Whether a project's definition is to be read: new, moved, old, or not that of its jobs."""
    if now - known.linted >= RELINT or known.head != known.commit:
        return True
    return not known.jobs.issuperset(new_names)


class Namer:
    """Reads definitions and traces, for any number of projects at once."""

    def __init__(
        self,
        settings: Gitlab,
        client: Client,
        ledger: Ledger,
        hosts: Collection[str],
        now: float,
        running: Collection[int],
        report: Callable[[str, PrewarmError], None],
    ) -> None:
        self._settings = settings
        self._client = client
        self._ledger = ledger
        self._hosts = hosts
        self._now = now
        self._running = running
        self._report = report
        self._lock = threading.Lock()
        self._variables_of: dict[str, dict[str, str]] = {}
        self._samples = 0

    def settle(
        self,
        project: Project,
        known: KnownProject,
        ran: Sequence[Ran],
        new_names: Collection[str],
    ) -> None:
        """Read what is due of a project, and write it down; raises GitlabRefusal and Stopped."""
        names = [one.job for one in ran]
        if is_due(known, new_names, self._now):
            read = self._definition(project)
            rows: list[Row] = []
            jobs = set(names)
            if read.definition is not None:
                rows = definition_rows(read.definition, self._hosts)
                jobs.update(map(plain, islice(read.definition.jobs, ROWS_MAX)))
            rows += absent_rows(rows, names, ABSENT if read.definition is not None else _UNREAD)
            rows, left_out = bounded(rows, {one.job: one.runs for one in ran})
            linted = self._now if read.settled else 0.0
            problems = read.problems[:_PROBLEMS_MAX]
            if left_out:
                problems = (_crowded(project, left_out), *problems)
            self._ledger.save_definition(project.id, rows, jobs, known.head, problems, linted)
        if self._settings.traces != "never":
            self._ask_traces(project, {one.job: one for one in ran})

    # --- definitions ---

    def _definition(self, project: Project) -> _Read:
        predefined = of_project(
            project.path,
            url=self._settings.url,
            default_branch=project.branch,
            registry_image=project.registry_prefix,
            project_id=project.id,
        )
        overrides = self._variables(project) if self._settings.variables else {}
        try:
            answer = self._lint(project)
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            return self._files(project, predefined, overrides, refusal)
        merged = answer.get("merged_yaml")
        said = _errors(answer)
        if not isinstance(merged, str) or not merged.strip():
            told = PrewarmError(
                "definition", f"GitLab cannot evaluate its CI ({said})", "see its pipeline editor"
            )
            return self._files(project, predefined, overrides, told)
        try:
            documents = ci_yaml.read(merged.encode("utf-8", "replace")).documents
        except ci_yaml.Unreadable as error:
            return _Read(None, (self._told(project, error.problem, error.cure),))
        content = documents[-1] if documents and isinstance(documents[-1], dict) else {}
        definition = read_definition(content, predefined, overrides, where=project.path)
        problems = definition.problems
        if answer.get("valid") is False:
            problem = f"GitLab calls its CI invalid ({said}); what it merged was read all the same"
            problems = (self._told(project, problem, "correct it"), *problems)
        return _Read(definition, problems)

    def _lint(self, project: Project) -> Mapping[str, Any]:
        """Return what lint answers for the file that the project's pipelines use."""
        stub = _include(project.config_path)
        if stub is not None:
            return self._lint_of(project, stub)
        path = project_path(project.id, "ci", "lint")
        answer = self._client.get(path, need=_READER)
        if not isinstance(answer, dict):
            raise GitlabRefusal("gitlab-answer", f"{path}: lint answers rubbish", "look at GitLab")
        if project.auto_devops and not answer.get("merged_yaml"):
            return self._lint_of(project, {"template": _AUTO_DEVOPS})
        return answer

    def _lint_of(self, project: Project, include: Mapping[str, str]) -> Mapping[str, Any]:
        """Lint one include; only POST can, which wants more rights."""
        path = project_path(project.id, "ci", "lint")
        content = yaml.safe_dump({"include": dict(include)})
        answer = self._client.post(path, {"content": content}, need=NEED_API)
        if not isinstance(answer, dict):
            raise GitlabRefusal("gitlab-answer", f"{path}: lint answers rubbish", "look at GitLab")
        return answer

    def _files(
        self,
        project: Project,
        predefined: Mapping[str, str],
        overrides: Mapping[str, str],
        cause: PrewarmError,
    ) -> _Read:
        """Evaluate the CI file itself, where lint does not; what it includes from here, too."""
        settled = not (isinstance(cause, GitlabRefusal) and (cause.status or 500) >= 500)
        problem = self._told(project, cause.text, cause.cure)
        owner, path, ref = _file_of(project)
        if not path:
            return _Read(None, (problem,), settled)
        if _leads_out(path) or (isinstance(owner, str) and _leads_out(owner)):
            dots = "the path of its CI file has . or .. in it"
            cure = "correct the path in the project's settings for CI/CD"
            return _Read(None, (problem, self._told(project, dots, cure)), settled)
        source = _Files(self._client, owner, ref)
        try:
            data = source.read(path, ci_yaml.BYTES_MAX)
        except Unavailable:
            return _Read(None, (problem,), settled)
        found = evaluate(data, path, source, predefined, overrides)
        told = (replace(one, where=f"{project.path}:{one.where}") for one in found.problems)
        return _Read(found, (problem, *told), settled)

    def _told(self, project: Project, problem: str, cure: str) -> Problem:
        return Problem("warning", "definition", project.path, problem, cure)

    # --- variables ---

    def _variables(self, project: Project) -> dict[str, str]:
        """Return what groups and the project set, the nearer the stronger; never masked ones."""
        found: dict[str, str] = {}
        parts = project.path.split("/")[:-1]
        with self._lock:
            for depth in range(1, len(parts) + 1):
                group = "/".join(parts[:depth])
                if group not in self._variables_of:
                    path = group_path(group, "variables")
                    need = "the role Owner in the group"
                    self._variables_of[group] = self._listed(path, group, need)
                found |= self._variables_of[group]
        path = project_path(project.id, "variables")
        return found | self._listed(path, project.path, "the role Maintainer in the project")

    def _listed(self, path: str, where: str, need: str) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            for page in self._client.pages(path, need=need):
                for row in page:
                    key, value = row.get("key"), row.get("value")
                    plain_value = row.get("variable_type", "env_var") == "env_var"
                    everywhere = row.get("environment_scope", "*") == "*"
                    secret = row.get("masked") or row.get("hidden")
                    if isinstance(key, str) and isinstance(value, str) and not secret:
                        found |= {key: value} if plain_value and everywhere else {}
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            self._report(where, refusal)
        return found

    # --- traces ---

    def _ask_traces(self, project: Project, ran: Mapping[str, Ran]) -> None:
        rows = self._ledger.job_rows(project.id)
        wanted = questions(rows, ran)
        if self._settings.traces == "sample":
            wanted += samples(rows, ran)
        asked = self._ledger.asked(project.id)
        if asked.keys() - {question.key for question in wanted}:
            self._ledger.keep_answers(project.id, {question.key for question in wanted})
        names = {row.reference for row in rows if row.source == "trace" and row.reference}
        open_ = (one for one in wanted if self._now - asked.get(one.key, 0.0) >= RELINT)
        for question, _ in zip(open_, range(TRACES_PER_PROJECT), strict=False):
            if not question.sample or self._may_sample():
                self._ask_trace(project, question, rows, ran, names)

    def _may_sample(self) -> bool:
        with self._lock:
            self._samples += 1
            return self._samples <= SAMPLES

    def _ask_trace(
        self,
        project: Project,
        question: Question,
        rows: Iterable[Row],
        ran: Mapping[str, Ran],
        names: set[str],
    ) -> None:
        """Read one trace, rather of a job that failed on a pull, and keep what it answers.

        `names` are the images that the project's traces named; no more than NAMES_MAX are kept.
        """
        jobs = [ran[name] for name in question.jobs if name in ran]
        job = max(jobs, key=lambda one: (one.newest_failed, one.newest))
        number = job.newest_failed or job.newest
        if number in self._running:
            return  # it has hardly begun to talk
        path = project_path(project.id, "jobs", str(number), "trace")
        try:
            head = self._client.head(path, TRACE_HEAD, need=_READER, byte_limit=TRACE_HEAD)
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            if refusal.status != 404:
                self._report(project.path, refusal)
            if refusal.status not in (403, 404):
                return
            head = b""  # erased, or not for us: asking again tells no more
        trace = read_trace(head)
        told = trace_rows(question, trace, project.registry_prefix, self._hosts)
        if question.sample:
            text = disagreement(question, rows, told)
            if text is None:
                told = []
            else:
                cure = "see which CI variable of the project, group or instance says otherwise"
                self._report(project.path, PrewarmError("trace-disagrees", text, cure))
        told = _within(names, told)
        self._ledger.save_trace(project.id, question.key, told, self._now)
        if trace.pull_failed and number != job.newest_failed:
            self._ledger.add_pull_failure(project.id, job.job, number)


class _Files:
    """The files of a repository, one request for each; a `checkout`'s counterpart."""

    def __init__(self, client: Client, project: int | str, ref: str) -> None:
        self._client = client
        self._project = project
        self._ref = ref
        self._left = _FILES_MAX

    def read(self, path: str, most: int) -> bytes:
        """Return the file, at most one byte more than so many; raises Unavailable."""
        if _leads_out(path):
            raise Unavailable("has . or .. in its path", "write it from the repository's root")
        if self._left <= 0:
            raise Unavailable(f"is beyond the {_FILES_MAX} files read", "let GitLab lint it")
        self._left -= 1
        where = project_path(
            self._project, "repository", "files", quote(path.lstrip("/"), safe=""), "raw"
        )
        try:
            return self._client.head(where, most + 1, need=_READER, ref=self._ref)
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            raise Unavailable("cannot be read from GitLab", refusal.cure) from None

    def match(self, pattern: str) -> Iterable[str]:  # noqa: ARG002 - a Source's
        """Find no files: that would take a request for every folder."""
        raise Unavailable("is a pattern, which only GitLab resolves", "let GitLab lint it")


def _within(names: set[str], rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose images are among the names, or were added to them."""
    kept = []
    for row in rows:
        if row.reference is None or row.reference in names or len(names) < NAMES_MAX:
            names.update(filter(None, (row.reference,)))
            kept.append(row)
    return kept


def _crowded(project: Project, left_out: int) -> Problem:
    return Problem(
        "warning",
        "crowded",
        project.path,
        f"its CI definition names {counted(left_out, 'image')} more than the {NAMES_MAX} that count"
        f" for one project ({UNUSED_MAX} of them for jobs that never ran)",
        "remove names that no job needs, or pin the images",
    )


def _include(config_path: str) -> dict[str, str] | None:
    """Return the include that stands for a CI file elsewhere, None for one in the project."""
    if "://" in config_path:
        return {"remote": config_path}
    path, at, project = config_path.partition("@")
    if not at:
        return None
    project, colon, ref = project.partition(":")
    return {"project": project, "file": path} | ({"ref": ref} if colon else {})


def _leads_out(path: str) -> bool:
    """Whether a path has segments that a URL does not keep; a CI author wrote it."""
    return any(part in (".", "..") for part in path.split("/"))


def _file_of(project: Project) -> tuple[int | str, str, str]:
    """Return project, path and ref of the CI file; no path where it is at a URL.

    A URL that a CI author wrote is never fetched from here.
    """
    include = _include(project.config_path)
    if include is None:
        return project.id, project.config_path or _CI_FILE, project.branch or "HEAD"
    return include.get("project", ""), include.get("file", ""), include.get("ref", "HEAD")


def _errors(answer: Mapping[str, Any]) -> str:
    errors = answer.get("errors")
    listed = errors if isinstance(errors, list) else []
    first = next((one for one in listed if isinstance(one, str)), "")
    text = "".join(letter if letter.isprintable() else " " for letter in first)
    return text[:200] or "no reason given"
