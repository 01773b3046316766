"""What jobs name, against the GitLab stand-in: guesses that traces settle, and hostile paths."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from prewarm.core.budget import Moment
from prewarm.core.settings import Gitlab as Settings
from prewarm.discovery.evidence import NAMES_MAX, UNUSED_MAX
from prewarm.discovery.gitlab_client import Token as Secret
from prewarm.discovery.scan import scan
from prewarm.discovery.scan_result import Scan
from prewarm.state.ledger import Ledger
from tests.sandbox.ci_load import trace_text
from tests.sandbox.gitlab import TOKEN, Gitlab, forbidden
from tests.support.progress import Quiet

GUESS = """
a: {script: [make], image: 'fam:1${HOST}', variables: {HOST: -arm}}
b: {script: [make], image: 'fam:1${HOST}'}
"""
ARM = "docker.io/library/fam:1-arm"
X86 = "docker.io/library/fam:1-x86"


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as site:
        yield site


def scanned(site: Gitlab, **changes: object) -> Scan:
    def now() -> Moment:
        return Moment(time.time(), "boot", time.monotonic())

    with Ledger.memory() as ledger:
        settings = Settings(site.url, **changes)  # type: ignore[arg-type]
        return scan(settings, Secret(TOKEN), ledger, now, stop=threading.Event(), progress=Quiet())


def guessing(site: Gitlab, trace: bytes | None) -> None:
    project = site.add_project("team/app", GUESS)
    site.add_job(project, "a")
    site.add_job(project, "b", trace=trace)


def test_scan_of_an_undefined_variable_asks_a_trace_for_the_name(site: Gitlab) -> None:
    guessing(site, trace_text([("fam:1-x86", "image")]))
    found = scanned(site)
    assert {one.reference: one.jobs for one in found.images} == {ARM: 1, X86: 1}
    assert found.unresolved == ()
    assert site.requests()["trace"] == 1


def test_scan_of_an_undefined_variable_without_traces_wants_no_guess(site: Gitlab) -> None:
    guessing(site, None)
    found = scanned(site, traces="never")
    assert {one.reference: one.jobs for one in found.images} == {ARM: 1}
    (left,) = found.unresolved
    assert (left.job, left.text, left.jobs) == ("b", "fam:1${HOST}", 1)
    assert "$HOST" in left.why


@pytest.mark.parametrize("path", ["..", "../x.yml", "a/../../../user", "./ci.yml", "a/."])
def test_scan_where_lint_refuses_never_asks_for_a_path_with_dots(site: Gitlab, path: str) -> None:
    project = site.add_project("team/app", GUESS, ci_config_path=path)
    site.add_job(project, "b", trace=trace_text([("fam:1-x86", "image")]))
    site.faults.add(forbidden(project, "ci/lint"))
    found = scanned(site)
    assert any("the path of its CI file has . or .." in one.problem for one in found.problems)
    assert not [entry for entry in site.access if "repository" in entry.path]
    assert {one.reference for one in found.images} == {X86}


def test_scan_of_a_flood_of_names_counts_some_and_warns_once(site: Gitlab) -> None:
    jobs = "".join(f"j{number}: {{image: 'x{number}', script: [x]}}\n" for number in range(3000))
    project = site.add_project("eve/app", jobs)
    site.add_job(project, "j7")
    good = site.add_project("team/app", "b: {script: [make], image: 'good:1'}")
    site.add_job(good, "b")
    found = scanned(site)
    assert len(found.images) == 1 + UNUSED_MAX + 1
    assert [one.reference for one in found.images if one.jobs] == [
        "docker.io/library/good:1",
        "docker.io/library/x7:latest",
    ]
    (problem,) = found.problems
    assert (problem.severity, problem.code, problem.where) == ("warning", "crowded", "eve/app")
    assert f"{3000 - 1 - UNUSED_MAX} images more" in problem.problem.replace("\u202f", "")


def test_scan_of_traces_that_name_many_images_keeps_some(site: Gitlab) -> None:
    jobs = "".join(f"j{number}: {{image: '$X{number}', script: [x]}}\n" for number in range(30))
    project = site.add_project("eve/app", jobs)
    for number in range(30):
        names = [f"x{number}-{image}" for image in range(100)]
        trace = trace_text([(name, "service") for name in names])
        site.add_job(project, f"j{number}", trace=trace)
    assert len(scanned(site).images) == NAMES_MAX
