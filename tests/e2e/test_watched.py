"""A sync is watched: its metrics' file, its notices, and what the daemon serves."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.host import Host, wait_until
from tests.real.scripted import Scripted, reply
from tests.sandbox import Fault, Sandbox
from tests.sandbox.gitlab import TOKEN, Gitlab, Token

Values = dict[str, float]


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    for name in ("one", "two", "three"):
        box.push(f"library/{name}", "1")
    return Host(tmp_path, box)


def parsed(text: str) -> Values:
    """Return each sample as `name{label=value}{label=value}`."""
    return {
        sample.name + "".join(f"{{{key}={sample.labels[key]}}}" for key in sorted(sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def pager(host: Host) -> tuple[list[str], Path]:
    """Return a command that keeps each notice as a line of a file."""
    file = host.folder / "notices"
    program = host.folder / "page"
    program.write_text(f"#!/bin/sh\ncat >>{file}\necho >>{file}\n")
    program.chmod(0o755)
    return [str(program)], file


def notices(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def budget(host: Host, pulls: int) -> Any:
    limited = {"endpoint": host.box.hub.url, "budget": {"pulls": pulls, "window": "6h"}}
    return {"docker.io": limited}


def test_metrics_equal_the_report_and_never_fall(host: Host) -> None:
    file = host.folder / "prewarm.prom"
    images = ["one:1", "two:1", "three:1"]
    host.configure(images, metrics=str(file), registries=budget(host, 2))
    first = host.sync()
    found = parsed(file.read_text())
    account = f"{{account={first.report['budgets']['docker.io']['account']}}}{{registry=docker.io}}"
    expected = {
        f"prewarm_budget_pulls{account}": 2,
        f"prewarm_budget_used{account}": first.summary["pulls"],
        "prewarm_actions_total{action=copy}": first.summary["copied"],
        "prewarm_actions_total{action=defer}": first.summary["deferred"],
        "prewarm_pulls_total": first.summary["pulls"],
        "prewarm_bytes_total": first.summary["bytes"],
        "prewarm_images{state=fresh}": 2,
        "prewarm_images{state=missing}": 1,
        f"prewarm_coverage_ratio{{mirror={host.box.taps[0].url}}}": 0.6667,
    }
    assert first.summary["copied"] == 2
    assert {key: found.get(key) for key in expected} == expected
    assert found["prewarm_last_success_timestamp_seconds"] > 0
    assert "prewarm_pull_failures" not in found

    host.let_time_pass(7 * 3600)
    host.sync()
    later = parsed(file.read_text())
    assert all(later[key] >= found[key] for key in found if "_total" in key)
    assert later["prewarm_pulls_total"] == host.charged() == 3
    assert later["prewarm_images{state=fresh}"] == 3

    before = file.read_bytes()
    host.sync("--dry-run")
    assert file.read_bytes() == before


def test_metrics_that_cannot_be_written_are_a_warning(host: Host) -> None:
    host.configure(["one:1"], metrics=str(host.folder / "missing" / "prewarm.prom"))
    done = host.sync()
    (problem,) = done.report["problems"]
    assert (problem["severity"], problem["code"]) == ("warning", "metrics")
    assert "missing" in problem["cure"]
    assert done.summary["copied"] == 1


def test_metrics_tell_the_tokens_expiry_and_jobs_that_failed_on_a_pull(host: Host) -> None:
    file = host.folder / "prewarm.prom"
    secret = host.folder / "token"
    secret.write_text(TOKEN)
    with Gitlab() as site:
        site.tokens[TOKEN] = Token(expires="2999-01-01")
        project = site.add_project("team/app", "build:\n  image: one:1\n  script: [make]\n")
        site.add_job(project, "build")
        site.add_job(project, "build", status="failed", failure_reason="image_pull_failure")
        gitlab = {"url": site.url, "token_file": str(secret)}
        host.configure([], metrics=str(file), gitlab=gitlab)
        host.sync()
    found = parsed(file.read_text())
    assert found["prewarm_gitlab_token_expiry_timestamp_seconds"] == 32472144000
    assert found["prewarm_pull_failures"] == 1


def test_metrics_are_written_by_a_sync_that_a_signal_ends(host: Host) -> None:
    file = host.folder / "prewarm.prom"
    command, told = pager(host)
    host.configure(["one:1", "two:1"], metrics=str(file), notify={"command": command})
    host.box.hub.cdn.faults.add(Fault(path="*", hang=20.0, count=None))
    with host.start("sync") as process:
        wait_until(lambda: bool(host.box.hub.access.gets()), "GET")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    found = parsed(file.read_text())
    assert found["prewarm_pulls_total"] == host.charged()
    assert "prewarm_last_success_timestamp_seconds" not in found
    assert notices(told) == []


def test_failure_is_told_to_command_and_webhook_once_until_it_changes(host: Host) -> None:
    command, told = pager(host)
    with Scripted(lambda _: reply(200)) as site:
        notify = {"command": command, "webhook": f"{site.url}/hooks/s3cret"}
        host.configure(["one:1", "gone:1"], notify=notify)
        host.sync(code=1)
        (notice,) = notices(told)
        assert [json.loads(request.body) for request in site.requests] == [notice]
        host.sync(code=1)
        assert len(notices(told)) == 1

        host.configure(["one:1", "gone:1", "away:1"], notify=notify)
        host.sync(code=1)
        assert len(notices(told)) == len(site.requests) == 2
        host.configure(["one:1"], notify=notify)
        host.sync()
        assert len(notices(told)) == 2
        host.configure(["one:1", "gone:1"], notify=notify)
        host.sync(code=1)
        assert len(notices(told)) == 3
        host.sync("away:1", code=1)
        assert len(notices(told)) == 3
    assert (notice["event"], notice["exit"]) == ("failure", 1)
    assert [one["code"] for one in notice["problems"]] == ["not-found"]
    assert notice["summary"]["copied"] == 1


def test_budget_that_is_used_up_is_told_where_asked(host: Host) -> None:
    command, told = pager(host)
    notify = {"command": command, "on": ["failure", "budget"]}
    host.configure(["one:1", "two:1"], registries=budget(host, 1), notify=notify)
    host.sync()
    (notice,) = notices(told)
    assert (notice["event"], notice["exit"], notice["summary"]["deferred"]) == ("budget", 0, 1)
    assert notice["budgets"]["docker.io"]["remaining"] == 0


def test_notice_that_fails_changes_nothing_and_is_tried_again(host: Host) -> None:
    command, told = pager(host)
    host.configure(["gone:1"], notify={"command": ["/no/such/program"]})
    finished = host.run("sync")
    assert finished.returncode == 1
    lost = "the notice of failure did not arrive: notify.command /no/such/program does not start"
    assert lost in finished.stderr
    host.configure(["gone:1"], notify={"command": command})
    host.sync(code=1)
    assert len(notices(told)) == 1


def test_signal_ends_a_sync_that_waits_for_its_command(host: Host) -> None:
    command, told = pager(host)
    up = host.folder / "up"
    slow = host.folder / "slow"
    slow.write_text(f"#!/bin/sh\ntouch {up}\nsleep 600\n")
    slow.chmod(0o755)
    host.configure(["gone:1"], notify={"command": [str(slow)]})
    with host.start("sync") as process:
        wait_until(up.exists, "notice")
        process.send_signal(signal.SIGTERM)
        # Long before the 30 s that a command has.
        _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "was not waited for: the run ends" in said
    host.configure(["gone:1"], notify={"command": command})
    host.sync(code=1)
    assert len(notices(told)) == 1


def test_sync_that_cannot_begin_is_told_and_measured(host: Host) -> None:
    command, told = pager(host)
    file, logins = host.folder / "prewarm.prom", host.folder / "auth.json"
    logins.write_text("{")
    watched = {"metrics": str(file), "notify": {"command": command}}
    host.configure(["one:1"], authfile=str(logins), **watched)
    finished = host.run("sync")
    assert finished.returncode == 2
    (notice,) = notices(told)
    assert (notice["exit"], notice["run"]) == (2, None)
    assert str(logins) in notice["text"]
    (problem,) = notice["problems"]
    found = parsed(file.read_text())
    assert found[f"prewarm_problems{{code={problem['code']}}}{{severity=error}}"] == 1


@contextmanager
def daemon(host: Host) -> Iterator[tuple[Popen[str], str]]:
    """Run the daemon; yields it and where it serves."""
    with host.start("run", "--listen", "127.0.0.1:0") as process:
        try:
            assert process.stderr is not None
            port = None
            for line in process.stderr:
                if port := re.search(r"serving /metrics .* port (\d+)", line):
                    break
            assert port is not None
            yield process, f"http://127.0.0.1:{port[1]}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_run_serves_metrics_and_health(host: Host) -> None:
    host.configure(["one:1"])
    with daemon(host) as (process, url):
        done = "prewarm_actions_total{action=copy}"
        wait_until(lambda: parsed(ask(f"{url}/metrics")[1]).get(done) == 1, "copy")
        assert ask(f"{url}/healthz") == (200, "ok\n")
        assert ask(f"{url}/")[0] == 404
    assert process.returncode == 143


def test_run_whose_sync_failed_is_not_healthy(host: Host) -> None:
    host.configure(["gone:1"])
    with daemon(host) as (_, url):
        # From the first moment on it is well, until the sync has failed.
        seen = [(200, "ok\n")]

        def fails() -> bool:
            seen.append(ask(f"{url}/healthz"))
            return seen[-1][0] == 503

        wait_until(fails, "failure")
        assert set(seen[:-1]) == {(200, "ok\n")}
        assert "gone" in seen[-1][1]
        assert parsed(ask(f"{url}/metrics")[1])["prewarm_problems{code=not-found}{severity=error}"]


def test_run_whose_sync_cannot_begin_tells_it_in_its_metrics(host: Host) -> None:
    logins = host.folder / "auth.json"
    logins.write_text("{")
    host.configure(["one:1"], authfile=str(logins))
    with daemon(host) as (_, url):
        wait_until(lambda: ask(f"{url}/healthz")[0] == 503, "failure")
        assert str(logins) in ask(f"{url}/healthz")[1]
        (found,) = [key for key in parsed(ask(f"{url}/metrics")[1]) if "prewarm_problems" in key]
        assert found.endswith("{severity=error}")


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "9464", "[::]:1", "example.org:80", "::1:1"])
def test_run_listens_on_loopback_alone(host: Host, address: str) -> None:
    host.configure(["one:1"])
    finished = host.run("run", "--listen", address)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"prewarm: --listen {address}: ")
    assert finished.stderr.count("\n") == 1
