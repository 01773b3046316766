"""Hosts that share a state on a real PostgreSQL: one budget, one demand, each with its mirrors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Sync, digest_of, wait_until
from tests.sandbox import Fault, Image, Sandbox
from tests.sandbox.ci_load import Runner
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.support.postgres import Postgres

AMD = "linux/amd64"


class SharedHosts:
    """East fills mirror 0, west mirror 1; both with one state."""

    def __init__(self, folder: Path, box: Sandbox, postgres: Postgres, url: str) -> None:
        self.box = box
        self.postgres = postgres
        self.url = url
        self.east = Host(folder / "east", box)
        self.west = Host(folder / "west", box)

    def push(self, *names: str) -> list[Image]:
        return [self.box.push(f"library/{name}", "1", platforms=[AMD]) for name in names]

    def configure(self, host: Host, *names: str, mirrors: Any = None, **keys: Any) -> None:
        number = 0 if host is self.east else 1
        host.configure(
            [f"{name}:1" for name in names],
            mirrors=mirrors or [self.box.taps[number].url],
            state=self.url,
            host="east" if host is self.east else "west",
            **keys,
        )

    def sql(self, statement: str) -> list[Any]:
        return self.postgres.sql(statement, url=self.url)


@pytest.fixture
def hosts(tmp_path: Path, postgres: Postgres) -> Iterator[SharedHosts]:
    with Sandbox(mirrors=2) as box:
        yield SharedHosts(tmp_path, box, postgres, postgres.database())


def codes(done: Sync) -> list[str]:
    return [one["code"] for one in done.report["problems"]]


def test_sync_from_another_sites_mirror_costs_nothing(hosts: SharedHosts) -> None:
    hosts.push("a", "b", "c")
    hosts.configure(hosts.east, "a", "b", "c")
    first = hosts.east.sync()
    assert (first.summary["copied"], first.summary["pulls"]) == (3, 3)
    source = {"url": hosts.box.taps[0].url, "role": "source"}
    hosts.configure(hosts.west, "a", "b", "c", mirrors=[source, hosts.box.taps[1].url])
    second = hosts.west.sync()
    assert (second.summary["pulls"], second.gets, second.blobs) == (0, (), ())
    assert hosts.sql("SELECT SUM(pulls) FROM pulls") == [(3,)]
    checks = hosts.west.run("doctor", "--json").json["checks"]
    (state,) = [one for one in checks if one["check"] == "state"]
    assert (state["state"], hosts.url in state["text"]) == ("ok", True)
    assert sorted(hosts.box.mirrors[1].catalog()) == ["library/a", "library/b", "library/c"]
    again = hosts.west.sync()
    assert (again.gets, again.writes[1]) == ((), ())
    assert again.named("fresh") == ["a:1", "b:1", "c:1"]


def test_sync_of_two_hosts_spends_one_budget(hosts: SharedHosts) -> None:
    names = [f"app{number}" for number in range(12)]
    hosts.push(*names)
    budget = {"docker.io": {"endpoint": hosts.box.hub.url, "budget": {"pulls": 7, "window": "6h"}}}
    hosts.configure(hosts.east, *names[:6], registries=budget)
    hosts.configure(hosts.west, *names[6:], registries=budget)
    hosts.east.forget_requests()
    running = [hosts.east.start("sync"), hosts.west.start("sync")]
    for process in running:
        with process:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, out + err
    assert hosts.sql("SELECT SUM(pulls), COUNT(*) FROM pulls") == [(7, 7)]
    assert len({(get.repository) for get in hosts.box.hub.access.gets()}) == 7
    for host in (hosts.east, hosts.west):
        told = host.run("status", "--json").json
        assert told["state"] == hosts.url
        assert told["budgets"]["docker.io"]["used"] == 7
    counts = [host.run("status", "--json").json["images"] for host in (hosts.east, hosts.west)]
    assert [one["tracked"] for one in counts] == [6, 6]
    assert sum(one["fresh"] for one in counts) == 7


class SharedCi:
    """Two hosts that ask one GitLab."""

    def __init__(self, hosts: SharedHosts, site: Gitlab, folder: Path) -> None:
        self.hosts, self.site = hosts, site
        self.token = folder / "token"
        self.token.write_text(TOKEN)

    def configure(self, host: Host, *names: str, runners: Any = None, **keys: Any) -> None:
        gitlab: dict[str, Any] = {"url": self.site.url, "token_file": str(self.token)}
        if runners is not None:
            gitlab["runners"] = runners
        self.hosts.configure(host, *names, gitlab=gitlab, **keys)

    def jobs(self, path: str, image: str, number: int, **more: Any) -> None:
        project = self.site.add_project(path, f"build:\n  image: {image}\n  script: [make]\n")
        for _ in range(number):
            self.site.add_job(project, "build", **more)


@pytest.fixture
def ci(hosts: SharedHosts, tmp_path: Path) -> Iterator[SharedCi]:
    with Gitlab() as site:
        yield SharedCi(hosts, site, tmp_path)


def test_sync_of_one_scope_is_scanned_by_one_host_for_all(ci: SharedCi) -> None:
    hosts = ci.hosts
    hosts.push("a", "b")
    ci.jobs("team/a", "a:1", 3)
    ci.configure(hosts.east)
    ci.configure(hosts.west, "b")
    assert hosts.east.sync().actions == [("a:1", "copy")]
    ci.site.access.clear()
    done = hosts.west.sync()
    assert done.actions == [("b:1", "copy"), ("a:1", "copy")]
    assert len(ci.site.access) == 0
    # Both at once: neither counts what the other has counted.
    ci.jobs("team/b", "b:1", 2)
    running = [host.start("scan", "--json") for host in (hosts.east, hosts.west)]
    ended = []
    for process in running:
        with process:
            process.communicate(timeout=60)
            ended.append(process.returncode)
    assert set(ended) <= {0, 75}
    assert 0 in ended
    assert hosts.sql("SELECT SUM(runs) FROM job_runs") == [(5,)]
    for host in (hosts.east, hosts.west):
        assert host.sync().image("b:1")["jobs"] == 2


def test_sync_of_other_runners_fills_each_mirror_with_what_its_own_used(ci: SharedCi) -> None:
    hosts = ci.hosts
    hosts.push("one", "two")
    ci.site.runners = {12: Runner(12), 34: Runner(34)}
    ci.jobs("team/one", "one:1", 3, runner=12)
    ci.jobs("team/two", "two:1", 4, runner=34)
    ci.configure(hosts.east, runners={"ids": [12]})
    ci.configure(hosts.west, runners={"ids": [34]})
    for _ in range(2):
        assert [name for name, _ in hosts.east.sync().actions] == ["one:1"]
        assert [name for name, _ in hosts.west.sync().actions] == ["two:1"]
    assert hosts.box.mirrors[0].catalog() == ["library/one"]
    assert hosts.box.mirrors[1].catalog() == ["library/two"]
    for host in (hosts.east, hosts.west):
        told = host.run("status", "--json").json
        assert (told["coverage"], told["images"]["tracked"]) == (1.0, 1)


def test_prune_of_a_common_mirror_keeps_what_another_host_wants(hosts: SharedHosts) -> None:
    """The mirror has one address for both, as one beyond loopback has."""
    hosts.push("a", "b", "c")
    common = [hosts.box.taps[0].url]
    hosts.configure(hosts.east, "a", mirrors=common)
    hosts.configure(hosts.west, "b", mirrors=common)
    hosts.west.sync("c:1")
    hosts.west.sync()
    hosts.east.sync()
    # What is on loopback is told apart by the host: as if it were not.
    for table in ("written", "pushed", "states", "wants"):
        hosts.sql(f"UPDATE {table} SET mirror = REPLACE(mirror, '@west', '@east')")
    hosts.sql("UPDATE written SET wanted = wanted - 40 * 86400 WHERE image LIKE '%/c:1'")
    hosts.sql("UPDATE written SET wanted = wanted - 40 * 86400 WHERE image LIKE '%/b:1'")
    hosts.sql("DELETE FROM wants WHERE image LIKE '%/c:1'")
    done = hosts.east.run("prune", "--json", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    (mirror,) = done.json["mirrors"]
    assert [one["image"] for one in mirror["removed"]] == ["docker.io/library/c:1"]
    for name in ("a", "b"):
        hosts.east.pulled(f"library/{name}", ":1", AMD)


def test_sync_of_the_same_mirror_is_exit_75_on_another_host_alone(hosts: SharedHosts) -> None:
    """Here the hosts are one machine, whose mirror is one: so its own lock tells, too."""
    images = hosts.push("a", "b")
    hosts.configure(hosts.east, "a")
    layer = digest_of(images[0].child(AMD).blobs[1])
    stuck = hosts.box.hub.cdn.faults.add(Fault(path=f"*{layer[-64:]}*", hang=20.0))
    with hosts.east.start("sync") as process:
        wait_until(lambda: stuck.seen > 0, "copy")
        hosts.configure(hosts.west, "b", mirrors=[hosts.box.taps[0].url])
        refused = hosts.west.run("sync")
        assert refused.returncode == 75
        assert refused.stderr.count("\n") == 1
        hosts.configure(hosts.west, "b")
        assert hosts.west.sync().named("copy") == ["b:1"]
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[SharedHosts]:
    """Hosts with a server of their own, which may be stopped."""
    with Postgres() as server, Sandbox(mirrors=2) as box:
        yield SharedHosts(tmp_path, box, server, server.database())


def assert_nothing_pulled(done: Sync, deferred: str) -> None:
    assert done.gets == ()
    assert done.image(deferred)["action"] == "defer"
    assert done.image(deferred)["code"] == "state-unreachable"
    assert codes(done) == ["state-unreachable"]
    (problem,) = done.report["problems"]
    assert "postgresql://owner@/prewarm" in problem["problem"]
    assert "\n" not in problem["problem"]
    assert problem["cure"]


def test_sync_without_the_server_tags_and_copies_between_mirrors_alone(
    fragile: SharedHosts,
) -> None:
    fragile.push("a", "b")
    fragile.configure(fragile.east, "a")
    fragile.east.sync()
    source = {"url": fragile.box.taps[0].url, "role": "source"}
    fragile.configure(fragile.west, "a", "b", mirrors=[source, fragile.box.taps[1].url])
    fragile.postgres.stop()
    done = fragile.west.sync(code=1)
    assert_nothing_pulled(done, "b:1")
    assert (done.image("a:1")["action"], done.image("a:1")["code"]) == ("tag", "from-mirror")
    assert done.summary["pulls"] == 0
    assert fragile.box.mirrors[1].catalog() == ["library/a"]
    status = fragile.west.run("status")
    assert status.returncode == 1
    assert status.stderr.count("\n") == 1
    assert "cannot be reached" in status.stderr
    for command in (["prune"], ["verify", "--repair"]):
        ended = fragile.west.run(*command)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "start the PostgreSQL server" in ended.stderr
    doctor = fragile.west.run("doctor", "--json")
    (check,) = [one for one in doctor.json["checks"] if one["check"] == "state"]
    assert check["state"] == "failed"

    fragile.postgres.start()
    assert fragile.west.sync().named("copy") == ["b:1"]
    assert fragile.sql("SELECT SUM(pulls) FROM pulls") == [(2,)]


@pytest.mark.parametrize("comes_back", [True, False])
def test_sync_while_the_server_restarts_goes_on_and_without_it_pulls_no_more(
    fragile: SharedHosts, comes_back: bool
) -> None:
    """Stopped as in a crash while one image waits for its layer and others for their turn."""
    names = [f"app{number}" for number in range(6)]
    images = fragile.push(*names)
    fragile.configure(fragile.east, *names, limits={"parallel": 1})
    layer = digest_of(images[1].child(AMD).blobs[1])
    stuck = fragile.box.hub.cdn.faults.add(Fault(path=f"*{layer[-64:]}*", hang=3.0))
    with fragile.east.start("sync", "--json") as process:
        wait_until(lambda: stuck.seen > 0, "copy of the second image")
        fragile.postgres.stop()
        before = len(fragile.box.hub.access.gets())
        if comes_back:
            fragile.postgres.start()
        stdout, stderr = process.communicate(timeout=120)
    report = json.loads(stdout)
    actions = [one["action"] for one in report["images"]]
    if comes_back:
        assert process.returncode == 0, stderr
        assert actions == ["copy"] * 6
        assert report["problems"] == []
        # A crash may take the last words: what is not settled then counts as it was reserved.
        assert fragile.sql("SELECT SUM(pulls) FROM pulls") == [(6,)]
    else:
        assert process.returncode == 1, stderr
        assert actions == ["copy"] * 2 + ["defer"] * 4
        assert len(fragile.box.hub.access.gets()) == before
        assert [one["code"] for one in report["problems"]] == ["state-unreachable"]
        fragile.postgres.start()
        # What was in flight is still charged.
        assert fragile.sql("SELECT SUM(pulls) FROM pulls") == [(2,)]
