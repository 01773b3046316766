"""A scan of GitLab by prewarm and by a plain python-gitlab loop, each in a process of its own.

`python -m bench.scan URL TOKEN` is the loop: projects, their jobs of the last 14 days, lint where
jobs ran, one trace for each job whose image lint leaves open. It asks one after the other, as the
library's documentation shows, and keeps whole traces and jobs; it expands no variables.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import gitlab
import yaml

from tests.sandbox.gitlab import TOKEN, Gitlab, Token
from tests.support.process import run_prewarm

LATENCY: Final = 0.02
PROJECTS: Final = 300
ACTIVE: Final = 180
JOBS: Final = 15_000
UNRESOLVED: Final = 90
_KEYSET: Final[dict[str, Any]] = {
    "pagination": "keyset",
    "order_by": "id",
    "per_page": 100,
    "iterator": True,
}


@dataclass(frozen=True, slots=True)
class Scanned:
    """What one way of scanning took."""

    seconds: float
    requests: int


@dataclass(frozen=True, slots=True)
class Scans:
    """prewarm through the runners, without the right to that, a day later, and the plain loop."""

    runners: Scanned
    projects: Scanned
    again: Scanned
    plain: Scanned


def measure() -> Scans:
    """Measure all ways against the same history at 20 ms."""
    with Gitlab(latency=LATENCY) as site, tempfile.TemporaryDirectory() as folder:
        site.populate(PROJECTS, ACTIVE, JOBS, UNRESOLVED)
        by_project = _timed(site, lambda: _prewarm(site, Path(folder, "projects")))
        plain = _timed(site, lambda: _plain(site))
        site.tokens[TOKEN] = Token(role="admin")
        by_runner = _timed(site, lambda: _prewarm(site, Path(folder, "runners")))
        again = _timed(site, lambda: _prewarm(site, Path(folder, "runners")))
    return Scans(by_runner, by_project, again, plain)


def _timed(site: Gitlab, work: Callable[[], None]) -> Scanned:
    site.access.clear()
    started = time.perf_counter()
    work()
    return Scanned(time.perf_counter() - started, len(site.access))


def _prewarm(site: Gitlab, folder: Path) -> None:
    config = {
        "version": 1,
        "mirrors": ["http://127.0.0.1:5000"],
        "gitlab": {"url": site.url},
        "state": str(folder / "prewarm.db"),
    }
    done = run_prewarm(
        ["--quiet", "scan", "--json"],
        folder,
        config=yaml.safe_dump(config),
        env={"PREWARM_GITLAB_TOKEN": TOKEN},
        timeout=600,
    )
    told = done.json
    found = {one["image"]: one["jobs"] for one in told["images"] if not one["via"]}
    # A scan that finds less is a fast one.
    truth = {name for name, kind in site.truth() if kind != "proxy"}
    assert found.keys() == truth, (found.keys() ^ truth, done.stderr)
    assert told["unresolved"] == []


def _plain(site: Gitlab) -> None:
    command = [sys.executable, "-m", "bench.scan", site.url, TOKEN]
    root = Path(__file__).parents[1]
    subprocess.run(command, check=True, capture_output=True, timeout=600, cwd=root)


def plain_loop(url: str, token: str) -> int:
    """Read it all with python-gitlab, one request after the other; return how many jobs."""
    client = gitlab.Gitlab(url, private_token=token, timeout=60)
    oldest = (datetime.now(UTC) - timedelta(days=14)).isoformat()
    count = 0
    for project in client.projects.list(membership=True, **_KEYSET):
        newest: dict[str, Any] = {}
        for job in project.jobs.list(sort="desc", **_KEYSET):
            if job.created_at < oldest:
                break
            count += 1
            newest.setdefault(job.name, job)
        if not newest:
            continue
        merged = yaml.safe_load(project.ci_lint.get().merged_yaml)
        for name, job in newest.items():
            image = merged.get(name, {}).get("image")
            if isinstance(image, str) and image.startswith("$DEPLOY"):
                job.trace()
    return count


if __name__ == "__main__":
    print(plain_loop(*sys.argv[1:]))
