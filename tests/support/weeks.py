"""A state as four weeks of nightly syncs leave it, made through the ledger: no registry is asked.

A mirror that is near and one that is far start empty; CI's uses fall with the rank of an image. The
numbers are made up, always the same for the same `now`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from prewarm.core.budget import Limit, Moment, Spend, Window
from prewarm.core.records import PastScan, Reservation
from prewarm.core.settings import (
    DOCKER_HUB,
    DOCKER_HUB_ENDPOINT,
    Allowance,
    Gitlab,
    Mirror,
    Settings,
    Upstream,
)
from prewarm.core.text import iso
from prewarm.core.usage import DAY, Count, Key, Mark, Row
from prewarm.planning.plan import Quota
from prewarm.reports.report import budget_json
from prewarm.state.ledger import Ledger

NEAR: Final = "http://127.0.0.1:5000"
FAR: Final = "https://mirror.example.org"
ACCOUNT: Final = "acme"
ALLOWANCE: Final = Allowance(200, 6 * 3600, 20)
SETTINGS: Final = Settings(
    Path("/etc/prewarm/images.yml"),
    mirrors=(Mirror(NEAR, NEAR), Mirror(FAR, FAR)),
    registries=(
        Upstream(DOCKER_HUB, DOCKER_HUB_ENDPOINT, budget=ALLOWANCE),
        Upstream("quay.io", "https://quay.io"),
    ),
    gitlab=Gitlab("https://gitlab.example.org", history=28 * DAY),
)
IMAGES_YML: Final = f"""\
version: 1
mirrors: [{NEAR}, {FAR}]
registries:
  docker.io: {{budget: {{pulls: 200, window: 6h, reserve: 20}}}}
  quay.io: {{}}
gitlab: {{url: https://gitlab.example.org, history: 28d}}
"""
"""What `SETTINGS` is read from; a state is to be added."""
SYNCS: Final = 56
_TAGS: Final = {
    "golang": ("1.22", "1.23", "1.23-alpine", "bullseye"),
    "python": ("3.12", "3.11-slim", "3.13", "3.12-alpine"),
    "node": ("20", "22", "20-alpine", "22-slim"),
    "docker": ("27", "27-dind", "26"),
    "debian": ("bookworm", "bookworm-slim", "bullseye"),
    "alpine": ("3.20", "3.19", "latest"),
    "postgres": ("16", "15-alpine"),
    "mariadb": ("10.11", "11"),
    "redis": ("7", "7-alpine"),
    "php": ("8.2-cli", "8.3-fpm", "8.1-apache"),
    "composer": ("2", "latest"),
    "maven": ("3-eclipse-temurin-21", "3.9"),
    "rust": ("1.82", "1.82-slim"),
    "ruby": ("3.3", "3.2-slim"),
    "sonarsource/sonar-scanner-cli": ("latest", "11"),
    "hadolint/hadolint": ("latest-debian", "v2.12.0"),
    "koalaman/shellcheck-alpine": ("stable",),
    "quay.io/buildah/stable": ("latest", "v1.37"),
    "quay.io/prometheus/promtool": ("v2.54.0",),
}
PROBLEMS: Final = (
    {
        "severity": "error",
        "code": "not-found",
        "where": "images.yml:14",
        "problem": "docker.io/library/golang:1.99: docker.io has no such image or tag",
        "cure": "correct the name, or remove it",
    },
    {
        "severity": "warning",
        "code": "private",
        "where": "team3/project-12",
        "problem": "docker.io/acme/internal:2: only an account can see it, and mirrors are open",
        "cure": "pin it in images.yml, if everybody near the mirror may have it",
    },
)


@dataclass
class _Site:
    """What is being filled in."""

    ledger: Ledger
    now: Moment
    chance: random.Random
    images: tuple[str, ...]
    """The most used first."""

    def ago(self, seconds: float) -> Moment:
        return replace(self.now, wall=self.now.wall - seconds, boot=self.now.boot - seconds)


def fill(ledger: Ledger, now: Moment, number: int = 240, extra: Sequence[str] = ()) -> None:
    """Fill the state; `number` images, the `extra` ones (fully qualified) the most used of all."""
    chance = random.Random(number)
    site = _Site(ledger, now, chance, (*extra, *_names(number - len(extra))))
    _demand(site)
    _nights(site)


def _names(number: int) -> tuple[str, ...]:
    tags = [
        f"{name if '.' in name.partition('/')[0] else _hub(name)}:{tag}"
        for name, tags in _TAGS.items()
        for tag in tags
    ]
    chance = random.Random(7)
    chance.shuffle(tags)
    others = [f"docker.io/team{n % 17}/tool-{n}:{1 + n % 4}.{n % 10}" for n in range(number)]
    return (*tags, *others)[:number]


def _hub(name: str) -> str:
    return f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"


def _demand(site: _Site) -> None:
    """Each image is used by a few projects, less at weekends; the first weeks see failed pulls."""
    today = int(site.now.wall // DAY)
    counts: dict[Key, Count] = {}
    rows: dict[int, list[Row]] = {}
    for rank, image in enumerate(site.images, 1):
        mean = 2000 / rank**0.6
        users = site.chance.sample(range(1, 121), k=min(40, 1 + int(mean**0.5)))
        for project in users:
            job = f"job-{rank}"
            rows.setdefault(project, []).append(Row(job, "image", image, image, None, "definition"))
            for ago in range(28, -1, -1):
                weekend = (today - ago) % 7 in (2, 3)
                runs = round(mean / 29 / len(users) * (0.2 if weekend else 1.2))
                if runs or site.chance.random() < 0.05:
                    late = (28 - ago) / 28
                    failed = site.chance.random() < 0.02 * (1 - late) ** 2 * min(runs, 20)
                    last = min(site.now.wall - 60.0, (today - ago) * DAY + 50_000.0)
                    key = Key(project, job, 1, "linux/amd64", today - ago)
                    counts[key] = Count(max(1, runs), int(failed), last, 7)
    mark = Mark(9, site.now.wall)
    paths = {project: f"team{project % 9}/project-{project}" for project in rows}
    site.ledger.add_history(counts, dict.fromkeys(rows, mark), {}, paths)
    at = site.now.wall - 5300
    site.ledger.save_scan(PastScan(at - 100, at, True, 1411, "", (), frozenset(), frozenset()))
    for project, named in rows.items():
        site.ledger.save_definition(project, named, (), "c", (), site.now.wall)


def _nights(site: _Site) -> None:
    """A sync every twelve hours, the last of them an hour ago; it tells of problems."""
    uses = {one.reference: one.jobs for one in site.ledger.used_images(site.now.wall - 28 * DAY)}
    for place in range(1, SYNCS + 1):
        grown = place / SYNCS
        full = 0.3 < grown < 0.38
        warm = int(len(site.images) * min(0.86, 0.04 + 0.8 * grown**1.6 - (0.12 if full else 0)))
        ago = 3600.0 + (SYNCS - place) * DAY / 2
        _sync(site, uses, ago, warm, grown, last=place == SYNCS)


def _sync(
    site: _Site, uses: Mapping[str, int], ago: float, warm: int, grown: float, *, last: bool
) -> None:
    ledger, chance = site.ledger, site.chance
    start, seconds = site.ago(ago), 60 + chance.randrange(600)
    run = ledger.start_run(start)
    window = Window(ALLOWANCE.pulls, ALLOWANCE.window, ALLOWANCE.reserve)
    copied = pulls = 0
    wanted = 180 if grown < 0.45 else chance.randrange(15, 90)
    while pulls < wanted:
        cost = chance.choice((3, 4, 5, 6))  # several images at once, to be quick
        name = f"library/x{copied}"
        at = site.ago(ago - seconds * pulls / wanted)
        got = ledger.reserve(run, DOCKER_HUB, ACCOUNT, name, "sha256:x", cost, cost, window, at)
        if not isinstance(got, Reservation):
            break
        ledger.settle(got, cost, cost, "spent", at)
        pulls += cost
        copied += 3
    end = site.ago(ago - seconds)
    spends: tuple[Spend, ...] = ledger.spends(DOCKER_HUB, ACCOUNT, end, ALLOWANCE.window)
    limit = Limit(200, ALLOWANCE.window, 200 - pulls, "acme")
    quota = Quota(ACCOUNT, window, "written in images.yml", spends, limit)
    free = Quota("anonymous", Window(None), "no limit, none written", ())
    entries = _entries(site, warm)
    deferred = sum(one["action"] == "defer" for one in entries)
    _cover(site, uses, warm, end, last=last)
    document = {
        "version": 1,
        "run": run,
        "dry_run": False,
        "started": iso(start.wall),
        "finished": iso(end.wall),
        "budgets": {
            DOCKER_HUB: budget_json(quota, end.wall),
            "quay.io": budget_json(free, end.wall),
        },
        "images": entries if last else [],
        "problems": list(PROBLEMS) if last else [],
        "summary": {
            "copied": copied,
            "tagged": copied // 9,
            "fresh": max(0, len(entries) - deferred - copied),
            "deferred": deferred,
            "skipped": 3,
            "failed": int(last),
            "pulls": pulls,
            "gets": 2 * pulls,
            "bytes": copied * 83_000_000,
        },
    }
    ledger.finish_run(run, int(last), json.dumps(document), end)


def _entries(site: _Site, warm: int) -> list[dict[str, Any]]:
    """What the last sync said of each image: what is not warm waits for its turn."""
    entries = []
    for rank, image in enumerate(site.images):
        waits = rank >= warm or _is_stale(rank)
        turn = max(0, rank - warm) // 25
        entries.append(
            {
                "image": image,
                "action": "defer" if waits else "fresh",
                "code": "budget" if waits else "fresh",
                "reason": "needs 1 pull, 0 left in the window" if waits else "the mirrors have it",
                "until": iso(site.now.wall + 3 * 3600 + turn * ALLOWANCE.window) if waits else None,
                "error": None,
            }
        )
    return entries


def _is_stale(rank: int) -> bool:
    return rank % 11 == 3


def _cover(site: _Site, uses: Mapping[str, int], warm: int, at: Moment, *, last: bool) -> None:
    """Note what the mirrors serve; the far one lags behind."""
    total = sum(uses.values())
    by_mirror = {NEAR: warm, FAR: int(warm * 0.94)}
    for mirror, held in {"": by_mirror[FAR], **by_mirror}.items():
        served = sum(uses.get(image, 0) for image in site.images[:held])
        if total:
            site.ledger.note_coverage(mirror, served, total, at)
    if last:
        for mirror, held in by_mirror.items():
            for rank, image in enumerate(site.images):
                state = "missing" if rank >= held else "stale" if _is_stale(rank) else "fresh"
                site.ledger.note_state(image, mirror, state, f"sha256:{rank:064x}", at)
