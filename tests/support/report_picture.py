"""Draws docs/report.png, a page of made-up weeks: `python -m tests.support.report_picture`.

It wants Chromium (`.ci/setup clients`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import click

from prewarm.core.budget import Moment
from prewarm.reports.html.page import page
from prewarm.reports.overview import overview_of
from prewarm.state.ledger import Ledger
from tests.support.browser import chromium
from tests.support.docs import DOCS
from tests.support.weeks import SETTINGS, fill

NOW: Final = Moment(1_800_000_000.0, "boot", 1e7)
WIDTH, HEIGHT = 1040, 1180
LARGEST: Final = 200_000
"""Bytes."""


def picture() -> bytes:
    """Return the picture as a PNG."""
    with Ledger.memory() as ledger:
        fill(ledger, NOW)
        text = page(overview_of(SETTINGS, ledger, NOW, Path("/var/lib/prewarm/prewarm.db")))
    with tempfile.TemporaryDirectory() as folder, chromium() as tab:
        file = Path(folder) / "report.html"
        file.write_text(text)
        tab.open(file.as_uri(), width=WIDTH)
        return tab.picture(HEIGHT)


if __name__ == "__main__":
    drawn = picture()
    if len(drawn) > LARGEST:
        raise SystemExit(f"the picture has {len(drawn)} bytes, more than {LARGEST}")
    (DOCS / "report.png").write_bytes(drawn)
    click.echo(f"wrote docs/report.png, {len(drawn)} bytes")
