"""The forecast: what a budget would have served of the recorded demand.

Time goes in windows, and a sync runs at the beginning of each, on a mirror that is empty at first.
It orders what is wanted as `plan` does, by the uses before it alone. A day's uses are spread over
the day, since the record tells no hours.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from prewarm.core.shares import Shares, in_turns
from prewarm.core.usage import DAY, DayUses, alarm, decay
from prewarm.planning.demand import weight
from prewarm.planning.ranking import STALE_GAIN, priority

REPLAYED_DAYS: Final = 28
"""At most so many of the newest days are replayed."""
_NOTHING: Final = 1e-9
"""Runs that are what rounding has left."""
_SHORTEST: Final = 3600
"""Seconds between two syncs at least, however short the window is."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An image that CI or a pin names, and what is recorded of it."""

    reference: str
    uses: tuple[DayUses, ...] = ()
    moves: tuple[float, ...] = ()
    """When its tag was seen to have moved, in epoch seconds."""
    pulls: int = 1
    """What a copy costs; 0 where no budget limits it."""
    pin: int | None = None
    """Its place among the pins, if it is one."""
    mirrored: bool = True
    """Whether it may be mirrored; nothing serves the uses of one that may not."""
    payers: tuple[str, ...] = ()
    """Whose shares it is charged to, as in the plan."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What one budget reaches."""

    pulls: int | None
    """That may be spent in each window; None is no limit."""
    coverage: float
    """The share of the uses that the mirror served, from 0 to 1."""
    best: float
    """The same where each image weighs what it will be used until its tag moves next."""
    windows_to_full: int | None
    """Windows until the mirror first had all that was wanted; None if it never had."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the replay tells."""

    window_seconds: int
    learned_days: int
    """Days whose uses the first sync knew."""
    replayed_days: int
    """The days after these."""
    images: int
    """How many were used in the replayed days."""
    uses: int
    """How often."""
    reached: tuple[Reached, ...]
    """For each budget, in the order given; empty where there is nothing to replay."""


def simulate(
    images: Iterable[Recorded],
    budgets: Sequence[int | None],
    window_seconds: int,
    history: float,
    share: int | None = None,
) -> Simulation:
    """Replay the record against each budget; `history` is how many seconds of it a plan sees.

    `share` is what the plan lets a project have of a window; hindsight knows no shares.
    The first half of the days, at most `history`, is what the first sync knows, as after a first
    scan; the others are replayed.
    """
    record = Record(images, window_seconds, history)
    courses = [
        (
            Course(record, pulls, planned, share=share),
            Course(record, pulls, hindsight, knows_all=True),
        )
        for pulls in budgets
    ]
    follow(record, [course for both in courses for course in both])
    return Simulation(
        window_seconds,
        record.learned_days,
        record.replayed_days,
        len({ran.image for step in record.ran for ran in step}),
        record.total,
        tuple(
            Reached(course.pulls, course.coverage, best.coverage, course.full_after)
            for course, best in courses
            if record.total
        ),
    )


def useful_budgets(present: int | None) -> tuple[int, ...]:
    """Return the budgets to compare where none is named, the present one among them."""
    return tuple(sorted({25, 50, 100, 200, 400} | ({present} if present else set())))


def document(found: Simulation) -> dict[str, Any]:
    """Return the simulation as JSON tells it (CONTRACT, 3)."""
    return {
        "version": 1,
        "window_seconds": found.window_seconds,
        "budgets": [
            {
                "pulls": one.pulls,
                "coverage": round(one.coverage, 4),
                "best": round(one.best, 4),
                "windows_to_full": one.windows_to_full,
            }
            for one in found.reached
        ],
    }


# --- the record ---


@dataclass(frozen=True, slots=True)
class Ran:
    """How often an image was used by a project on a day, or in the part of it in one step."""

    image: int
    pair: int
    """The number of the image with the project."""
    day: int
    runs: int
    project: int
    failed: int
    """Those which failed to pull it."""


class Record:
    """The record by steps of the replay; an image is its number in the order of references."""

    def __init__(self, images: Iterable[Recorded], window_seconds: int, history: float) -> None:
        self.images = sorted(images, key=lambda one: one.reference)
        self.window = window_seconds
        self.step = max(window_seconds, _SHORTEST)
        self.history = history
        days = {use.day for one in self.images for use in one.uses}
        span = max(days) - min(days) + 1 if days else 0
        self.learned_days = min(span // 2, int(history // DAY))
        self.replayed_days = min(span - self.learned_days, REPLAYED_DAYS)
        self.start = (max(days, default=0) - self.replayed_days + 1) * DAY
        self.steps = math.ceil(self.replayed_days * DAY / self.step)
        self.learned: list[Ran] = []
        """What ran before the first step."""
        self.ran: list[list[Ran]] = [[] for _ in range(self.steps)]
        self.moved: list[list[int]] = [[] for _ in range(self.steps)]
        """The images whose tag was seen to have moved since the step before."""
        self.to_come: list[list[int]] = []
        """The uses of each image until its tag moves first, until it moves again, and so on."""
        self.pairs = 0
        self.failing: dict[int, list[tuple[int, int]]] = {}
        """The images and pairs of each project whose jobs failed to pull some."""
        for number, image in enumerate(self.images):
            self._add(number, image)
        self.total = sum(map(sum, self.to_come))
        for ran in (*self.learned, *chain.from_iterable(self.ran)):
            if ran.project in self.failing:
                self.failing[ran.project].append((ran.image, ran.pair))
        self.failing = {project: sorted(set(both)) for project, both in self.failing.items()}

    def _add(self, number: int, image: Recorded) -> None:
        moves = sorted(
            step
            for step in {math.ceil((at - self.start) / self.step) for at in image.moves}
            if 0 < step < self.steps
        )
        for step in moves:
            self.moved[step].append(number)
        to_come = [0] * (len(moves) + 1)
        pairs: dict[int, int] = {}
        for use in image.uses:
            pair = pairs.setdefault(use.project, self.pairs + len(pairs))
            failed = use.pull_failures
            if failed:
                self.failing[use.project] = []
            if use.day * DAY < self.start:
                self.learned.append(Ran(number, pair, use.day, use.runs, use.project, failed))
                continue
            for step, runs in self._spread(use, image.reference):
                self.ran[step].append(Ran(number, pair, use.day, runs, use.project, failed))
                failed = 0
                to_come[bisect_right(moves, step)] += runs
        self.pairs += len(pairs)
        self.to_come.append(to_come)

    def _spread(self, use: DayUses, reference: str) -> Iterator[tuple[int, int]]:
        """Yield the steps of a day's runs: at equal distances, the first at a time by its name."""
        phase = zlib.crc32(f"{use.day} {use.project} {reference}".encode()) / 2**32
        begin = use.day * DAY - self.start
        before = 0
        for step in range(begin // self.step, (begin + DAY - 1) // self.step + 1):
            passed = min(1.0, ((step + 1) * self.step - begin) / DAY)
            runs = max(0, min(use.runs, math.ceil(use.runs * passed - phase)))
            if runs > before:
                yield step, runs - before
            before = runs


class View:
    """What can be known at a step; `to_come` to the hindsight alone."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.images = record.images
        self.weights = [0.0] * len(self.images)
        """What the uses so far count for, as in the plan."""
        self.to_come = [uses[0] for uses in record.to_come]
        """How often it will be used until its tag moves."""
        self._moves = [0] * len(self.images)
        self.known = [not one.uses or one.pin is not None for one in self.images]
        self.news = [number for number, known in enumerate(self.known) if known]
        """What has become known since the step before; a pin, or what no job has run, always is."""
        self._day = record.start // DAY
        self._runs = [0.0] * record.pairs
        """The decayed runs of each pair."""
        self._failed = [0.0] * record.pairs
        """The failed ones among them."""
        self._pairs: list[dict[int, int]] = [{} for _ in self.images]
        """The pairs of each image, each with its project."""
        self._by_day: dict[int, list[Ran]] = {}
        self._weigh(self._learn(record.learned))

    def advance(self, step: int) -> None:
        """Go on from the step before to this one."""
        record = self._record
        self.news = []
        day = (record.start + step * record.step) // DAY
        if day > self._day:
            self._age(day)
            self._learn(record.ran[step - 1])
            self._weigh(range(len(self.images)))
        else:
            self._weigh(self._learn(record.ran[step - 1]))
        for ran in record.ran[step - 1]:
            self.to_come[ran.image] -= ran.runs
        for image in record.moved[step]:
            self._moves[image] += 1
            self.to_come[image] = record.to_come[image][self._moves[image]]

    @property
    def _oldest(self) -> int:
        return int((self._day * DAY - self._record.history) // DAY)

    def _age(self, day: int) -> None:
        fade = decay(day - self._day)
        self._runs = [runs * fade for runs in self._runs]
        self._failed = [failed * fade for failed in self._failed]
        self._day = day
        for old in [old for old in self._by_day if old < self._oldest]:
            for ran in self._by_day.pop(old):
                left = decay(day - old)
                self._runs[ran.pair] = max(0.0, self._runs[ran.pair] - ran.runs * left)
                self._failed[ran.pair] = max(0.0, self._failed[ran.pair] - ran.failed * left)

    def _learn(self, rans: Iterable[Ran]) -> set[int]:
        """Take in what ran; return the images."""
        images = set()
        for ran in rans:
            images.add(ran.image)
            self._pairs[ran.image][ran.pair] = ran.project
            if ran.day >= self._oldest:
                left = decay(self._day - ran.day)
                self._runs[ran.pair] += ran.runs * left
                self._failed[ran.pair] += ran.failed * left
                self._by_day.setdefault(ran.day, []).append(ran)
        for image in images:
            if not self.known[image]:
                self.known[image] = True
                self.news.append(image)
        return images

    def _weigh(self, images: Iterable[int]) -> None:
        """Weigh images anew, and with one that jobs failed to pull the others of its project."""
        found, failing = set(images), self._record.failing
        for project in self._failing(found):
            found.update(image for image, pair in failing[project] if self._failed[pair])
        alarms = {project: self._alarm(failing[project]) for project in self._failing(found)}
        runs, failed = self._runs, self._failed
        for image in found:
            self.weights[image] = weight(
                runs[pair] + failed[pair] * alarms.get(project, 0.0)
                for pair, project in self._pairs[image].items()
            )

    def _failing(self, images: Iterable[int]) -> Set[int]:
        """Return the projects of images whose jobs failed to pull some image."""
        failing = self._record.failing
        if not failing:
            return set()
        return failing.keys() & {one for image in images for one in self._pairs[image].values()}

    def _alarm(self, pairs: Iterable[tuple[int, int]]) -> float:
        """Return what each failed pull of a project adds to the runs of its image."""
        known = [pair for _, pair in pairs]
        failed = math.fsum(self._failed[pair] for pair in known)
        runs = math.fsum(self._runs[pair] for pair in known)
        return alarm(failed, runs - failed) / failed if failed > _NOTHING else 0.0


# --- what is done with a budget ---

Order = Callable[[View, int, int, bool], Any]
"""Returns the place of an image that is not fresh, from its number, the pulls that a copy takes,
and whether the mirror has an older one; the smallest goes first."""


def planned(view: View, image: int, pulls: int, stale: bool) -> tuple[bool, float]:
    """Return the place of the image in the plan."""
    return _place(view, image, view.weights[image], pulls, stale)


def hindsight(view: View, image: int, pulls: int, stale: bool) -> tuple[bool, float]:
    """Return the place of the image in the plan of one who knows the uses to come."""
    return _place(view, image, view.to_come[image], pulls, stale)


def _place(view: View, image: int, weighs: float, pulls: int, stale: bool) -> tuple[bool, float]:
    pin = view.images[image].pin
    if pin is not None:
        return False, pin
    return True, priority(weighs * STALE_GAIN if stale else weighs, pulls)


class Course:
    """What the syncs of one budget do with the mirror, in one order."""

    def __init__(
        self,
        record: Record,
        pulls: int | None,
        order: Order,
        *,
        knows_all: bool = False,
        share: int | None = None,
    ) -> None:
        self.pulls = pulls
        self._share = (
            None if pulls is None or share is None else share * record.step // record.window
        )
        self._record = record
        self._order = order
        # Of a window that is shorter than a step, the step has the pulls of several.
        self._purse = math.inf if pulls is None else pulls * record.step // record.window
        self._missing = [one.pulls for one in record.images]
        """The pulls that each image still takes."""
        self._held = [False] * len(record.images)
        self._open = {n for n, one in enumerate(record.images) if knows_all and one.mirrored}
        """The images that are known and not fresh."""
        self.served: list[int] = []
        """The uses that the mirror served in each step."""
        self.spent: list[float] = []
        """The pulls of each step."""
        self.full_after: int | None = None

    @property
    def coverage(self) -> float:
        return sum(self.served) / self._record.total

    def sync(self, view: View, step: int) -> None:
        """Spend what a window has, in the order."""
        images = self._record.images
        self._open.update(image for image in view.news if images[image].mirrored)
        for image in self._record.moved[step]:
            self._missing[image] = images[image].pulls
            if self._held[image]:
                self._open.add(image)
        ordered = sorted(
            (self._order(view, image, self._missing[image], self._held[image]), image)
            for image in self._open
        )
        left = self._spend([image for *_, image in ordered])
        self.spent.append(self._purse - left if self.pulls is not None else 0)
        if (
            self.full_after is None
            and any(view.known)
            and all(map(self._held.__getitem__, self._open))
        ):
            self.full_after = (step + 1) * self._record.step // self._record.window

    def _spend(self, ordered: Sequence[int]) -> float:
        """Buy in this order, as `plan` does, and return the pulls that are left."""
        images, left = self._record.images, self._purse
        if self._share is None:
            for image in ordered:
                left -= self._buy(image, left)
            return left
        shares = Shares(self._share, int(left))
        late: dict[tuple[str, ...], deque[int]] = {}
        for place, image in enumerate(ordered):
            payers, price = images[image].payers, min(self._missing[image], self._purse)
            if not payers or not price or images[image].pin is not None:
                left -= self._buy(image, left)
            elif not left or shares.exceeded(payers, int(price)):
                continue
            elif shares.able(payers, int(price)):
                left -= self._buy_for(image, left, shares)
            else:
                late.setdefault(payers, deque()).append(place)
        for place in in_turns(late, shares.turns):
            left -= self._buy_for(ordered[place], left, shares)
        return left

    def _buy_for(self, image: int, left: float, shares: Shares) -> float:
        spent = self._buy(image, left)
        shares.pay(self._record.images[image].payers, int(spent))
        return spent

    def _buy(self, image: int, left: float) -> float:
        """Copy an image as a whole, or a part of one that is larger than a window; what it took."""
        price = self._missing[image]
        if price <= left:
            self._held[image] = True
            self._missing[image] = 0
            self._open.discard(image)
            return price
        if price > self._purse:
            self._missing[image] -= int(left)
            return left
        return 0

    def serve(self, rans: Iterable[Ran]) -> None:
        """Let jobs use what the mirror has; a stale tag serves them, too."""
        self.served.append(sum(ran.runs for ran in rans if self._held[ran.image]))


def follow(record: Record, courses: Sequence[Course]) -> None:
    """Let the courses go through all steps of the record."""
    view = View(record)
    for step in range(record.steps):
        if step:
            view.advance(step)
        for course in courses:
            course.sync(view, step)
            course.serve(record.ran[step])
