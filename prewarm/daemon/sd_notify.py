"""The socket of systemd's sd_notify(3): readiness, status and watchdog of the daemon."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

log = logging.getLogger("prewarm")

SILENCE: Final = 1200.0
"""Seconds after which somebody who gave no sign of life hangs: GitLab's rate limit lets a scan wait
for 15 minutes, longer than any answer is waited for."""


class NotifySocket:
    """Tells systemd what the daemon does; silent where nobody listens."""

    def __init__(self, address: str | None) -> None:
        self._address = f"\0{address[1:]}" if address and address[0] == "@" else address

    def send(self, *lines: str) -> None:
        """Send assignments such as `READY=1` in one message; a lost one is no failure."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1)
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                log.debug("NOTIFY_SOCKET: %s", error)


def reloading() -> tuple[str, str]:
    """Return what tells that the configuration is being read anew."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two pings, half of what systemd waits; None: it does not."""
    micros = environ.get("WATCHDOG_USEC", "")
    ours = environ.get("WATCHDOG_PID", "") in ("", str(pid))
    if not ours or not micros.isdecimal() or int(micros) == 0:
        return None
    return int(micros) / 2e6


class Watchdog:
    """Pings from a thread of its own for as long as the daemon goes on.

    It is to end a daemon that hangs: systemd starts it anew, and the next sync goes on. A sync may
    take hours, with a single copy; but each of its loops looks every now and then whether it is to
    be ended, and that look is its sign of life (`beat`).
    """

    def __init__(self, notify: NotifySocket, interval: float | None) -> None:
        self._notify = notify
        self._interval = interval
        self._until = 0.0
        self._beaten = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ping, name="watchdog", daemon=True)

    def allow(self, seconds: float) -> None:
        """The daemon goes on; it says so again within so many seconds."""
        self.beat()
        self._until = self._beaten + seconds

    def beat(self) -> None:
        """Somebody is at work."""
        self._beaten = time.monotonic()

    @property
    def content(self) -> bool:
        """Whether the daemon goes on as it said it would."""
        return time.monotonic() < min(self._until, self._beaten + SILENCE)

    def __enter__(self) -> Watchdog:
        if self._interval is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._interval is not None:
            self._thread.join()

    def _ping(self) -> None:
        while not self._ended.wait(self._interval):
            if self.content:
                self._notify.send("WATCHDOG=1")


def take_address(environ: MutableMapping[str, str]) -> str | None:
    """Return the address of the socket, and keep it from children."""
    return environ.pop("NOTIFY_SOCKET", None)
