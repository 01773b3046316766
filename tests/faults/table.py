"""Measures every fault and writes docs/faults.md: `python -m tests.faults.table [WORD…]`.

With words only the cases that hold one of them are measured again. test_faults.py holds each row to
what it measures itself.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.faults.cases import CASES, Case, Seen, measure

PAGE: Final = Path(__file__).parents[2] / "docs/faults.md"
_HEAD: Final = """\
<!-- Measured and written by `python -m tests.faults.table`. -->

# Faults and what you see

Each row is a real run of `prewarm sync` with one fault, measured by the tests, and a second run
without it. Three images are wanted (one where noted); each costs one pull and two manifest GETs.

- `copied` and `pulls`: of the run with the fault. A pull is charged where Docker Hub may have
  counted it, even if no image came of it; what was paid for is remembered.
- `GETs`: of manifests, as Docker Hub's own log has them.
- `requests`: how many met the fault. More than one for each image: prewarm tried again.
- `message`: of the first problem. Its cure is in [troubleshooting](troubleshooting.md), the code in
  [codes](codes.md).
- `?`: the run printed no report.
- GitLab: two images are pins, the third is known from CI alone.

The tests shorten the waits, never the number of tries. By default prewarm waits {read} seconds for
an answer and {connect} for a connection, and starts no further try after {retry} seconds.
"""
_AT_ONCE: Final = 3
_COLUMNS: Final = (
    *("fault", "exit", "codes", "message", "copied", "pulls", "GETs", "requests", "the next sync"),
)


def documented() -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the cells of the page by place and fault."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    place = ""
    for line in PAGE.read_text().splitlines() if PAGE.exists() else ():
        if line.startswith("## "):
            place = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith(("| fault", "| ---")):
            words, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            found[place, words] = tuple(cells)
    return found


def words(case: Case) -> str:
    return case.words + (" (one image)" if case.images == 1 else "")


def page(rows: Mapping[tuple[str, str], tuple[str, ...]]) -> str:
    """Return docs/faults.md with these cells."""
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: Mapping[tuple[str, str], tuple[str, ...]]) -> Iterator[str]:
    from prewarm.registry.client import RETRY_FOR
    from prewarm.registry.transport import CONNECT_TIMEOUT, READ_TIMEOUT

    yield _HEAD.format(
        read=f"{READ_TIMEOUT:g}", connect=f"{CONNECT_TIMEOUT:g}", retry=f"{RETRY_FOR:g}"
    )
    place = ""
    for case in CASES:
        if case.place != place:
            yield from () if not place else ("",)
            place = case.place
            yield from (f"## {place}", "")
            yield f"| {' | '.join(_COLUMNS)} |"
            yield f"| {' | '.join('---' for _ in _COLUMNS)} |"
        yield f"| {' | '.join((words(case), *rows.get((place, words(case)), ())))} |"


def cells(seen: Seen) -> tuple[str, ...]:
    return tuple(str(cell) for cell in dataclasses.astuple(seen))


def main(wanted: list[str]) -> None:
    """Measure, some at once since most of it is waiting, and write the page."""
    chosen = [
        case
        for case in CASES
        if not wanted or any(word in f"{case.place}: {words(case)}" for word in wanted)
    ]
    rows = documented()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for case, seen in zip(chosen, pool.map(measure, chosen), strict=True):
            rows[case.place, words(case)] = cells(seen)
            print(case.place, words(case), *cells(seen), sep=" | ", flush=True)
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
