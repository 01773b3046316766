"""The stage that the tests of clients share: machines and daemons are started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.stage import Stage


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    with Stage() as running:
        yield running
