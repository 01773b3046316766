"""The daemon's server before clients that are slow, many, foreign or wrong."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from prewarm.core.errors import PrewarmError, UsageError
from prewarm.daemon.metrics_server import Scrape, address_of
from tests.e2e.host import wait_until

TEXT = b"prewarm_pulls_total 1.0\n"


@contextmanager
def served(
    metrics: Callable[[], bytes] = lambda: TEXT, ill: str = "", host: str = "127.0.0.1"
) -> Iterator[int]:
    with Scrape((host, 0), metrics, lambda: ill) as scrape:
        yield scrape.port


def ask(
    port: int, path: str = "/metrics", method: str = "GET", name: str | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        client.request(method, path, headers={} if name is None else {"Host": name})
        answer = client.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        client.close()


def test_metrics_are_served_as_what_prometheus_reads() -> None:
    with served() as port:
        status, body, headers = ask(port, "/metrics?x=1")
    assert (status, body) == (200, TEXT)
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "Python" not in headers["Server"]


def test_head_has_the_length_and_no_body() -> None:
    with served() as port:
        status, body, headers = ask(port, method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(TEXT)))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics/../state", 404), ("POST", "/metrics", 501)],
)
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    with served() as port:
        assert ask(port, path, method)[0] == status


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9464", 200),
        ("localhost:9464", 200),
        ("[::1]:9464", 200),
        ("[::1]", 200),
        ("evil.example.org", 421),
        ("evil.example.org:9464", 421),
        ("127.0.0.1.evil.example.org", 421),
        ("", 421),
    ],
)
def test_a_name_that_is_not_this_machine_is_answered_nothing(name: str, status: int) -> None:
    with served() as port:
        for path in ("/metrics", "/healthz"):
            got, body, _ = ask(port, path, name=name)
            assert (got, TEXT in body) == (status, status == 200 and path == "/metrics")


def test_client_without_a_host_is_answered() -> None:
    with served() as port, socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().endswith(b"\r\n\r\nok\n")


def test_health_that_is_bad_is_503_with_the_cause() -> None:
    with served(ill="the last sync failed") as port:
        assert ask(port, "/healthz")[:2] == (503, b"the last sync failed\n")


@pytest.mark.parametrize(
    ("error", "told", "logged"),
    [
        (PrewarmError("state", "the state is gone", "make it"), b"the state is gone; make it\n", 0),
        (ValueError("s3cret"), b"this is a bug of prewarm: see its log\n", 1),
    ],
)
def test_metrics_that_cannot_be_made_are_an_answer(
    error: Exception, told: bytes, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bytes:
        raise error

    with caplog.at_level(logging.ERROR, "prewarm"), served(fail) as port:
        assert ask(port)[:2] == (500, told)
    assert len(caplog.records) == logged


def test_clients_that_never_ask_keep_nobody_from_the_metrics() -> None:
    before = threading.active_count()
    with ExitStack() as stack, served() as port:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
        assert ask(port)[:2] == (200, TEXT)
        # One is the server's own.
        wait_until(lambda: threading.active_count() <= before + 17, "end of the oldest")


def test_client_that_goes_away_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        entered.set()
        go_on.wait(20)
        return b"x" * 10_000_000

    with caplog.at_level(logging.DEBUG, "prewarm"), served(slow) as port:
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert entered.wait(20)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        go_on.set()
        assert ask(port, "/healthz")[0] == 200
    assert caplog.records == []


def test_port_that_is_taken_is_told_with_a_cure() -> None:
    with served() as port, pytest.raises(UsageError, match=f"127.0.0.1:{port}: .*in use; choose"):
        Scrape(("127.0.0.1", port), lambda: TEXT, str)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:", ":9464", "127.0.0.1", "[127.0.0.1]:1"]
)
def test_address_that_is_none_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        address_of(text)


@pytest.mark.parametrize("text", ["127.0.0.1:9464", "localhost:0", "[::1]:9464", "127.9.9.9:1"])
def test_address_of_loopback(text: str) -> None:
    host, port = address_of(text)
    assert f"{host}:{port}" == text.replace("[", "").replace("]", "")
