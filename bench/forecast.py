"""The forecast, measured: how near the plan's order comes to hindsight, and how fast it is told.

The demand is made up, in the likeness of a GitLab with a few hundred projects: uses by rank (Zipf),
quiet weekends, projects that come and go, new images and old ones, tags that move.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import click

from prewarm.history import DAY
from prewarm.simulate import (
    Course,
    Recorded,
    Record,
    View,
    follow,
    hindsight,
    planned,
    simulate,
)
from prewarm.usage import DayUses

IMAGES: Final = 2000
LEARNED: Final = 14
REPLAYED: Final = 28
BUDGETS: Final = (25, 50, 100, 200, 400)
WINDOW: Final = 6 * 3600
HISTORY: Final = 14.0 * DAY
SEEDS: Final = (1, 2, 3)
_FIRST_DAY: Final = 20_000


@dataclass(frozen=True, slots=True)
class Site:
    """What a demand is made from."""

    name: str
    exponent: float = 1.0
    """Uses fall with this power of the rank."""
    uses: int = 4000
    """On a working day."""
    projects: int = 400
    born: float = 0.2
    """The share of the images whose first use comes after the first day."""
    dying: float = 0.2
    """The share whose last use comes before the last day."""
    active: float = 0.6
    """The share of the days on which a project uses an image that it uses at all."""
    moving: Sequence[tuple[float, float]] = ((0.1, 1), (0.25, 7), (0.3, 30))
    """Shares of the images whose tags move, each with the days between two moves."""
    pulls: Sequence[int] = (1, 1, 1, 1, 1, 1, 1, 2, 2, 3)
    """One of these is what a copy costs."""


SITES: Final = (
    Site("as described"),
    Site("flat", exponent=0.7),
    Site("steep", exponent=1.3),
    Site("few uses", uses=1000),
    Site("much that is new", born=0.5, dying=0.5),
    Site("in bursts", active=0.15),
    Site("restless tags", moving=((0.4, 1), (0.4, 7))),
)


def demand(site: Site, seed: int) -> tuple[Recorded, ...]:
    """Return the record of a site."""
    chance = random.Random(seed)
    names = [f"docker.io/bench/image-{number:04}:1" for number in range(IMAGES)]
    chance.shuffle(names)
    shares = [rank**-site.exponent for rank in range(1, IMAGES + 1)]
    whole = sum(shares)
    return tuple(
        _image(site, chance, name, site.uses * share / whole)
        for name, share in zip(names, shares, strict=True)
    )


def _image(site: Site, chance: random.Random, name: str, mean: float) -> Recorded:
    days = LEARNED + REPLAYED
    first = chance.randrange(1, days) if chance.random() < site.born else 0
    last = chance.randrange(first, days) if chance.random() < site.dying else days - 1
    users = {
        chance.randrange(site.projects): chance.paretovariate(1)
        for _ in range(1 + int(chance.expovariate(1) * mean**0.5))
    }
    per_weight = mean / sum(users.values()) / site.active
    uses = []
    for day in range(first, last + 1):
        week = 0.2 if (_FIRST_DAY + day) % 7 in (2, 3) else 1.0
        for project, weighs in users.items():
            if chance.random() < site.active:
                noise = chance.lognormvariate(-0.125, 0.5)
                runs = _poisson(chance, per_weight * weighs * week * noise)
                if runs:
                    uses.append(DayUses(_FIRST_DAY + day, project, runs))
    return Recorded(name, tuple(uses), _moves(site, chance), chance.choice(site.pulls))


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, mean**0.5)))
    runs, waited = 0, chance.expovariate(1)
    while waited < mean:
        runs += 1
        waited += chance.expovariate(1)
    return runs


def _moves(site: Site, chance: random.Random) -> tuple[float, ...]:
    drawn = chance.random()
    for share, days in site.moving:
        if drawn < share:
            moves = []
            at = chance.random() * days
            while at < LEARNED + REPLAYED:
                moves.append((_FIRST_DAY + at) * DAY)
                at += chance.expovariate(1 / days)
            return tuple(moves)
        drawn -= share
    return ()


def file_order(_: View, image: int, __: int, ___: bool) -> int:
    """Return the place of an image in a file that lists all by name."""
    return image


class RandomOrder:
    """Another order at every sync."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def __call__(self, _: View, __: int, ___: int, ____: bool) -> float:
        return self._chance.random()


@dataclass(frozen=True, slots=True)
class Measured:
    """What one budget covers in each order: shares of the uses."""

    pulls: int
    planned: float
    best: float
    file: float
    random: float


def covered(site: Site, seed: int, budgets: Sequence[int] = BUDGETS) -> list[Measured]:
    """Replay a site's record in all orders."""
    record = Record(demand(site, seed), WINDOW, HISTORY)
    courses = [
        [
            Course(record, pulls, planned),
            Course(record, pulls, hindsight, knows_all=True),
            Course(record, pulls, file_order),
            Course(record, pulls, RandomOrder(seed)),
        ]
        for pulls in budgets
    ]
    follow(record, [course for one in courses for course in one])
    return [
        Measured(pulls, *(course.coverage for course in one))
        for pulls, one in zip(budgets, courses, strict=True)
    ]
