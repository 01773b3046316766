"""Pruning a real registry: what is kept can be pulled, the rest's space comes back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prewarm.state import clock
from prewarm.state.location import exclusive, locks_for
from tests.e2e.host import Host
from tests.sandbox import Sandbox
from tests.sandbox.faults import Fault
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.sandbox.images import Layer, build_image, push
from tests.sandbox.registry import Registry

AMD, ARM = "linux/amd64", "linux/arm64"
DAY = 86400


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as running:
        yield running


def age(host: Host, days: float, image: str = "%") -> None:
    """Make what was pushed so much older, and the last wish for an image."""
    with host.sql() as sql, sql:
        by = {"s": days * DAY, "image": f"%{image}"}
        sql.execute("UPDATE written SET wanted = wanted - :s WHERE image LIKE :image", by)
        sql.execute("UPDATE pushed SET since = since - :s", by)


def prune(host: Host, *args: str, code: int = 0) -> Any:
    host.forget_requests()
    finished = host.run("prune", "--json", *args)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished.json


def removed(report: Any, mirror: int = 0) -> dict[str | None, str]:
    """Return the images that went from a mirror, each with the reason."""
    return {one["image"]: one["reason"] for one in report["mirrors"][mirror]["removed"]}


def problems(report: Any) -> set[tuple[str, str]]:
    return {(one["severity"], one["code"]) for one in report["problems"]}


def deletions(box: Sandbox, mirror: int = 0) -> list[str]:
    """Return the digests that the mirror was asked to delete, in order."""
    taken = box.taps[mirror].access.writes()
    return [one.reference for one in taken if one.method == "DELETE" and "/manifests/" in one.path]


def disk(mirror: Registry) -> int:
    """Return the bytes of all manifests and blobs on the mirror's disk."""
    return sum(file.stat().st_size for file in mirror.storage.folder.rglob("blobs/**/data"))


def collect_garbage(mirror: Registry) -> None:
    """Run the registry's own collection, with the registry stopped."""
    mirror.stop()
    config = mirror.folder / f"registry-{mirror.port}.yml"
    subprocess.run(
        ["docker-registry", "garbage-collect", str(config)], check=True, capture_output=True
    )
    mirror.start()


def mirrors(box: Sandbox, **keys: Any) -> list[dict[str, Any]]:
    return [{"url": tap.url, **keys} for tap in box.taps]


# --- what goes, what stays, and the space ---


def test_prune_and_garbage_collection_give_back_exactly_what_nobody_needs(
    host: Host, box: Sandbox
) -> None:
    mirror = box.mirrors[0]
    base = Layer("base", 50_000)
    kept = box.push("library/app", "1", platforms=[AMD], layers=[base], size=30_000)
    wide = box.push("library/app", "2", platforms=[AMD, ARM], layers=[base], size=30_000)
    assert kept.child(AMD).digest == wide.child(AMD).digest
    old = box.push("library/old", "1", platforms=[AMD, ARM], layers=[base], size=40_000)
    both = {"image": "app", "tags": ["1", "2"], "platforms": "all"}
    host.configure([both, {"image": "old:1", "platforms": "all"}])
    host.sync()
    # Of others: a repository that prewarm knows nothing of, and a tag in one of its own.
    theirs = push(mirror, "mine/tool", build_image("tool", layers=[base]), "1")
    beside = push(mirror, "library/old", build_image("beside"), "mine")

    host.configure([{"image": "app", "tags": ["1"], "platforms": "all"}])
    age(host, 31)
    would = prune(host, "--dry-run", "--force")
    assert deletions(box) == []
    assert mirror.tags("library/old") == ["1", "mine"]
    assert prune(host, "--dry-run", "--force") == would

    done = prune(host, "--force")
    assert {**would, "dry_run": False} == done
    assert removed(done) == {
        "docker.io/library/app:2": "not wanted for 31d, more than keep: 30d",
        "docker.io/library/old:1": "not wanted for 31d, more than keep: 30d",
    }
    # The index first, then the children that only it had; the shared one stays.
    assert sorted(deletions(box)) == sorted(
        [
            wide.digest,
            wide.child(ARM).digest,
            old.digest,
            *(child.digest for child in old.children),
        ]
    )
    assert deletions(box).index(old.digest) < deletions(box).index(old.children[0].digest)
    assert mirror.tags("library/app") == ["1"]
    assert mirror.tags("library/old") == ["mine"]
    assert "garbage-collect" in done["garbage_collection"]

    before = disk(mirror)
    collect_garbage(mirror)
    (told,) = done["mirrors"]
    assert before - disk(mirror) == told["bytes_before"] - told["bytes_after"]
    assert done["summary"]["bytes"] == told["bytes_before"] - told["bytes_after"]
    assert host.pulled("library/app", ":1", AMD) == kept.child(AMD).digest
    assert host.pulled("mine/tool", ":1", AMD) == theirs.child(AMD).digest
    assert host.pulled("library/old", ":mine", AMD) == beside.child(AMD).digest
    assert host.run("verify").returncode == 0

    # Forgotten as well: nothing more to prune, and who wants it again gets it whole.
    assert prune(host)["summary"]["removed"] == 0
    assert host.run("status", "--json").json["images"]["tracked"] == 1
    host.configure([both, {"image": "old:1", "platforms": "all"}])
    assert sorted(host.sync().named("copy")) == ["app:2", "old:1"]
    assert host.pulled("library/old", ":1", ARM) == old.child(ARM).digest
    assert host.run("verify").returncode == 0


def test_prune_of_a_moved_tag_takes_what_it_left_after_a_day(host: Host, box: Sandbox) -> None:
    first = box.push("library/app", "1", platforms=[AMD], size=50_000)
    host.configure([{"image": "app:1", "platforms": "all"}])
    host.sync()
    second = box.push("library/app", "1", platforms=[AMD], size=50_000, revision=2)
    host.sync()
    # A job that began before may still pull it by its digest.
    assert prune(host, "--force")["summary"]["digests"] == 0
    age(host, 1.1)
    done = prune(host, "--force")
    assert deletions(box) == [first.digest, first.child(AMD).digest]
    assert removed(done) == {None: "no tag needs it any more"}
    collect_garbage(box.mirrors[0])
    assert not box.mirrors[0].storage.blob_file(first.child(AMD).digest).exists()
    assert host.pulled("library/app", ":1", AMD) == second.child(AMD).digest


def test_prune_interrupted_within_an_image_is_ended_by_the_next(host: Host, box: Sandbox) -> None:
    old = box.push("library/old", "1", platforms=[AMD, ARM])
    box.push("library/app", "1", platforms=[AMD], size=100_000)
    host.configure([{"image": "old:1", "platforms": "all"}, "app:1"])
    host.sync()
    host.configure(["app:1"])
    age(host, 31)
    child = old.children[0].digest
    box.taps[0].faults.add(Fault("DELETE", f"*/{child}", status=500))
    done = prune(host, code=1)
    assert problems(done) == {("error", "mirror-server-error")}
    assert box.mirrors[0].manifest("library/old", old.digest) is None
    assert box.mirrors[0].manifest("library/old", child) is not None
    prune(host)
    assert box.mirrors[0].manifest("library/old", child) is None
    assert box.mirrors[0].manifest("library/old", old.children[1].digest) is None


def test_prune_leaves_the_parts_of_an_image_that_comes_over_windows(
    host: Host, box: Sandbox
) -> None:
    platforms = [AMD, ARM, "linux/s390x"]
    wide = box.push("library/wide", "1", platforms=platforms)
    budget = {"pulls": 2, "window": "6h"}
    hub = {"docker.io": {"endpoint": box.hub.url, "budget": budget}}
    host.configure(["wide:1"], registries=hub, platforms=platforms)
    host.sync()
    parts = {
        one.digest for one in wide.children if box.mirrors[0].manifest("library/wide", one.digest)
    }
    assert len(parts) == 2
    age(host, 31)
    prune(host, "--force")
    assert deletions(box) == []
    host.configure([], registries=hub)
    prune(host, "--force")
    assert set(deletions(box)) == parts


def test_prune_after_a_lost_state_leaves_what_a_pinned_digest_stands_on(
    host: Host, box: Sandbox
) -> None:
    base = Layer("base", 50_000)
    old = box.push("library/app", "1", platforms=[AMD], layers=[base])
    pinned = box.push("library/app", "2", platforms=[AMD, ARM], layers=[base])
    assert old.child(AMD).digest == pinned.child(AMD).digest
    pin = {"image": f"app@{pinned.digest}", "platforms": "all"}
    host.configure([pin])
    host.sync()
    host.forget_state()
    # No tag and no row tells of the pinned index, whose child a known tag shares.
    host.configure([{"image": "app:1", "platforms": "all"}])
    host.sync()
    host.configure([pin], mirrors=mirrors(box, max_size="1KB"))
    prune(host, "--force", code=1)
    assert deletions(box) == [old.digest]
    collect_garbage(box.mirrors[0])
    assert host.pulled("library/app", f"@{pinned.digest}", AMD) == pinned.child(AMD).digest
    assert host.pulled("library/app", f"@{pinned.digest}", ARM) == pinned.child(ARM).digest


def test_prune_looks_whether_what_stays_is_whole(host: Host, box: Sandbox) -> None:
    for tag in ("1", "2"):
        box.push("library/app", tag, platforms=[AMD], name=tag)
    host.configure(["app:1", "app:2"])
    host.sync()
    host.configure(["app:1"])
    age(host, 31)
    box.taps[0].faults.add(Fault("HEAD", "*/library/app/manifests/1", nth=2, status=404))
    done = prune(host, "--force", code=1)
    assert removed(done).keys() == {"docker.io/library/app:2"}
    assert problems(done) == {("error", "verify")}


def test_prune_of_a_digest_that_somebody_tagged_too_leaves_it(host: Host, box: Sandbox) -> None:
    box.push("library/old", "1", platforms=[AMD])
    host.configure(["old:1"])
    host.sync()
    box.mirrors[0].retag("library/old", "1", "mine")
    host.configure([])
    age(host, 31)
    done = prune(host, "--force")
    assert deletions(box) == []
    (stays,) = done["mirrors"][0]["stays"]
    assert stays["reason"] == "tag mine, which prewarm did not write, has the same digest"


def test_prune_of_a_tag_that_somebody_moved_leaves_theirs(host: Host, box: Sandbox) -> None:
    box.push("library/old", "1", platforms=[AMD])
    host.configure(["old:1"])
    host.sync()
    theirs = push(box.mirrors[0], "library/old", build_image("theirs"), "1")
    host.configure([])
    age(host, 31)
    prune(host, "--force")
    assert theirs.digest not in deletions(box)
    assert host.pulled("library/old", ":1", AMD) == theirs.child(AMD).digest


def test_prune_to_max_size_takes_what_was_wanted_longest_ago_first(
    host: Host, box: Sandbox
) -> None:
    names = ("a", "b", "c", "pin")
    for name in names:
        box.push(f"library/{name}", "1", platforms=[AMD], size=100_000)
    host.configure([f"{name}:1" for name in names])
    host.sync()
    for days, name in ((3, "a:1"), (9, "b:1"), (6, "c:1")):
        age(host, days, name)
    host.configure(["pin:1"], mirrors=mirrors(box, max_size="250KB"))
    done = prune(host, "--force")
    assert list(removed(done)) == ["docker.io/library/b:1", "docker.io/library/c:1"]
    assert done["mirrors"][0]["bytes_after"] <= 250_000
    assert prune(host, "--force")["summary"]["removed"] == 0


def test_prune_never_takes_a_pin_and_says_that_the_mirror_is_too_small(
    host: Host, box: Sandbox
) -> None:
    box.push("library/app", "1", platforms=[AMD], size=100_000)
    host.configure(["app:1"], mirrors=mirrors(box, max_size="10KB"))
    host.sync()
    age(host, 400)
    done = prune(host, "--force", code=1)
    assert problems(done) == {("error", "mirror-too-small")}
    assert deletions(box) == []
    # No loop: a night with it spends and writes nothing.
    again = host.sync("--prune", code=1)
    assert (again.gets, again.named("fresh")) == ((), ["app:1"])
    assert deletions(box) == []


def test_prune_of_a_pattern_whose_tags_cannot_be_listed_keeps_its_repository(
    host: Host, box: Sandbox
) -> None:
    box.push("library/app", "1.1", platforms=[AMD])
    pin = {"image": "app", "tags": {"match": "1.*", "newest": 1}}
    host.configure([pin])
    host.sync()
    age(host, 400)
    box.hub.faults.add(Fault(path="*/tags/list", status=500, count=None))
    done = prune(host, "--force", code=1)
    assert done["mirrors"][0]["removed"] == []
    assert ("error", "server-error") in problems(done)


def test_prune_of_a_repository_that_cannot_be_read_leaves_it(host: Host, box: Sandbox) -> None:
    for name in ("old", "other"):
        box.push(f"library/{name}", "1", platforms=[AMD])
    host.configure(["old:1", "other:1"])
    host.sync()
    # A tag whose manifest is damaged may stand on anything.
    damaged = push(box.mirrors[0], "library/old", build_image("damaged"), "bad")
    box.mirrors[0].storage.blob_file(damaged.digest).write_bytes(b"{")
    host.configure([])
    age(host, 31)
    done = prune(host, "--force")
    assert list(removed(done)) == ["docker.io/library/other:1"]
    assert problems(done) == {("warning", "prune-unread")}
    assert "1" in box.mirrors[0].tags("library/old")


# --- other mirrors ---


@pytest.mark.parametrize("keys", [{"role": "source"}, {"mode": "pull-through"}], ids=str)
def test_prune_never_touches_what_is_only_read(tmp_path: Path, keys: dict[str, str]) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        box.push("library/old", "1", platforms=[AMD])
        host.configure(["old:1"])
        host.sync()
        first, second = (tap.url for tap in box.taps)
        host.configure([], mirrors=[first, {"url": second, **keys}])
        age(host, 31)
        done = prune(host, "--force")
        assert [one["url"] for one in done["mirrors"]] == [first]
        assert deletions(box, 0) != []
        assert not box.taps[1].access.writes()
        assert box.mirrors[1].tags("library/old") == ["1"]


def test_prune_of_a_mirror_that_is_down_does_the_others(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        box.push("library/old", "1", platforms=[AMD])
        host.configure(["old:1"])
        host.sync()
        host.configure([])
        age(host, 31)
        box.taps[0].faults.add(Fault(status=503, count=None))
        done = prune(host, "--force", code=1)
        assert removed(done, 1).keys() == {"docker.io/library/old:1"}
        assert {one["where"] for one in done["problems"]} == {box.taps[0].url}
        box.taps[0].faults.clear()
        assert removed(prune(host, "--force")).keys() == {"docker.io/library/old:1"}


def test_prune_where_the_mirror_deletes_nothing_says_how_to_let_it(
    host: Host, box: Sandbox
) -> None:
    box.push("library/old", "1", platforms=[AMD])
    host.configure(["old:1"])
    host.sync()
    mirror = box.mirrors[0]
    mirror.delete_enabled = False
    mirror.restart()
    host.configure([])
    age(host, 31)
    done = prune(host, "--force", code=1)
    assert problems(done) == {("error", "mirror-delete-disabled")}
    assert "REGISTRY_STORAGE_DELETE_ENABLED" in done["problems"][0]["cure"]
    assert done["mirrors"][0]["removed"] == []
    assert mirror.tags("library/old") == ["1"]


def test_prune_of_a_full_mirror_deletes_all_the_same(host: Host, box: Sandbox) -> None:
    box.push("library/old", "1", platforms=[AMD])
    host.configure(["old:1"])
    host.sync()
    host.configure([])
    age(host, 31)
    full = json.dumps({"errors": [{"code": "UNKNOWN", "detail": {"Err": 28}}]}).encode()
    box.taps[0].faults.add(Fault("POST", status=500, body=full, count=None))
    assert removed(prune(host, "--force")).keys() == {"docker.io/library/old:1"}


def test_prune_beside_another_prewarm_ends_with_75(host: Host, box: Sandbox) -> None:
    host.configure([])
    with exclusive(locks_for(None, [box.taps[0].url]), clock.now()):
        assert host.run("prune").returncode == 75
        # A dry run only looks.
        assert host.run("prune", "--dry-run").returncode == 0


# --- guards ---


def asks_gitlab(host: Host, site: Gitlab, images: list[Any], **keys: Any) -> None:
    token = host.folder / "token"
    token.write_text(TOKEN)
    gitlab = {"url": site.url, "token_file": str(token)} | keys.pop("gitlab", {})
    host.configure(images, gitlab=gitlab, **keys)


def one_of_many_is_old(host: Host, box: Sandbox, site: Gitlab, **keys: Any) -> None:
    """Have a large image that CI uses, and a small one that nobody wants any more."""
    box.push("library/used", "1", platforms=[AMD], size=100_000)
    box.push("library/old", "1", platforms=[AMD])
    project = site.add_project("team/app", "build:\n  image: used:1\n  script: [make]\n")
    site.add_job(project, "build")
    asks_gitlab(host, site, ["old:1"], **keys)
    host.sync()
    asks_gitlab(host, site, [], **keys)
    age(host, 31)


def refused(report: Any) -> str:
    (mirror,) = report["mirrors"]
    assert mirror["removed"] == []
    assert mirror["bytes_after"] == mirror["bytes_before"]
    return str(mirror["refused"]["code"])


def test_prune_keeps_what_ci_uses_and_takes_what_it_does_not(
    host: Host, box: Sandbox, site: Gitlab
) -> None:
    one_of_many_is_old(host, box, site)
    done = prune(host)
    assert removed(done).keys() == {"docker.io/library/old:1"}
    assert done["mirrors"][0]["refused"] is None
    assert box.mirrors[0].tags("library/used") == ["1"]


@pytest.mark.parametrize("days", [3.1, -1.0])
def test_prune_after_a_scan_of_another_time_is_refused_without_force(
    host: Host, box: Sandbox, site: Gitlab, days: float
) -> None:
    one_of_many_is_old(host, box, site)
    with host.sql() as sql, sql:
        sql.execute("UPDATE scans SET finished = finished - :s", {"s": days * DAY})
    assert refused(prune(host, code=1)) == "scan-old"
    assert deletions(box) == []
    would = prune(host, "--dry-run", code=1)
    assert would["mirrors"][0]["refused"]["code"] == "scan-old"
    assert removed(would).keys() == {"docker.io/library/old:1"}
    assert removed(prune(host, "--force")).keys() == {"docker.io/library/old:1"}


def test_prune_without_any_complete_scan_is_refused(host: Host, box: Sandbox, site: Gitlab) -> None:
    one_of_many_is_old(host, box, site)
    with host.sql() as sql, sql:
        sql.execute("UPDATE scans SET complete = 0")
    assert refused(prune(host, code=1)) == "scan-old"


def test_prune_after_the_scope_has_changed_is_refused(
    host: Host, box: Sandbox, site: Gitlab
) -> None:
    one_of_many_is_old(host, box, site)
    asks_gitlab(host, site, [], gitlab={"groups": ["team"]})
    assert refused(prune(host, code=1)) == "scan-scope"
    host.configure([])
    assert refused(prune(host, code=1)) == "scan-scope"
    assert deletions(box) == []


def test_prune_of_more_than_the_share_of_the_bytes_is_refused(host: Host, box: Sandbox) -> None:
    box.push("library/a", "1", platforms=[AMD], size=68_000)
    box.push("library/b", "1", platforms=[AMD], size=32_000)
    host.configure(["a:1", "b:1"])
    host.sync()
    host.configure(["a:1"])
    age(host, 31)
    assert refused(prune(host, code=1)) == "prune-share"
    assert removed(prune(host, "--force")).keys() == {"docker.io/library/b:1"}


def test_prune_with_a_bad_include_is_refused_even_with_force(host: Host, box: Sandbox) -> None:
    box.push("library/a", "1", platforms=[AMD])
    host.configure(["a:1"])
    host.sync()
    (host.folder / "more.yml").write_text("images: {")
    host.configure([], include=["more.yml"])
    age(host, 31)
    assert refused(prune(host, "--force", code=1)) == "pins-unknown"


# --- after a sync ---


def test_sync_with_prune_removes_after_it_has_copied(
    host: Host, box: Sandbox, site: Gitlab
) -> None:
    one_of_many_is_old(host, box, site)
    box.push("library/new", "1", platforms=[AMD])
    asks_gitlab(host, site, ["new:1"])
    would = host.sync("--prune", "--dry-run")
    assert removed(would.report["prune"]).keys() == {"docker.io/library/old:1"}
    assert deletions(box) == []
    done = host.sync("--prune")
    assert done.image("new:1")["action"] == "copy"
    assert removed(done.report["prune"]).keys() == {"docker.io/library/old:1"}
    assert box.mirrors[0].catalog() == ["library/new", "library/old", "library/used"]
    assert box.mirrors[0].tags("library/old") == []


def test_sync_with_prune_that_is_refused_is_a_warning(host: Host, box: Sandbox) -> None:
    box.push("library/a", "1", platforms=[AMD])
    host.configure(["a:1"])
    host.sync()
    host.configure([])
    age(host, 31)
    done = host.sync("--prune")
    assert problems(done.report) == {("warning", "prune-share")}
    assert host.run("status", "--json").json["last_sync"]["problems"] != []
    host.sync("--prune", "--strict", code=1)
    assert deletions(box) == []


def test_sync_of_named_images_takes_no_prune(host: Host) -> None:
    host.configure([])
    finished = host.run("sync", "--prune", "a:1")
    assert finished.returncode == 2
    assert "name no images" in finished.stderr


def test_prune_for_people_tells_what_goes_and_how_the_space_comes_back(
    host: Host, box: Sandbox
) -> None:
    box.push("library/old", "1", platforms=[AMD])
    host.configure(["old:1"])
    host.sync()
    host.configure([])
    age(host, 31)
    told = host.run("prune", "--force").stdout
    assert "old:1" in told
    assert "not wanted for 31d" in told
    assert "docker-registry garbage-collect CONFIG, never with --delete-untagged" in told
