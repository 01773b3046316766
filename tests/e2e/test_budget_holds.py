"""The pull budget, ours and upstream's own, counted where it is spent: at the Hub."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.e2e.host import Host, epoch, familiar, wait_until
from tests.sandbox import Fault, Quota, Sandbox
from tests.sandbox.hub import PULL_LIMIT
from tests.sandbox.wire import Request, Response

AMD, ARM, S390 = "linux/amd64", "linux/arm64", "linux/s390x"
FIVE = [AMD, ARM, S390, "linux/ppc64le", "linux/riscv64"]
HOURS_6 = 6 * 3600


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def push_many(box: Sandbox, number: int) -> list[str]:
    """Put images of two platforms upstream; return their pins, which cost 1 pull and 2 GETs."""
    for n in range(number):
        box.push(f"library/app{n:02}", "1", platforms=[AMD, ARM])
    return [f"app{n:02}:1" for n in range(number)]


def hub(budget: object, box: Sandbox) -> dict[str, Any]:
    """Return `registries:` with that budget for the sandbox's Hub."""
    return {"docker.io": {"endpoint": box.hub.url, "budget": budget}}


def times_429(box: Sandbox) -> int:
    return box.hub.access.statuses()[429]


# --- our own budget ---


def test_sync_budget_of_ten_takes_ten_of_25_then_the_next_ten(host: Host, box: Sandbox) -> None:
    pins = push_many(box, 25)
    budget = {"pulls": 10, "window": "6h", "reserve": 0}
    host.configure(pins, registries=hub(budget, box), limits={"parallel": 8})

    first = host.sync()
    assert first.actions == [(pin, "copy" if n < 10 else "defer") for n, pin in enumerate(pins)]
    assert len(first.gets) == 20
    assert first.summary["pulls"] == host.charged() == 10
    assert first.report["budgets"]["docker.io"]["remaining"] == 0
    waits = [epoch(one["until"]) for one in first.report["images"][10:]]
    assert {one["code"] for one in first.report["images"][10:]} == {"budget"}
    ended = epoch(first.report["finished"])
    assert all(HOURS_6 - 60 < at - ended <= HOURS_6 for at in waits[:10])
    # The last five have to wait for the window after the next.
    assert all(2 * HOURS_6 - 60 < at - ended <= 2 * HOURS_6 for at in waits[10:])

    at_once = host.sync()
    assert (at_once.gets, at_once.writes) == ((), ((),))
    assert (at_once.summary["fresh"], at_once.summary["deferred"]) == (10, 15)

    host.let_time_pass(HOURS_6)
    second = host.sync()
    assert second.named("copy") == pins[10:20]
    assert len(second.gets) == 20
    assert (second.summary["pulls"], second.summary["deferred"]) == (10, 5)

    host.let_time_pass(HOURS_6)
    assert host.sync().named("copy") == pins[20:]
    assert host.charged() == 25
    assert box.mirrors[0].catalog() == sorted(f"library/app{n:02}" for n in range(25))


def test_sync_at_the_time_told_by_until_copies_what_waited(host: Host, box: Sandbox) -> None:
    pins = push_many(box, 4)
    budget = {"pulls": 2, "window": "4s", "reserve": 0}
    host.configure(pins, registries=hub(budget, box))
    first = host.sync()
    assert first.named("defer") == pins[2:]
    # Times in the report are whole seconds, rounded down.
    until = max(epoch(one["until"]) for one in first.report["images"][2:]) + 1
    time.sleep(max(0.0, until - time.time()))
    assert host.sync().named("copy") == pins[2:]


@pytest.mark.parametrize("moves", ["between the syncs", "within each sync"])
def test_sync_budget_holds_for_all_anonymous_addresses_together(tmp_path: Path, moves: str) -> None:
    addresses = ["127.0.0.1", "192.0.2.7", "2001:db8::7"]
    with Sandbox(quota=Quota(100)) as box:
        host = Host(tmp_path, box)
        pins = push_many(box, 9)
        metrics = tmp_path / "prewarm.prom"
        host.configure(
            pins,
            registries=hub({"pulls": 4, "window": "6h", "reserve": 0}, box),
            metrics=str(metrics),
        )
        gets = 0
        for number in range(3):
            box.hub.rules.addresses = addresses[number:][:1] if "between" in moves else addresses
            done = host.sync()
            gets += len(done.gets)
            assert done.summary["deferred"] == 5
            budget = done.report["budgets"]["docker.io"]
            assert (budget["used"], budget["remaining"]) == (4, 0)
            # One series, however many addresses there have been.
            (sample,) = re.findall(r"^prewarm_budget_used.*$", metrics.read_text(), re.MULTILINE)
            assert sample.endswith(" 4.0")
        assert gets == 2 * 4
        # Reported is what the newest address has left.
        assert budget["account"].removeprefix("anonymous@") in addresses
        assert_shows_used(host, 4)
        dry = host.run("sync", "--dry-run", "--json").json
        assert dry["summary"]["deferred"] == 5


def assert_shows_used(host: Host, pulls: int) -> None:
    """Every command shows the window that the ledger enforces."""
    status = host.run("status", "--json").json["budgets"]["docker.io"]
    assert (status["used"], status["next_free"] is None) == (pulls, False)
    page = host.folder / "report.html"
    assert host.run("report", "--html", str(page)).returncode == 0
    assert f"{pulls} of {pulls}" in page.read_text()


def test_sync_without_a_budget_follows_the_limit_of_each_anonymous_address(tmp_path: Path) -> None:
    with Sandbox(quota=Quota(5)) as box:
        host = Host(tmp_path, box)
        host.configure(push_many(box, 9))
        # Reported are 5, of which a fifth is left to the jobs; a copy may cost one GET more.
        assert host.sync().summary["copied"] == 3
        box.hub.rules.addresses = ["192.0.2.7"]
        assert host.sync().summary["copied"] == 3
        assert times_429(box) == 0


def test_sync_reserve_is_left_but_for_a_named_image(host: Host, box: Sandbox) -> None:
    pins = push_many(box, 6)
    budget = {"pulls": 5, "window": "6h", "reserve": 2}
    host.configure(pins, registries=hub(budget, box))
    assert host.sync().named("copy") == pins[:3]
    assert host.sync(pins[5]).gets == ()
    assert host.sync("--use-reserve", pins[5]).named("copy") == [pins[5]]
    assert host.sync("--use-reserve", pins[3], pins[4]).named("copy") == [pins[3]]
    assert host.charged() == 5


def test_sync_image_that_does_not_fit_waits_whole_and_a_smaller_one_goes(
    host: Host, box: Sandbox
) -> None:
    for name in ("two", "three", "last", "late"):
        box.push(f"library/{name}", "1", platforms=[AMD, ARM, S390])
    host.configure(
        [
            {"image": "two:1", "platforms": [AMD, ARM]},
            {"image": "three:1", "platforms": [AMD, ARM, S390]},
            {"image": "last:1", "platforms": [ARM, S390]},
            {"image": "late:1", "platforms": [AMD]},
        ],
        registries=hub({"pulls": 4, "window": "6h", "reserve": 0}, box),
    )
    done = host.sync()
    assert done.actions == [
        ("two:1", "copy"),
        ("three:1", "defer"),
        ("last:1", "copy"),
        ("late:1", "defer"),
    ]
    assert {entry.repository for entry in done.gets} == {"library/two", "library/last"}
    assert host.charged() == 4
    assert box.mirrors[0].catalog() == ["library/last", "library/two"]
    host.let_time_pass(HOURS_6)
    assert host.sync().named("copy") == ["three:1", "late:1"]


@pytest.mark.parametrize("wanted", ["all", FIVE])
def test_sync_image_larger_than_a_window_is_split_child_by_child(
    host: Host, box: Sandbox, wanted: object
) -> None:
    image = box.push("library/large", "1", platforms=FIVE)
    host.configure(
        [{"image": "large:1", "platforms": wanted}],
        registries=hub({"pulls": 2, "window": "6h", "reserve": 0}, box),
    )
    asked, pulls = [], []
    for window in range(3):
        assert box.mirrors[0].tags("library/large") == []
        done = host.sync()
        asked += done.digests()
        pulls.append(done.summary["pulls"])
        assert done.summary["pulls"] == done.image("large:1")["pulls"]
        if window < 2:
            assert done.named("defer") == ["large:1"]
            assert done.image("large:1")["until"] is not None
            assert host.sync().gets == ()
            host.let_time_pass(HOURS_6)
    assert done.named("copy") == ["large:1"]
    assert pulls == [2, 2, 1]
    assert sorted(asked) == sorted([image.digest, *(child.digest for child in image.children)])
    found = box.mirrors[0].manifest("library/large", "1")
    assert found is not None
    assert found[2] == image.digest


def test_sync_budget_of_no_pulls_tags_and_copies_between_mirrors_only(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        box.push("library/app", "1", "2", platforms=[AMD, ARM])
        box.push("library/other", "1")
        host.configure(["app:1"], mirrors=[box.taps[0].url])
        host.sync()

        nothing = hub({"pulls": 0}, box)
        host.configure(["app:1", "app:2", "other:1"], registries=nothing)
        done = host.sync()
        assert done.actions == [("app:1", "tag"), ("app:2", "tag"), ("other:1", "defer")]
        assert done.gets == ()
        assert done.blobs == ()
        assert done.image("other:1")["until"] is None
        for mirror in box.mirrors:
            assert mirror.tags("library/app") == ["1", "2"]


def test_sync_no_header_and_no_budget_copies_everything(host: Host, box: Sandbox) -> None:
    pins = push_many(box, 12)
    host.configure(pins)
    done = host.sync()
    assert done.named("copy") == pins
    assert len(done.gets) == 24
    budget = done.report["budgets"]["docker.io"]
    assert (budget["pulls"], budget["remaining"], budget["reported_limit"]) == (None, None, None)
    assert budget["used"] == 12


def test_sync_no_budget_written_follows_what_the_hub_reports(tmp_path: Path) -> None:
    with Sandbox(quota=Quota(10)) as box:
        host = Host(tmp_path, box)
        pins = push_many(box, 12)
        host.configure(pins)
        done = host.sync()
        budget = done.report["budgets"]["docker.io"]
        assert (budget["pulls"], budget["reserve"], budget["window_seconds"]) == (10, 2, HOURS_6)
        # One pull is charged for each, but its second GET must fit above the reserve, too.
        assert done.named("copy") == pins[:7]
        assert box.hub.remaining() == 3
        assert times_429(box) == 0


# --- upstream's own quota ---


@pytest.mark.parametrize("parallel", [1, 8])
@pytest.mark.parametrize(("count", "copied", "left"), [("gets", 4, 4), ("pulls", 7, 5)])
def test_sync_upstream_quota_below_ours_is_never_overdrawn(
    tmp_path: Path, count: Literal["gets", "pulls"], copied: int, left: int, parallel: int
) -> None:
    # 12 remain, 4 are the reserve. Each image may take 2, its GETs: so the Hub that counts GETs
    # allows 4 images. The one that counts pulls has 5 left after 7, and 5 - 2 is below 4.
    with Sandbox(quota=Quota(12, count=count)) as box:
        host = Host(tmp_path, box)
        pins = push_many(box, 14)
        host.configure(
            pins,
            registries=hub({"pulls": 100, "window": "6h", "reserve": 4}, box),
            limits={"parallel": parallel},
        )
        done = host.sync()
        assert times_429(box) == 0
        assert done.named("copy") == pins[:copied]
        assert box.hub.remaining() == left
        assert len(done.gets) == 2 * copied
        waiting = done.report["images"][copied:]
        assert {(one["action"], one["code"]) for one in waiting} == {("defer", "upstream-quota")}
        assert {one["until"] for one in waiting} == {None}
        assert host.sync().gets == ()
        assert times_429(box) == 0


@pytest.mark.parametrize(
    ("count", "reported", "reserve", "wanted", "copied", "left"),
    [
        ("gets", 12, 10, 3, 1, 10),
        ("pulls", 12, 10, 3, 1, 11),
        ("gets", 20, 2, 10, 9, 2),
        ("pulls", 20, 2, 10, 10, 10),
    ],
)
def test_sync_reported_remaining_allows(
    tmp_path: Path,
    count: Literal["gets", "pulls"],
    reported: int,
    reserve: int,
    wanted: int,
    copied: int,
    left: int,
) -> None:
    with Sandbox(quota=Quota(20, count=count)) as box:
        box.hub.spend(20 - reported)
        host = Host(tmp_path, box)
        pins = push_many(box, wanted)
        budget = {"pulls": 20, "window": "6h", "reserve": reserve}
        host.configure(pins, registries=hub(budget, box))
        done = host.sync()
        assert done.named("copy") == pins[:copied]
        assert {one["code"] for one in done.report["images"][copied:]} <= {"upstream-quota"}
        assert {one["until"] for one in done.report["images"][copied:]} <= {None}
        assert box.hub.remaining() == left
        assert times_429(box) == 0


@pytest.mark.parametrize("count", ["gets", "pulls"])
def test_sync_quota_shared_with_busy_others_is_left_alone(
    tmp_path: Path, count: Literal["gets", "pulls"]
) -> None:
    with Sandbox(quota=Quota(20, count=count)) as box:
        box.hub.spend(25)
        host = Host(tmp_path, box)
        host.configure(push_many(box, 3))
        done = host.sync()
        assert done.gets == ()
        assert done.report["budgets"]["docker.io"]["reported_remaining"] == -5
        assert {one["code"] for one in done.report["images"]} == {"upstream-quota"}


# --- 429 all the same ---


def assert_gave_up_at_once(host: Host, box: Sandbox, done: Any, wanted: int, parallel: int) -> None:
    refused = [entry for entry in done.gets if entry.status == 429]
    granted = [entry for entry in done.gets if entry.status == 200]
    assert 1 <= len(refused) <= parallel
    asked = [(entry.repository, entry.reference) for entry in done.gets]
    assert len(set(asked)) == len(asked), "a manifest was asked for twice"
    # After the first refusal only steps that were on their way send their next GET.
    after = done.gets[done.gets.index(refused[0]) + 1 :]
    assert len(after) < parallel
    copied, deferred = done.named("copy"), done.named("defer")
    assert len(copied) + len(deferred) == wanted
    assert deferred
    assert {
        (one["code"], one["until"]) for one in done.report["images"] if one["action"] == "defer"
    } == {("upstream-quota", None)}
    # Charged is each step of which upstream answered a GET.
    assert host.charged() == done.summary["pulls"] == len({entry.repository for entry in granted})
    assert [problem["severity"] for problem in done.report["problems"]] == ["warning"]
    assert epoch(done.report["finished"]) - epoch(done.report["started"]) < 10, (
        "it waited instead of giving up"
    )


@pytest.mark.parametrize("parallel", [1, 4])
def test_sync_429_without_a_warning_stops_all_pulls(tmp_path: Path, parallel: int) -> None:
    # The Hub reports nothing, so nothing is known of its quota before it is spent.
    with Sandbox(quota=Quota(7, count="gets"), report_quota=False, retry_after=3600) as box:
        host = Host(tmp_path, box)
        host.configure(push_many(box, 12), limits={"parallel": parallel})
        done = host.sync()
        assert len([entry for entry in done.gets if entry.status == 200]) == 7
        assert_gave_up_at_once(host, box, done, 12, parallel)


@pytest.mark.parametrize("parallel", [1, 4])
def test_sync_429_because_another_spent_the_quota_stops_all_pulls(
    tmp_path: Path, parallel: int
) -> None:
    # Reported is plenty at every HEAD, and gone at the GET.
    with Sandbox(quota=Quota(200)) as box:
        body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": PULL_LIMIT}]})
        box.hub.faults.add(
            Fault("GET", "/v2/*/manifests/*", nth=8, count=None, status=429, body=body.encode())
        )
        host = Host(tmp_path, box)
        host.configure(push_many(box, 12), limits={"parallel": parallel})
        done = host.sync()
        assert len([entry for entry in done.gets if entry.status == 200]) == 7
        assert_gave_up_at_once(host, box, done, 12, parallel)
        box.hub.faults.clear()
        again = host.sync()
        assert again.summary["deferred"] == 0
        # What was answered before the 429 is remembered.
        assert len(again.gets) == 2 * 12 - 7


def test_sync_others_spending_meanwhile_is_noticed_by_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(quota=Quota(200, count="gets")) as box:
        host = Host(tmp_path, box)
        host.configure(push_many(box, 12), limits={"parallel": 2})
        respond, asked = box.hub.respond, itertools.count(1)

        def spent_by_others_at_the_sixth(request: Request) -> Response:
            answer = respond(request)
            if request.method == "GET" and "/manifests/" in request.path and next(asked) == 6:
                box.hub.spend(200)
            return answer

        monkeypatch.setattr(box.hub, "respond", spent_by_others_at_the_sixth)
        done = host.sync()
        refused = times_429(box)
        assert refused <= 2
        # At most two steps were on their way, with three GETs to send between them.
        assert 6 <= len(done.gets) <= 9
        assert len([entry for entry in done.gets if entry.status == 200]) == 6
        copied, deferred = done.named("copy"), done.named("defer")
        assert len(copied) + len(deferred) == 12
        assert len(copied) in (2, 3)
        assert {one["code"] for one in done.report["images"] if one["action"] == "defer"} == {
            "upstream-quota"
        }


# --- limits ---


def test_sync_image_above_image_size_is_skipped_before_its_first_blob(
    host: Host, box: Sandbox
) -> None:
    box.push("library/huge", "1", size=300_000)
    box.push("library/small", "1", size=10_000)
    host.configure(["huge:1", "small:1"], limits={"image_size": "100kB"})
    done = host.sync()
    assert done.actions == [("huge:1", "skip"), ("small:1", "copy")]
    assert done.image("huge:1")["code"] == "image-size"
    reason = done.image("huge:1")["reason"]
    assert re.fullmatch(
        r"has 29\d\.\d KiB, 19\d\.\d KiB more than limits\.image_size 97\.7 KiB", reason
    )
    assert len(done.blobs) == 2
    assert box.mirrors[0].catalog() == ["library/small"]
    # Its manifests are remembered: the refusal costs nothing again.
    assert host.sync().gets == ()


def test_sync_image_above_pulls_per_image_is_skipped(host: Host, box: Sandbox) -> None:
    three = [AMD, ARM, S390]
    for name in ("some", "whole", "fits"):
        box.push(f"library/{name}", "1", platforms=three)
    host.configure(
        [
            {"image": "some:1", "platforms": three},
            {"image": "whole:1", "platforms": "all"},
            {"image": "fits:1", "platforms": [AMD, ARM]},
        ],
        limits={"pulls_per_image": 2},
    )
    done = host.sync()
    assert done.actions == [("some:1", "skip"), ("whole:1", "skip"), ("fits:1", "copy")]
    assert {one["code"] for one in done.report["images"][:2]} == {"pulls-per-image"}
    # Nobody knows what `all` means before the index is read: one GET, once.
    assert [entry.repository for entry in done.gets].count("library/whole") == 1
    assert [entry.repository for entry in done.gets].count("library/some") == 0
    assert len(done.gets) == 4
    assert host.charged() == 3
    assert host.sync().gets == ()


@pytest.mark.parametrize("parallel", [1, 3])
def test_sync_runs_no_more_than_parallel_copies_at_once(
    host: Host, box: Sandbox, parallel: int
) -> None:
    host.configure(push_many(box, 6), limits={"parallel": parallel})
    box.hub.cdn.latency = 0.1
    # The real skopeo, behind a script that notes when each copy begins and ends.
    real = shutil.which("skopeo")
    journal, folder = host.folder / "journal", host.folder / "bin"
    folder.mkdir()
    script = folder / "skopeo"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) exec {real} "$@";; esac\n'
        f'echo begin >> {journal}\n{real} "$@"\ncode=$?\necho end >> {journal}\nexit $code\n'
    )
    script.chmod(0o755)
    done = host.sync(env={"PATH": f"{folder}:/usr/bin:/bin"})
    assert done.summary["copied"] == 6
    running, most = 0, 0
    for line in journal.read_text().split():
        running += 1 if line == "begin" else -1
        most = max(most, running)
    assert most == parallel


def test_sync_after_run_time_starts_nothing_new(host: Host, box: Sandbox) -> None:
    pins = push_many(box, 5)
    host.configure(pins, limits={"parallel": 1, "run_time": "3s"})
    box.hub.cdn.latency = 1.0
    done = host.sync()
    copied = done.named("copy")
    assert copied == pins[: len(copied)]
    assert 1 <= len(copied) <= 3
    assert len(done.gets) == 2 * len(copied)
    assert {one["code"] for one in done.report["images"][len(copied) :]} == {"run-time"}
    box.hub.cdn.latency = 0.0
    host.configure(pins)
    assert host.sync().named("copy") == pins[len(copied) :]


# --- two syncs at once ---


def test_sync_while_another_runs_exits_75_and_waits_when_asked(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure(["app:1"])
    hung = box.hub.cdn.faults.add(Fault("GET", hang=60))
    other = Host(host.folder / "other", box)
    other.configure(["app:1"])
    with host.start("sync", "--json") as first:
        wait_until(lambda: hung.seen > 0, "blob asked for")
        busy = host.run("sync", "--json")
        assert (busy.returncode, busy.stdout) == (75, "")
        assert len(busy.stderr.splitlines()) == 1
        assert "--wait" in busy.stderr
        # Another state, the same mirror.
        assert other.run("sync").returncode == 75
        assert host.run("sync", "--wait-for", "1s").returncode == 75
        with host.start("sync", "--json", "--wait") as second:
            assert first.poll() is None
            assert second.poll() is None
            box.hub.cdn.faults.clear()
            first.terminate()
            report, _ = second.communicate(timeout=30)
        assert second.returncode == 0
        first.communicate(timeout=30)
        assert first.returncode == 143
    (entry,) = json.loads(report)["images"]
    assert (familiar(entry["image"]), entry["action"]) == ("app:1", "copy")
    assert host.pulled("library/app", ":1", AMD) == image.child(AMD).digest
    # The first had bought the manifests; the second found them.
    assert len(box.hub.access.gets()) == 2
