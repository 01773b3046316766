"""The two databases that a ledger lies in: every contract holds on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prewarm.state.ledger import Ledger
from tests.contract.stores import PostgresqlStore, SqliteStore, Store, lend
from tests.support.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A place for a ledger, with nothing in it."""
    if request.param == "sqlite":
        return SqliteStore(tmp_path / "prewarm.db")
    postgres: Postgres = request.getfixturevalue("postgres")
    return PostgresqlStore(postgres.database())


@pytest.fixture
def ledger(store: Store) -> Iterator[Ledger]:
    with store.open() as opened:
        yield opened


@pytest.fixture
def database_of_machines(postgres: Postgres) -> Iterator[None]:
    """A database for `new_database`."""
    lend(PostgresqlStore(postgres.database()))
    yield
    lend(None)
