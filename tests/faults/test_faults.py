"""docs/faults.md tells of every fault what a real run shows."""

from __future__ import annotations

import re

import pytest

from tests.faults.cases import CASES, Case, measure
from tests.faults.table import PAGE, cells, documented, page, words


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.place}: {case.words}")
def test_fault_is_as_documented(case: Case) -> None:
    seen = cells(measure(case))
    assert seen == documented()[case.place, words(case)], "python -m tests.faults.table"


def test_page_has_every_case_and_no_other() -> None:
    assert PAGE.read_text() == page(documented()), "python -m tests.faults.table"
    assert set(documented()) == {(case.place, words(case)) for case in CASES}


def test_no_fault_overspends_or_leaves_anything_undone() -> None:
    for (place, fault), (_, _, _, copied, pulls, gets, _, after) in documented().items():
        where = f"{place}: {fault}"
        # Charged is at least what Docker Hub counts: an index and its child are one pull.
        assert int(pulls) >= int(gets) // 2, where
        assert re.match(r"exit 0: ", after), where
        assert "? " not in after, where
        wanted = 1 if "(one image)" in fault else 3
        found = re.search(r"([0-9]+) copied, ([0-9]+) fresh", after)
        assert found is not None, where
        assert int(found[1]) + int(found[2]) == wanted, where
        assert copied == "?" or int(copied.split()[0]) <= wanted, where
