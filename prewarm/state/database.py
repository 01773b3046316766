"""What the ledger asks of a database, SQLite or PostgreSQL: rows, and transactions.

Statements are portable SQL with named parameters (`:name`); `ledger` and `ci_usage` alone hold
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from prewarm.core.budget import Moment
from prewarm.core.errors import PrewarmError


class LostError(PrewarmError):
    """A transaction was undone before its end, by no fault of its own: it may be done again."""


class DoubtError(PrewarmError):
    """The connection was lost while a transaction ended: nobody can know whether it was done."""


class UnreachableError(PrewarmError):
    """The database cannot be reached, though it was waited for."""


class Rows(Protocol):
    """What a statement returned."""

    @property
    def description(self) -> Sequence[Any] | None: ...
    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class ServerClock(Protocol):
    """The clock of a server, which counts for all hosts; in epoch seconds."""

    def now(self) -> float:
        """Return what it shows."""

    def at(self, moment: Moment) -> float:
        """Return a moment of this host by it, rather too early than too late."""


class Database(Protocol):
    """A connection that the threads of a process share.

    Where it fails (a full disk, a lost connection) that is a PrewarmError, `state` its code or the
    first part of it.
    """

    @property
    def name(self) -> str:
        """What people know it by: `state /var/lib/prewarm/prewarm.db`."""

    @property
    def clock(self) -> ServerClock | None:
        """The server's; None where there is no server, and the ledger keeps the time by itself."""

    def transaction(
        self, *, durable: bool = False, alone: str = ""
    ) -> AbstractContextManager[None]:
        """Run the body as one transaction.

        A `durable` one is on disk when it returns. Others survive a kill, but a loss of power may
        take the last of them: what is then forgotten is only ever counted as spent for longer. No
        two that have the same `alone` run at the same time, in any process.
        """

    def reading(self) -> AbstractContextManager[None]:
        """Run the body, which reads, while no other thread uses the connection."""

    def execute(self, statement: str, parameters: Mapping[str, Any] = ...) -> Rows:
        """Run a statement, in the transaction if there is one."""

    def write(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Run a statement that is a transaction by itself; return how many rows it concerned.

        It may be run twice, where nobody knows whether it was done.
        """

    def executemany(self, statement: str, parameters: Iterable[Mapping[str, Any]]) -> None:
        """Run a statement with each of the parameters, in the transaction that there must be."""

    def tables(self) -> frozenset[str]:
        """Return the names of the tables that are there."""

    def close(self) -> None: ...
