"""Real clients, with the settings that prewarm prints, before a mirror that prewarm filled."""

from __future__ import annotations

import re

import pytest

from tests.clients.cases import CASES, Outcome, fill, measure
from tests.clients.machine import may_mount
from tests.clients.stage import Stage
from tests.clients.table import documented, pairs

pytestmark = pytest.mark.skipif(
    not may_mount(), reason="dockerd and containerd take root with CAP_SYS_ADMIN: sudo make check"
)
ROWS = documented()


@pytest.fixture(scope="session")
def synced(stage: Stage) -> dict[str, str]:
    """What the sync did with each image."""
    return fill(stage)


@pytest.mark.parametrize(("name", "client"), pairs())
def test_client_gets_its_platform_and_asks_the_registry_as_documented(
    stage: Stage, synced: dict[str, str], name: str, client: str
) -> None:
    case = CASES[name]
    stage.names.nobody.access.clear()
    outcome = measure(stage, client, case)
    if client in case.fails:
        assert outcome.layers is None
        assert re.search(case.why, outcome.error)
    else:
        assert outcome.layers == case.layers, outcome.error
    assert (outcome.gets == 0) is (client in case.free)
    assert outcome.cell == ROWS[name, client], "python -m tests.clients.table"
    assert stage.names.nobody.access == []


def test_table_has_no_cell_that_nobody_measures() -> None:
    assert ROWS.keys() == set(pairs())


def test_sync_puts_all_but_the_other_architecture_on_the_mirror(
    stage: Stage, synced: dict[str, str]
) -> None:
    foreign = CASES["foreign"]
    assert synced.pop(foreign.pin) == "fail"
    assert set(synced.values()) == {"copy"}
    assert stage.tap.registry.tags(foreign.repository) == []


@pytest.mark.parametrize(
    ("outcome", "cell"),
    [
        (Outcome(("sha256:1",), "", 0, 0), "0"),
        (Outcome(("sha256:1",), "", 0, 1), "1 HEAD"),
        (Outcome(("sha256:1",), "", 2, 1), "2 GET + 1 HEAD"),
        (Outcome(None, "no", 0, 0), "fails, 0"),
    ],
)
def test_cell_of_an_outcome_tells_requests_and_failure(outcome: Outcome, cell: str) -> None:
    assert outcome.cell == cell
