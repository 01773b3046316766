"""The forecast: how near the plan's order comes to hindsight, and how long a simulation takes.

The demand is made up, in the likeness of a GitLab with a few hundred projects: uses by rank (Zipf),
quiet weekends, projects that come and go, new images and old ones, tags that move.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from prewarm.core.usage import DAY, DayUses
from prewarm.planning.simulate import (
    Course,
    Record,
    Recorded,
    View,
    follow,
    hindsight,
    planned,
    simulate,
)

PAGE: Final = Path(__file__).parents[1] / "docs/forecast.md"
IMAGES: Final = 2000
LEARNED: Final = 14
REPLAYED: Final = 28
BUDGETS: Final = (25, 50, 100, 200, 400)
WINDOW: Final = 6 * 3600
HISTORY: Final = 14.0 * DAY
SEEDS: Final = (1, 2, 3)
_FIRST_DAY: Final = 20_000
_MARK: Final = "<!-- Written by `python -m bench.forecast --write`, to the end. -->\n"


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


ZIPF: Final = Site("as above")
OTHERS: Final = (
    Site("flatter: uses fall with rank^0.7", exponent=0.7),
    Site("steeper: rank^1.3", exponent=1.3),
    Site("a quarter of the uses", uses=1000),
    Site("half of the images are new, half of them end", born=0.5, dying=0.5),
    Site("projects use an image on one day in seven", active=0.15),
    Site("40 % of the tags move daily, 40 % weekly", moving=((0.4, 1), (0.4, 7))),
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
    unlimited: float
    """Covered by the plan without a budget: what nobody misses who cannot see the future."""


def covered(site: Site, seed: int, budgets: Sequence[int], days: int = REPLAYED) -> list[Measured]:
    """Replay a site's record in all orders; shares of the uses of the first `days`."""
    record = Record(demand(site, seed), WINDOW, HISTORY)
    courses = [
        (
            Course(record, pulls, planned),
            Course(record, pulls, hindsight, knows_all=True),
            Course(record, pulls, file_order),
            Course(record, pulls, RandomOrder(seed)),
            Course(record, None, planned),
        )
        for pulls in budgets
    ]
    follow(record, [course for all_orders in courses for course in all_orders])
    steps = days * DAY // WINDOW
    uses = sum(ran.runs for step in record.ran[:steps] for ran in step)
    return [
        Measured(pulls, *(sum(course.served[:steps]) / uses for course in all_orders))
        for pulls, all_orders in zip(budgets, courses, strict=True)
    ]


def _rows(site: Site, budgets: Sequence[int], days: int = REPLAYED) -> list[list[str]]:
    """Return a row for each budget: means of the seeds, and the lowest share of best."""
    seeds = [covered(site, seed, budgets, days) for seed in SEEDS]
    rows = []
    for of_seeds in zip(*seeds, strict=True):
        lowest = min(one.planned / one.best for one in of_seeds)
        rows.append([str(of_seeds[0].pulls)])
        for name in ("planned", "best", "file", "random", "unlimited"):
            rows[-1].append(f"{statistics.fmean(getattr(one, name) for one in of_seeds):.1%}")
        rows[-1].insert(3, f"{lowest:.1%}")
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tables() -> str:
    """Return what is measured, as Markdown."""
    head = ["pulls per 6 h", "the plan", "`best`", "of `best`", "file order", "random order",
            "no limit"]  # fmt: skip
    zipf = _table([head, ["---:"] * 7, *_rows(ZIPF, BUDGETS)])
    early = _table([head, ["---:"] * 7, *_rows(ZIPF, BUDGETS, days=3)])
    rows = [[site.name, *row] for site in OTHERS for row in _rows(site, (100, 200))]
    others = _table([["demand", *head], ["---", *["---:"] * 7], *rows])
    return (
        f"{zipf}\n\nOf the first three days, while the mirror fills:\n\n{early}\n\n"
        f"Other demands, all days:\n\n{others}\n\n{speed()}\n"
    )


def speed() -> str:
    """Return how long a simulation takes, in one sentence."""
    record = demand(ZIPF, SEEDS[0])
    started = time.perf_counter()
    found = simulate(record, BUDGETS, WINDOW, HISTORY)
    seconds = time.perf_counter() - started
    return (
        f"A simulation of {IMAGES:,} images, {found.replayed_days} days ({found.uses:,} uses) and "
        f"{len(BUDGETS)} budgets took {seconds:.1f} s."
    )


def write(measured: str) -> None:
    """Keep the tables in docs/forecast.md, in the place of the older ones."""
    PAGE.write_text(f"{PAGE.read_text().partition(_MARK)[0]}{_MARK}\n{measured}")


@click.command()
@click.option("--write", "keep", is_flag=True, help="Keep the tables in docs/forecast.md.")
def main(keep: bool) -> None:
    """Measure how near the plan comes to hindsight; about a minute."""
    measured = tables()
    click.echo(measured)
    if keep:
        write(measured)


if __name__ == "__main__":
    main()
