"""Notices reach real commands and real servers, or say in one line why not."""

from __future__ import annotations

import json
import logging
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from prewarm.core.errors import PrewarmError
from prewarm.daemon.deliver import post, run_command
from tests.e2e.host import wait_until
from tests.real.scripted import Scripted, reply
from tests.sandbox import Fault
from tests.sandbox.wire import Request, Response

ENVIRON = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
GO_ON = threading.Event()
BODY = b'{"version": 1, "event": "failure"}'


def script(folder: Path, text: str) -> str:
    file = folder / "page"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_command_gets_the_json_its_arguments_and_no_secret(tmp_path: Path) -> None:
    page = script(tmp_path, 'cat > "$1"; env > "$1.env"')
    out = tmp_path / "out; $(id)"
    secrets = {"PREWARM_GITLAB_TOKEN": "glpat-secret", "PGPASSFILE": "/secret"}
    proxies = {"HTTPS_PROXY": "http://proxy:1", "no_proxy": "local"}
    run_command([page, str(out)], BODY, {**ENVIRON, **secrets, **proxies}, GO_ON)
    assert out.read_bytes() == BODY
    assert (
        proxies.items()
        <= dict(
            line.split("=", 1) for line in (tmp_path / "out; $(id).env").read_text().splitlines()
        ).items()
    )
    assert "secret" not in (tmp_path / "out; $(id).env").read_text()


def test_command_that_reads_nothing_is_no_failure(tmp_path: Path) -> None:
    run_command([script(tmp_path, "exit 0")], b"x" * 1_000_000, ENVIRON, GO_ON)


def test_command_that_leaves_a_child_behind_holds_nobody_up(tmp_path: Path) -> None:
    run_command([script(tmp_path, "sleep 4 & exit 0")], BODY, ENVIRON, GO_ON, timeout=2.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [("exit 7", "failed (exit 7)"), ("kill -9 $$", "failed (signal 9)"), ("sleep 60", "was ended")],
)
def test_command_that_fails_is_told_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(PrewarmError) as caught:
        run_command([script(tmp_path, text)], BODY, ENVIRON, GO_ON, timeout=1.0)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_command_at_work_is_killed_with_its_children_when_the_run_ends(tmp_path: Path) -> None:
    stop, up = threading.Event(), tmp_path / "up"
    page = script(tmp_path, f"sleep 60 & echo $! >{up}.new; mv {up}.new {up}; wait")

    def end() -> None:
        wait_until(up.exists, "start")
        stop.set()

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(PrewarmError, match="/page was not waited for: the run ends"):
        run_command([page], BODY, ENVIRON, stop, timeout=600.0)
    ending.join()
    child = Path("/proc", up.read_text().strip(), "cmdline")
    wait_until(lambda: not child.exists() or not child.read_bytes(), "end of the child")


def test_command_is_told_where_no_disk_takes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    run_command([script(tmp_path, f"cat > {tmp_path}/out")], BODY, ENVIRON, GO_ON)
    assert (tmp_path / "out").read_bytes() == BODY


def test_command_that_says_too_much_is_read_to_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = script(tmp_path, f"head -c 5000000 /dev/zero | tr '\\0' x && touch {tmp_path}/read")
    with caplog.at_level(logging.DEBUG, "prewarm"):
        run_command([page], BODY, ENVIRON, GO_ON)
    assert (tmp_path / "read").exists()
    assert 0 < sum(record.getMessage().count("x") for record in caplog.records) < 5000


def test_command_that_is_missing_is_told() -> None:
    with pytest.raises(PrewarmError, match="/no/such does not start: No such file"):
        run_command(["/no/such"], BODY, ENVIRON, GO_ON)


def test_command_output_is_logged_for_those_who_ask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "prewarm"):
        run_command(
            [script(tmp_path, "printf 'hello\\033[2J\\n'; echo oops >&2")], BODY, ENVIRON, GO_ON
        )
    told = [record.getMessage() for record in caplog.records if "/page" in record.getMessage()]
    assert [line.partition(": ")[2] for line in told] == ["hello [2J", "oops"]


def test_webhook_gets_the_json_by_post() -> None:
    with Scripted(lambda _: reply(204)) as site:
        post(f"{site.url}/hooks/s3cret", BODY, ENVIRON, GO_ON)
        (request,) = site.requests
    assert (request.method, request.path) == ("POST", "/hooks/s3cret")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == json.loads(BODY)


def test_webhook_is_asked_through_the_proxy_of_the_environment() -> None:
    with Scripted(lambda _: reply(200)) as proxy:
        environ = {**ENVIRON, "HTTP_PROXY": proxy.url}
        post("http://chat.example.org/hooks/s3cret", BODY, environ, GO_ON)
        (request,) = proxy.requests
    assert request.headers["host"] == "chat.example.org"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_webhook_that_refuses_is_told_without_its_path(status: int) -> None:
    with (
        Scripted(lambda _: reply()) as other,
        Scripted(lambda _: reply(status, location=f"{other.url}/")) as site,
    ):
        with pytest.raises(PrewarmError, match=f"answered {status}") as caught:
            post(f"{site.url}/hooks/s3cret", BODY, ENVIRON, GO_ON)
        assert other.requests == []
    assert "s3cret" not in str(caught.value)


def test_webhook_that_is_asked_is_not_waited_for_when_the_run_ends() -> None:
    stop, over = threading.Event(), threading.Event()

    def hang(_: Request) -> Response:
        stop.set()
        over.wait(60)
        return reply()

    with Scripted(hang) as site:
        with pytest.raises(PrewarmError, match="was not waited for: the run ends") as caught:
            post(f"{site.url}/hooks/s3cret", BODY, ENVIRON, stop, timeout=600.0)
        assert not over.is_set()
        over.set()
    assert "s3cret" not in str(caught.value)


def test_webhook_that_answers_letter_by_letter_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            client, _ = server.accept()
            with client, suppress(OSError):
                for _ in range(200):
                    client.sendall(b"x")
                    time.sleep(0.05)

        dripping = threading.Thread(target=drip)
        dripping.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/hooks/s3cret"
        with pytest.raises(PrewarmError, match="timed out: no complete answer within") as caught:
            post(url, BODY, ENVIRON, GO_ON, timeout=0.5)
        dripping.join()
    assert "s3cret" not in str(caught.value)


def test_webhook_that_hangs_is_given_up() -> None:
    with Scripted(lambda _: reply()) as site:
        site.faults.add(Fault(path="*", hang=2.0, count=None))
        with pytest.raises(PrewarmError, match="answer") as caught:
            post(f"{site.url}/hooks/s3cret", BODY, ENVIRON, GO_ON, timeout=0.5)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("status", [204, 302, 500])
def test_webhook_is_logged_without_its_path(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Scripted(lambda _: reply(status)) as server,
        caplog.at_level(logging.DEBUG),
        suppress(PrewarmError),
    ):
        post(f"{server.url}/services/s3cr3t?key=s3cr3t", BODY, ENVIRON, GO_ON)
    assert f"POST {server.url}/…: {status}" in caplog.messages
    assert "s3cr3t" not in caplog.text
