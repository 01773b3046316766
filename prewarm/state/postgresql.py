"""PostgreSQL: connects to the server of a shared state, and runs the ledger's statements there.

A lost connection is made anew, and waited for as long as a restart of the server takes. Locks are
the session's own: they are free as soon as the process that holds them is gone, and nothing can be
written by one that has lost them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from prewarm.core.budget import Moment
from prewarm.core.errors import PrewarmError, UsageError
from prewarm.state.clock import Clock
from prewarm.state.clock import now as host_clock
from prewarm.state.database import DoubtError, LostError, ServerClock, UnreachableError

try:
    import psycopg
except ImportError:  # the extra is not installed, or there is no libpq
    psycopg = None  # type: ignore[assignment]

PATIENCE: Final = 20.0
"""Seconds that a server which was there is waited for: a restart takes less."""
FIRST_PATIENCE: Final = 5.0
"""Seconds that it is waited for at first."""
_CONNECT_SECONDS: Final = 5
_POLL_SECONDS: Final = 0.25
_SESSION: Final = {
    # A host that dies without a word is noticed within a minute or so, and its locks are free.
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # Also one that died before it took an answer, when no keepalive is sent.
    "tcp_user_timeout": "50s",
    # One that hangs within a transaction holds up the others no longer than this.
    "idle_in_transaction_session_timeout": "20s",
    "lock_timeout": "60s",
    "timezone": "UTC",
    "synchronous_commit": "off",
    # Whoever has waited for a lock counts what was committed meanwhile, whatever the server's own
    # default is.
    "default_transaction_isolation": "read committed",
}
_NOTHING: Final[Mapping[str, Any]] = {}
_NAMED: Final = re.compile(r"(?<!:):([a-z_][a-z0-9_]*)|%")
_REFUSED: Final = re.compile(
    r"authentication failed|no pg_hba\.conf entry|does not exist|permission denied"
    r"|no password supplied|not permitted to log in"
)
_DEFINING: Final = re.compile(r"(CREATE|ALTER) TABLE\b")


class PostgresqlDatabase:
    """A state on a server; see `Database`. `server_clock` stands in for the server's, in tests.

    One that only reads (a standby) is waited for where it is for `writing`.

    Transactions of the same `alone` follow each other, on every host; the others see what is
    committed when each of their statements begins.
    """

    def __init__(
        self,
        url: str,
        environ: Mapping[str, str],
        *,
        host: str = "",
        writing: bool = False,
        clock: Clock = host_clock,
        server_clock: Callable[[], float] | None = None,
    ) -> None:
        if psycopg is None:
            raise UsageError(
                "state-driver",
                f"state {url} needs psycopg, which is not installed",
                "run: pipx inject prewarm 'psycopg[binary]'",
            )
        self.name = f"state {url}"
        self._url = url
        self._passfile = _passfile(environ)
        self._more: dict[str, Any] = {"target_session_attrs": "read-write"} if writing else {}
        if self._passfile is not None:
            self._more["passfile"] = f"/proc/self/fd/{self._passfile}"
        self._label = f"prewarm on {host}, process {os.getpid()}" if host else "prewarm"
        self._clock = clock
        self.clock: ServerClock | None = self
        self._server_clock = server_clock
        self._patience = FIRST_PATIENCE
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._closed = False
        self._down: UnreachableError | None = None
        """Why the server was given up."""
        self._held: dict[str, int] = {}
        """Keys of the locks that this process holds, by their names."""
        self._session: tuple[Any, ...] | None = None
        """Which session ours is, or was."""
        self._inside: int | None = None
        """The thread that has a transaction under way."""
        with self._lock:
            self._connect()
        self._patience = PATIENCE

    # Statements

    @contextmanager
    def transaction(self, *, durable: bool = False, alone: str = "") -> Iterator[None]:
        with self._lock:
            if self.within:
                # A part of one that is under way.
                yield
                return
            begin = "BEGIN"
            if durable:
                begin += "; SET LOCAL synchronous_commit TO DEFAULT"
            if alone:
                begin += f"; SELECT pg_advisory_xact_lock({_key(alone)})"
            try:
                self._outside(begin)
                self._inside = threading.get_ident()
                yield
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._inside = None
            self._commit()

    @property
    def within(self) -> bool:
        """Whether the thread that asks has a transaction under way."""
        return self._inside == threading.get_ident()

    @contextmanager
    def pipelined(self) -> Iterator[None]:
        """Run the body, which writes in a transaction, without a wait for each of its answers."""
        assert self._connection is not None
        # psycopg would warn of what the first error, which we raise, brings with it.
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        with self._failing(), self._connection.pipeline():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._lock:
            yield

    def execute(
        self, statement: str, parameters: Mapping[str, Any] = _NOTHING
    ) -> psycopg.Cursor[Any]:
        values = {name: _value(value) for name, value in parameters.items()}
        with self._lock:
            if not self.within:
                found: psycopg.Cursor[Any] = self._outside(_translated(statement), values)
                return found
            assert self._connection is not None
            with self._failing():
                return self._connection.execute(_translated(statement), values)

    def write(self, statement: str, parameters: Mapping[str, Any]) -> int:
        return self.execute(statement, parameters).rowcount

    def executemany(self, statement: str, parameters: Iterable[Mapping[str, Any]]) -> None:
        rows = [{name: _value(value) for name, value in one.items()} for one in parameters]
        with self._lock:
            assert self._connection is not None
            with self._failing(), self._connection.cursor() as cursor:
                cursor.executemany(_translated(statement), rows)

    def tables(self) -> frozenset[str]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        return frozenset(name for (name,) in self.execute(query))

    def rights(self) -> tuple[str, str, bool]:
        """Return the server's version, our user, and whether that may make tables."""
        query = """SELECT current_setting('server_version'), current_user,
                          has_schema_privilege(current_schema(), 'CREATE')"""
        ((version, user, may_create),) = self.execute(query)
        return str(version), str(user), bool(may_create)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Run the body, which reads, on the state as it is now, whoever is writing to it."""
        with self._lock:
            self._outside("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._inside = threading.get_ident()
            try:
                yield
            finally:
                self._inside = None
                self._roll_back()

    def _outside(self, statement: str, values: Mapping[str, Any] | None = None) -> Any:
        """Run a statement that may be run twice, with no transaction around it.

        Once more on a new connection where the old one was lost.
        """
        fresh = not self._connected
        if fresh:
            self._connect()
        try:
            with self._failing():
                assert self._connection is not None
                return self._connection.execute(statement, values)
        except LostError:
            if fresh or self._connected:
                raise
        self._connect()
        with self._failing():
            assert self._connection is not None
            return self._connection.execute(statement, values)

    def _commit(self) -> None:
        assert self._connection is not None
        try:
            self._connection.execute("COMMIT")
        except psycopg.errors.IdleInTransactionSessionTimeout as error:
            # We slept, and the server has undone it before it was told to commit.
            self._forget_connection()
            raise self._unusable(error, LostError) from error
        except psycopg.OperationalError as error:
            self._forget_connection()
            raise self._unusable(error, DoubtError) from error

    def _roll_back(self) -> None:
        if self._connection is not None:
            try:
                self._connection.execute("ROLLBACK")
            except psycopg.Error:
                self._forget_connection()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn what the server or the connection says into what `Database` says."""
        try:
            yield
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
            raise self._unusable(error, LostError) from error
        except psycopg.errors.IdleInTransactionSessionTimeout as error:
            self._forget_connection()
            raise self._unusable(error, LostError) from error
        except psycopg.OperationalError as error:
            if self._connection is None or self._connection.closed:
                self._forget_connection()
                raise self._unusable(error, LostError) from error
            raise self._unusable(error) from error
        except (
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.InvalidSchemaName,
        ) as error:
            raise PrewarmError(
                "state",
                f"{self.name} cannot be used: {error.diag.message_primary}",
                "make its user the owner of the database, the schema and the tables there",
            ) from error
        except psycopg.InternalError as error:
            raise self._unusable(error) from error

    def _unusable(
        self, error: psycopg.Error, kind: type[PrewarmError] = PrewarmError
    ) -> PrewarmError:
        return kind(
            "state",
            f"{self.name} cannot be used: {_one_line(error)}",
            "see the log of the PostgreSQL server",
        )

    # The connection

    @property
    def _connected(self) -> bool:
        return self._connection is not None

    def _connect(self) -> None:
        """Connect, and take the held locks again; a server that restarts is waited for."""
        if self._down is not None:
            # One thread has waited for all.
            raise self._down
        if self._closed:
            raise LostError("state", f"{self.name} is closed", "run again")
        began = time.monotonic()
        while True:
            try:
                connection = self._connect_once()
                lost = next((name for name in self._held if not _try(connection, name)), None)
                if lost is None:
                    self._connection = connection
                    return
                connection.close()
            except psycopg.OperationalError as error:
                failure = self._unreachable(error)
                waits = not _is_refusal(error)
            else:
                failure = UnreachableError(
                    "state-lost",
                    f"{self.name}: another prewarm took {lost} while the server was away",
                    "run again later",
                )
                waits = True
            if not waits or time.monotonic() - began >= self._patience:
                self._down = failure
                raise failure
            time.sleep(_POLL_SECONDS)

    def _connect_once(self) -> psycopg.Connection[Any]:
        try:
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                application_name=self._label,
                client_encoding="utf8",
                keepalives_idle=20,
                keepalives_interval=10,
                keepalives_count=3,
                tcp_user_timeout=30_000,
                **self._more,
            )
        except psycopg.ProgrammingError as error:
            raise UsageError(
                "state",
                f"{self.name} is a URL that PostgreSQL does not read: {_one_line(error)}",
                "correct state: in images.yml",
            ) from error
        try:
            self._check_encoding(connection)
            connection.execute("; ".join(f"SET {name} = '{_SESSION[name]}'" for name in _SESSION))
            if self._held and self._session is not None:
                # The server may not know yet that our old session, which has the locks, is gone.
                connection.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE pid = %s AND backend_start = %s""",
                    self._session,
                )
            self._session = connection.execute(
                "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_encoding(self, connection: psycopg.Connection[Any]) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise UsageError(
                "state",
                f"{self.name} is encoded in {encoding}, in which not every name can be written",
                "make the database anew: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
            )

    def _unreachable(self, error: psycopg.Error) -> UnreachableError:
        return UnreachableError(
            "state-unreachable",
            f"{self.name} cannot be reached: {_one_line(error)}",
            "start the PostgreSQL server, or correct state: in images.yml, or pgpass",
        )

    def _forget_connection(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._forget_connection()
            if self._passfile is not None:
                os.close(self._passfile)
                self._passfile = None

    # Locks

    def hold(self, name: str) -> bool:
        """Take a lock, if no other process has it; it is held until it is let go, or we die."""
        with self._lock:
            if name not in self._held and not self._try_lock(name):
                return False
            self._held[name] = self._held.get(name, 0) + 1
            return True

    def let_go(self, name: str) -> None:
        """Give back a lock that `hold` gave."""
        with self._lock:
            self._held[name] -= 1
            if self._held[name]:
                return
            del self._held[name]
            if self._connection is not None:
                with suppress(PrewarmError):
                    self._outside(f"SELECT pg_advisory_unlock({_key(name)})")

    def holder(self, name: str) -> str | None:
        """Return which session has a lock, as its application names itself; None: none, now."""
        query = """SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
                   WHERE locktype = 'advisory' AND granted AND objsubid = 1
                     AND (CAST(classid AS BIGINT) << 32) | CAST(objid AS BIGINT) = :key
                     AND pg_locks.database = (
                         SELECT oid FROM pg_database WHERE datname = current_database())"""
        found = self.execute(query, {"key": _key(name)}).fetchone()
        return str(found[0]).removeprefix("prewarm ") if found and found[0] else None

    def _try_lock(self, name: str) -> bool:
        self._outside("SELECT 1")
        assert self._connection is not None
        with self._failing():
            return _try(self._connection, name)

    # Time

    def now(self) -> float:
        """Return what the server's clock shows; see `ServerClock`."""
        if self._server_clock is not None:
            return self._server_clock()
        query = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"
        ((shown,),) = self.execute(query)
        return float(shown)

    def at(self, moment: Moment) -> float:
        """Return a moment of this host by the server's clock; see `ServerClock`."""
        served = self.now()
        # Asked afterwards: what that took makes it too early, never too late.
        return served - self._clock().since(moment)


def _try(connection: psycopg.Connection[Any], name: str) -> bool:
    (taken,) = connection.execute(f"SELECT pg_try_advisory_lock({_key(name)})")
    return bool(taken[0])


def _key(name: str) -> int:
    """Return the number that stands for a lock's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


@lru_cache(512)
def _translated(statement: str) -> str:
    """Return a portable statement as psycopg and PostgreSQL write it.

    Texts sort by their bytes, as in SQLite, whatever language the database is in.
    """
    text = _NAMED.sub(lambda found: f"%({found[1]})s" if found[1] else "%%", statement)
    if _DEFINING.match(statement):
        text = re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', text)
        text = re.sub(r"\bBLOB\b", "BYTEA", text)
    return text


def _value(value: Any) -> Any:
    """Return a value that PostgreSQL takes: its texts hold no NUL, which names from CI may."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _passfile(environ: Mapping[str, str]) -> int | None:
    """Return the descriptor of a copy of the service manager's pgpass; None where it gave none.

    libpq takes no file that a group may read, and the service manager's look like that: they are
    for the user of the service by an access control list. The other places libpq knows itself.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        content = Path(folder, "pgpass").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            "state-pgpass",
            f"{Path(folder, 'pgpass')} cannot be read: {error.strerror}",
            "let the user that runs prewarm read it",
        ) from None
    if not content.strip():
        return None
    descriptor = os.memfd_create("pgpass")
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, content)
    return descriptor


def _is_refusal(error: psycopg.Error) -> bool:
    """Whether a server that is there said no: waiting would not help.

    No SQLSTATE is told of a connection that failed, so the server's words have to do; one that
    speaks another language is waited for in vain.
    """
    return bool(_REFUSED.search(str(error)))


def _one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
