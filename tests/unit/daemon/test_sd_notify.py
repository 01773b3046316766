"""The watchdog: who pings systemd, and when it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from prewarm.daemon import sd_notify
from prewarm.daemon.sd_notify import NotifySocket, Watchdog, watchdog_interval

INTERVAL = 0.01


@pytest.fixture
def systemd() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel finds a free abstract address
        sock.settimeout(10)
        yield sock


@pytest.fixture
def watchdog(systemd: socket.socket) -> Iterator[Watchdog]:
    address = systemd.getsockname().decode().replace("\0", "@")
    with Watchdog(NotifySocket(address), INTERVAL) as running:
        yield running


def falls_silent(systemd: socket.socket) -> bool:
    """Whether no ping comes any more; those that were under way do not count."""
    systemd.settimeout(100 * INTERVAL)
    for _ in range(200):
        try:
            assert systemd.recv(100) == b"WATCHDOG=1"
        except TimeoutError:
            return True
    return False


def test_watchdog_of_a_daemon_that_said_nothing_does_not_ping(
    watchdog: Watchdog, systemd: socket.socket
) -> None:
    assert falls_silent(systemd)


def test_watchdog_pings_while_the_daemon_goes_on(
    watchdog: Watchdog, systemd: socket.socket
) -> None:
    watchdog.allow(3600)
    assert not falls_silent(systemd)


def test_watchdog_of_a_loop_that_does_not_come_round_falls_silent(
    watchdog: Watchdog, systemd: socket.socket
) -> None:
    watchdog.allow(5 * INTERVAL)
    assert falls_silent(systemd)


def test_watchdog_of_a_sync_without_a_sign_of_life_falls_silent(
    watchdog: Watchdog, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "SILENCE", 5 * INTERVAL)
    watchdog.allow(3600)
    assert falls_silent(systemd)


def test_watchdog_of_a_sync_that_works_goes_on_pinging(
    watchdog: Watchdog, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "SILENCE", 200 * INTERVAL)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(INTERVAL):
            watchdog.beat()

    watchdog.allow(3600)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert not falls_silent(systemd)
    finally:
        ended.set()
        thread.join()


def test_notify_socket_that_nobody_listens_on_is_no_failure(tmp_path: object) -> None:
    NotifySocket(f"{tmp_path}/none").send("READY=1")
    NotifySocket(None).send("READY=1")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval_is_half_of_what_systemd_waits(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(environ, 7) == seconds
