"""Ranking: in which order the plan takes the images, and why each has its place.

Pins come first, in the order of the file. What CI uses follows, by what each pull gains, so that
what costs none comes first; jobs that failed to pull weigh most. What needs nothing is last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from prewarm.core.text import counted
from prewarm.planning.demand import Want
from prewarm.planning.plan import Seen, cost

STALE_GAIN: Final = 0.25
"""What a copy gains where a mirror serves an older one meanwhile, against one that has none."""
_STALE: Final = {"stale"}

_Pair = tuple[Want, Seen]


def ranked(demand: Iterable[tuple[Want, Seen]]) -> list[tuple[Want, Seen]]:
    """Return the demand in the order of the plan, whatever its own order but that of the pins.

    Tags of one digest share its pulls and stand together. Ties go by reference.
    """
    pinned: list[_Pair] = []
    brought: set[object] = set()
    digests: dict[object, list[_Pair]] = {}
    for pair in demand:
        want, seen = pair
        key = _digest(want, seen)
        if want.pinned:
            pinned.append(pair)
            brought.add(key)
        elif (same := digests.get(key)) is None:
            digests[key] = [pair]
        else:
            same.append(pair)
    needed, idle = [], []
    for key, members in digests.items():
        name = _name(members[0])
        if len(members) > 1:
            # Not the first's in their order: more uses of a tag must not move its digest back.
            name = min(map(_name, members))
            members.sort(key=_within)
        place = _place(members, free=key in brought)
        if place is None:
            idle.append((-sum([want.weight for want, _ in members]), name, members))
        else:
            needed.append((place, name, members))
    # What is needed goes before what is not.
    needed.sort()
    idle.sort()
    order = pinned
    for _, _, members in (*needed, *idle):
        order += members
    return order


def priority(gain: float, pulls: int) -> float:
    """Return the place of a digest that CI uses and the mirrors lack; the smallest goes first.

    It is what gains most for each pull.
    """
    return -(gain / pulls if pulls else math.inf)


def position(want: Want, rank: int, now: float) -> str:
    """Return in words why the want has its rank; `now` is seconds since the epoch."""
    if want.pinned:
        return f"rank {rank}: pinned at {want.where}"
    uses = f"{counted(want.jobs, 'job')} of {counted(want.projects, 'project')}"
    failed = f", {want.pull_failures} failed to pull it" if want.pull_failures else ""
    last = "" if want.last_used is None else f", last used {_ago(now - want.last_used)}"
    return f"rank {rank}: {uses}{failed}{last}"


def _digest(want: Want, seen: Seen) -> object:
    reference = want.reference
    if seen.descriptor is None:
        return reference
    return reference.registry, reference.repository, seen.descriptor.digest


def _name(pair: _Pair) -> tuple[str, str, str, str]:
    """The order of references; each is wanted once, so that no two are alike."""
    reference = pair[0].reference
    return reference.registry, reference.repository, reference.tag or "", reference.digest or ""


def _within(pair: _Pair) -> tuple[float, tuple[str, str, str, str]]:
    want, _ = pair
    return -want.weight, _name(pair)


def _place(members: Sequence[_Pair], *, free: bool) -> float | None:
    """Return the priority of the tags of one digest; None where no mirror needs them."""
    gain, pulls, needed = 0.0, 0, False
    for want, seen in members:
        if seen.failure is not None or not seen.open_targets:
            continue
        needed = True
        stale = {holding.state for holding in seen.open_targets} == _STALE
        gain += want.weight * (STALE_GAIN if stale else 1.0)
        if not free:
            pulls = max(pulls, 1 if seen.descriptor is None else cost(want, seen).known_pulls)
    return priority(gain, pulls) if needed else None


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"
