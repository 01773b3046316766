"""`make audit`: what pip-audit could not look up is never called free of vulnerabilities."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.audit import NOT_AUDITED, NOTHING_KNOWN, VULNERABLE, verdict

CLEAN = {"name": "click", "version": "8.2", "vulns": []}
FOUND = {
    "name": "urllib3",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "2.2"]}],
}
UNFIXED = {"name": "rich", "version": "1", "vulns": [{"id": "GHSA-2", "fix_versions": []}]}
SKIPPED = {"name": "PyYAML", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "text"),
    [
        ([CLEAN], NOTHING_KNOWN, "no known vulnerability in 1 packages"),
        ([CLEAN, FOUND], VULNERABLE, "urllib3 2.0: PYSEC-1; fixed in 2.1, 2.2"),
        ([UNFIXED], VULNERABLE, "rich 1: GHSA-2; fixed in no version yet"),
        ([FOUND, SKIPPED], VULNERABLE, "not audited: 1 of 2 packages (PyYAML)"),
        ([CLEAN, SKIPPED], NOT_AUDITED, "not audited: 1 of 2 packages (PyYAML)"),
        ([SKIPPED] * 9, NOT_AUDITED, "not audited: 9 of 9 packages (PyYAML, PyYAML, "),
        ([], NOT_AUDITED, "not audited: the report is empty"),
    ],
)
def test_verdict_of_a_report(packages: list[dict[str, Any]], code: int, text: str) -> None:
    found, lines = verdict({"dependencies": packages})
    assert found == code
    assert text in "\n".join(lines)
    assert ("pipx run pip-audit -r requirements.lock" in lines[-1]) == ("not audited" in text)
