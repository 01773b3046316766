"""SQLite: opens the file that holds a state, and runs the ledger's statements in it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from prewarm.core.errors import PrewarmError, UsageError
from prewarm.state.database import ServerClock

_BUSY_SECONDS: Final = 30.0
_NOTHING: Final[Mapping[str, Any]] = {}


class SqliteDatabase:
    """A state in a file, or in memory; see `Database`. Processes share the file.

    No two transactions run at the same time, whatever they are for.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        name: str,
        clock: ServerClock | None = None,
    ) -> None:
        self._connection: sqlite3.Connection = connection
        self.name = name
        self.clock = clock
        self._lock = threading.RLock()
        self._synchronous = ""

    @classmethod
    def open(cls, path: Path) -> SqliteDatabase:
        """Open the file, made where it is missing."""
        return cls(_connect(str(path)), f"state {path}")

    @classmethod
    def copy(cls, path: Path) -> SqliteDatabase:
        """Return a copy in memory of the file as it is now, whoever is writing to it."""
        connection = _connect(":memory:")
        try:
            with closing(_connect_read_only(path)) as source:
                source.backup(connection)
        except BaseException:
            connection.close()
            raise
        return cls(connection, f"state {path}")

    @classmethod
    def memory(
        cls, name: str = "state in memory", clock: ServerClock | None = None
    ) -> SqliteDatabase:
        """Return an empty database; `clock` is that of the server for which it stands, if any."""
        return cls(_connect(":memory:"), name, clock)

    @classmethod
    def read_only(cls, path: Path) -> SqliteDatabase:
        """Open the file, which must be there, to read in it."""
        return cls(_connect_read_only(path), f"state {path}")

    def use_wal(self) -> None:
        """Let readers and a writer work at once.

        The change of mode does not wait for other connections as statements do, so it is tried
        again.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    @contextmanager
    def transaction(self, *, durable: bool = False, alone: str = "") -> Iterator[None]:  # noqa: ARG002 - all are
        synchronous = "FULL" if durable else "NORMAL"
        with self.reading():
            if synchronous != self._synchronous:
                self._connection.execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
                raise
            except sqlite3.Error as error:
                raise PrewarmError(
                    "state",
                    f"{self.name} cannot be used: {error}",
                    "check that its disk has space and works, and that no other program holds it",
                ) from error

    def execute(self, statement: str, parameters: Mapping[str, Any] = _NOTHING) -> sqlite3.Cursor:
        return self._connection.execute(statement, parameters)

    def write(self, statement: str, parameters: Mapping[str, Any]) -> int:
        with self.transaction():
            return self._connection.execute(statement, parameters).rowcount

    def executemany(self, statement: str, parameters: Iterable[Mapping[str, Any]]) -> None:
        self._connection.executemany(statement, parameters)

    def tables(self) -> frozenset[str]:
        found = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return frozenset(table for (table,) in found)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file that is opened, and brought up to date, by a UsageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _open_failure(path, error) from error
    except PrewarmError as error:
        if not isinstance(error.__cause__, sqlite3.Error):
            raise
        raise _open_failure(path, error.__cause__) from error


def _open_failure(path: Path, error: sqlite3.Error) -> UsageError:
    if isinstance(error, sqlite3.OperationalError):
        return UsageError(
            "state",
            f"state {path} cannot be opened: {error}",
            "check that you may write to it and its folder and that its disk has space",
        )
    return UsageError(
        "state",
        f"state {path} is damaged or not a SQLite database",
        f"move it aside (mv {path} {path}.damaged) and wait one budget window before the next "
        "sync: the pulls it held are forgotten",
    )


def _connect(database: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        database,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        uri=uri,
    )


def _connect_read_only(path: Path) -> sqlite3.Connection:
    return _connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
