"""Pull-through mirrors: the Hub's own log says what they spent, and what a client then costs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Sync, digest_of, wait_until
from tests.sandbox import Fault, Hub, Image, Quota, Rules, Sandbox, Tap
from tests.sandbox.cache import Cache
from tests.sandbox.faults import JSON_HEADERS
from tests.sandbox.wire import Request, Response
from tests.support.process import run_skopeo

AMD, ARM, S390 = "linux/amd64", "linux/arm64", "linux/s390x"
THREE = [AMD, ARM, S390]
DAY = 86400.0


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(quota=Quota(200)) as sandbox:
        yield sandbox


@pytest.fixture
def cache(box: Sandbox) -> Iterator[Cache]:
    with Cache(box) as running:
        yield running


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def configure(host: Host, cache: Cache, pins: list[Any], pulls: int = 100, **keys: Any) -> None:
    budget = {"pulls": pulls, "window": "6h", "reserve": 0}
    registries = {"docker.io": {"endpoint": host.box.hub.url, "budget": budget}}
    keys = {"mirrors": [cache.mirror], "registries": registries, **keys}
    host.configure(pins, **keys)


def sync(host: Host, cache: Cache, *args: str, code: int = 0) -> Sync:
    cache.tap.access.clear()
    return host.sync(*args, code=code)


def many(box: Sandbox, amount: int) -> list[Image]:
    return [box.push(f"library/app{n}", "1", platforms=THREE) for n in range(amount)]


def pulled(host: Host, cache: Cache, name: str, platform: str = AMD) -> str:
    """Pull from the mirror as a client of that platform; return the digest that it got."""
    system, architecture = platform.split("/")
    target = host.folder / f"pulled-{name.replace('/', '-')}-{architecture}"
    address = cache.url.removeprefix("http://")
    choose = ["--override-os", system, "--override-arch", architecture]
    source = f"docker://{address}/{name}"
    finished = run_skopeo(
        [*choose, "copy", "--src-tls-verify=false", source, f"dir:{target}"], host.folder
    )
    assert finished.returncode == 0, finished.stderr
    return digest_of((target / "manifest.json").read_bytes())


def let_a_week_pass(host: Host, cache: Cache) -> None:
    """The mirror has forgotten all it had, and the state is so much older."""
    older = 7 * DAY + 301
    host.let_time_pass(older)
    with host.sql() as sql, sql:
        sql.execute("UPDATE cached SET since = since - ?", (older,))
        sql.execute("UPDATE written SET wall = wall - ?", (older,))
    cache.forget_all()


def gets(host: Host) -> int:
    return len(host.box.hub.access.gets())


def assert_charged(host: Host, done: Sync) -> None:
    """What the Hub was asked is what was reported, and what the ledger was charged."""
    assert len(done.gets) == done.summary["gets"]
    assert done.summary["gets"] <= sum(gets for _, _, gets in host.ledger())
    assert done.summary["pulls"] <= host.charged()


# --- warm, and again ---


def test_sync_warms_a_pull_through_mirror_and_clients_then_cost_nothing(
    host: Host, cache: Cache
) -> None:
    images = many(host.box, 3)
    lone = host.box.push("team/lone", "1", single=True)
    configure(host, cache, ["app0:1", "app1:1", "app2:1", "team/lone:1"])
    done = sync(host, cache)
    assert done.summary["copied"] == 4
    assert (done.summary["pulls"], done.summary["gets"]) == (4, 7)
    assert_charged(host, done)
    assert host.charged() == 4
    assert cache.tap.access.writes() == []
    for name in ("app0:1", "team/lone:1"):
        (told,) = done.image(name)["mirrors"].values()
        assert told["state"] == "fresh"
    host.forget_requests()
    assert pulled(host, cache, "library/app1:1") == images[1].child(AMD).digest
    assert pulled(host, cache, "team/lone:1") == lone.digest
    assert gets(host) == 0
    assert list(host.box.hub.cdn.access) == []


def test_sync_again_asks_the_mirror_for_no_manifest_and_the_hub_for_none(
    host: Host, cache: Cache
) -> None:
    many(host.box, 3)
    configure(host, cache, ["app0:1", "app1:1", "app2:1"])
    sync(host, cache)
    again = sync(host, cache)
    assert again.named("fresh") == ["app0:1", "app1:1", "app2:1"]
    assert again.gets == ()
    assert again.summary["pulls"] == 0
    assert cache.tap.access.of("manifest") == []
    assert cache.tap.access.of("blob") == []


def test_sync_warms_every_wanted_platform_and_charges_each(host: Host, cache: Cache) -> None:
    (image,) = many(host.box, 1)
    configure(host, cache, ["app0:1"], platforms=[AMD, ARM])
    done = sync(host, cache)
    assert (done.summary["pulls"], done.summary["gets"]) == (2, 3)
    assert_charged(host, done)
    host.forget_requests()
    assert pulled(host, cache, "library/app0:1", ARM) == image.child(ARM).digest
    assert gets(host) == 0
    assert pulled(host, cache, "library/app0:1", S390) == image.child(S390).digest
    assert gets(host) == 1


def test_sync_platform_that_is_added_costs_its_own_pull(host: Host, cache: Cache) -> None:
    many(host.box, 1)
    configure(host, cache, ["app0:1"])
    sync(host, cache)
    configure(host, cache, ["app0:1"], platforms=[AMD, ARM])
    done = sync(host, cache)
    assert done.image("app0:1")["code"] == "parts"
    assert (done.summary["pulls"], done.summary["gets"]) == (1, 1)
    assert_charged(host, done)


def test_sync_tags_of_one_digest_cost_one_pull(host: Host, cache: Cache) -> None:
    host.box.push("library/app", "1", "1.0", platforms=THREE)
    configure(host, cache, ["app:1", "app:1.0"])
    done = sync(host, cache)
    assert done.actions == [("app:1", "copy"), ("app:1.0", "tag")]
    assert (done.summary["pulls"], done.summary["gets"]) == (1, 2)
    assert_charged(host, done)
    host.box.upstream.retag("library/app", "1", "latest")
    configure(host, cache, ["app:1", "app:latest"])
    later = sync(host, cache)
    assert later.image("app:latest")["action"] == "tag"
    assert later.gets == ()
    assert host.charged() == 1


def test_sync_digest_pin_is_warmed_whole_and_then_asked_for_nowhere(
    host: Host, cache: Cache
) -> None:
    (image,) = many(host.box, 1)
    name = f"app0@{image.digest}"
    configure(host, cache, [name])
    done = sync(host, cache)
    assert (done.summary["pulls"], done.summary["gets"]) == (3, 4)
    assert_charged(host, done)
    again = sync(host, cache)
    assert again.named("fresh") == [name]
    assert host.box.hub.access.of("manifest") == []
    assert cache.tap.access.of("manifest") == []


def test_sync_image_that_moved_is_warmed_again(host: Host, cache: Cache) -> None:
    host.box.push("library/app", "1")
    configure(host, cache, ["app:1"])
    sync(host, cache)
    moved = host.box.push("library/app", "1", revision=2)
    planned = sync(host, cache, "--dry-run")
    (mirror,) = planned.image("app:1")["mirrors"].values()
    assert mirror["state"] == "missing"
    done = sync(host, cache)
    assert done.image("app:1")["code"] == "stale"
    assert done.summary["gets"] == 2
    assert_charged(host, done)
    host.forget_requests()
    assert pulled(host, cache, "library/app:1") == moved.child(AMD).digest
    assert gets(host) == 0


class Mover(Tap):
    """Upstream's tag moves at the moment at which the mirror is first asked for it."""

    def __init__(self, cache: Cache, box: Sandbox) -> None:
        self.box = box
        self.moved: Image | None = None
        super().__init__(cache.registry)

    def respond(self, request: Request) -> Response:
        if self.moved is None and "/manifests/" in request.path:
            self.moved = self.box.push("library/app", "1", platforms=THREE, revision=2)
        return super().respond(request)


@pytest.mark.parametrize("known", [False, True], ids=["new", "warm-before"])
def test_sync_image_that_moves_under_way_is_warmed_as_it_is_then(
    host: Host, cache: Cache, known: bool
) -> None:
    host.box.push("library/app", "1", "other", platforms=THREE)
    if known:
        configure(host, cache, ["app:other"])
        sync(host, cache)
    with Mover(cache, host.box) as tap:
        mirror = {"url": tap.url, "mode": "pull-through"}
        if known:
            with host.sql() as sql, sql:
                for table in ("cached", "written", "states"):
                    sql.execute(f"UPDATE {table} SET mirror = ?", (tap.url,))
        configure(host, cache, ["app:1"], mirrors=[mirror])
        done = host.sync()
        assert tap.moved is not None
        assert done.image("app:1")["digest"] == tap.moved.digest
        assert len(done.gets) == 2
        assert_charged(host, done)
        assert host.sync().named("fresh") == ["app:1"]
        assert gets(host) == 0


# --- the week ---


def test_sync_after_a_week_plans_and_charges_what_expired(host: Host, cache: Cache) -> None:
    many(host.box, 2)
    configure(host, cache, ["app0:1", "app1:1"])
    sync(host, cache)
    let_a_week_pass(host, cache)
    host.forget_requests()
    planned = sync(host, cache, "--dry-run")
    assert planned.summary["pulls"] == 2
    assert {image["code"] for image in planned.report["images"]} == {"expired"}
    assert cache.tap.access.of("manifest") == []
    done = sync(host, cache)
    assert done.named("copy") == ["app0:1", "app1:1"]
    assert (done.summary["pulls"], done.summary["gets"]) == (2, 4)
    assert len(done.gets) == 4
    assert host.charged() == 4
    host.forget_requests()
    pulled(host, cache, "library/app0:1")
    assert gets(host) == 0
    assert sync(host, cache).summary["fresh"] == 2


def test_status_after_a_week_counts_what_expired_as_missing(host: Host, cache: Cache) -> None:
    many(host.box, 2)
    configure(host, cache, ["app0:1", "app1:1"])
    sync(host, cache)
    warm = host.run("status", "--json").json
    assert warm["images"]["fresh"] == 2
    assert warm["coverage"] == 1
    assert warm["mirrors"][0]["mode"] == "pull-through"
    let_a_week_pass(host, cache)
    cold = host.run("status", "--json").json
    assert cold["images"] == {"tracked": 2, "fresh": 0, "stale": 0, "missing": 2}
    assert cold["coverage"] == 0
    assert host.run("explain", "app0:1", "--offline").returncode == 1


def test_sync_before_the_week_is_over_asks_for_nothing(host: Host, cache: Cache) -> None:
    many(host.box, 1)
    configure(host, cache, ["app0:1"])
    sync(host, cache)
    with host.sql() as sql, sql:
        sql.execute("UPDATE cached SET since = since - ?", (7 * DAY,))
        sql.execute("UPDATE written SET wall = wall - ?", (7 * DAY,))
    assert sync(host, cache).summary["fresh"] == 1
    assert cache.tap.access.of("manifest") == []


# --- budgets ---


def test_sync_budget_too_small_leaves_the_rest_for_later(host: Host, cache: Cache) -> None:
    many(host.box, 5)
    pins = [f"app{n}:1" for n in range(5)]
    configure(host, cache, pins, pulls=3)
    done = sync(host, cache)
    assert len(done.named("copy")) == 3
    assert {done.image(name)["code"] for name in done.named("defer")} == {"budget"}
    assert len(done.gets) == 6
    assert host.charged() == 3
    assert sync(host, cache).gets == ()
    host.let_time_pass(6 * 3600 + 1)
    rest = sync(host, cache)
    assert sorted(rest.named("copy")) == sorted(done.named("defer"))
    assert_charged(host, rest)


def test_sync_image_larger_than_a_window_comes_in_parts(host: Host, cache: Cache) -> None:
    (image,) = many(host.box, 1)
    configure(host, cache, ["app0:1"], pulls=2, platforms=THREE)
    first = sync(host, cache)
    assert first.image("app0:1")["action"] == "defer"
    assert first.summary["pulls"] == 2
    assert_charged(host, first)
    host.let_time_pass(6 * 3600 + 1)
    second = sync(host, cache)
    assert second.image("app0:1")["action"] == "copy"
    assert second.summary["pulls"] == 1
    assert len(second.gets) == 1
    host.forget_requests()
    for platform in THREE:
        assert pulled(host, cache, "library/app0:1", platform) == image.child(platform).digest
    assert gets(host) == 0


def test_sync_heeds_what_upstream_reports_as_remaining(host: Host, cache: Cache) -> None:
    many(host.box, 4)
    host.box.hub.spend(200 - 3)
    configure(host, cache, [f"app{n}:1" for n in range(4)])
    done = sync(host, cache)
    assert {done.image(name)["code"] for name in done.named("defer")} == {"upstream-quota"}
    assert len(done.named("copy")) == 2
    assert 429 not in host.box.hub.access.statuses()
    assert_charged(host, done)


def test_sync_429_that_the_mirror_hides_defers_the_rest_and_charges_nothing(
    host: Host, cache: Cache
) -> None:
    many(host.box, 4)
    host.box.hub.rules.report_quota = False
    host.box.hub.spend(1000)
    configure(host, cache, [f"app{n}:1" for n in range(4)], limits={"parallel": 1})
    done = sync(host, cache)
    assert {image["action"] for image in done.report["images"]} == {"defer"}
    assert {image["code"] for image in done.report["images"]} == {"upstream-quota"}
    assert len(done.gets) == 1
    assert host.charged() == 0
    host.box.hub.rules.quota = None
    assert sync(host, cache).summary["copied"] == 4


class Thief(Tap):
    """Another client takes the last pulls just before the mirror asks, and its HEAD is refused."""

    def __init__(self, cache: Cache, box: Sandbox) -> None:
        self.box = box
        super().__init__(cache.registry)

    def respond(self, request: Request) -> Response:
        if "/manifests/" in request.path:
            self.box.hub.spend(1000)
            self.box.hub.faults.add(Fault(method="HEAD", path="*/manifests/*", status=429))
        return super().respond(request)


def test_sync_429_that_the_mirror_tells_as_not_found_is_known_by_what_remains(
    host: Host, cache: Cache
) -> None:
    many(host.box, 2)
    with Thief(cache, host.box) as tap:
        mirror = {"url": tap.url, "mode": "pull-through"}
        limits = {"parallel": 1}
        configure(host, cache, ["app0:1", "app1:1"], mirrors=[mirror], limits=limits)
        done = host.sync()
        assert tap.access.of("manifest")[0].status == 404
        assert {image["code"] for image in done.report["images"]} == {"upstream-quota"}
        assert len(tap.access.of("manifest")) == 1
        assert host.charged() == 0


# --- what goes wrong ---


def test_sync_killed_under_way_is_resumed_and_stays_in_the_budget(host: Host, cache: Cache) -> None:
    many(host.box, 4)
    pins = [f"app{n}:1" for n in range(4)]
    configure(host, cache, pins, platforms=THREE, limits={"parallel": 1})
    hung = cache.tap.faults.add(Fault(method="GET", path="*/app2/blobs/*", hang=30))
    host.forget_requests()
    with host.start("sync", "--json") as process:
        wait_until(lambda: hung.seen > 0, "blob of the third image", 30)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    cache.tap.faults.clear()
    before = gets(host)
    assert before == 12
    done = sync(host, cache)
    assert done.summary["fresh"] == 2
    assert before + len(done.gets) == 16
    assert before + len(done.gets) <= sum(sent for _, _, sent in host.ledger())
    host.forget_requests()
    pulled(host, cache, "library/app2:1", ARM)
    assert gets(host) == 0
    assert sync(host, cache).summary["fresh"] == 4


def test_sync_killed_while_a_manifest_comes_counts_it_and_asks_again(
    host: Host, cache: Cache
) -> None:
    many(host.box, 1)
    configure(host, cache, ["app0:1"])
    hung = cache.tap.faults.add(Fault(method="GET", path="*/manifests/sha256:*", hang=30))
    host.forget_requests()
    with host.start("sync", "--json") as process:
        wait_until(lambda: hung.seen > 0, "child of the image", 30)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    cache.tap.faults.clear()
    assert host.charged() == 1
    done = sync(host, cache)
    assert done.summary["pulls"] == 1
    assert host.charged() == 2


def test_sync_interrupted_while_a_blob_comes_ends_at_once_and_is_resumed(
    host: Host, cache: Cache
) -> None:
    host.box.push("library/large", "1", size=8 << 20)
    configure(host, cache, ["large:1"])
    host.box.hub.cdn.latency = 0.2
    with host.start("sync", "--json") as process:
        wait_until(lambda: bool(cache.tap.access.of("blob")), "blob", 30)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    host.box.hub.cdn.latency = 0.0
    done = sync(host, cache)
    assert done.gets == ()
    assert done.image("large:1")["action"] in ("tag", "fresh")
    assert sync(host, cache).summary["fresh"] == 1


def test_sync_dry_run_asks_the_mirror_for_nothing_but_its_mode(host: Host, cache: Cache) -> None:
    many(host.box, 2)
    configure(host, cache, ["app0:1", "app1:1"])
    sync(host, cache)
    many(host.box, 3)
    configure(host, cache, ["app0:1", "app1:1", "app2:1"])
    done = sync(host, cache, "--dry-run")
    assert done.summary["copied"] == 1
    assert {entry.kind for entry in cache.tap.access} <= {"upload", "v2"}
    assert gets(host) == 0


def test_sync_plain_registry_declared_as_pull_through_fails_before_a_pull(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    many(box, 2)
    mirrors = [{"url": box.taps[0].url, "mode": "pull-through"}]
    configure(host, cache, ["app0:1", "app1:1"], mirrors=mirrors)
    done = host.sync(code=1)
    (problem,) = done.report["problems"]
    assert (problem["code"], problem["where"]) == ("mirror-mode", box.taps[0].url)
    assert "mode: push" in problem["cure"]
    assert done.gets == ()
    assert box.taps[0].access.of("manifest") == []
    assert host.ledger() == []


def test_sync_proxy_declared_as_push_fails_before_it_is_asked_for_a_manifest(
    host: Host, cache: Cache
) -> None:
    many(host.box, 2)
    configure(host, cache, ["app0:1", "app1:1"], mirrors=[cache.url])
    done = sync(host, cache, code=1)
    (problem,) = done.report["problems"]
    assert (problem["code"], problem["where"]) == ("mirror-mode", cache.url)
    assert "mode: pull-through" in problem["cure"]
    assert cache.tap.access.of("manifest") == []
    assert gets(host) == 0


def test_sync_mirror_of_another_upstream_is_told_and_given_up_after_twelve_images(
    host: Host, box: Sandbox
) -> None:
    many(box, 16)
    with Sandbox(mirrors=0) as elsewhere, Cache(box, "odd", elsewhere.hub.url) as cache:
        elsewhere.push("library/app0", "1", name="something else")
        pins = [f"app{n}:1" for n in range(16)]
        configure(host, cache, pins, limits={"parallel": 1})
        done = sync(host, cache, code=1)
        codes = {image["error"]["code"] for image in done.report["images"]}
        assert codes == {"mirror-upstream"}
        assert {problem["where"] for problem in done.report["problems"]} == {cache.url}
        # Fewer prove nothing: three images of one author may fail so at a proxy that is right.
        assert len({entry.repository for entry in cache.tap.access.of("manifest")}) <= 13
        assert host.charged() <= 13


def test_sync_mirror_with_a_damaged_blob_is_not_called_warm(host: Host, cache: Cache) -> None:
    box = host.box
    image = box.push("library/app", "1")
    (_, layer) = image.child(AMD).blobs
    wrong = Fault(
        path=f"*/blobs/{digest_of(layer)}", count=None, status=200, body=b"x" * len(layer)
    )
    cache.tap.faults.add(wrong)
    configure(host, cache, ["app:1"])
    done = sync(host, cache, code=1)
    assert done.image("app:1")["error"]["code"] == "bad-digest"
    cache.tap.faults.clear()
    again = sync(host, cache)
    assert again.image("app:1")["action"] == "tag"
    assert again.gets == ()


def test_sync_blob_that_breaks_off_is_read_again(host: Host, cache: Cache) -> None:
    host.box.push("library/app", "1")
    cache.tap.faults.add(Fault(method="GET", path="*/blobs/*", cut=5))
    configure(host, cache, ["app:1"])
    assert sync(host, cache).summary["copied"] == 1


def test_sync_mirror_that_errs_about_one_image_warms_the_others(host: Host, cache: Cache) -> None:
    many(host.box, 3)
    error = b'{"errors":[{"code":"UNKNOWN","message":"unknown error"}]}'
    cache.tap.faults.add(
        Fault(path="*/app1/manifests/*", count=None, status=500, body=error, headers=JSON_HEADERS)
    )
    configure(host, cache, ["app0:1", "app1:1", "app2:1"])
    done = sync(host, cache, code=1)
    assert done.named("copy") == ["app0:1", "app2:1"]
    assert done.image("app1:1")["error"]["code"] == "mirror-upstream"


# --- with other mirrors ---


def test_sync_push_mirror_takes_all_from_what_the_pull_through_one_pulled(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    image = box.push("library/app", "1", platforms=THREE)
    configure(host, cache, ["app:1"], mirrors=[box.taps[0].url, cache.mirror], platforms=[AMD, ARM])
    done = sync(host, cache)
    assert (done.summary["pulls"], done.summary["gets"]) == (2, 3)
    assert len(done.gets) == 3
    states = {url: told["state"] for url, told in done.image("app:1")["mirrors"].items()}
    assert states == {box.taps[0].url: "fresh", cache.url: "fresh"}
    assert host.pulled("library/app", ":1", ARM) == image.child(ARM).digest
    again = sync(host, cache)
    assert again.summary["fresh"] == 1
    assert cache.tap.access.of("manifest") == []


def test_sync_pull_through_mirror_that_comes_later_makes_pulls_of_its_own(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    box.push("library/app", "1", platforms=THREE)
    configure(host, cache, ["app:1"], mirrors=[box.taps[0].url])
    sync(host, cache)
    configure(host, cache, ["app:1"], mirrors=[box.taps[0].url, cache.mirror])
    planned = sync(host, cache, "--dry-run")
    assert planned.summary["pulls"] == 1
    done = sync(host, cache)
    assert (done.summary["pulls"], done.summary["gets"]) == (1, 2)
    assert done.writes == ((),)


def test_sync_two_pull_through_mirrors_are_charged_each(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    box.push("library/app", "1", platforms=THREE)
    with Cache(box, "second") as second:
        configure(host, cache, ["app:1"], mirrors=[cache.mirror, second.mirror])
        done = sync(host, cache)
        assert (done.summary["pulls"], done.summary["gets"]) == (2, 4)
        assert_charged(host, done)


def test_sync_budget_for_one_of_two_pull_through_mirrors_fills_that_and_the_push_one(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    box.push("library/app", "1", platforms=THREE)
    with Cache(box, "second") as second:
        mirrors = [cache.mirror, second.mirror, box.taps[0].url]
        configure(host, cache, ["app:1"], pulls=1, mirrors=mirrors)
        first = sync(host, cache)
        assert first.image("app:1")["action"] == "defer"
        states = {url: told["state"] for url, told in first.image("app:1")["mirrors"].items()}
        assert states == {cache.url: "fresh", second.url: "missing", box.taps[0].url: "fresh"}
        assert second.tap.access.of("manifest") == []
        assert_charged(host, first)
        assert host.charged() == 1
        host.let_time_pass(6 * 3600 + 1)
        rest = sync(host, cache)
        assert rest.named("copy") == ["app:1"]
        assert (rest.summary["pulls"], rest.summary["gets"]) == (1, 2)
        assert cache.tap.access.of("manifest") == []


def test_sync_pull_through_mirror_down_does_not_starve_the_push_one(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    box.push("library/app", "1")
    cache.tap.faults.add(Fault(count=None, reset=True))
    configure(host, cache, ["app:1"], mirrors=[cache.mirror, box.taps[0].url])
    done = sync(host, cache, code=1)
    assert done.named("copy") == ["app:1"]
    assert box.mirrors[0].tags("library/app") == ["1"]


def test_sync_pull_through_mirror_that_fails_leaves_the_push_one_its_own_pull(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    box.push("library/app", "1")
    cache.tap.faults.add(Fault(method="GET", path="*/manifests/*", count=None, status=500))
    configure(host, cache, ["app:1"], mirrors=[cache.mirror, box.taps[0].url])
    done = sync(host, cache, code=1)
    assert done.named("copy") == ["app:1"]
    assert box.mirrors[0].tags("library/app") == ["1"]
    assert len(done.gets) <= done.summary["gets"]


def test_sync_image_of_another_registry_is_no_part_of_a_pull_through_mirror(
    host: Host, box: Sandbox, cache: Cache
) -> None:
    box.push("team/tool", "1", single=True)
    with Hub(box.upstream, Rules()) as quay:
        registries = {
            "docker.io": {"endpoint": box.hub.url},
            "quay.io": {"endpoint": quay.url},
        }
        name = "quay.io/team/tool:1"
        mirrors: list[Any] = [cache.mirror, box.taps[0].url]
        configure(host, cache, [name], mirrors=mirrors, registries=registries)
        done = sync(host, cache)
        assert list(done.image(name)["mirrors"]) == [box.taps[0].url]
        configure(host, cache, [name], registries=registries)
        quay.access.clear()
        alone = sync(host, cache, code=1)
        assert alone.image(name)["error"]["code"] == "no-mirror"
        assert quay.access.of("manifest") == []
        assert cache.tap.access.of("manifest") == []


# --- other commands ---


def test_verify_asks_a_pull_through_mirror_for_nothing_and_says_so(
    host: Host, cache: Cache
) -> None:
    many(host.box, 2)
    configure(host, cache, ["app0:1", "app1:1"])
    sync(host, cache)
    host.forget_requests()
    cache.tap.access.clear()
    finished = host.run("verify", "--json")
    assert finished.returncode == 0, finished.stderr
    assert (finished.json["checked"], finished.json["unchecked"]) == (0, 2)
    assert {entry.kind for entry in cache.tap.access} <= {"upload", "v2"}
    assert "pull-through" in host.run("verify").stdout
    assert gets(host) == 0


def test_explain_tells_a_pull_through_mirror_by_the_state(host: Host, cache: Cache) -> None:
    many(host.box, 2)
    configure(host, cache, ["app0:1"], platforms=[AMD, ARM])
    sync(host, cache)
    cache.tap.access.clear()
    warm = host.run("explain", "app0:1", "--json")
    assert warm.returncode == 0, warm.stdout
    (mirror,) = warm.json["mirrors"].values()
    assert mirror["state"] == "fresh"
    assert mirror["platforms"] == {AMD: "present", ARM: "present"}
    cold = host.run("explain", "app1:1", "--json")
    assert cold.returncode == 1
    assert cache.tap.access.of("manifest") == []
