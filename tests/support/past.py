"""What happened to a state, by hand: runs that ended and pulls that were spent."""

from __future__ import annotations

import json
from typing import Any, Final

from prewarm.core.budget import Limit, Moment, Window
from prewarm.core.records import Reservation
from prewarm.planning.plan import Quota
from prewarm.reports.report import Report, to_json
from prewarm.state.ledger import Ledger

WALL: Final = 1_800_000_000.0  # 08:00 UTC
LIMIT: Final = Limit(100, 6 * 3600, 76, "acme")


def moment(seconds: float = 0.0) -> Moment:
    """Return the moment so long after `WALL`, all in one boot."""
    return Moment(WALL + seconds, "boot", 1e7 + seconds)


def finish(
    ledger: Ledger, at: float, *, limit: Limit | None = LIMIT, whole: bool = True, **fields: Any
) -> str:
    """Record a run that ended then, with a report that holds the fields; return its id."""
    run = ledger.start_run(moment(at - 1))
    quota = Quota("acme", Window(10, 6 * 3600, 2), "reported by docker.io", (), limit)
    report = Report(run, False, WALL + at - 1, WALL + at, {"docker.io": quota}, (), ())
    document = {**to_json(report), **fields}
    ledger.finish_run(run, 0, json.dumps(document), moment(at), whole=whole)
    return run


def spend(ledger: Ledger, at: float, pulls: int, *, settled: bool = True) -> None:
    """Record pulls from docker.io, spent then or in flight since."""
    got = ledger.reserve(
        "run", "docker.io", "acme", "library/x", "sha256:x", pulls, pulls, Window(None), moment(at)
    )
    assert isinstance(got, Reservation)
    if settled:
        ledger.settle(got, pulls, pulls, "spent", moment(at))
