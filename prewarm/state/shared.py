"""The state on PostgreSQL that several hosts share: opened, kept through failures, done without.

Where the server cannot be reached any more, what a sync notes is forgotten, and nothing is pulled:
tags and copies between mirrors go on. What was in flight stays charged.
"""

from __future__ import annotations

import inspect
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Literal

from prewarm.core.budget import Moment
from prewarm.core.errors import UsageError
from prewarm.core.manifest import Manifest
from prewarm.core.records import Refusal, Reservation
from prewarm.state.clock import now as host_clock
from prewarm.state.database import Database, DoubtError, LostError, UnreachableError
from prewarm.state.ledger import Ledger, copy_state, is_current, migrate, version_of
from prewarm.state.location import Lock
from prewarm.state.postgresql import PostgresqlDatabase
from prewarm.state.sqlite import SqliteDatabase
from prewarm.state.tenant import Site

log = logging.getLogger("prewarm")

_CLOCKS_APART: Final = 86400.0
"""Seconds between the clocks of a host and its server beyond which the host may not write."""
_TRIES: Final = 5
"""Of a transaction that the server undid, or that a lost connection ended."""
_PAUSE: Final = (0.05, 0.3)
"""Seconds before such a try, at random: two hosts that retried at once would collide again."""


class SharedLedger(Ledger):
    """A site's part of a shared state, for a sync: it may go on while the server is away."""

    def __init__(self, database: Database, site: Site) -> None:
        super().__init__(database, site)
        self._manifests: dict[str, Manifest] = {}
        self._losing = threading.Lock()

    @classmethod
    def connect(cls, url: str, site: Site, environ: Mapping[str, str]) -> SharedLedger:
        """Open the state, and bring its schema up to date.

        A server that cannot be reached is what `lost` tells. UsageError for a state of a newer
        prewarm or of another program, where psycopg is missing, and for a clock that is far off.
        """
        try:
            database = PostgresqlDatabase(url, environ, host=site.host, writing=True)
        except UnreachableError as error:
            found = cls(_in_memory(f"state {url}"), site)
            found.do_without(error)
            return found
        try:
            _check_clock(database)
            migrate(database)
        except BaseException:
            database.close()
            raise
        return cls(database, site)

    @contextmanager
    def scanning(self) -> Iterator[bool]:
        """Hold the lease of the site's demand, if no other host scans for it; yields whether.

        It is the session's: a host that dies, or is cut off, gives it back.
        """
        lease = self.lock(f"demand {self._demand}", "the demand")
        if not lease.try_acquire(0.0):
            yield False
            return
        try:
            yield True
        finally:
            lease.release()

    def lock(self, name: str, what: str) -> ServerLock:
        """Return a lock that one session at a time holds, whichever host it is of."""
        return ServerLock(self, name, what)

    def mirror_locks(self, urls: Iterable[str]) -> tuple[Lock, ...]:
        """Return the locks of the mirrors that a sync writes to, each once."""
        names = {self._name(url): url for url in urls}
        return tuple(self.lock(f"mirror {name}", f"mirror {names[name]}") for name in sorted(names))

    def together(self, work: Callable[[], None]) -> None:
        server = self.server()
        if server is None:
            work()
            return
        with server.transaction(), server.pipelined():
            work()

    def manifest(self, digest: str) -> Manifest | None:
        """Return a kept manifest, or None; one that was seen is not asked for again."""
        if digest not in self._manifests:
            found = super().manifest(digest)
            if found is None:
                return None
            self._manifests[digest] = found
        return self._manifests[digest]

    def keep_manifest(self, manifest: Manifest, now: Moment) -> None:
        super().keep_manifest(manifest, now)
        self._manifests[manifest.digest] = manifest

    def reserve(self, *args: Any, **more: Any) -> Reservation | Refusal:
        if self.lost is not None:
            return Refusal("state", None, in_flight=False)
        return super().reserve(*args, **more)

    def extend(self, *args: Any, **more: Any) -> Literal[True] | Refusal:
        if self.lost is not None:
            return Refusal("state", None, in_flight=False)
        return super().extend(*args, **more)

    def settle(self, *args: Any, **more: Any) -> None:
        if self.lost is None:
            super().settle(*args, **more)

    def release(self, *args: Any, **more: Any) -> None:
        if self.lost is None:
            super().release(*args, **more)

    def do_without(self, error: UnreachableError) -> None:
        """Go on in memory, for as long as this ledger is open; only the first caller changes it."""
        with self._losing:
            if self.lost is not None:
                return
            log.warning("%s; nothing is pulled without it", error.text)
            server, self._database = self._database, _in_memory(self._database.name)
            self.lost = error.failure
            server.close()

    def server(self) -> PostgresqlDatabase | None:
        """Return the database, while it can be reached."""
        return self._database if isinstance(self._database, PostgresqlDatabase) else None


class ServerLock:
    """A lock of the session's own (`Lock`); without a server everybody has it."""

    def __init__(self, ledger: SharedLedger, name: str, what: str) -> None:
        self._ledger = ledger
        self._name = name
        self._what = what

    def try_acquire(self, since: float) -> bool:  # noqa: ARG002 - the server does not tell it
        server = self._ledger.server()
        if server is None:
            return True
        try:
            return server.hold(self._name)
        except UnreachableError as error:
            self._ledger.do_without(error)
            return True

    def release(self) -> None:
        server = self._ledger.server()
        if server is not None:
            server.let_go(self._name)

    def holder(self) -> str:
        server = self._ledger.server()
        who = server.holder(self._name) if server is not None else None
        return f"{self._what} is held by another prewarm{f', {who}' if who else ''}"


def read(url: str, site: Site, environ: Mapping[str, str]) -> Ledger:
    """Open a site's part of a shared state to read it; else as for `look`."""
    database = PostgresqlDatabase(url, environ)
    try:
        if is_current(database):
            return Ledger(database, site)
    except BaseException:
        database.close()
        raise
    database.close()
    return look(url, site, environ)


def look(url: str, site: Site, environ: Mapping[str, str]) -> Ledger:
    """Return a site's part of a shared state as it is now, copied into memory.

    Nothing is changed on the server: a dry run may note what it likes. UsageError as for
    `SharedLedger.connect`, UnreachableError where the server cannot be reached.
    """
    database = PostgresqlDatabase(url, environ)
    try:
        with database.snapshot():
            clock = _Elapsed(database.now(), host_clock())
            copy = SqliteDatabase.memory(database.name, clock)
            try:
                copy_state(database, copy, site)
            except BaseException:
                copy.close()
                raise
    finally:
        database.close()
    return Ledger(copy, site)


@dataclass(frozen=True, slots=True)
class Server:
    """What a server tells of itself and of the state there."""

    server: str
    """Its version."""
    user: str
    may_create: bool
    """Whether that user may make tables."""
    version: int
    """Of the schema; 0: there is none yet."""
    time: float
    """By its clock, in epoch seconds."""


def examine(url: str, environ: Mapping[str, str]) -> Server:
    """Ask the server of a state; else as for `look`."""
    database = PostgresqlDatabase(url, environ)
    try:
        server, user, may_create = database.rights()
        return Server(server, user, may_create, version_of(database), database.now())
    finally:
        database.close()


class _Elapsed:
    """A server's clock (`ServerClock`) as it was read once, going on with the host's."""

    def __init__(self, shown: float, read: Moment) -> None:
        self._shown = shown
        self._read = read

    def now(self) -> float:
        return self._shown + host_clock().since(self._read)

    def at(self, moment: Moment) -> float:
        return self.now() - host_clock().since(moment)


def _check_clock(database: PostgresqlDatabase) -> None:
    """Raise UsageError where this host's day is another one than the server's.

    What is old goes by the host that tidies: it would forget what all the others still need.
    """
    ahead = host_clock().wall - database.now()
    if abs(ahead) > _CLOCKS_APART:
        side = "ahead of" if ahead > 0 else "behind"
        raise UsageError(
            "clock",
            f"{database.name}: this host's clock is {abs(ahead) / 3600:.0f} h {side} the server's",
            "set the clock that is wrong: timedatectl set-ntp true",
        )


def _in_memory(name: str) -> SqliteDatabase:
    database = SqliteDatabase.memory(name)
    migrate(database)
    return database


_ENDING: Final = frozenset({"settle", "release"})
"""Where nobody knows whether it was done: if not, all that was reserved stays charged."""
_COUNTING: Final = frozenset({"add_history", "add_part", "add_logged", "add_pull_failure"})
"""What must not be done twice. Of all else the last word counts, and a reservation that was made
twice is charged twice."""


def _lasting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of the ledger be done again where the server undid it, or without a server."""

    @wraps(method)
    def done(self: SharedLedger, *args: Any, **more: Any) -> Any:
        for left in reversed(range(_TRIES)):
            try:
                return method(self, *args, **more)
            except LostError:
                server = self.server()
                if not left or (server is not None and server.within):
                    raise
                time.sleep(random.uniform(*_PAUSE))
            except DoubtError:
                if method.__name__ in _ENDING:
                    return None
                if not left or method.__name__ in _COUNTING:
                    raise
            except UnreachableError as error:
                self.do_without(error)
        return method(self, *args, **more)

    return done


_OWN: Final = frozenset(
    {"close", "connect", "memory", "open", "scanning", "lock", "mirror_locks", "do_without"}
    | {"server"}
)
for _name, _method in inspect.getmembers(SharedLedger, inspect.isfunction):
    if not _name.startswith("_") and _name not in _OWN:
        setattr(SharedLedger, _name, _lasting(_method))
