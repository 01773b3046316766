"""`prewarm explain`: one image and everything about it, by HEADs alone or from the state."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, epoch
from tests.sandbox import Sandbox
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.support.process import Finished

AMD, ARM = "linux/amd64", "linux/arm64"


class Site:
    """A host whose images.yml may name the GitLab stand-in."""

    def __init__(self, folder: Path, box: Sandbox, gitlab: Gitlab) -> None:
        self.host = Host(folder, box)
        self.box = box
        self.gitlab = gitlab
        self.token = folder / "token"
        self.token.write_text(TOKEN)

    def configure(self, images: list[Any], **keys: Any) -> None:
        gitlab = {"url": self.gitlab.url, "token_file": str(self.token)}
        self.host.configure(images, **{"gitlab": gitlab, **keys})

    def budget(self, **budget: Any) -> dict[str, Any]:
        """Return `registries:` with that budget."""
        return {"docker.io": {"endpoint": self.box.hub.url, "budget": {"window": "6h", **budget}}}

    def jobs(self, path: str, image: str, number: int, job: str = "build") -> None:
        text = f"{job}:\n  image: {json.dumps(image)}\n  script: [make]\n"
        project = self.gitlab.add_project(path, text)
        for _ in range(number):
            self.gitlab.add_job(project, job)

    def push(self, *names: str, **options: Any) -> None:
        for name in names:
            repository, _, tag = name.partition(":")
            self.box.push(f"library/{repository}", tag, platforms=[AMD, ARM], **options)

    def explain(self, *args: str, code: int) -> Any:
        """Return the document; no manifest is ever asked for upstream but by HEAD."""
        self.host.forget_requests()
        done = self.host.run("explain", "--json", *args)
        assert done.returncode == code, done.stdout + done.stderr
        assert self.box.hub.access.gets() == []
        return done.json

    def lines(self, *args: str) -> list[str]:
        done = self.host.run("explain", *args)
        assert done.stderr == ""
        return done.stdout.splitlines()

    @property
    def mirror(self) -> str:
        return self.box.taps[0].url


@pytest.fixture
def site(box: Sandbox, tmp_path: Path) -> Any:
    with Gitlab() as gitlab:
        yield Site(tmp_path, box, gitlab)


def ranks_of(dry_run: Any) -> dict[str, int]:
    """Return the rank that a dry run tells of each image."""
    found = {}
    for entry in dry_run["images"]:
        if match := re.search(r"; rank (\d+):", entry["reason"]):
            found[entry["image"]] = int(match[1])
    return found


def test_explain_used_image_tells_who_uses_it(site: Site) -> None:
    site.push("golang:1.22")
    site.jobs("team/few", "golang:1.22", 2, "lint")
    site.jobs("team/many", "golang:1.22", 5)
    site.jobs("team/other", "node:22", 9)
    site.configure(["golang:1.22"])
    site.host.sync(code=0)
    told = site.explain("golang:1.22", code=0)
    uses = told["uses"]
    assert (uses["jobs"], uses["projects"], uses["pull_failures"]) == (7, 2, 0)
    assert uses["last_used"].endswith("Z")
    assert [(one["project"], one["jobs"], one["job_names"]) for one in uses["by_project"]] == [
        ("team/many", 5, ["build"]),
        ("team/few", 2, ["lint"]),
    ]
    (pin,) = told["pins"]
    assert re.fullmatch(r"images\.yml:\d+", pin["where"])
    assert (told["command"], told["obstacle"], told["hidden"]) == (None, None, None)
    assert told["mirrors"][site.mirror]["platforms"] == {AMD: "present"}


def test_explain_ranks_and_dates_as_the_dry_run_does(site: Site) -> None:
    site.push("a:1", "b:1", "c:1", "d:1")
    for name, number in (("b", 1), ("c", 7), ("d", 3)):
        site.jobs(f"team/{name}", f"{name}:1", number)
    site.jobs("team/typo", "a:9", 20)
    site.configure(["a:1"], registries=site.budget(pulls=1))
    assert site.host.sync().named("copy") == ["a:1"]
    plan = site.host.run("sync", "--dry-run", "--json").json
    ranks = ranks_of(plan)
    assert len(ranks) == 4
    for entry in plan["images"]:
        if entry["image"] not in ranks:
            continue
        for offline in ((), ("--offline",)):
            told = site.explain(entry["image"], *offline, code=int(entry["action"] != "fresh"))
            assert told["rank"]["rank"] == ranks[entry["image"]]
            assert told["rank"]["of"] == len(plan["images"])
            assert told["next"]["action"] == entry["action"]
            if entry["until"] is not None:
                apart = epoch(told["next"]["until"]) - epoch(entry["until"])
                assert apart == pytest.approx(0, abs=60)


def test_explain_without_any_sync_ranks_by_what_the_scan_found(site: Site) -> None:
    site.push("a:1", "b:1")
    site.jobs("team/a", "a:1", 1)
    site.jobs("team/b", "b:1", 4)
    site.configure([])
    site.host.run("scan")
    assert site.explain("a:1", code=1)["rank"]["rank"] == 2
    told = site.explain("b:1", "--offline", code=1)
    assert (told["rank"]["rank"], told["next"]["action"]) == (1, "copy")
    assert told["command"] == "prewarm sync b:1"
    assert told["upstream"]["digest"] is None
    assert list(site.box.hub.access) == []


def test_explain_command_makes_the_image_warm(site: Site) -> None:
    site.push("a:1", "b:1")
    site.configure(["a:1"], registries=site.budget(pulls=2, reserve=1))
    told = site.explain("b:1", code=1)
    assert (told["rank"], told["next"], told["uses"]) == (None, None, None)
    assert told["command"] == "prewarm sync b:1"
    assert site.lines("b:1")[-1] == "to warm it now: prewarm sync b:1"
    site.host.sync("a:1")
    told = site.explain("b:1", code=1)
    assert told["command"] == "prewarm sync b:1 --use-reserve"
    site.host.sync(*told["command"].split()[2:])
    assert site.explain("b:1", code=0)["warm"] is True


def test_explain_with_the_budget_spent_tells_what_to_wait_for(site: Site) -> None:
    site.push("a:1", "b:1", "c:1")
    site.configure(["a:1", "b:1", "c:1"], registries=site.budget(pulls=1))
    site.host.sync()
    told = site.explain("c:1", code=1)
    assert told["command"] is None
    assert told["obstacle"]["code"] == "budget"
    assert (told["next"]["action"], told["next"]["ahead"]) == ("defer", 1)
    now = (
        epoch(told["last_copy"]["at"]) if told["last_copy"] else epoch(told["upstream"]["checked"])
    )
    assert epoch(told["next"]["until"]) - now == pytest.approx(12 * 3600, abs=120)
    assert site.explain("b:1", code=1)["next"]["ahead"] == 0


def test_explain_mirror_states_tell_each_mirror_and_platform(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        _mirror_states(Host(tmp_path, box), box)


def _mirror_states(host: Host, box: Sandbox) -> None:
    first, second = (tap.url for tap in box.taps)
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    wanted = [AMD, ARM, "linux/s390x"]
    host.configure(["app:1"], platforms=wanted)
    host.sync()
    assert box.mirrors[1].delete("library/app", image.child(ARM).digest)
    done = host.run("explain", "--json", "app:1")
    assert done.returncode == 1
    lacking = {"linux/s390x": "not-upstream"}
    mirrors = done.json["mirrors"]
    assert mirrors[first]["platforms"] == {AMD: "present", ARM: "present", **lacking}
    assert mirrors[second]["platforms"] == {AMD: "present", ARM: "missing", **lacking}
    assert (mirrors[first]["state"], mirrors[second]["state"]) == ("fresh", "missing")
    text = host.run("explain", "app:1").stdout.splitlines()
    assert text[0].startswith("app:1 is warm only on 1 of 2 mirrors")

    box.push("library/app", "1", platforms=[AMD, ARM], name="newer")
    moved = host.run("explain", "--json", "app:1").json
    assert moved["mirrors"][first]["state"] == "stale"
    assert moved["mirrors"][first]["platforms"][AMD] == "stale"
    assert (moved["upstream"]["changed"], moved["upstream"]["moves"]) == (None, 1)


def test_explain_hints_at_names_that_variables_keep_open(site: Site) -> None:
    site.push("golang:1.22", "node:22")
    site.jobs("team/var", "golang:$GO_VERSION", 3)
    site.jobs("team/any", "$IMAGE", 2)
    site.configure([])
    site.host.run("scan")
    told = site.explain("golang:1.22", code=1)
    assert (told["uses"], told["hidden"]) == (None, None)
    (hint,) = told["unresolved"]
    assert (hint["project"], hint["job"], hint["jobs"]) == ("team/var", "build", 3)
    assert hint["text"] == "golang:$GO_VERSION"
    assert "$GO_VERSION" in hint["why"]
    assert told["unresolved_names"] == 1
    assert any("team/var" in line for line in site.lines("golang:1.22"))
    assert site.explain("node:22", code=1)["unresolved"] == []


def test_explain_tells_what_hides_an_image(site: Site) -> None:
    site.push("f:1", "wide:1")
    site.box.push("acme/secret", "1", platforms=[AMD])
    site.box.hub.rules.private = {"acme/secret": ["acme"]}
    site.jobs("team/secret", "acme/secret:1", 1)
    site.jobs("team/quay", "quay.io/acme/tool:1", 1)
    site.jobs("team/f", "f:1", 1)
    site.jobs("team/wide", "wide:1", 1)
    keys: dict[str, Any] = {
        "skip": ["*/library/f:*"],
        "authfile": str(site.box.authfile("acme", "sesame")),
    }
    site.configure([], limits={"image_size": "1B"}, **keys)
    site.host.sync()
    codes = {
        "acme/secret:1": "private",
        "quay.io/acme/tool:1": "unlisted-registry",
        "f:1": "skip",
        "wide:1": "image-size",
    }
    for name, code in codes.items():
        for offline in ((), ("--offline",)):
            told = site.explain(name, *offline, code=1)
            assert told["hidden"]["code"] == code, (name, offline)
            assert told["hidden"]["cure"]
            assert (told["command"], told["next"]) == (None, None)
            assert told["uses"]["projects"] == 1
        first, *_, last = site.lines(name)
        assert first.startswith(f"{name} is not mirrored: ")
        assert last == f"to have it mirrored: {told['hidden']['cure']}"
    # A pin is the operator's word.
    site.configure(["f:1"], **keys)
    assert site.explain("f:1", code=1)["hidden"] is None


def test_explain_digest_pin_needs_every_platform_of_its_index(site: Site) -> None:
    image = site.box.push("library/a", "1", platforms=[AMD, ARM])
    name = f"a@{image.digest}"
    site.configure([name], gitlab=None)
    cold = site.explain(name, code=1)
    assert (cold["command"], cold["upstream"]["digest"]) == (f"prewarm sync {name}", image.digest)
    site.host.sync()
    for offline in ((), ("--offline",)):
        warm = site.explain(name, *offline, code=0)
        assert warm["mirrors"][site.mirror]["platforms"] == {AMD: "present", ARM: "present"}
    assert len(warm["pins"]) == 1


def test_explain_image_of_too_many_pulls_is_not_mirrored(site: Site) -> None:
    site.push("a:1")
    site.configure(["a:1"], platforms=[AMD, ARM], limits={"pulls_per_image": 1}, gitlab=None)
    told = site.explain("a:1", code=1)
    assert told["hidden"]["code"] == "pulls-per-image"
    assert "limits.pulls_per_image" in told["hidden"]["text"]


def test_explain_pattern_pin_names_the_tags_that_it_means(site: Site) -> None:
    site.push("python:3.12", "python:3.13", "python:3.14")
    pin = {"image": "python", "tags": {"match": "3.*", "newest": 2}}
    site.configure([pin], gitlab=None)
    rank = site.explain("python:3.14", code=1)["rank"]
    assert (rank["rank"], rank["of"]) == (1, 2)
    assert site.explain("python:3.12", code=1)["pins"] == []
    site.host.sync()
    for name, pins in (("python:3.13", 1), ("python:3.14", 1), ("python:3.12", 0)):
        told = site.explain(name, "--offline", code=int(not pins))
        assert len(told["pins"]) == pins
    # Another image's rank counts the tags that the pattern is known to mean.
    site.push("a:1")
    site.configure([pin, "a:1"], gitlab=None)
    assert (site.explain("a:1", code=1)["rank"]["rank"], site.box.hub.access.gets()) == (3, [])


def test_explain_image_that_upstream_lacks_tells_it_first(site: Site) -> None:
    site.jobs("team/typo", "golang:1.222", 1)
    site.configure([])
    site.host.sync()
    for offline in ((), ("--offline",)):
        told = site.explain("golang:1.222", *offline, code=1)
        assert told["command"] is None
        assert told["obstacle"]["code"] == "not-found"
        assert told["next"]["action"] == "fail"
    first, *_, last = site.lines("golang:1.222")
    assert first.startswith("golang:1.222 cannot be copied: ")
    assert last.startswith("nothing warms it now: ")


def test_explain_without_network_tells_what_the_state_knows(site: Site) -> None:
    site.push("a:1")
    site.configure(["a:1"], gitlab=None)
    done = site.host.sync()
    digest = done.image("a:1")["digest"]
    site.box.hub.close()
    known = site.explain("a:1", code=0)
    assert (known["warm"], known["upstream"]["digest"]) == (True, digest)
    assert known["upstream"]["error"]["code"] == "unreachable"
    assert known["upstream"]["error"]["cure"]

    site.box.mirrors[0].stop()
    site.box.taps[0].close()
    dark = site.explain("a:1", code=1)
    mirror = dark["mirrors"][site.mirror]
    assert (mirror["state"], mirror["last_state"]) == ("unknown", "fresh")
    assert mirror["error"]["code"] == "mirror-unreachable"
    assert (dark["last_copy"]["pulls"], dark["rank"]["rank"]) == (1, 1)

    offline = site.explain("a:1", "--offline", code=0)
    assert (offline["asked"], offline["mirrors"][site.mirror]["error"]) == (False, None)
    assert offline["upstream"]["digest"] == digest
    assert ", as of " in site.lines("a:1", "--offline")[0]


@pytest.mark.parametrize(
    "spelling",
    [
        "https://docker.io/library/a:1",
        "docker://a:1",
        "INDEX.docker.io/library/a:1",
        "{mirror}/library/a:1",
        "http://{mirror}/library/a:1",
        "a:1 ",
    ],
)
def test_explain_understands_sloppy_names(site: Site, spelling: str) -> None:
    site.configure(["a:1"], gitlab=None)
    host = site.mirror.removeprefix("http://")
    told = site.explain("--offline", spelling.format(mirror=host), code=1)
    assert told["image"] == "docker.io/library/a:1"
    assert told["pins"]


@pytest.mark.parametrize("name", ["https://example.org/Team/App", "a b", "golang:$V", "https://"])
def test_explain_refuses_what_is_no_image_with_the_cure(site: Site, name: str) -> None:
    site.configure(["a:1"], gitlab=None)
    done: Finished = site.host.run("explain", name)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("prewarm: ")
    assert "; " in line


def test_explain_verbose_tells_why_it_has_its_rank(site: Site) -> None:
    site.push("a:1")
    site.jobs("team/a", "a:1", 3)
    site.configure([])
    site.host.sync()
    quiet = next(line for line in site.lines("a:1") if line.startswith("  rank"))
    assert "3 jobs" not in quiet
    assert quiet.startswith("  rank       1 of 1")
    told = site.host.run("-v", "explain", "a:1").stdout
    assert "1 of 1: 3 jobs of 1 project" in told


def test_explain_with_a_schedule_tells_when_the_next_sync_is(site: Site) -> None:
    site.push("a:1")
    site.configure(["a:1"], gitlab=None, schedule=["every 2h"])
    assert site.explain("a:1", code=1)["next"]["at"].endswith("Z")
    done = site.host.sync()
    site.push("a:1", name="newer")
    coming = site.explain("a:1", code=1)["next"]
    left = epoch(coming["at"]) - epoch(done.report["started"])
    assert coming["action"] == "copy"
    assert left == pytest.approx(7200, abs=2)
