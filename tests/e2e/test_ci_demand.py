"""What CI uses is kept warm beside the pins: a sync scans GitLab first, and mirrors what it may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Sync
from tests.sandbox import Sandbox
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
