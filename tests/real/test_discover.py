"""Discovery against the GitLab stand-in: what it finds, what it asks, how it meets errors."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.budget import Moment
from prewarm.core.errors import PrewarmError
from prewarm.core.settings import Gitlab as Settings
from prewarm.core.settings import Mirror, Runners
from prewarm.core.usage import DAY
from prewarm.discovery.evidence import ABSENT
from prewarm.discovery.gitlab_client import Client, GitlabRefusal, Stopped, find_token
from prewarm.discovery.gitlab_client import Token as Secret
from prewarm.discovery.scan import scan, scan_due
from prewarm.discovery.scan_result import Scan
from prewarm.state.ledger import Ledger
from tests.sandbox.ci_load import Lint, Project, as_running, moved, trace_text
from tests.sandbox.faults import Fault
from tests.sandbox.gitlab import (
    TOKEN,
    Gitlab,
    Role,
    Token,
    bad_gateway,
    forbidden,
    rubbish,
    too_many_requests,
)
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response
from tests.support.progress import Quiet

PLAIN = "build:\n  image: golang:1.22\n  script: [make]\n"
OPEN = "deploy:\n  image: $DEPLOY\n  script: [make]\n"
SAMPLE = 12
"""Projects of which a page is asked before history is read through the runners."""
GOLANG = "docker.io/library/golang:1.22"
TERRAFORM = "docker.io/hashicorp/terraform:1.9"


class Host:
    """A GitLab, a ledger and a clock that is set by hand."""

    def __init__(self, site: Gitlab, ledger: Ledger) -> None:
        self.site = site
        self.ledger = ledger
        self.offset = 0.0
        self.stop = threading.Event()
        self.settings = Settings(site.url)

    def now(self) -> Moment:
        return Moment(time.time() + self.offset, "boot", time.monotonic() + self.offset)

    def scan(self, *, secret: str | None = TOKEN, **more: Any) -> Scan:
        """Scan, and forget what was asked before."""
        self.site.access.clear()
        token = Secret(secret) if secret else None
        return scan(
            self.settings,
            token,
            self.ledger,
            self.now,
            stop=self.stop,
            progress=more.pop("progress", Quiet()),
            **more,
        )

    def role(self, role: Role, *scopes: str) -> None:
        self.site.tokens[TOKEN] = Token(role=role, scopes=scopes or ("read_api",))

    def use(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)


@pytest.fixture
def host() -> Iterator[Host]:
    with Gitlab() as site, Ledger.memory() as ledger:
        yield Host(site, ledger)


def jobs(found: Scan) -> dict[str, int]:
    return {one.reference: one.jobs for one in found.images}


def codes(found: Scan) -> list[tuple[str, str]]:
    return [(problem.code, problem.where) for problem in found.problems]


def uses(found: Scan) -> Counter[tuple[str, str]]:
    """Return the counts as the stand-in tells its own."""
    counted: Counter[tuple[str, str]] = Counter()
    for one in found.images:
        for kind in one.kinds:
            counted[one.reference, "proxy" if one.via else kind] = one.jobs
    return counted


def ran(host: Host, definition: str | Lint | None = PLAIN, *names: str, **more: Any) -> Project:
    """Add a project that ran a job of each name."""
    project = host.site.add_project(f"team/app-{len(host.site.projects) + 1}", definition, **more)
    for name in names or ("build",):
        host.site.add_job(project, name)
    return project


# --- what is found, and what it costs ---


@pytest.mark.parametrize("role", ["reporter", "admin"])
def test_scan_counts_every_use_as_it_was(host: Host, role: Role) -> None:
    host.site.populate(projects=40, active=25, jobs=1500, unresolved=8)
    host.role(role)
    found = host.scan()
    assert uses(found) == host.site.truth()
    assert (found.unresolved, found.problems) == ((), ())
    assert found.complete


def test_scan_tells_runs_sources_platforms_and_pull_failures(host: Host) -> None:
    host.site.runners[1].architecture = "arm64"
    project = ran(host)
    host.site.add_job(project, "build", status="failed", failure_reason="image_pull_failure")
    host.site.add_job(project, "build", status="failed", failure_reason="script_failure")
    host.site.add_job(project, "build", status="skipped", started=None, runner=None)
    (image,) = host.scan().images
    assert (image.reference, image.jobs, image.projects) == (GOLANG, 3, 1)
    assert (image.kinds, image.sources) == (("image",), ("definition", "history"))
    assert (image.platforms, image.pull_failures) == (("linux/arm64",), 1)
    assert image.last_used == pytest.approx(time.time(), abs=60)


NUMBERS = {"projects": 1000, "active": 600, "jobs": 50_000, "unresolved": 300}


def a_day_later(host: Host, count: int = 7000, branches: int = 40) -> None:
    """Let a day pass with so many jobs, in projects of which some have new commits."""
    projects = list(host.site.projects.values())[:600]
    for project in projects[:branches]:
        moved(project)
    started = time.time()
    for number in range(count):
        at = started + DAY * number / count
        project = projects[number % 600]
        name = ("build", "unit", "lint")[number // 600 % 3]
        host.site.add_job(project, name, created=at, started=at, runner=1 + number % 4)
    host.offset += DAY


def test_scan_with_runner_rights_asks_at_most_1450_times_and_150_the_next_day(host: Host) -> None:
    host.site.populate(**NUMBERS)
    host.role("admin")
    found = host.scan()
    assert found.requests == len(host.site.access) <= 1450
    assert uses(found) == host.site.truth()
    a_day_later(host)
    found = host.scan()
    assert found.requests == len(host.site.access) <= 150 + 40
    assert host.site.requests()["lint"] == 40
    assert sum(jobs(found).values()) > 57_000


def test_scan_without_runner_rights_asks_at_most_2100_times(host: Host) -> None:
    host.site.populate(**NUMBERS)
    found = host.scan()
    assert found.requests == len(host.site.access) <= 2100
    assert uses(found) == host.site.truth()


def test_scan_asks_at_most_eight_at_once_with_its_own_name(host: Host) -> None:
    host.site.populate(projects=40, active=30, jobs=600, unresolved=10)
    at_once = most = 0
    lock = threading.Lock()
    respond = host.site.respond

    def counting(request: Request) -> Response:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
        return respond(request)

    host.site.respond = counting  # type: ignore[method-assign]
    host.scan()
    assert 2 <= most <= 8
    assert {entry.user_agent.partition("/")[0] for entry in host.site.access} == {"prewarm"}


MEMORY = """
from prewarm.core.usage import NEVER
from prewarm.discovery.history import Runner, Tally, read_job
names = [[f"job-{n}" for n in range(10)] for _ in range(600)]
tally = Tally(0.0, 2e9, {project: NEVER for project in range(1, 601)})
for number in range(1_000_000, 0, -1):
    day = number * 14 // 1_000_001 + 1
    stamp = f"2024-03-{day:02}T12:00:00Z"
    tally.take(read_job({
        "id": number, "name": f"job-{number // 600 % 10}", "status": "success", "ref": "x",
        "created_at": stamp, "started_at": stamp, "project": {"id": number % 600 + 1},
    }, runner=Runner(number % 4 + 1)))
print(sum(count.runs for count in tally.counts.values()))
import prewarm.discovery.scan
# Not ru_maxrss: a child begins with that of the process that forked it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_tally_of_a_million_jobs_stays_below_200_megabytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True
    )
    counted, kilobytes = map(int, done.stdout.split())
    assert counted == 1_000_000
    # What a scan needs beside its counts: its libraries, pages and answers.
    assert kilobytes / 1024 + 50 < 200


# --- only what is new ---


@pytest.mark.parametrize("role", ["reporter", "admin"])
def test_scan_again_counts_only_what_is_new(host: Host, role: Role) -> None:
    host.role(role)
    for _ in range(12):
        ran(host)
    project = host.site.projects[1]
    assert jobs(host.scan()) == {GOLANG: 12}
    assert jobs(host.scan()) == {GOLANG: 12}
    host.site.add_job(project, "build")
    host.offset += 3600
    assert jobs(host.scan()) == {GOLANG: 13}


def test_scan_counts_a_job_that_waited_once_it_ran(host: Host) -> None:
    project = ran(host)
    late = host.site.add_job(project, "build", status="pending", started=None, runner=None)
    host.site.add_job(project, "build")
    assert jobs(host.scan()) == {GOLANG: 2}
    host.offset += 1800
    host.site.jobs.change(replace(late, status="success", started=time.time() + 900, runner=1))
    assert jobs(host.scan()) == {GOLANG: 3}
    assert jobs(host.scan()) == {GOLANG: 3}


def test_scan_counts_a_pull_failure_of_a_job_that_was_running(host: Host) -> None:
    project = ran(host)
    job = host.site.add_job(project, "build")
    host.site.jobs.change(as_running(job))
    (image,) = host.scan().images
    assert (image.jobs, image.pull_failures) == (2, 0)
    host.offset += 600
    host.site.jobs.change(replace(job, status="failed", failure_reason="image_pull_failure"))
    for _ in range(2):
        (image,) = host.scan().images
        assert (image.jobs, image.pull_failures) == (2, 1)


def test_scan_of_long_history_stops_at_its_start(host: Host) -> None:
    project = ran(host, PLAIN)
    old = time.time() - 20 * DAY
    with Gitlab() as site:
        host.site = site
        host.use(url=site.url)
        project = site.add_project("team/app", PLAIN)
        for _ in range(450):
            site.add_job(project, "build", created=old, started=old)
        for _ in range(30):
            site.add_job(project, "build")
        assert jobs(host.scan()) == {GOLANG: 30}
        assert site.requests()["jobs"] == 1


def test_scan_remembers_uses_that_gitlab_has_forgotten(host: Host) -> None:
    project = ran(host)
    assert jobs(host.scan()) == {GOLANG: 1}
    host.site.jobs.remove(1)
    host.offset += 10 * DAY
    host.site.add_job(
        project, "build", created=time.time() + 9 * DAY, started=time.time() + 9 * DAY
    )
    assert jobs(host.scan()) == {GOLANG: 2}
    host.offset += 5 * DAY
    assert jobs(host.scan()) == {GOLANG: 1}


def test_scan_of_a_new_project_reads_its_past_and_no_other_again(host: Host) -> None:
    host.role("admin")
    host.site.populate(projects=60, active=40, jobs=4000, unresolved=0)
    host.scan()
    project = host.site.add_project("team/new", "solo:\n  image: solo:1\n  script: [x]\n")
    past = time.time() - 5 * DAY
    for _ in range(3):
        host.site.add_job(project, "solo", created=past, started=past)
    found = host.scan()
    assert jobs(found)["docker.io/library/solo:1"] == 3
    assert uses(found) == host.site.truth() + Counter({("docker.io/library/solo:1", "image"): 3})
    assert host.site.requests()["jobs"] == 1 + SAMPLE
    assert host.site.requests()["runner_jobs"] < 12


# --- definitions ---


def lints(host: Host) -> int:
    host.scan()
    return host.site.requests()["lint"]


def test_scan_lints_again_only_for_a_reason(host: Host) -> None:
    project = ran(host)
    other = "build:\n  image: golang:1.23\n  script: [x]\n"
    assert lints(host) == 1
    assert lints(host) == 0
    host.site.add_job(project, "build", ref="feature", sha="f" * 40)
    assert lints(host) == 0
    moved(project)
    project.lint = Lint(other)
    assert lints(host) == 0  # nothing ran there yet
    host.site.add_job(project, "build")
    assert lints(host) == 1
    host.site.add_job(project, "never-seen")
    assert lints(host) == 1
    host.site.add_job(project, "never-seen")
    assert lints(host) == 0
    host.offset += 7 * DAY + 60
    assert lints(host) == 1
    assert jobs(host.scan()) == {"docker.io/library/golang:1.23": 3}


def test_scan_of_projects_without_runs_lints_nothing(host: Host) -> None:
    host.site.add_project("team/idle", PLAIN)
    found = host.scan()
    assert (found.images, host.site.requests()["lint"]) == ((), 0)


def test_scan_uses_what_an_invalid_definition_merged_and_notes_it(host: Host) -> None:
    project = ran(host, Lint(PLAIN, False, ("jobs:x is odd",)))
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert codes(found) == [("definition", project.path)]
    assert "jobs:x is odd" in found.problems[0].problem
    assert found.problems[0].severity == "warning"
    assert codes(host.scan()) == codes(found)  # remembered with the definition


def test_scan_of_an_external_definition_posts_an_include(host: Host) -> None:
    host.role("developer", "api")
    host.site.external["ci.yml@team/ci"] = Lint(PLAIN)
    ran(host, None, ci_config_path="ci.yml@team/ci:main")
    assert jobs(host.scan()) == {GOLANG: 1}
    assert [entry.method for entry in host.site.access.of("lint")] == ["POST"]


def test_scan_of_auto_devops_posts_its_template(host: Host) -> None:
    host.role("developer", "api")
    host.site.external["Auto-DevOps.gitlab-ci.yml"] = Lint(PLAIN)
    ran(host, None, auto_devops=True)
    assert jobs(host.scan()) == {GOLANG: 1}


@pytest.mark.parametrize(("role", "scopes"), [("reporter", ["api"]), ("developer", ["read_api"])])
def test_scan_of_an_external_definition_without_the_right_to_post_says_which_and_reads_traces(
    host: Host, role: Role, scopes: list[str]
) -> None:
    host.role(role, *scopes)
    host.site.external["ci.yml@team/ci"] = Lint(PLAIN)
    project = host.site.add_project("team/app", None, ci_config_path="ci.yml@team/ci:main")
    host.site.add_job(project, "build", trace=trace_text([(GOLANG, "image")]))
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert codes(found) == [("definition", "team/app")]
    assert "the scope api" in str(found.problems[0])
    assert "Developer" in str(found.problems[0])


def file_of(project: Project, path: str, body: str) -> Fault:
    """Let a file of a repository be there, which the stand-in has not."""
    where = f"/api/v4/projects/{project.id}/repository/files/{path}/raw"
    return Fault(path=where, status=200, body=body.encode(), count=None)


def test_scan_where_lint_breaks_evaluates_the_file_and_lints_next_time(host: Host) -> None:
    project = ran(host)
    broken = host.site.faults.add(bad_gateway(f"/api/v4/projects/{project.id}/ci/lint", count=None))
    main = "include: ci/jobs.yml\n"
    host.site.faults.add(file_of(project, ".gitlab-ci.yml", main))
    host.site.faults.add(file_of(project, "ci%2Fjobs.yml", PLAIN))
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert codes(found) == [("definition", project.path)]
    host.site.faults.remove(broken)
    found = host.scan()
    assert (host.site.requests()["lint"], codes(found)) == (1, [])


def test_scan_without_lint_and_file_tells_the_problem_and_reads_traces(host: Host) -> None:
    project = ran(host, None, "a", "b")
    first = host.site.jobs.get(1)
    assert first is not None
    host.site.jobs.change(replace(first, trace=trace_text([(GOLANG, "image")])))
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert [(one.job, one.text) for one in found.unresolved] == [("b", "")]
    assert codes(found) == [("definition", project.path)]


@pytest.mark.parametrize(
    "merged", ["{", "[]", "just text", "a: &x [*x]", "? {a: 1}\n: 2", "\x00", "- 1\n- 2"]
)
def test_scan_of_a_rubbish_definition_goes_on(host: Host, merged: str) -> None:
    ran(host, Lint(merged))
    ran(host)
    assert jobs(host.scan()) == {GOLANG: 1}


def test_scan_reads_variables_only_when_asked(host: Host) -> None:
    host.role("owner")
    host.use(traces="never")
    host.site.group_variables["team"] = {"DEPLOY": "wrong:1"}
    ran(host, OPEN, "deploy", variables={"DEPLOY": "hashicorp/terraform:1.9"})
    assert jobs(host.scan()) == {}
    assert host.site.requests()["variables"] == 0
    host.use(variables=True)
    host.offset += 8 * DAY
    assert jobs(host.scan()) == {TERRAFORM: 1}


def test_scan_without_the_right_to_variables_says_which_and_goes_on(host: Host) -> None:
    host.use(variables=True)
    ran(host)
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert {problem.code for problem in found.problems} == {"gitlab-rights"}
    assert {"Owner", "Maintainer"} == {
        word for problem in found.problems for word in problem.cure.split() if word[0] in "OM"
    }


# --- traces ---


def open_job(host: Host, *uses: str, definition: str = OPEN, **more: Any) -> Project:
    """Add a project with a job, `deploy`, whose image only its trace tells."""
    project = host.site.add_project(f"team/open-{len(host.site.projects) + 1}", definition)
    host.site.add_job(project, "deploy", trace=trace_text([(one, "image") for one in uses]), **more)
    return project


def traces(host: Host) -> int:
    host.scan()
    return host.site.requests()["trace"]


def test_scan_reads_one_trace_for_a_name_and_remembers_it(host: Host) -> None:
    project = open_job(host, TERRAFORM)
    for _ in range(5):
        host.site.add_job(project, "deploy", trace=trace_text([(TERRAFORM, "image")]))
    found = host.scan()
    assert (jobs(found), found.unresolved) == ({TERRAFORM: 6}, ())
    assert found.images[0].sources == ("history", "trace")
    assert host.site.requests()["trace"] == 1
    host.site.add_job(project, "deploy")
    moved(project)
    assert traces(host) == 0
    project.lint = Lint(OPEN.replace("$DEPLOY", "$OTHER"))
    host.site.add_job(project, "deploy", trace=trace_text([(GOLANG, "image")]))
    assert traces(host) == 1
    assert jobs(host.scan()) == {GOLANG: 8}


def test_scan_reads_rather_the_trace_of_a_failed_pull(host: Host) -> None:
    project = open_job(host)
    failed = trace_text([(TERRAFORM, "image")], failed=True)
    host.site.add_job(
        project, "deploy", status="failed", failure_reason="image_pull_failure", trace=failed
    )
    host.site.add_job(project, "deploy", trace=b"erased")
    (image,) = host.scan().images
    assert (image.reference, image.jobs, image.pull_failures) == (TERRAFORM, 3, 1)
    assert host.site.requests()["trace"] == 1


def test_scan_counts_a_pull_failure_that_only_the_trace_tells(host: Host) -> None:
    open_job(host, status="failed", failure_reason="script_failure")
    job = host.site.jobs.get(1)
    assert job is not None
    failed = trace_text([(TERRAFORM, "image")], failed=True)
    host.site.jobs.change(replace(job, trace=failed))
    (image,) = host.scan().images
    assert image.pull_failures == 1


def test_scan_that_must_read_no_traces_lists_the_names(host: Host) -> None:
    host.use(traces="never")
    open_job(host, TERRAFORM)
    found = host.scan()
    assert host.site.requests()["trace"] == 0
    (open_,) = found.unresolved
    assert (open_.job, open_.kind, open_.text) == ("deploy", "image", "$DEPLOY")
    assert "$DEPLOY" in open_.why


def test_scan_finds_the_image_of_a_job_that_no_definition_names(host: Host) -> None:
    project = ran(host, PLAIN, "child")
    found = host.scan()
    assert [(one.job, one.why) for one in found.unresolved] == [("child", ABSENT)]
    host.site.add_job(project, "another", trace=trace_text([(TERRAFORM, "image")]))
    found = host.scan()
    assert jobs(found)[TERRAFORM] == 1


def test_scan_finds_helper_default_and_mirrored_images(host: Host) -> None:
    trace = trace_text([("mirror.test/library/ruby:3", "image")]).replace(
        b"section_end",
        b"Using helper image:  registry.gitlab.com/gitlab-org/helper:x86\nsection_end",
        1,
    )
    project = host.site.add_project("team/bare", "job:\n  script: [make]\n")
    host.site.add_job(project, "job", trace=trace)
    mirrors = [Mirror("http://127.0.0.1:5000", "https://mirror.test")]
    found = host.scan(mirrors=mirrors)
    assert jobs(found) == {
        "docker.io/library/ruby:3": 1,
        "registry.gitlab.com/gitlab-org/helper:x86": 1,
    }
    assert found.unresolved == ()


def test_scan_of_a_shell_executor_finds_nothing_to_resolve(host: Host) -> None:
    trace = (
        b'section_start:1:prepare_executor\r\x1b[0KPreparing the "shell" executor\n'
        b"Using Shell (bash) executor...\nsection_end:1:prepare_executor\r\x1b[0K"
    )
    project = host.site.add_project("team/bare", "job:\n  script: [make]\n")
    host.site.add_job(project, "job", trace=trace)
    found = host.scan()
    assert (found.images, found.unresolved) == ((), ())


def test_scan_with_samples_reports_where_definition_and_trace_disagree(host: Host) -> None:
    host.use(traces="sample")
    text = "".join(f"job-{n}:\n  image: golang:1.22\n  script: [x]\n" for n in range(60))
    project = host.site.add_project("team/app", text)
    for number in range(60):
        host.site.add_job(project, f"job-{number}", trace=trace_text([(TERRAFORM, "image")]))
    found = host.scan()
    read = host.site.requests()["trace"]
    assert 1 <= read <= 20
    assert {code for code, _ in codes(found)} == {"trace-disagrees"}
    assert len(found.problems) == jobs(found)[TERRAFORM] == read


def test_scan_of_huge_and_empty_traces_reads_their_heads(host: Host) -> None:
    project = open_job(host)
    host.site.add_job(project, "deploy", trace=trace_text([(TERRAFORM, "image")], size=5_000_000))
    empty = host.site.add_project("team/empty", OPEN)
    host.site.add_job(empty, "deploy", trace=b"")
    found = host.scan()
    assert jobs(found) == {TERRAFORM: 2}
    assert [one.project for one in found.unresolved] == ["team/empty"]
    queries = [entry.path for entry in host.site.access.of("trace")]
    assert all("byte_limit=32768" in query for query in queries)
    assert traces(host) == 0


class Endless(Site):
    """Sends a body without end and counts what of it was taken."""

    def respond(self, request: Request) -> Response:
        return Response(200, {"Content-Type": "text/plain"}, b"x" * 200_000_000)


def test_head_stops_the_download() -> None:
    with (
        Server(Endless()) as server,
        Client(Settings(server.url), None, {}, threading.Event()) as client,
    ):
        started = time.monotonic()
        assert client.head("/trace", 40_000) == b"x" * 40_000
        assert time.monotonic() - started < 5


# --- scope ---


def tree(host: Host) -> None:
    for path in ("top/a", "top/sub/b", "top/sandbox/c", "else/d"):
        project = host.site.add_project(path, PLAIN)
        host.site.add_job(project, "build")
    for change in ({"member": False, "visibility": "public"}, {"archived": True}):
        project = host.site.add_project(f"else/{next(iter(change))}", PLAIN, **change)
        host.site.add_job(project, "build")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 4),
        ({"scope": "all"}, 5),
        ({"groups": ("top",)}, 3),
        ({"groups": ("top/sub",), "projects": ("else/d",)}, 2),
        ({"exclude": ("top/**",)}, 1),
        ({"exclude": ("*/sandbox/*", "else/d")}, 2),
    ],
)
def test_scan_reads_the_scope(host: Host, settings: dict[str, Any], expected: int) -> None:
    tree(host)
    host.use(**settings)
    found = host.scan()
    assert [one.projects for one in found.images] == [expected]
    assert found.problems == ()


def test_scan_forgets_projects_that_are_excluded_now(host: Host) -> None:
    tree(host)
    assert jobs(host.scan()) == {GOLANG: 4}
    host.use(exclude=("top/**",))
    assert jobs(host.scan()) == {GOLANG: 1}


def test_scan_of_one_project_reads_and_tells_that_one(host: Host) -> None:
    tree(host)
    found = host.scan(only="top/sub/b")
    assert jobs(found) == {GOLANG: 1}
    assert host.site.requests() == {"project": 1, "jobs": 1, "lint": 1}
    assert scan_due(host.settings, host.ledger, time.time())
    assert jobs(host.scan()) == {GOLANG: 4}


def test_scan_of_an_unknown_project_is_refused(host: Host) -> None:
    with pytest.raises(GitlabRefusal, match="nope"):
        host.scan(only="team/nope")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Runners(), 36),
        (Runners(ids=(2, 3)), 24),
        (Runners(shared=False), 24),
        (Runners(tags=("gpu",)), 12),
    ],
)
@pytest.mark.parametrize("role", ["reporter", "admin"])
def test_scan_counts_jobs_of_the_wanted_runners(
    host: Host, role: Role, wanted: Runners, expected: int
) -> None:
    host.role(role)
    host.use(runners=wanted)
    fleet: list[dict[str, Any]] = [{"shared": True}, {}, {"tags": ("gpu",)}]
    for number, fields in enumerate(fleet, 1):
        host.site.runners[number] = replace(host.site.runners[1], id=number, shared=False)
        for name, value in fields.items():
            setattr(host.site.runners[number], name, value)
    for number in range(12):
        project = host.site.add_project(f"team/app-{number}", PLAIN)
        for runner in (1, 2, 3):
            tags = host.site.runners[runner].tags
            host.site.add_job(project, "build", runner=runner, tags=tags)
    assert jobs(host.scan()) == {GOLANG: expected}
    assert bool(host.site.requests()["runner_jobs"]) == (role == "admin")


def test_scan_by_runners_that_work_for_others_asks_the_projects(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prewarm.discovery.jobs._FOREIGN_MAX", -3000)
    host.role("admin")
    host.site.populate(projects=100, active=100, jobs=4000, unresolved=0)
    host.use(exclude=tuple(project.path for project in list(host.site.projects.values())[30:]))
    found = host.scan()
    wanted = sum(job.project <= 30 and job.started is not None for job in all_jobs(host.site))
    assert host.site.requests()["jobs"] == 30 + SAMPLE
    assert sum(one.jobs for one in found.images if "service" not in one.kinds) == wanted


def all_jobs(site: Gitlab) -> Iterator[Any]:
    for project in site.projects:
        yield from site.jobs_of_project(project, 1 << 62)


def test_scan_as_group_owner_reads_through_the_groups_runners(host: Host) -> None:
    host.role("owner")
    host.use(groups=("team",))
    for _ in range(12):
        ran(host)
    assert jobs(host.scan()) == {GOLANG: 12}
    assert (host.site.requests()["runner_jobs"], host.site.requests()["jobs"]) == (1, SAMPLE)


def fleet(host: Host, **more: Any) -> None:
    """Let a second runner work for every third of 15 projects, next to the first."""
    host.role("admin")
    host.site.runners[2] = replace(host.site.runners[1], id=2, **more)
    for number in range(15):
        project = ran(host)
        if number % 3 == 0:
            host.site.add_job(project, "build", runner=2)


def test_scan_counts_what_ran_on_a_runner_that_is_deleted(host: Host) -> None:
    fleet(host)
    del host.site.runners[2]
    found = host.scan()
    assert (jobs(found), found.problems) == ({GOLANG: 20}, ())
    # Only what no scan has counted yet is a reason to ask all projects again.
    host.offset += 3600
    host.site.add_job(host.site.projects[1], "build")
    assert jobs(host.scan()) == {GOLANG: 21}
    assert host.site.requests()["jobs"] == SAMPLE


def test_scan_counts_what_ran_on_a_runner_that_is_not_listed(host: Host) -> None:
    fleet(host)
    host.role("owner")
    host.use(groups=("team",))
    rows = json.dumps([{"id": 1, "is_shared": False, "status": "online"}]).encode()
    for path in ("/api/v4/groups/team/runners", "/api/v4/runners"):
        host.site.faults.add(Fault(path=path, status=200, body=rows, count=None))
    assert jobs(host.scan()) == {GOLANG: 20}


@pytest.mark.parametrize(
    ("days", "read"), [(8.0, True), (None, True), (40.0, False)], ids=["lately", "unknown", "long"]
)
def test_scan_reads_a_stale_runner_that_came_in_the_window(
    host: Host, days: float | None, read: bool
) -> None:
    contacted = None if days is None else time.time() - days * DAY
    fleet(host, stale=True, online=False, contacted=contacted)
    assert jobs(host.scan()) == {GOLANG: 20 if read else 15}
    assert any("/runners/2/jobs" in entry.path for entry in host.site.access) == read


@pytest.mark.parametrize("role", ["maintainer", "admin"])
@pytest.mark.parametrize("count", [3, 15])
def test_scan_with_tags_counts_by_those_of_the_runners(host: Host, role: Role, count: int) -> None:
    host.role(role)
    host.use(runners=Runners(tags=("docker",)))
    host.site.runners[2] = replace(host.site.runners[1], id=2, tags=("docker", "linux"))
    for _ in range(count):
        project = ran(host)
        host.site.add_job(project, "build", runner=2, tags=("linux",))
    found = host.scan()
    assert (jobs(found), found.problems) == ({GOLANG: count}, ())
    assert host.site.requests()["runner"] <= 2


def test_scan_with_tags_that_are_hidden_says_so_once_and_counts_by_the_jobs(host: Host) -> None:
    host.use(runners=Runners(tags=("docker",)))
    project = ran(host)
    for number in range(2, 12):
        host.site.runners[number] = replace(host.site.runners[1], id=number, tags=("docker",))
        host.site.add_job(project, "build", runner=number, tags=("docker",) if number < 6 else ())
    found = host.scan()
    assert jobs(found) == {GOLANG: 4}
    assert codes(found) == [("runner-tags", "gitlab.runners.tags")]
    assert host.site.requests()["runner"] == 3


# --- when it is due ---


def test_scan_due_follows_age_scope_and_completeness(host: Host) -> None:
    def due(offset: float = 0.0) -> bool:
        return scan_due(host.settings, host.ledger, time.time() + offset)

    ran(host)
    assert due()
    host.scan()
    assert not due()
    assert due(12 * 3600 + 60)
    assert due(-3600)  # the clock was set back: nobody knows
    host.use(groups=("team",))
    assert due()
    host.use(groups=("nope",))
    found = host.scan()
    assert (found.complete, due()) == (False, True)
    assert [problem.severity for problem in found.problems] == ["error"]


# --- what goes wrong ---


@pytest.mark.parametrize("part", ["jobs", "ci/lint", "*"])
@pytest.mark.parametrize("status", [403, 404, 500, 200])
def test_scan_goes_on_past_a_project_that_fails(host: Host, part: str, status: int) -> None:
    project = ran(host)
    ran(host)
    headers = {"Content-Type": "application/json"}
    path = f"/api/v4/projects/{project.id}/{part}"
    host.site.faults.add(
        Fault(path=path, status=status, body=b"<html>", headers=headers, count=None)
    )
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert {where for _, where in codes(found)} == {project.path}
    assert {problem.severity for problem in found.problems} == {"warning"}
    assert all(problem.problem and problem.cure for problem in found.problems)
    host.site.faults.clear()
    host.offset += 8 * DAY
    assert jobs(host.scan()) == {GOLANG: 2}


HOSTILE: list[Any] = [
    None, True, -1, 1 << 80, 1.5, "", "\ud800", "\x00\x1b[31m", "x" * 100_000, [], [[]], {},
    {"id": {}},
]  # fmt: skip


@pytest.mark.parametrize("role", ["reporter", "admin"])
def test_scan_of_answers_with_hostile_fields_goes_on(host: Host, role: Role) -> None:
    host.role("admin")
    for _ in range(12):
        ran(host)
    project, runner = host.site.projects[12], host.site.runners[1]
    with Client(host.settings, Secret(TOKEN), {}, host.stop) as client:
        (job,) = client.get(f"/projects/{project.id}/jobs")
        record = client.get(f"/projects/{project.id}")
        manager = client.get(f"/runners/{runner.id}/managers")[0]
        lint = client.get(f"/projects/{project.id}/ci/lint")
    host.role(role)
    job["id"], job["project"] = 1000, {"id": project.id}
    headers = {"Content-Type": "application/json"}
    for path, answer, listed in (
        (f"/projects/{project.id}/jobs", job, True),
        (f"/runners/{runner.id}/jobs", job, True),
        ("/projects", record, True),
        (f"/runners/{runner.id}/managers", manager, True),
        ("/runners/all", {"id": 1}, True),
        (f"/projects/{project.id}/ci/lint", lint, False),
    ):
        for name in answer:
            changed = [answer | {name: value} for value in HOSTILE]
            bodies = [changed] if listed else changed
            for body in bodies:
                fault = Fault(
                    path=f"/api/v4{path}",
                    status=200,
                    headers=headers,
                    body=json.dumps(body).encode(),
                )
                host.site.faults.add(fault)
                host.offset += 8 * DAY if "lint" in path else 60
                found = host.scan()
                assert "lint" in path or GOLANG in jobs(found)
                host.site.faults.clear()


@pytest.mark.parametrize(
    "fault",
    [
        too_many_requests("*/jobs", retry_after=1),
        too_many_requests("*/jobs", retry_after=0),
        too_many_requests("*/jobs"),
        bad_gateway("*/jobs"),
        Fault(path="*/jobs", reset=True),
        Fault(path="*/jobs", drop=True),
        Fault(path="*/jobs", cut=40),
        Fault(path="*/ci/lint", status=503, count=2),
    ],
    ids=["429-1", "429-0", "429", "502", "reset", "drop", "cut", "503-503"],
)
def test_scan_asks_again_what_failed_for_a_moment(host: Host, fault: Fault) -> None:
    ran(host)
    host.site.faults.add(replace(fault))
    started = time.monotonic()
    found = host.scan()
    assert (jobs(found), found.problems) == ({GOLANG: 1}, ())
    assert found.requests == len(host.site.access)
    if "Retry-After" in fault.headers:
        assert time.monotonic() - started >= int(fault.headers["Retry-After"])


def test_scan_that_is_told_to_wait_too_long_ends(host: Host) -> None:
    ran(host)
    host.site.faults.add(too_many_requests("*/jobs", retry_after=86400))
    with pytest.raises(GitlabRefusal) as caught:
        host.scan()
    assert (caught.value.code, caught.value.whole) == ("gitlab-rate-limit", True)


@pytest.mark.parametrize(
    ("break_it", "code", "word"),
    [
        (lambda host: host.site.tokens.clear(), "gitlab-token", "refused"),
        (lambda host: host.role("reporter", "read_user"), "gitlab-rights", "read_api"),
        (lambda host: host.role("guest"), "gitlab-rights", "Reporter"),
        (lambda host: host.site.faults.add(rubbish("/api/v4/projects")), "gitlab-answer", "login"),
        (lambda host: host.site.close(), "gitlab-unreachable", "not reached"),
        (
            lambda host: host.site.faults.add(bad_gateway(count=None)),
            "gitlab-error",
            "502",
        ),
    ],
    ids=["token", "scope", "role", "rubbish", "down", "502"],
)
def test_scan_of_a_gitlab_that_refuses_all_says_what_is_wrong(
    host: Host, break_it: Callable[[Host], object], code: str, word: str
) -> None:
    ran(host)
    ran(host)
    host.scan()
    break_it(host)
    with pytest.raises(PrewarmError) as caught:
        host.scan()
    assert caught.value.code == code
    assert word in str(caught.value)
    assert caught.value.cure
    since = time.time() - 14 * DAY
    assert [one.jobs for one in host.ledger.used_images(since)] == [2]


def test_scan_with_an_expired_token_says_so(host: Host) -> None:
    host.site.tokens[TOKEN] = Token(expires="2020-01-01")
    with pytest.raises(GitlabRefusal, match="expired"):
        host.scan()


def test_scan_without_a_token_asks_for_one(host: Host) -> None:
    with pytest.raises(GitlabRefusal, match=r"wants a token.*token_file"):
        host.scan(secret=None)


def test_scan_of_a_gitlab_that_goes_down_midway_ends_soon(host: Host) -> None:
    host.site.populate(projects=200, active=100, jobs=1000, unresolved=0)
    host.site.faults.add(Fault(path="*/jobs", reset=True, nth=30, count=None))
    started = time.monotonic()
    with pytest.raises(GitlabRefusal) as caught:
        host.scan()
    assert caught.value.code == "gitlab-unreachable"
    assert time.monotonic() - started < 30
    assert len(host.site.access) < 250


def test_client_gives_up_on_a_gitlab_that_hangs(host: Host) -> None:
    host.site.faults.add(Fault(hang=2, count=None))
    with Client(host.settings, Secret(TOKEN), {}, host.stop, timeout=0.1) as client:
        with pytest.raises(GitlabRefusal, match="no answer in time"):
            client.get("/version")
        assert client.sent == 2


def test_scan_that_is_stopped_keeps_what_it_has_and_goes_on_later(host: Host) -> None:
    host.site.populate(projects=40, active=30, jobs=900, unresolved=0)

    class Stopping(Quiet):
        steps = 0

        def phase(self, name: str, total: int | None) -> None:
            self.steps = 0 if name == "definitions" else -1000

        def step(self) -> None:
            self.steps += 1
            if self.steps == 5:
                host.stop.set()

    found = host.scan(progress=Stopping())
    assert not found.complete
    assert 5 <= host.site.requests()["lint"] < 25
    assert scan_due(host.settings, host.ledger, time.time())
    host.stop.clear()
    found = host.scan()
    assert found.complete
    assert uses(found) == host.site.truth()


def test_scan_stopped_between_runners_keeps_them_and_reads_only_the_others(host: Host) -> None:
    host.role("admin")
    host.site.populate(projects=40, active=40, jobs=4000, unresolved=0)
    respond = host.site.respond

    def stopping(request: Request) -> Response:
        if request.path.endswith("/runners/4/jobs") and not host.stop.is_set():
            deadline = time.monotonic() + 30
            while len(host.ledger.parts()) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            host.stop.set()
        return respond(request)

    host.site.respond = stopping  # type: ignore[method-assign]
    assert not host.scan().complete
    assert host.ledger.parts().keys() == {1, 2, 3}
    host.site.respond = respond  # type: ignore[method-assign]
    host.stop.clear()
    host.offset += 3600
    found = host.scan()
    assert found.complete
    assert uses(found) == host.site.truth()
    asked = Counter(
        entry.path.split("?")[0].split("/")[-2]
        for entry in host.site.access
        if entry.kind == "runner_jobs"
    )
    assert asked["4"] >= 9
    assert max(asked["1"], asked["2"], asked["3"]) <= 3
    assert host.ledger.parts() == {}
    assert uses(host.scan()) == host.site.truth()


def test_scan_stopped_between_runners_counts_once_without_the_right_to_runners(host: Host) -> None:
    host.role("admin")
    host.site.populate(projects=40, active=40, jobs=4000, unresolved=0)
    host.site.faults.add(Fault(path="/api/v4/runners/4/jobs", status=403, nth=7, count=None))
    assert uses(host.scan()) == host.site.truth()
    host.role("reporter")
    host.offset += 600
    assert uses(host.scan()) == host.site.truth()


def test_client_that_waits_can_be_stopped(host: Host) -> None:
    host.site.faults.add(too_many_requests(retry_after=600))
    timer = threading.Timer(0.2, host.stop.set)
    timer.start()
    with Client(host.settings, Secret(TOKEN), {}, host.stop) as client, pytest.raises(Stopped):
        client.get("/version")
    timer.join()


def test_pages_without_link_follow_the_number_of_the_next(host: Host) -> None:
    for _ in range(250):
        host.site.add_project(f"team/app-{len(host.site.projects)}", PLAIN)
    respond = host.site.respond

    def without_link(request: Request) -> Response:
        answer = respond(request)
        headers = {name: value for name, value in answer.headers.items() if name != "Link"}
        return replace(answer, headers=headers)

    host.site.respond = without_link  # type: ignore[method-assign]
    with Client(host.settings, Secret(TOKEN), {}, host.stop) as client:
        pages = list(client.pages("/groups/team/projects", order_by="id", sort="asc"))
    assert [len(page) for page in pages] == [100, 100, 50]
    assert len({row["id"] for page in pages for row in page}) == 250


def test_pages_without_link_that_stand_still_are_noticed(host: Host) -> None:
    body = json.dumps([{"id": 1}]).encode()
    host.site.faults.add(
        Fault(path="*", status=200, headers={"X-Next-Page": "2"}, body=body, count=None)
    )
    with (
        Client(host.settings, Secret(TOKEN), {}, host.stop) as client,
        pytest.raises(GitlabRefusal, match="not what GitLab answers"),
    ):
        list(client.pages("/groups/team/projects"))


def test_pages_without_end_are_noticed(host: Host) -> None:
    link = f'<{host.site.url}/api/v4/projects?id_before=5>; rel="next"'
    body = json.dumps([{"id": 1, "path_with_namespace": "a/b"}]).encode()
    host.site.faults.add(
        Fault(path="/api/v4/projects", status=200, headers={"Link": link}, body=body, count=None)
    )
    with pytest.raises(GitlabRefusal, match="not what GitLab answers"):
        host.scan()


# --- runners' logs ---


def log_line(job: int, project: int, image: str, at: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return json.dumps(
        {
            "msg": "Image configured for job",
            "level": "info",
            "time": stamp,
            "job": job,
            "project": project,
            "project_full_path": "team/app-1",
            "image_name": image,
            "runner": "t1_AbCdEf",
        }
    )


def test_scan_takes_runner_logs_first_and_counts_their_jobs_once(
    host: Host, tmp_path: Path
) -> None:
    project = ran(host, PLAIN, "build", "build", "build")
    log = tmp_path / "runner.log"
    log.write_text(
        "".join(f"{log_line(n, project.id, 'golang:1.22', time.time())}\n" for n in (1, 3))
    )
    host.use(runner_logs=(str(log),))
    (image,) = host.scan().images
    assert (image.jobs, image.sources) == (3, ("definition", "history", "runner-log"))
    with log.open("a") as file:
        file.write(f"{log_line(4, project.id, 'redis:7', time.time())}\n")
    host.site.add_job(project, "build")
    assert jobs(host.scan()) == {GOLANG: 3, "docker.io/library/redis:7": 1}
    assert jobs(host.scan()) == {GOLANG: 3, "docker.io/library/redis:7": 1}


def test_scan_that_failed_after_the_logs_counts_their_jobs_once(host: Host, tmp_path: Path) -> None:
    project = ran(host)
    log = tmp_path / "runner.log"
    log.write_text(f"{log_line(1, project.id, 'golang:1.22', time.time())}\n")
    host.use(runner_logs=(str(log),))
    host.site.tokens.clear()
    with pytest.raises(GitlabRefusal):
        host.scan()
    assert [one.jobs for one in host.ledger.used_images(0.0)] == [1]
    host.role("reporter")
    host.offset += 3600
    assert jobs(host.scan()) == {GOLANG: 1}
    assert jobs(host.scan()) == {GOLANG: 1}


def test_scan_of_a_log_that_is_not_there_is_the_operators_problem(
    host: Host, tmp_path: Path
) -> None:
    host.use(runner_logs=(str(tmp_path / "none.log"),))
    ran(host)
    found = host.scan()
    assert jobs(found) == {GOLANG: 1}
    assert [(problem.code, problem.severity) for problem in found.problems] == [
        ("runner-log", "error")
    ]


# --- the token ---


def test_find_token_takes_file_then_credentials_then_environment(tmp_path: Path) -> None:
    file, folder = tmp_path / "token", tmp_path / "credentials"
    file.write_text("from-file\n")
    folder.mkdir()
    (folder / "gitlab-token").write_text(" from-folder \n")
    environ = {"CREDENTIALS_DIRECTORY": str(folder), "PREWARM_GITLAB_TOKEN": "from-environment\n"}

    def reveal(settings: Settings) -> str | None:
        token = find_token(settings, environ)
        return token.reveal() if token else None

    settings = Settings("https://gitlab.example.org")
    assert reveal(replace(settings, token_file=file)) == "from-file"
    assert reveal(settings) == "from-folder"
    (folder / "gitlab-token").unlink()
    assert reveal(settings) == "from-environment"
    environ["PREWARM_GITLAB_TOKEN"] = " \n"
    assert reveal(settings) is None


@pytest.mark.parametrize("text", ["two\nlines", "with space", "umläut", "nul\0"])
def test_find_token_refuses_what_no_token_is_without_showing_it(text: str) -> None:
    with pytest.raises(PrewarmError) as caught:
        find_token(Settings("https://gl.test"), {"PREWARM_GITLAB_TOKEN": text})
    assert text not in str(caught.value)
    assert "PREWARM_GITLAB_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://gitlab.example.org", True),
        ("http://127.0.0.1:8080", False),
        ("http://localhost", False),
        ("https://gitlab.example.org", False),
    ],
)
def test_find_token_over_plain_http_is_for_loopback_only(url: str, refused: bool) -> None:
    def find() -> object:
        return find_token(Settings(url), {"PREWARM_GITLAB_TOKEN": "glpat-x"})

    if refused:
        with pytest.raises(PrewarmError, match="plain http"):
            find()
    else:
        assert find() is not None


def test_find_token_of_a_missing_file_names_it(tmp_path: Path) -> None:
    settings = Settings("https://gl.test", token_file=tmp_path / "none")
    with pytest.raises(PrewarmError, match=r"none: No such file.*correct the path"):
        find_token(settings, {})


def test_token_shows_in_no_repr_problem_log_or_exception(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    project = ran(host)
    host.site.faults.add(forbidden(project))
    ran(host)
    seen = [repr(host.scan()), str(Secret(TOKEN)), repr(Secret(TOKEN))]
    for fault in (bad_gateway(count=None), rubbish(count=None)):
        host.site.faults.clear()
        host.site.faults.add(fault)
        with pytest.raises(GitlabRefusal) as caught:
            host.scan()
        seen += [repr(caught.value), repr(caught.value.__cause__)]
        assert caught.value.__suppress_context__
    seen.append(caplog.text)
    assert not any(TOKEN in text for text in seen)


@pytest.mark.parametrize("way", ["redirect", "link"])
def test_token_goes_to_no_other_host(host: Host, way: str) -> None:
    ran(host)
    with Gitlab() as other:
        target = f"{other.url.replace('127.0.0.1', 'localhost')}/api/v4/projects"
        if way == "redirect":
            fault = Fault(path="/api/v4/projects", status=302, headers={"Location": target})
        else:
            link = {"Link": f'<{target}?page=2>; rel="next"', "Content-Type": "application/json"}
            body = json.dumps([{"id": 1, "path_with_namespace": "team/app-1"}]).encode()
            fault = Fault(path="/api/v4/projects", status=200, headers=link, body=body)
        host.site.faults.add(fault)
        if way == "redirect":
            with pytest.raises(GitlabRefusal):
                host.scan()
            assert len(other.access) == 1
        else:
            assert jobs(host.scan()) == {GOLANG: 1}
            assert len(other.access) == 0
        assert not any(entry.secret for entry in other.access)


def test_client_asks_loopback_without_proxy(host: Host) -> None:
    environ = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    with Client(host.settings, Secret(TOKEN), environ, host.stop) as client:
        assert client.get("/version")["version"] == host.site.version
