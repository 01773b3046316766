"""What CI uses is kept warm beside the pins: a sync scans GitLab first, and mirrors what it may."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prewarm.discovery.evidence import UNUSED_MAX
from tests.e2e import host
from tests.e2e.host import Host, Sync
from tests.sandbox import Fault, Sandbox, ci_load
from tests.sandbox.ci_load import Runner
from tests.sandbox.gitlab import TOKEN, Gitlab

AMD, ARM = "linux/amd64", "linux/arm64"


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as running:
        yield running


class Ci:
    """A host whose images.yml names the GitLab stand-in."""

    def __init__(self, folder: Path, box: Sandbox, site: Gitlab) -> None:
        self.host = Host(folder, box)
        self.site = site
        self.token = folder / "token"
        self.token.write_text(TOKEN)

    def configure(self, images: list[Any], **keys: Any) -> None:
        gitlab = {"url": self.site.url, "token_file": str(self.token)} | keys.pop("gitlab", {})
        self.host.configure(images, gitlab=gitlab, **keys)

    def jobs(self, path: str, image: str, number: int, **more: Any) -> None:
        """Have a project whose one job used the image so often."""
        project = self.site.add_project(path, f"build:\n  image: {image}\n  script: [make]\n")
        for _ in range(number):
            self.site.add_job(project, "build", **more)


@pytest.fixture
def ci(box: Sandbox, site: Gitlab, tmp_path: Path) -> Ci:
    return Ci(tmp_path, box, site)


def push(box: Sandbox, *names: str, **options: Any) -> None:
    for name in names:
        repository, _, tag = name.partition(":")
        box.push(repository, tag, platforms=[AMD, ARM], **options)


def problems(done: Sync) -> set[tuple[str, str]]:
    return {(one["severity"], one["code"]) for one in done.report["problems"]}


def test_sync_keeps_warm_what_ci_used_after_the_pins(ci: Ci, box: Sandbox, site: Gitlab) -> None:
    push(box, "library/golang:1.22", "library/node:22", "library/redis:7")
    ci.jobs("team/few", "golang:1.22", 2)
    ci.jobs("team/many", "node:22", 5)
    ci.configure(["redis:7", "golang:1.22"])
    done = ci.host.sync()
    assert done.actions == [("redis:7", "copy"), ("golang:1.22", "copy"), ("node:22", "copy")]
    pin, both, used = done.report["images"]
    assert (pin["sources"], pin["jobs"]) == (["pin"], 0)
    assert (both["sources"], both["jobs"]) == (["pin", "definition", "history"], 2)
    assert (used["sources"], used["jobs"], used["projects"]) == (["definition", "history"], 5, 1)
    assert used["last_used"].endswith("Z")

    # The scan is young: the next sync asks GitLab nothing, and upstream only by HEAD.
    site.access.clear()
    again = ci.host.sync()
    assert again.summary["fresh"] == 3
    assert again.gets == ()
    assert len(site.access) == 0
    told = ci.host.run("status", "--json").json
    assert (told["coverage"], told["uses_unresolved"]) == (1.0, 0.0)


def test_sync_orders_what_ci_used_by_its_jobs(ci: Ci, box: Sandbox) -> None:
    push(box, "library/a:1", "library/b:1", "library/c:1")
    for name, number in (("a", 1), ("b", 4), ("c", 2)):
        ci.jobs(f"team/{name}", f"{name}:1", number)
    budget = {"pulls": 2, "window": "6h"}
    ci.configure([], registries={"docker.io": {"endpoint": box.hub.url, "budget": budget}})
    done = ci.host.sync()
    assert done.actions == [("b:1", "copy"), ("c:1", "copy"), ("a:1", "defer")]
    assert ci.host.run("status", "--json").json["coverage"] == round(6 / 7, 4)


def test_sync_gives_one_project_no_more_than_its_share_of_a_window(ci: Ci, box: Sandbox) -> None:
    push(box, *(f"library/{name}:1" for name in "abcd"))
    for name in "abcd":
        ci.jobs(f"team/{name}", f"{name}:1", 1)
    loud = "".join(f"{name}:\n  image: {name}:1\n  script: [x]\n" for name in ("k", "l", "m"))
    push(box, *(f"library/{name}:1" for name in "klm"))
    project = ci.site.add_project("loud/app", loud)
    for name in "klmklmkl":
        ci.site.add_job(project, name)
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": {"pulls": 20, "window": "6h"}}}
    ci.configure([], registries=registries, limits={"pulls_per_project": 2})
    done = ci.host.sync()
    assert done.named("copy") == ["k:1", "l:1", "a:1", "b:1", "c:1", "d:1"]
    late = done.image("m:1")
    assert (late["action"], late["code"]) == ("defer", "project-share")
    assert "loud/app" in late["reason"]
    wait = host.epoch(late["until"]) - host.epoch(done.report["started"])
    assert wait == pytest.approx(6 * 3600, abs=60)

    # The ledger remembers whose they were; half the window later nothing has changed.
    ci.host.let_time_pass(3 * 3600)
    assert ci.host.sync().named("defer") == ["m:1"]
    ci.host.let_time_pass(3 * 3600 + 60)
    assert ci.host.sync().named("copy") == ["m:1"]


def test_sync_gives_one_project_no_more_than_its_share_of_the_disk(ci: Ci, box: Sandbox) -> None:
    names = [f"j{number}" for number in range(8)]
    for name in names:
        box.push(f"library/{name}", "1", size=100_000)
    box.push("library/good", "1", size=100_000)
    jobs = "".join(f"{name}: {{image: '{name}:1', script: [x]}}\n" for name in names)
    project = ci.site.add_project("eve/app", jobs)
    for name in names * 3:
        ci.site.add_job(project, name)
    ci.jobs("team/app", "good:1", 2)
    registries = {"docker.io": {"endpoint": box.hub.url}}
    ci.configure([], registries=registries, limits={"image_size": "110kB", "parallel": 1})
    done = ci.host.sync()
    late = [one for one in done.report["images"] if one["action"] == "defer"]
    assert "good:1" in done.named("copy")
    assert 3 <= len(late) <= 4
    assert {one["code"] for one in late} == {"project-share"}
    assert all("share of the mirror's disk" in one["reason"] for one in late)
    # Their manifests are kept: a plan knows their size, and waiting costs no pull.
    again = ci.host.sync()
    assert again.gets == ()
    assert len(again.named("defer")) == len(late)
    ci.host.let_time_pass(6 * 3600 + 60)
    assert len(ci.host.sync().named("copy")) == len(late)


def test_sync_asks_for_few_of_the_names_that_one_project_floods_it_with(
    ci: Ci, box: Sandbox
) -> None:
    push(box, "library/good:1")
    jobs = "".join(f"j{number}: {{image: 'x{number}', script: [x]}}\n" for number in range(50_000))
    project = ci.site.add_project("eve/app", jobs)
    ci.site.add_job(project, "j7")
    ci.jobs("team/app", "good:1", 2)
    ci.configure([], registries={"docker.io": {"endpoint": box.hub.url}})
    done = ci.host.sync()
    assert done.named("copy") == ["good:1"]
    assert len(box.hub.access.heads()) <= 2 * (UNUSED_MAX + 10)
    codes = [one["code"] for one in done.report["problems"] if one["where"] == "eve/app"]
    assert codes.count("crowded") == 1


def test_sync_of_a_named_image_asks_for_no_share(ci: Ci, box: Sandbox) -> None:
    push(box, "library/a:1", "library/b:1")
    text = "a:\n  image: a:1\n  script: [x]\nb:\n  image: b:1\n  script: [x]\n"
    project = ci.site.add_project("team/app", text)
    for name in "aab":
        ci.site.add_job(project, name)
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": {"pulls": 20, "window": "6h"}}}
    ci.configure([], registries=registries, limits={"pulls_per_project": 1})
    assert ci.host.sync().actions == [("a:1", "copy"), ("b:1", "defer")]
    assert ci.host.sync("b:1").actions == [("b:1", "copy")]


def test_sync_skips_what_ci_names_and_the_mirror_may_not_hold(ci: Ci, box: Sandbox) -> None:
    push(box, "acme/secret:1", "acme/open:1", "library/huge:1")
    box.hub.rules.private = {"acme/secret": ["acme"]}
    ci.jobs("team/secret", "acme/secret:1", 3)
    ci.jobs("team/open", "acme/open:1", 2)
    ci.jobs("team/quay", "quay.io/acme/tool:1", 1)
    ci.jobs("team/huge", "huge:1", 1)
    ci.configure([], authfile=str(box.authfile("acme", "sesame")), skip=["*/library/huge:*"])
    done = ci.host.sync()
    codes = {one["image"]: (one["action"], one["code"]) for one in done.report["images"]}
    assert codes == {
        "docker.io/acme/secret:1": ("skip", "private"),
        "docker.io/acme/open:1": ("copy", "missing"),
        "quay.io/acme/tool:1": ("skip", "unlisted-registry"),
        "docker.io/library/huge:1": ("skip", "skip"),
    }
    assert box.mirrors[0].catalog() == ["acme/open"]
    assert not box.hub.access.heads("library/huge")

    # Asked without credentials once a week; a pin is the operator's word.
    assert [entry.account for entry in box.hub.access.heads("acme/secret")] == [""]
    assert ci.host.sync().image("acme/secret:1")["code"] == "private"
    assert not box.hub.access.heads("acme/secret")
    ci.configure(["acme/secret:1"], authfile=str(box.authfile("acme", "sesame")))
    assert ci.host.sync().image("acme/secret:1")["action"] == "copy"


def path_login(box: Sandbox, key: str) -> str:
    """Return an authfile whose one login is for a part of the Hub, as `skopeo login` writes it."""
    file = Path(box.authfile("acme", "sesame"))
    (entry, *_) = json.loads(file.read_text())["auths"].values()
    key = key.replace("HUB", box.hub.url.removeprefix("http://"))
    file.write_text(json.dumps({"auths": {key: entry}}))
    return str(file)


@pytest.mark.parametrize(
    "key", ["HUB/acme", "HUB/acme/secret", "docker.io/acme", "index.docker.io/acme/secret"]
)
def test_sync_skips_a_private_image_that_a_login_under_a_path_shows(
    ci: Ci, box: Sandbox, key: str
) -> None:
    push(box, "acme/secret:1", "library/open:1")
    box.hub.rules.private = {"acme/secret": ["acme"]}
    digest = box.upstream.storage.digest("acme/secret", "1")
    ci.jobs("team/secret", "acme/secret:1", 3)
    ci.jobs("team/digest", f"acme/secret@{digest}", 3)
    ci.jobs("team/open", "open:1", 1)
    ci.configure([], authfile=path_login(box, key))
    done = ci.host.sync()
    assert {one["image"]: (one["action"], one["code"]) for one in done.report["images"]} == {
        "docker.io/acme/secret:1": ("skip", "private"),
        f"docker.io/acme/secret@{digest}": ("skip", "private"),
        "docker.io/library/open:1": ("copy", "missing"),
    }
    assert box.mirrors[0].catalog() == ["library/open"]
    told = ci.host.run("explain", "--offline", "--json", "acme/secret:1")
    assert json.loads(told.stdout)["hidden"]["code"] == "private"
    # No login applies to what was public from the start: it is asked for once, anonymously.
    assert [entry.account for entry in box.hub.access.heads("library/open")] == [""]


def test_sync_charges_each_account_with_what_its_login_pulled(ci: Ci, box: Sandbox) -> None:
    push(box, "acme/secret:1", "library/a:1", "library/b:1")
    box.push("acme/secret", "2", name="another", platforms=[AMD, ARM])
    box.hub.rules.private = {"acme/secret": ["acme"]}
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": {"pulls": 1, "window": "6h"}}}
    ci.configure(
        ["acme/secret:1", "acme/secret:2", "a:1", "b:1"],
        registries=registries,
        authfile=path_login(box, "HUB/acme"),
    )
    done = ci.host.sync()
    # One pull each: neither account is charged for the other, or may spend its budget.
    assert sorted(done.named("copy")) == ["a:1", "acme/secret:1"]
    assert sorted(done.named("defer")) == ["acme/secret:2", "b:1"]
    with ci.host.sql() as sql:
        rows = set(sql.execute("SELECT account, repository, pulls FROM pulls"))
    assert {(account.partition("@")[0], *rest) for account, *rest in rows} == {
        ("acme", "acme/secret", 1),
        ("anonymous", "library/a", 1),
    }
    assert done.report["budgets"]["docker.io"]["used"] == 1


def test_sync_misspelt_repository_in_ci_is_not_told_to_exist(ci: Ci, box: Sandbox) -> None:
    ci.jobs("team/typo", "golnag:1.22", 1)
    ci.configure([], authfile=str(box.authfile("acme", "sesame")))
    told = ci.host.sync().image("golnag:1.22")
    assert "no such repository" in told["reason"]
    explained = ci.host.run("explain", "golnag:1.22", "--json").json["hidden"]
    assert "check the name" in explained["cure"]


def test_sync_image_that_only_ci_names_and_upstream_lacks_is_a_warning(
    ci: Ci, box: Sandbox
) -> None:
    push(box, "library/golang:1.22")
    ci.jobs("team/app", "golang:1.22", 1)
    ci.jobs("team/typo", "golang:1.222", 1)
    ci.configure([])
    done = ci.host.sync()
    assert dict(done.actions) == {"golang:1.22": "copy", "golang:1.222": "fail"}
    assert problems(done) == {("warning", "not-found")}
    assert ci.host.sync("--strict", code=1).named("fresh") == ["golang:1.22"]


def test_sync_without_gitlab_works_from_the_remembered_demand(
    ci: Ci, box: Sandbox, site: Gitlab
) -> None:
    push(box, "library/golang:1.22")
    ci.jobs("team/app", "golang:1.22", 1)
    ci.configure([], gitlab={"rescan": "1s"})
    assert ci.host.sync().named("copy") == ["golang:1.22"]
    site.close()
    time.sleep(1.1)
    mirror = box.mirrors[0]
    digest = mirror.storage.digest("library/golang", "1.22")
    assert digest
    assert mirror.delete("library/golang", digest)
    done = ci.host.sync(code=1)
    assert [action for _, action in done.actions] == ["tag"]
    (problem,) = done.report["problems"]
    assert problem["severity"] == "error"
    assert "the demand is that of the last scan" in problem["problem"]
    assert problem["where"] == site.url
    # Asked not to scan, nothing is wrong.
    assert ci.host.sync("--no-scan").named("fresh") == ["golang:1.22"]


@pytest.mark.parametrize(("arm_jobs", "code", "severity"), [(1, 0, "warning"), (5, 1, "error")])
def test_sync_mirrors_the_architectures_of_the_runners_or_tells_what_lacks(
    ci: Ci, box: Sandbox, site: Gitlab, arm_jobs: int, code: int, severity: str
) -> None:
    push(box, "library/golang:1.22", "library/node:22")
    site.runners[2] = Runner(2, architecture="arm64")
    ci.jobs("team/app", "node:22", 45)
    ci.jobs("team/arm", "golang:1.22", arm_jobs, runner=2)
    ci.configure([], platforms=None)
    done = ci.host.sync()
    assert done.image("golang:1.22")["platforms"] == [ARM]
    assert done.image("node:22")["platforms"] == [AMD]
    ci.configure([], platforms=[AMD])
    told = ci.host.sync(code=code)
    assert problems(told) == {(severity, "platform")}


# --- a whole site: 200 projects and 5,000 jobs, then the Hub and the mirror ---


def test_sync_of_a_whole_site_warms_what_most_jobs_used_within_the_budget(
    ci: Ci, box: Sandbox, site: Gitlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = box.push("library/alpine", "pinned").digest
    monkeypatch.setattr(ci_load, "PINNED", f"alpine@{pinned}")
    site.populate(projects=200, active=120, jobs=5000, unresolved=40)
    for runner in site.runners.values():
        runner.architecture = "amd64"
    unknown = site.add_project("team/open", "x:\n  image: $NOBODY_KNOWS:1\n  script: [x]\n")
    site.add_job(unknown, "x")

    # What the jobs really used, by the stand-in's own account; all of the Hub's is there.
    truth = site.truth()
    jobs = {image: number for (image, kind), number in truth.items() if kind != "proxy"}
    served = {image: number for image, number in jobs.items() if image.startswith("docker.io/")}
    assert len(served) == 14
    for image in served:
        repository, _, tag = image.removeprefix("docker.io/").partition(":")
        if "@" not in image:
            box.push(repository, tag, name=image)

    budget = {"pulls": 9, "window": "6h"}
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": budget}}
    ci.configure([], platforms=[AMD], registries=registries)
    done = ci.host.sync()

    # Exact counts, no image that no job used, and no image twice.
    told = {one["image"]: one["jobs"] for one in done.report["images"]}
    assert told == jobs
    assert len(done.report["images"]) == len(jobs)
    assert done.image("quay.io/team/base:7")["code"] == "unlisted-registry"
    scanned = ci.host.run("scan", "--json").json
    assert [(one["project"], one["text"]) for one in scanned["unresolved"]] == [
        ("team/open", "$NOBODY_KNOWS:1")
    ]

    # Warm is what most jobs used; a client gets it from the mirror itself.
    ranked = sorted(served, key=served.__getitem__, reverse=True)
    warm = {f"docker.io/{one}" for one in fully_qualified(done.named("copy"))}
    assert warm == set(ranked[:9])
    assert served[ranked[8]] > served[ranked[9]]
    for image in ranked:
        repository, mark, selector = parts_of(image)
        held = box.mirrors[0].manifest(repository, selector) is not None
        assert held is (image in warm), image
    best, worst = parts_of(ranked[0]), parts_of(ranked[8])
    for repository, mark, selector in (best, worst):
        ci.host.pulled(repository, f"{mark}{selector}", AMD)

    # The rest waits for the budget, and comes in the order in which it waited.
    waiting = [f"docker.io/{one}" for one in fully_qualified(done.named("defer"))]
    assert set(waiting) == set(ranked[9:])
    assert {done.image(host.familiar(one))["code"] for one in waiting} == {"budget"}
    assert all(done.image(host.familiar(one))["until"] for one in waiting)
    assert ci.host.charged() == 9
    coverage = ci.host.run("status", "--json").json["coverage"]
    expected = sum(served[one] for one in warm) / sum(served.values())
    assert coverage == pytest.approx(expected, abs=0.0001)
    ci.host.let_time_pass(6 * 3600 + 1)
    later = ci.host.sync()
    assert [f"docker.io/{one}" for one in fully_qualified(later.named("copy"))] == waiting
    assert ci.host.run("status", "--json").json["coverage"] == 1.0


def fully_qualified(names: list[str]) -> list[str]:
    """Return Docker Hub's names with their `library/`."""
    return [name if "/" in name else f"library/{name}" for name in names]


def parts_of(image: str) -> tuple[str, str, str]:
    """Return repository, `:` or `@`, and tag or digest of a name on Docker Hub."""
    mark = "@" if "@" in image else ":"
    repository, _, selector = image.removeprefix("docker.io/").partition(mark)
    return repository, mark, selector


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "*/library/*/blobs/uploads/*"),
        ("PATCH", "*/library/*/blobs/uploads/*"),
        ("PUT", "*/library/*/manifests/*"),
    ],
)
def test_sync_mirror_that_answers_404_to_writes_is_the_operators_to_mend(
    ci: Ci, box: Sandbox, method: str, path: str
) -> None:
    """A proxy before it, or replicas without shared storage, do so: CI's author has no part."""
    push(box, "library/node:22")
    ci.jobs("team/a", "node:22", 2)
    ci.configure([])
    box.taps[0].faults.add(Fault(method, path, count=None, status=404))
    done = ci.host.sync(code=1)
    assert problems(done) == {("error", "mirror-bad-answer")}
