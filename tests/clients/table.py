"""Measures every case and writes the table in docs/clients.md: `python -m tests.clients.table`.

test_clients.py holds each cell to what it measures itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.clients.cases import CASES, fill, measure
from tests.clients.programs import PROGRAMS
from tests.clients.stage import Stage

PAGE: Final = Path(__file__).parents[2] / "docs/clients.md"
_BEGIN: Final = "<!-- Measured and written by `python -m tests.clients.table`. -->\n\n"
_TABLE: Final = re.compile(rf"(?<={re.escape(_BEGIN)})(?:\|.*\n)*")
_IMPOSSIBLE: Final = "no such setting"


def pairs() -> tuple[tuple[str, str], ...]:
    """Return the name of each case with each client that can do it."""
    return tuple(
        (name, client)
        for name, case in CASES.items()
        for client in PROGRAMS
        if client in case.clients
    )


def documented() -> dict[tuple[str, str], str]:
    """Return the cells of the table by case and client."""
    (table,) = _TABLE.findall(PAGE.read_text())
    head, _, *rows = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines())
    names = {case.told: name for name, case in CASES.items()}
    return {
        (names[told], client): cell
        for told, *cells in rows
        for client, cell in zip(head[1:], cells, strict=True)
        if cell != _IMPOSSIBLE
    }


def _written(cells: Mapping[tuple[str, str], str]) -> str:
    rows = [("", *PROGRAMS), ("---",) * (1 + len(PROGRAMS))]
    for name, case in CASES.items():
        rows.append((case.told, *(cells.get((name, client), _IMPOSSIBLE) for client in PROGRAMS)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Measure, and put the table in its place."""
    with Stage() as stage:
        fill(stage)
        cells = {
            (name, client): measure(stage, client, CASES[name]).cell for name, client in pairs()
        }
    page, places = _TABLE.subn(lambda _: _written(cells), PAGE.read_text())
    assert places == 1, f"{PAGE} has lost the place of its table"
    PAGE.write_text(page)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
