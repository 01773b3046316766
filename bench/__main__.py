"""Runs the benchmarks and prints their tables; `--write` keeps them in docs/."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from bench import differential, forecast, measures, planning, scan
from bench.measures import Hundred, Large, Took
from bench.scan import Scanned, Scans

PAGE: Final = Path(__file__).parents[1] / "docs/performance.md"
_HEAD: Final = """\
# Performance

Written by `python -m bench --write`; `make bench` measures again and prints the same table.
Everything ran on loopback with real docker-registry and skopeo; a stand-in for Docker Hub added
50 ms to every answer, its content network too. Both sides copied one platform into a fresh mirror,
each with a blob cache of its own. Of the 100 images every ten share a base of 0.5 MB, and each has
50 kB of its own. The scans asked a stand-in for GitLab that added 20 ms to every answer.
"""
_TAIL: Final = """\
- *manifest GETs* are what Docker Hub may count; *requests* are all to the Hub, tokens included.
- The plain loop over python-gitlab asks the same of the same projects, one request after the other,
  and expands nothing; prewarm's time includes its start-up and reading every definition.
- `skopeo sync` reads the same list from a YAML file. It has no check by HEAD and copies one image
  after another.
- `skopeo copy` was told the digest of the platform's manifest, which nobody knows without an index
  GET: it sends one GET where prewarm sends two, sets no tag, keeps no budget and checks nothing
  afterwards. The difference is the price of that, of the gate, and of waiting: an image lacking a
  layer that another is just bringing waits for it, so that each layer crosses the network once.
- A first sync is bound by the processor (one skopeo for each image), `skopeo sync` by latency: on
  a machine that is busy with other things the ratio falls.
"""


def table(hundred: Hundred, large: Large, scans: Scans, planned: float, start_up: float) -> str:
    """Return the results as a Markdown table."""
    ours, direct = statistics.median(large.prewarm), statistics.median(large.direct)
    size = measures.LARGE_LAYERS * measures.LARGE_LAYER // 10**6
    at_once = f"{measures.PARALLEL} at once"
    rows = [
        ("work", "prewarm", "peer", "the peer", "times as fast"),
        ("---", "---:", "---:", "---", "---:"),
        _row("second sync, nothing changed", hundred.second, hundred.peer_second, "`skopeo sync`"),
        _row(f"first sync, {at_once}", hundred.first, hundred.peer_first, "`skopeo sync`"),
        _row(f"first sync, {at_once}", hundred.first, hundred.direct, f"`skopeo copy`, {at_once}"),
        (
            f"one image of {size} MB, median of {measures.ROUNDS}",
            f"{ours:.1f} s",
            f"{direct:.1f} s",
            "`skopeo copy`",
            f"{direct / ours:.2f}",
        ),
        _scan_row("through the runners", scans.runners, scans),
        _scan_row("project by project", scans.projects, scans),
        _scan_row("again, nothing new", scans.again, scans),
        (f"rank and plan {planning.IMAGES} images", f"{planned:.2f} s", "", "", ""),
        ("`prewarm --help`", f"{start_up:.3f} s", "", "", ""),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, ours: Took, peer: Took, peer_name: str) -> tuple[str, ...]:
    ratio = peer.seconds / ours.seconds
    what = f"{measures.IMAGES} images, {name}"
    return (what, _cell(ours), _cell(peer), peer_name, f"{ratio:.2f}")


def _scan_row(name: str, ours: Scanned, scans: Scans) -> tuple[str, ...]:
    ours_cell, plain_cell = (
        f"{one.seconds:.1f} s, {one.requests} requests" for one in (ours, scans.plain)
    )
    what = f"scan of {scan.PROJECTS} projects, {scan.JOBS} jobs, {name}"
    ratio = scans.plain.seconds / ours.seconds
    return (what, ours_cell, plain_cell, "plain python-gitlab loop", f"{ratio:.2f}")


def _cell(took: Took) -> str:
    return f"{took.seconds:.1f} s, {took.gets} manifest GETs, {took.requests} requests"


def machine() -> str:
    """Return where it was measured, in one sentence."""
    load = os.getloadavg()[0]
    return (
        f"Measured on {os.cpu_count()} cores ({platform.machine()}) with Python "
        f"{platform.python_version()}, {_version('skopeo')} and {_version('docker-registry')}; "
        f"the load was {load:.1f} when it ended, the benchmark's own included."
    )


def _version(program: str) -> str:
    told = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True, timeout=20
    ).stdout.split()
    number = next(word for word in told if word.lstrip("v")[:1].isdigit())
    return f"{program} {number.lstrip('v')}"


@click.command()
@click.option(
    "--write", is_flag=True, help="Keep the tables in docs/performance.md and forecast.md."
)
def main(write: bool) -> None:
    """Measure, and print a Markdown table; compare with gitlab-ci-local; about five minutes."""
    click.echo("measuring, about two minutes …", err=True)
    alone = (planning.seconds(), measures.start_up())
    results = table(measures.hundred(), measures.large(), scan.measure(), *alone)
    click.echo(results)
    click.echo(f"\n{machine()}\n")
    if write:
        PAGE.write_text(f"{_HEAD}\n{results}\n\n{machine()}\n\n{_TAIL}")
        click.echo(f"wrote {PAGE.name}", err=True)
    click.echo("replaying demand in other orders, about a minute …", err=True)
    measured = forecast.tables()
    click.echo(measured)
    if write:
        forecast.write(measured)
    click.echo("comparing with gitlab-ci-local, about two minutes …", err=True)
    click.echo(differential.measure()[0])


if __name__ == "__main__":
    sys.exit(main())
