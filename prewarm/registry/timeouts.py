"""Shuts HTTP connections down: each at its time limit, all of them when a run ends.

A socket's own timeout bounds one wait for bytes. A server that sends a byte now and then, or
`100 Continue` without end, never runs into it; a `TimeLimit` bounds the request in total.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Final, Protocol

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

_SHORTEST: Final = 0.05
_LONGEST: Final = 0.5
"""Seconds between two looks for connections whose time is over."""
_LINGER: Final = 2.0
"""Seconds without a limit after which the watching thread ends; the next limit starts another."""


class TimeLimit:
    """How long one request may take, from connecting to the last byte of its answer."""

    __slots__ = ("ends", "expired", "seconds")

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self.restart(seconds)

    def restart(self, seconds: float) -> None:
        """Allow so many seconds from now on."""
        self.seconds = seconds
        self.ends = time.monotonic() + seconds

    def stop(self) -> None:
        """Limit nothing any more: the answer is read, or somebody else's turn has come."""
        self.ends = inf


class CutError(ConnectionAbortedError):
    """Nothing was sent, since the run ends or the time is over."""


class Guard(Protocol):
    """Looks at the connections of a pool."""

    def check(self, opened: socket.socket) -> None:
        """Raise where nothing may be sent to the peer; before the first byte is."""

    def note(self, host: str, opened: socket.socket) -> None:
        """Learn where a host is, once TLS, if any, has proved that it is that host."""


class Connections:
    """The connections of some pools, which another thread may shut down.

    Whoever waits for an answer then wakes with an error.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        """`stop` set cuts them, too."""
        self._stop = stop
        self.ended = threading.Event()
        """Set by `cut`: nothing is sent any more."""
        self._lock = threading.Lock()
        self._limits: weakref.WeakKeyDictionary[socket.socket, TimeLimit] = (
            weakref.WeakKeyDictionary()
        )
        """The limit of the request that each socket serves, or served last."""
        self._local = threading.local()
        self._watching = False
        self._running = 0.0

    def held(self, pools: urllib3.PoolManager, guard: Guard | None = None) -> urllib3.PoolManager:
        """Return the pools, whose connections are known here, and to the guard, from now on."""
        used = self._used

        def connected(opened: socket.socket) -> socket.socket:
            if guard is not None:
                try:
                    guard.check(opened)
                except BaseException:
                    opened.close()
                    raise
            return used(opened)

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return connected(super()._new_conn())

            def connect(self) -> None:
                super().connect()
                if guard is not None:
                    guard.note(self.host, self.sock)
                used(self.sock)

            def putrequest(self, *args: object, **options: object) -> None:
                used(self.sock)
                super().putrequest(*args, **options)  # type: ignore[arg-type]

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return connected(super()._new_conn())

            def connect(self) -> None:
                super().connect()
                if guard is not None:
                    guard.note(self.host, self.sock)
                used(self.sock)

            def putrequest(self, *args: object, **options: object) -> None:
                used(self.sock)
                super().putrequest(*args, **options)  # type: ignore[arg-type]

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        pools.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
        return pools

    @contextmanager
    def within(self, limit: TimeLimit) -> Iterator[None]:
        """Let the limit hold for the connections that this thread uses inside."""
        self._local.limit = limit
        self._watch()
        try:
            yield
        finally:
            self._local.limit = None

    def check(self) -> None:
        """Raise CutError after the cut, and where the time of this thread's request is over."""
        limit: TimeLimit | None = getattr(self._local, "limit", None)
        if limit is not None and time.monotonic() >= limit.ends:
            limit.expired = True
        if self.ended.is_set() or (limit is not None and limit.expired):
            raise CutError

    def cut(self) -> None:
        """Shut all connections down, and let nothing be sent any more."""
        self.ended.set()
        with self._lock:
            sockets = list(self._limits)
        for one in sockets:
            _shut(one)

    def _used(self, connected: socket.socket) -> socket.socket:
        """Note which request a socket serves now; the socket is None before it is connected."""
        # Through a proxy that is itself reached by TLS it is no socket, but has one.
        found = getattr(connected, "socket", connected)
        if found is not None:
            limit = getattr(self._local, "limit", None) or TimeLimit(inf)
            with self._lock:
                self._limits[found] = limit
        try:
            self.check()
        except CutError:
            if found is not None:
                connected.close()
            raise
        return connected

    def _watch(self) -> None:
        """Have a thread that watches, for as long as there is something to watch."""
        with self._lock:
            self._running = time.monotonic()
            if self._watching:
                return
            self._watching = True
        threading.Thread(target=self._shut_in_time, name="timeouts", daemon=True).start()

    def _shut_in_time(self) -> None:
        pause = _SHORTEST
        while True:
            time.sleep(pause)
            # Not the event's own method: a look here is no sign of life of the run.
            if self._stop is not None and threading.Event.is_set(self._stop):
                self.cut()
            now = time.monotonic()
            with self._lock:
                nearest = self._shut_expired(now)
                if nearest < inf:
                    self._running = now
                elif now - self._running > _LINGER:
                    self._watching = False
                    return
            pause = min(_LONGEST, max(_SHORTEST, nearest - now))

    def _shut_expired(self, now: float) -> float:
        """Shut down what is over; return when the next limit ends."""
        nearest = inf
        for connected, limit in list(self._limits.items()):
            if limit.ends <= now:
                limit.expired = True
                _shut(connected)
            else:
                nearest = min(nearest, limit.ends)
        return nearest


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):
        # Not a TLS socket's own: after that its reader takes ciphertext for the answer.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
