"""Places for ledgers: a file, or a database of a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from prewarm.core.budget import Moment, Spend
from prewarm.core.manifest import OCI_MANIFEST, Manifest, digest_of
from prewarm.state.clock import now as host_clock
from prewarm.state.database import Rows
from prewarm.state.ledger import Ledger, migrate
from prewarm.state.postgresql import PostgresqlDatabase
from prewarm.state.shared import SharedLedger
from prewarm.state.tenant import Site

Clock = Callable[[], Moment]


class Store(Protocol):
    """A place for a ledger, which can be opened again."""

    @property
    def place(self) -> str:
        """What `opened` opens."""

    shared: bool
    """Several hosts may use it, and the server's clock counts."""

    def open(self, clock: Clock | None = None, time: Callable[[], float] | None = None) -> Ledger:
        """Open it; `clock` is the host's, `time` what a server's clock shows.

        Without them the time is that of the moments which the ledger is told.
        """


class SqliteStore:
    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)

    def open(self, clock: Clock | None = None, time: Callable[[], float] | None = None) -> Ledger:
        return Ledger.open(self.path)


class PostgresqlStore:
    shared = True

    def __init__(self, url: str) -> None:
        self.url = self.place = url

    def open(self, clock: Clock | None = None, time: Callable[[], float] | None = None) -> Ledger:
        told = Told()
        database = PostgresqlDatabase(
            self.url, {}, clock=clock or told, server_clock=time or (lambda: 1e9 + told().boot)
        )
        try:
            migrate(database)
        except BaseException:
            database.close()
            raise
        return TimedLedger(database, told)


def opened(place: str, host: str = "host") -> Ledger:
    """Open a ledger as a sync does, with the real clocks; for processes that tests start."""
    if "://" not in place:
        return Ledger.open(Path(place))
    return SharedLedger.connect(place, Site(host, {}, ""), {})


class Told:
    """A clock that shows the last moment that the ledger was told."""

    def __init__(self) -> None:
        self.moment = host_clock()

    def __call__(self) -> Moment:
        return self.moment


class TimedLedger(Ledger):
    """A ledger whose server and host have the time that the calls name."""

    def __init__(self, database: PostgresqlDatabase, told: Told) -> None:
        super().__init__(database)
        self._told = told

    def _note_moment(self, now: Moment) -> float:
        self._told.moment = now
        return super()._note_moment(now)

    def spends(self, registry: str, account: str, now: Moment, seconds: int) -> tuple[Spend, ...]:
        self._told.moment = now
        return super().spends(registry, account, now, seconds)


def sql(ledger: Ledger, statement: str, **values: Any) -> Rows:
    """Run a statement in the ledger's database, by the ledger's own connection."""
    return ledger._database.execute(statement, values)


_DATABASES: list[PostgresqlStore] = []
"""Of the test that runs: a state machine takes no fixtures."""


def new_database() -> PostgresqlStore:
    """Return the database of `database_of_machines`, emptied."""
    (store,) = _DATABASES
    with store.open() as ledger:
        for table in sorted(ledger._database.tables() - {"schema_version"}):
            ledger._database.execute(f"DELETE FROM {table}")
    return store


def lend(store: PostgresqlStore | None) -> None:
    """Let state machines have this database, or none."""
    _DATABASES[:] = [store] if store is not None else []


def manifest_of(filling: str) -> Manifest:
    """Return a manifest without layers, with this text in an annotation."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2}
    document = {
        "schemaVersion": 2,
        "config": {**config, "digest": digest_of(b"{}")},
        "layers": [],
        "annotations": {"filling": filling},
    }
    return Manifest(OCI_MANIFEST, json.dumps(document, ensure_ascii=False).encode())
