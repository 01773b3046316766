"""Budgets: how many pulls a rolling window still has, and when it has more.

All arithmetic is on ages, in seconds: whoever holds the clocks (`ledger`) turns moments into ages.
A pull counts while its age is below the window's length, and at exactly that age no more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from prewarm.core.errors import Problem
from prewarm.core.settings import DOCKER_HUB, Allowance
from prewarm.core.text import duration_words

DEFAULT_WINDOW: Final = 6 * 3600
"""Seconds: Docker Hub's window, taken where none is written or reported."""
UNREACHABLE_PULLS: Final = 100
"""Taken where Docker Hub does not answer: its lowest limit, per 6 h (contract, 2)."""


ANONYMOUS: Final = "anonymous"
"""The account of pulls without a login while upstream has not reported an address."""


def is_anonymous(account: str) -> bool:
    """Whether this is the account of pulls without a login, from whatever address."""
    return account == ANONYMOUS or account.startswith(f"{ANONYMOUS}@")


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, by two clocks: within one boot the boot clock tells, across boots the wall.

    DESIGN.md, 1.7: the promise about the budget is about elapsed time, whatever is done to the
    wall clock.
    """

    wall: float
    """Seconds since the epoch."""
    boot_id: str
    boot: float
    """Seconds since this boot, suspend included (CLOCK_BOOTTIME)."""

    def since(self, earlier: Moment) -> float:
        """Return the seconds from `earlier` to here; never negative (the future is now)."""
        if self.boot_id == earlier.boot_id:
            return max(0.0, self.boot - earlier.boot)
        return max(0.0, self.wall - earlier.wall)


@dataclass(frozen=True, slots=True)
class Limit:
    """What an upstream reports about its quota on an answer (`ratelimit-limit: 100;w=21600`)."""

    limit: int | None
    window: int | None
    """Seconds, from `w=`; None where the header does not say."""
    remaining: int
    """May be negative."""
    source: str
    """`docker-ratelimit-source`: an address for anonymous pulls, an account's id, or empty."""


@dataclass(frozen=True, slots=True)
class Window:
    """A limit of `pulls` in any `seconds`, of which `reserve` are left to the jobs themselves."""

    pulls: int | None
    """None means no limit."""
    seconds: int = DEFAULT_WINDOW
    reserve: int = 0
    every_address: bool = False
    """Counts the pulls of all anonymous addresses together, as a written budget does."""

    @property
    def capacity(self) -> int | None:
        """The pulls that may be spent in any window; None means no limit."""
        return None if self.pulls is None else max(0, self.pulls - self.reserve)

    def counted_account(self, account: str) -> str:
        """Return the account whose pulls count in this window; `anonymous`: any address."""
        any_address = self.every_address and is_anonymous(account)
        return ANONYMOUS if any_address else account

    def without_reserve(self) -> Window:
        """Return the window with its reserve opened, in both currencies (`--use-reserve`)."""
        return replace(self, reserve=0)


NO_LIMIT: Final = Window(None)


@dataclass(frozen=True, slots=True)
class Spend:
    """Pulls charged to a window."""

    age: float
    """Seconds since they were settled, when their last GET had certainly been sent."""
    pulls: int
    in_flight: bool = False
    """Not settled yet: its GETs may still be sent, so it counts as if it were spent now."""
    payers: tuple[str, ...] = ()
    """Who is charged for it, in equal parts: projects and namespaces (`shares`)."""

    def leaves_in(self, window: Window) -> float:
        """Return the seconds until it counts no more; at soonest, for one in flight; 0 if gone."""
        return max(0.0, window.seconds - (0.0 if self.in_flight else max(0.0, self.age)))


def used(spends: Iterable[Spend], window: Window) -> int:
    """Return the pulls that the window holds now, those in flight included."""
    return sum(spend.pulls for spend in spends if spend.leaves_in(window) > 0)


def remaining(spends: Iterable[Spend], window: Window) -> int | None:
    """Return the pulls that may be spent now, the reserve left; None means no limit."""
    return None if window.capacity is None else max(0, window.capacity - used(spends, window))


def next_free(spends: Iterable[Spend], window: Window, cost: int) -> float | None:
    """Return the seconds until `cost` more pulls fit: 0.0 for now, None for never.

    Never means that the cost is above the capacity of an empty window. Nothing (cost 0) always
    fits, also into an overdrawn window.
    """
    capacity = window.capacity
    if capacity is None or cost <= 0:
        return 0.0
    if cost > capacity:
        return None
    leaving = sorted((spend.leaves_in(window), spend.pulls) for spend in spends)
    held = sum(pulls for seconds, pulls in leaving if seconds > 0)
    soonest = 0.0
    for seconds, pulls in leaving:
        if held + cost <= capacity:
            break
        if seconds > 0:
            held -= pulls
            soonest = seconds
    return soonest


def loads(spends: Iterable[Spend], window: Window, seconds: float) -> tuple[tuple[float, int], ...]:
    """Return what each window held that ended within the last `seconds`: (seconds ago, pulls).

    The oldest first; each holds until the next. The last is now, and what `used` tells. To be whole
    the spends go back a window more than that.
    """
    changes = {float(seconds): 0, 0.0: 0}
    for spend in spends:
        age = 0.0 if spend.in_flight else max(0.0, spend.age)
        gone = age - window.seconds
        if gone < seconds:
            since = min(age, float(seconds))
            changes[since] = changes.get(since, 0) + spend.pulls
            if gone >= 0:
                changes[gone] = changes.get(gone, 0) - spend.pulls
    held = 0
    steps = []
    for ago in sorted(changes, reverse=True):
        held += changes[ago]
        steps.append((ago, held))
    return tuple(steps)


class Forecast:
    """When each of a sequence of costs will be spent, most wanted first.

    Each cost in turn takes its earliest time at which no rolling window is exceeded, given the
    spends and all costs placed before it. So a small cost may pass a large one that waits for
    room, but never delays it.

    The load at t is what the window ending at t holds. A cost placed at t adds to the load on
    [t, t + window), and the earliest time is 0 or a time at which the load falls. Loads only ever
    grow, so the earliest time of a given cost never moves back: one pointer per size of cost.
    """

    _STEPS: Final = 64
    """Spends of more different ages than this are taken together, each as late as the latest of
    its group: a forecast is then at most a 64th of the window too late, never too early, and
    100,000 costs take well under a second."""

    def __init__(self, spends: Iterable[Spend], window: Window) -> None:
        self._capacity = window.capacity
        self._length = float(window.seconds)
        leaving: dict[float, int] = {}
        for spend in spends:
            seconds = spend.leaves_in(window)
            if seconds > 0:
                leaving[seconds] = leaving.get(seconds, 0) + spend.pulls
        if len(leaving) > self._STEPS:
            leaving = self._grouped(leaving)
        held = sum(leaving.values())
        self._times = [0.0]
        self._loads = [held]
        for seconds, pulls in sorted(leaving.items()):
            held -= pulls
            self._times.append(seconds)
            self._loads.append(held)
        self._earliest: dict[int, float] = {}
        self._placed = (-1.0, 0, 0)
        """The last time at which a cost was placed, and its steps: no step was made since."""

    def _grouped(self, leaving: dict[float, int]) -> dict[float, int]:
        step = self._length / self._STEPS
        groups: dict[int, tuple[float, int]] = {}
        for seconds, pulls in leaving.items():
            group = int(seconds // step)
            latest, sum_ = groups.get(group, (0.0, 0))
            groups[group] = (max(latest, seconds), sum_ + pulls)
        return dict(groups.values())

    def place(self, cost: int) -> float | None:
        """Place `cost` and return the seconds from now until its time; None if it never fits."""
        start = self.earliest(cost)
        if start is not None:
            self.place_at(cost, start)
        return start

    def place_at(self, cost: int, start: float) -> None:
        """Place `cost` at a time at which it fits."""
        if self._capacity is None or cost <= 0:
            return
        known, first, last = self._placed
        if known != start:
            first, last = self._step_at(start), self._step_at(start + self._length)
            self._placed = start, first, last
        loads = self._loads
        for at in range(first, last):
            loads[at] += cost

    def _step_at(self, seconds: float) -> int:
        """Return the index of the load that begins then, made where need be."""
        at = bisect_left(self._times, seconds)
        if at == len(self._times) or self._times[at] != seconds:
            self._times.insert(at, seconds)
            self._loads.insert(at, self._loads[at - 1])
        return at

    def earliest(self, cost: int, after: float = 0.0) -> float | None:
        """Return the first time, `after` or later, at which `cost` fits; None for never."""
        if self._capacity is None or cost <= 0:
            return after
        room = self._capacity - cost
        if room < 0:
            return None
        times, loads = self._times, self._loads
        known = self._earliest.get(cost, 0.0)
        start = max(known, after)
        placed, at, end = self._placed
        if placed != start:
            at, end = bisect_right(times, start) - 1, bisect_left(times, start + self._length)
        while max(loads[at:end]) > room:
            while loads[at] <= room:
                at += 1
            while loads[at] > room:
                at += 1
            start = times[at]
            end = bisect_left(times, start + self._length)
        if after <= known:
            self._earliest[cost] = start
        return start


def window_for(
    registry: str,
    written: Allowance | Literal["none"] | None,
    reported: Limit | None,
    *,
    reachable: bool,
    use_reserve: bool = False,
) -> tuple[Window, str]:
    """Return the window of a registry and, for people, where it comes from (contract, 2).

    `reported` is None where the answer to a HEAD had no header, or where there was no answer:
    `reachable` tells the two apart.
    """
    window, source = _window_for(registry, written, reported, reachable)
    return (window.without_reserve(), source) if use_reserve else (window, source)


def _window_for(
    registry: str,
    written: Allowance | Literal["none"] | None,
    reported: Limit | None,
    reachable: bool,
) -> tuple[Window, str]:
    if isinstance(written, Allowance):
        return written_window(written), "written in images.yml"
    if written == "none":
        return NO_LIMIT, "no limit, as written in images.yml"
    if registry != DOCKER_HUB:
        return NO_LIMIT, "no limit, none written"
    if reported is not None and reported.limit is not None:
        pulls = max(0, reported.limit)
        return Window(pulls, reported.window or DEFAULT_WINDOW, pulls // 5), "reported by docker.io"
    if reachable:
        return NO_LIMIT, "no limit, docker.io reports none"
    assumed = Window(UNREACHABLE_PULLS, DEFAULT_WINDOW, UNREACHABLE_PULLS // 5)
    return assumed, "assumed, docker.io could not be asked"


def written_window(written: Allowance) -> Window:
    """Return the window of a budget that images.yml gives."""
    return Window(written.pulls, written.window, written.reserve, every_address=True)


def window_problem(
    registry: str, written: Allowance | Literal["none"] | None, reported: Limit | None
) -> Problem | None:
    """Return the problem of a written window that is not the one reported (contract, 2)."""
    if not isinstance(written, Allowance) or reported is None or reported.window is None:
        return None
    if written.window == reported.window:
        return None
    return Problem(
        "warning",
        "budget-window",
        registry,
        f"budget.window is written as {duration_words(written.window)}, but the registry reports "
        f"a window of {duration_words(reported.window)}",
        f"write budget.window: {duration_words(reported.window)}, or leave the budget out",
    )


def upstream_allows(reported_remaining: int, unsettled_gets: int, gets: int, reserve: int) -> bool:
    """Whether a step of `gets` manifest GETs may start while upstream reports what remains.

    `unsettled_gets` are those of all steps of the account that were not settled before the HEAD
    that reported was sent: the report may or may not hold them, so they count (DESIGN.md, 1.1).
    """
    return reported_remaining - unsettled_gets - gets >= reserve
