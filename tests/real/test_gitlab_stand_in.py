"""The GitLab stand-in answers as GitLab does: proved with the real python-gitlab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gitlab
import pytest
import requests
import yaml

from prewarm.discovery.job_log import read
from tests.sandbox.ci_load import Job, Lint, Recorded, as_running, moved, trace_text
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

KEYSET: dict[str, Any] = {
    "pagination": "keyset",
    "order_by": "id",
    "per_page": 100,
    "iterator": True,
}


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as running:
        yield running


@pytest.fixture
def populated(site: Gitlab) -> Gitlab:
    site.populate(projects=30, active=20, jobs=2000, unresolved=5)
    return site


def connect(site: Gitlab, **options: Any) -> gitlab.Gitlab:
    return gitlab.Gitlab(site.url, private_token=TOKEN, timeout=30, **options)


def role(site: Gitlab, role: Role, *scopes: str) -> None:
    site.tokens[TOKEN] = Token(role=role, scopes=scopes or ("read_api",))


def status_of(call: Any) -> int:
    with pytest.raises(gitlab.GitlabError) as caught:
        call()
    return int(caught.value.response_code or 0)


# --- lists ---


def test_projects_by_keyset_take_eleven_requests_for_a_thousand(site: Gitlab) -> None:
    site.populate(projects=1000, active=1, jobs=1, unresolved=0)
    with connect(site) as client:
        found = list(client.projects.list(sort="asc", **KEYSET))
    assert [each.id for each in found] == list(range(1, 1001))
    assert site.requests() == {"projects": 11}


def test_project_has_the_fields_that_discovery_reads(site: Gitlab) -> None:
    site.add_project("Team/tools/App", ci_config_path="ci.yml@team/ci", jobs_enabled=False)
    with connect(site) as client:
        (project,) = client.projects.list(iterator=True)
        assert client.projects.get("Team/tools/App").id == project.id
    assert project.path_with_namespace == "Team/tools/App"
    assert project.namespace["full_path"] == "Team/tools"
    assert project.default_branch == "main"
    assert project.ci_config_path == "ci.yml@team/ci"
    assert project.container_registry_image_prefix == "registry.gitlab.test/team/tools/app"
    assert (project.jobs_enabled, project.auto_devops_enabled) == (False, False)


def test_projects_of_others_are_seen_only_by_scope_and_right(site: Gitlab) -> None:
    for path, member, visibility in (
        ("a/own", True, "private"),
        ("b/public", False, "public"),
        ("b/secret", False, "private"),
    ):
        site.add_project(path, member=member, visibility=visibility)
    with connect(site) as client:
        assert [p.id for p in client.projects.list(iterator=True, membership=True)] == [1]
        assert {p.id for p in client.projects.list(iterator=True)} == {1, 2}
        assert status_of(lambda: client.projects.get(3)) == 404
        role(site, "admin")
        assert {p.id for p in client.projects.list(iterator=True)} == {1, 2, 3}


def test_group_projects_include_subgroups_on_demand(site: Gitlab) -> None:
    for path in ("top/a", "top/sub/b", "top/sub/deep/c", "topless/d"):
        site.add_project(path)
    with connect(site) as client:
        group = client.groups.get("top/sub")
        assert [p.id for p in group.projects.list(iterator=True)] == [2]
        top = client.groups.get("top", lazy=True)
        listed = top.projects.list(include_subgroups=True, sort="asc", **KEYSET)
        assert [p.id for p in listed] == [1, 2, 3]
        assert {g.full_path for g in client.groups.list(iterator=True)} >= {"top", "top/sub"}
        assert status_of(lambda: client.groups.get("unknown")) == 404


@pytest.mark.parametrize("keyset", [True, False])
def test_project_jobs_are_paged_newest_first(populated: Gitlab, keyset: bool) -> None:
    options = KEYSET if keyset else {"per_page": 100, "iterator": True}
    with connect(populated) as client:
        jobs = list(client.projects.get(3, lazy=True).jobs.list(**options))
    assert [job.id for job in jobs] == list(range(1983, 0, -20))
    assert populated.requests() == {"jobs": 1}


def test_project_jobs_pages_join_without_gap_or_double(populated: Gitlab) -> None:
    with connect(populated) as client:
        listed = client.projects.get(20, lazy=True).jobs.list(**{**KEYSET, "per_page": 7})
        assert [job.id for job in listed] == list(range(2000, 0, -20))
    assert populated.requests() == {"jobs": 15}
    assert "cursor=" in populated.access[-1].path


def test_project_jobs_added_by_hand_come_before_the_load(populated: Gitlab) -> None:
    project = populated.projects[3]
    job = populated.add_job(project, "extra", status="running")
    with connect(populated) as client:
        newest = next(iter(client.projects.get(3, lazy=True).jobs.list(**KEYSET)))
    assert (newest.id, newest.name, newest.finished_at) == (2001, "extra", None)
    assert populated.find_job(job.id) == job


def test_project_jobs_by_scope_are_those_states(populated: Gitlab) -> None:
    with connect(populated) as client:
        jobs = client.projects.get(1, lazy=True).jobs
        every = list(jobs.list(**KEYSET))
        ran = list(jobs.list(scope=["success", "failed", "running"], **KEYSET))
    assert {job.status for job in every} == {"success", "failed", "skipped"}
    assert [job.id for job in ran] == [job.id for job in every if job.started_at]
    assert {job.attributes.get("failure_reason") for job in ran if job.status == "failed"} == {
        "script_failure",
        "image_pull_failure",
    }


def test_project_job_has_the_fields_that_discovery_reads(site: Gitlab) -> None:
    site.runners[1].architecture = "arm64"
    project = site.add_project("a/b")
    job = site.add_job(project, "build", trace=b"x" * 77, tags=("big",), source="schedule")
    with connect(site) as client:
        found = client.projects.get(project.id, lazy=True).jobs.get(job.id)
    assert (found.name, found.status, found.tag_list) == ("build", "success", ["big"])
    assert found.pipeline["sha"] == project.sha
    assert (found.pipeline["ref"], found.pipeline["source"]) == ("main", "schedule")
    assert (found.runner["id"], found.runner["is_shared"]) == (1, False)
    assert (found.runner_manager["architecture"], found.runner_manager["platform"]) == (
        "arm64",
        "linux",
    )
    assert found.attributes["artifacts"] == [
        {"file_type": "trace", "size": 77, "filename": "job.log", "file_format": None}
    ]
    assert found.started_at.endswith("Z")


def test_runner_jobs_name_their_project_and_lack_runner_and_artifacts(populated: Gitlab) -> None:
    role(populated, "maintainer")
    with connect(populated) as client:
        jobs = list(client.runners.get(2, lazy=True).jobs.list(sort="desc", **KEYSET))
    assert jobs[0].project["path_with_namespace"].startswith("team-")
    assert not {"runner", "artifacts", "tag_list"} & set(jobs[0].attributes)
    ids = [job.id for job in jobs]
    assert ids == sorted(ids, reverse=True)
    for job in jobs[:50]:
        known = populated.find_job(job.id)
        assert known is not None
        assert known.runner == 2


def test_runners_tell_architecture_by_details_and_managers(populated: Gitlab) -> None:
    role(populated, "admin")
    populated.runners[2].online = False
    with connect(populated) as client:
        online = client.runners_all.list(iterator=True, status="online")
        assert {each.id for each in online} == {1, 3, 4}
        assert client.runners.get(4).architecture == "arm64"
        managers = client.http_list("/runners/4/managers", iterator=True)
        assert [each["architecture"] for each in managers] == ["arm64"]


def test_offset_paging_ends_at_its_limit(site: Gitlab) -> None:
    site.populate(projects=1, active=1, jobs=60_000, unresolved=0)
    with connect(site) as client:
        jobs = client.projects.get(1, lazy=True).jobs
        assert len(jobs.list(page=501, per_page=100)) == 100
        assert status_of(lambda: jobs.list(page=502, per_page=100)) == 405


def test_keyset_where_it_is_not_offered_is_refused(site: Gitlab) -> None:
    role(site, "admin")
    with connect(site) as client:
        assert status_of(lambda: list(client.runners_all.list(**KEYSET))) == 405
        assert status_of(lambda: client.projects.list(pagination="keyset", order_by="name")) == 405


def test_numbered_list_tells_its_total(populated: Gitlab) -> None:
    with connect(populated) as client:
        listed = client.projects.list(iterator=True, per_page=8)
        assert (listed.total, listed.total_pages, listed.next_page) == (30, 4, 2)


# --- lint, traces, itself ---


def test_lint_answers_the_merged_definition(populated: Gitlab) -> None:
    with connect(populated) as client:
        answer = client.projects.get(1, lazy=True).ci_lint.get()
    merged = yaml.safe_load(answer.merged_yaml)
    assert answer.valid
    assert merged["deploy"]["image"] == "$DEPLOY_IMAGE"
    assert merged["compat"]["parallel"] == {"matrix": [{"GO": ["1.21", "1.22"]}]}


@pytest.mark.parametrize(
    ("lint", "merged"),
    [
        (Lint("a: 1\n", False, ("jobs config should contain at least one visible job",)), "a: 1\n"),
        (Lint(None, False, ("Project `x` not found or access denied!",)), None),
        (None, None),
    ],
)
def test_lint_of_invalid_definition_says_why(
    site: Gitlab, lint: Lint | None, merged: str | None
) -> None:
    site.add_project("a/b", lint)
    with connect(site) as client:
        answer = client.projects.get(1, lazy=True).ci_lint.get()
    assert (answer.valid, answer.merged_yaml) == (False, merged)
    assert answer.errors


def test_lint_of_empty_repository_or_unknown_ref_is_not_found(site: Gitlab) -> None:
    site.add_project("a/empty", default_branch=None)
    site.add_project("a/b", "x: {script: y}")
    with connect(site) as client:
        assert status_of(lambda: client.projects.get(1, lazy=True).ci_lint.get()) == 404
        lint = client.projects.get(2, lazy=True).ci_lint
        assert status_of(lambda: lint.get(content_ref="gone")) == 404
        assert lint.get(content_ref="main").valid


def test_lint_of_a_stub_needs_developer_and_api(site: Gitlab) -> None:
    site.add_project("a/b", ci_config_path="ci.yml@team/ci")
    site.external["ci.yml@team/ci"] = Lint("x: {script: y}")
    site.external["Auto-DevOps.gitlab-ci.yml"] = Lint("build: {script: z}")
    stub = {"content": "include: {project: team/ci, file: ci.yml}"}
    with connect(site) as client:
        lint = client.projects.get(1, lazy=True).ci_lint
        role(site, "developer", "read_api")
        assert status_of(lambda: lint.create(stub)) == 403
        role(site, "reporter", "api")
        assert status_of(lambda: lint.create(stub)) == 403
        role(site, "developer", "api")
        assert lint.create(stub).merged_yaml == "x: {script: y}"
        template = {"content": "include: {template: Auto-DevOps.gitlab-ci.yml}"}
        assert lint.create(template).merged_yaml == "build: {script: z}"
        missing = lint.create({"content": "include: {project: no/where, file: x.yml}"})
        assert "`no/where` not found or access denied" in missing.errors[0]


@pytest.mark.parametrize(("honoured", "length"), [(False, 100_000), (True, 1000)])
def test_trace_ignores_range_and_may_honour_byte_limit(
    site: Gitlab, honoured: bool, length: int
) -> None:
    site.byte_limit = honoured
    project = site.add_project("a/b")
    job = site.add_job(project, "x", trace=b"x" * 100_000)
    with connect(site) as client:
        found = client.projects.get(1, lazy=True).jobs.get(job.id, lazy=True)
        assert len(bytes(found.trace(extra_headers={"Range": "bytes=0-9"}))) == 100_000
        path = f"/projects/1/jobs/{job.id}/trace"
        answer = client.http_get(path, query_data={"byte_limit": "1000"}, streamed=True, raw=True)
        assert isinstance(answer, requests.Response)
        assert len(answer.content) == length


def test_trace_huge_can_be_left_after_its_head(site: Gitlab) -> None:
    project = site.add_project("a/b")
    uses = (("docker.io/library/node:22", "image"), ("docker.io/library/redis:7", "service"))
    job = site.add_job(project, "x", trace=lambda: trace_text(uses, size=4 << 20))  # type: ignore[arg-type]
    with connect(site) as client:
        path = f"/projects/1/jobs/{job.id}/trace"
        answer = client.http_get(path, streamed=True, raw=True)
        assert isinstance(answer, requests.Response)
        head = answer.raw.read(32768)
        answer.close()
        assert client.version()[0] == "17.5.1-ee"
    assert int(answer.headers["Content-Length"]) > 4_000_000
    assert {(each.text, each.kind) for each in read(head).images} == {
        ("node:22", "image"),
        ("redis:7", "service"),
    }


def test_trace_erased_is_empty(site: Gitlab) -> None:
    job = site.add_job(site.add_project("a/b"), "x")
    with connect(site) as client:
        assert not client.projects.get(1, lazy=True).jobs.get(job.id, lazy=True).trace()


def test_token_tells_its_scopes_and_end(site: Gitlab) -> None:
    site.tokens[TOKEN] = Token(user="robot", expires="2098-01-02")
    with connect(site) as client:
        own = client.personal_access_tokens.get("self")
        client.auth()
        assert client.user is not None
        assert (own.scopes, own.expires_at, client.user.username) == (
            ["read_api"],
            "2098-01-02",
            "robot",
        )
    assert site.access[-1].account == "robot"


# --- rights ---


@pytest.mark.parametrize(
    ("token", "status"),
    [
        (None, 401),
        (Token(expires="2020-01-01"), 401),
        (Token(scopes=("read_repository",)), 403),
        (Token(scopes=("api",)), 200),
    ],
)
def test_token_wrong_or_too_narrow_is_refused(
    site: Gitlab, token: Token | None, status: int
) -> None:
    site.tokens = {TOKEN: token} if token else {}
    with connect(site) as client:
        if status == 200:
            assert client.projects.list(iterator=True).total == 0
        else:
            assert status_of(lambda: client.projects.list()) == status
    assert TOKEN not in repr(site.access)


@pytest.mark.parametrize(
    ("path", "least"),
    [
        ("/projects/1/jobs", "reporter"),
        ("/projects/1/ci/lint", "reporter"),
        ("/projects/1/jobs/1/trace", "reporter"),
        ("/projects/1/variables", "maintainer"),
        ("/projects/1/runners", "maintainer"),
        ("/runners/1/jobs", "maintainer"),
        ("/runners/9/jobs", "admin"),
        ("/groups/a/variables", "owner"),
        ("/groups/a/runners", "owner"),
        ("/runners/all", "admin"),
    ],
)
def test_role_below_the_least_is_forbidden(site: Gitlab, path: str, least: Role) -> None:
    roles: list[Role] = ["guest", "reporter", "developer", "maintainer", "owner", "admin"]
    site.add_job(site.add_project("a/b", "x: {script: y}"), "x", trace=b"x")
    site.runners[9] = type(site.runners[1])(9, shared=True)
    with connect(site) as client:
        answers = {}
        for each in roles:
            role(site, each)
            try:
                client.http_get(path, raw=True)
                answers[each] = 200
            except gitlab.GitlabHttpError as error:
                answers[each] = error.response_code or 0
    at = roles.index(least)
    assert list(answers.values()) == [403] * at + [200] * (len(roles) - at)


def test_variables_are_in_clear(site: Gitlab) -> None:
    site.add_project("a/b", variables={"X": "1"})
    site.group_variables["a"] = {"DEPLOY_IMAGE": "hashicorp/terraform:1.9"}
    role(site, "owner")
    with connect(site) as client:
        (own,) = client.projects.get(1, lazy=True).variables.list(iterator=True)
        (group,) = client.groups.get("a", lazy=True).variables.list(iterator=True)
    assert (own.key, own.value, group.value) == ("X", "1", "hashicorp/terraform:1.9")


def test_jobs_of_a_project_without_ci_are_forbidden(site: Gitlab) -> None:
    site.add_project("a/b", jobs_enabled=False)
    with connect(site) as client:
        assert status_of(lambda: client.projects.get(1, lazy=True).jobs.list()) == 403


# --- what goes wrong ---


def test_limit_with_retry_after_is_obeyed_by_the_client(site: Gitlab) -> None:
    site.faults.add(too_many_requests("/api/v4/projects", retry_after=1))
    started = time.monotonic()
    with connect(site) as client:
        assert client.projects.list(iterator=True).total == 0
    assert time.monotonic() - started >= 1
    assert site.access.statuses() == {429: 1, 200: 1}


def test_limit_without_retry_after_and_a_bad_gateway_are_retried(site: Gitlab) -> None:
    site.faults.add(too_many_requests())
    site.faults.add(bad_gateway())
    with connect(site, retry_transient_errors=True) as client:
        assert client.version()[0] == "17.5.1-ee"
    assert site.access.statuses() == {429: 1, 502: 1, 200: 1}


def test_faults_of_one_project_leave_the_others(site: Gitlab) -> None:
    for name in "abc":
        site.add_project(f"a/{name}")
    site.faults.add(forbidden(site.projects[1]))
    site.faults.add(rubbish("/api/v4/projects/2/jobs"))
    with connect(site) as client:
        jobs = [client.projects.get(number, lazy=True).jobs for number in (1, 2, 3)]
        assert status_of(lambda: jobs[0].list()) == 403
        with pytest.raises(gitlab.GitlabParsingError):
            jobs[1].list()
        assert jobs[2].list(iterator=True).next_page is None


def test_reset_breaks_the_connection_only_once(site: Gitlab) -> None:
    site.faults.add(Fault(path="*/version", reset=True))
    with connect(site) as client:
        with pytest.raises(requests.ConnectionError):
            client.http_get("/version")
        assert client.version()[0] == "17.5.1-ee"
    assert site.access.statuses() == {0: 1, 200: 1}


# --- the load ---


def test_load_knows_the_true_uses(site: Gitlab) -> None:
    """Counted again from what the API says: name of the job and whether it ran."""
    load = site.populate(projects=25, active=20, jobs=1000, unresolved=4)
    with connect(site) as client:
        names: dict[int, list[str]] = {}
        for number in range(1, 26):
            jobs = client.projects.get(number, lazy=True).jobs.list(**KEYSET)
            names[number] = [job.name for job in jobs if job.started_at]
    truth = site.truth()
    every = [name for each in names.values() for name in each]
    assert sum(len(each) for each in names.values()) == sum(
        1 for job in load.all() if job.started is not None
    )
    assert truth["docker.io/library/golang:1.21", "image"] == every.count("compat: [1.21]")
    assert truth["docker.io/library/redis:7", "service"] == every.count("integration")
    assert truth["docker.io/library/busybox:1.36", "proxy"] == every.count("proxied")
    assert truth["docker.io/hashicorp/terraform:1.9", "image"] == every.count("deploy")
    assert {number for number, each in names.items() if "deploy" in each} == {1, 2, 3, 4}
    assert [number for number, each in names.items() if not each] == [21, 22, 23, 24, 25]
    assert len({image for image, _ in truth}) > 10


def test_load_trace_names_what_the_job_used(site: Gitlab) -> None:
    load = site.populate(projects=3, active=3, jobs=200, unresolved=1)
    kinds = set()
    for job in load.all():
        trace = read(job.read_trace())
        kinds.add((job.failure_reason, trace.pull_failed))
        wanted = {text.removeprefix("docker.io/").removeprefix("library/") for text, _ in job.uses}
        seen = {image.text for image in trace.images}
        assert seen <= wanted
        assert trace.pull_failed or seen == wanted
    assert kinds == {(None, False), ("script_failure", False), ("image_pull_failure", True)}


def test_load_of_a_million_jobs_is_made_on_the_fly(site: Gitlab) -> None:
    started = time.process_time()
    site.populate(projects=1000, active=600, jobs=1_000_000, unresolved=300)
    with connect(site) as client:
        jobs = client.projects.get(600, lazy=True).jobs.list(**KEYSET)
        ids = [next(jobs).id for _ in range(250)]
    assert ids == list(range(1_000_000 - 400, 0, -600))[:250]
    assert site.requests() == {"jobs": 3}
    assert time.process_time() - started < 5


def test_history_forgets_and_changes_jobs(site: Gitlab) -> None:
    project = site.add_project("a/b")
    first, second = site.add_job(project, "x"), site.add_job(project, "y")
    site.jobs.change(as_running(second))
    site.jobs.remove(first.id)
    before = project.sha
    moved(project)
    assert project.sha != before
    with connect(site) as client:
        (job,) = client.projects.get(1, lazy=True).jobs.list(iterator=True)
        assert (job.id, job.status) == (second.id, "running")
        jobs = client.projects.get(1, lazy=True).jobs
        assert status_of(lambda: jobs.get(first.id)) == 404


def test_recorded_jobs_have_rising_ids() -> None:
    jobs = Recorded()
    jobs.add(Job(5, 1, "x"))
    with pytest.raises(AssertionError):
        jobs.add(Job(5, 1, "y"))
