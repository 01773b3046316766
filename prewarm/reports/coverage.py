"""Coverage: what CI used of late, and the share of it that the mirrors serve, now and over time.

Pure but for the ledger it reads. `status` shows these numbers and each run notes them; both take
them from `coverages`, so that the series and what was shown at its times are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from prewarm.core.records import Covered, Known
from prewarm.core.reference import parse
from prewarm.core.settings import Settings
from prewarm.core.usage import UsedImage
from prewarm.planning.plan import SERVED
from prewarm.state.ledger import Ledger

ALL_MIRRORS: Final = ""
"""Stands for all target mirrors together, where coverage is told by mirror."""
POINTS_MAX: Final = 200
"""Points of a series, give or take one."""
_SPAN: Final = 28 * 86400
"""Seconds that a series goes back at most, and where no history window is written."""
_WORSE: Final = {"fresh": 0, "stale": 1, "unknown": 2, "missing": 3}


def used_of_late(settings: Settings, ledger: Ledger, now: float) -> tuple[UsedImage, ...]:
    """Return what CI used within the history window, as far as scans have told.

    `now` is in epoch seconds. The weights of the projects are there.
    """
    if settings.gitlab is None:
        return ()
    return ledger.used_images(now - settings.gitlab.history, now=now)


def uses_of(settings: Settings, used: Iterable[UsedImage]) -> dict[str, int]:
    """Return how many jobs used each image of the listed registries, by its full name."""
    listed = {upstream.name for upstream in settings.registries}
    return {
        use.reference: use.jobs
        for use in used
        if use.via is None and use.jobs and parse(use.reference).registry in listed
    }


def answering(known: tuple[Known, ...], failing: Collection[str]) -> tuple[Known, ...]:
    """Return what is known of the mirrors that are not `failing`, of all where all are.

    A mirror that did not answer has its own line; it says nothing about the others.
    """
    return tuple(one for one in known if one.mirror not in failing) or known


def coverages(
    settings: Settings,
    known: tuple[Known, ...],
    uses: Mapping[str, int],
    failing: Collection[str],
    now: float,
) -> dict[str, Covered]:
    """Return what all target mirrors serve (`ALL_MIRRORS`), then what each does, by its URL.

    `failing` are the places that the last run met a problem at; `now` is in epoch seconds.
    """
    parts = {ALL_MIRRORS: answering(known, failing)}
    belong = {ALL_MIRRORS: uses}
    for mirror in settings.mirrors:
        if mirror.role == "target":
            parts[mirror.url] = tuple(one for one in known if one.mirror == mirror.url)
            belong[mirror.url] = {
                image: jobs for image, jobs in uses.items() if mirror.serves(parse(image).registry)
            }
    return {
        mirror: Covered(now, mirror, *coverage(part, belong[mirror]))
        for mirror, part in parts.items()
    }


def coverage(known: tuple[Known, ...], uses: Mapping[str, int]) -> tuple[int, int]:
    """Return how many of CI's uses the mirrors would serve, and how many there are.

    Where no use is known every tracked image weighs the same. An image counts as served when every
    mirror that should hold it does; a stale tag is served, too.
    """
    worst = worst_states(known)
    weights = uses or dict.fromkeys(worst, 1)
    served = sum(jobs for image, jobs in weights.items() if worst.get(image) in SERVED)
    return served, sum(weights.values())


def worst_states(known: tuple[Known, ...]) -> dict[str, str]:
    """Return the state of each image on the mirror where it is worst."""
    worst: dict[str, str] = {}
    for one in known:
        before = worst.get(one.image, "fresh")
        worst[one.image] = max(before, one.state, key=lambda state: _WORSE.get(state, 3))
    return worst


def series_of(
    settings: Settings, ledger: Ledger, now: float, mirror: str = ALL_MIRRORS
) -> tuple[Covered, ...]:
    """Return the coverage noted within the history window, 28 days at most, the oldest first.

    Where more than POINTS_MAX were noted, the last in each of so many equal parts of that time.
    """
    span = min(settings.gitlab.history, _SPAN) if settings.gitlab else _SPAN
    part = span / POINTS_MAX
    noted = (one for one in ledger.covered(now - span, mirror) if one.at <= now)
    return thinned(tuple(noted), part)


def thinned(noted: tuple[Covered, ...], part: float) -> tuple[Covered, ...]:
    """Return all where they are few; else the last of each part of so many seconds.

    The parts begin at multiples of their length, so that a point stays when others follow.
    """
    if len(noted) <= POINTS_MAX:
        return noted
    return tuple({int(one.at // part): one for one in noted}.values())
