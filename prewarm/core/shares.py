"""Fair shares: who is charged for an image that CI uses, and what each has had of a window.

An image is charged in equal parts to the projects that use it, and each part to the project's
namespace as well: the top-level group, or the user. What many use is charged to none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import Final, TypeVar

from prewarm.core.budget import Spend, Window

FEW: Final = 8
"""An image of more projects than this is charged to their namespaces; one of more namespaces than
this is in common use, and charged to none."""
_WHOLE: Final = 840
"""The parts of a pull: a multiple of each number up to FEW, so that parts add up exactly."""
_TURNS: Final = 8
"""After so many shares the order of the plan alone decides."""


def namespace(payer: str) -> str:
    """Return the namespace of a project's path, or of a namespace, as a payer: `group/`."""
    return payer.partition("/")[0] + "/"


def payers_of(projects: Iterable[str]) -> tuple[str, ...]:
    """Return who is charged for an image that these projects use, given their paths."""
    paths = dict.fromkeys(projects)
    if len(paths) > FEW:
        paths = dict.fromkeys(map(namespace, paths))
    return () if len(paths) > FEW else tuple(sorted(paths))


def only_project(payers: tuple[str, ...]) -> str | None:
    """Return the project that alone uses an image, if one does."""
    return payers[0] if len(payers) == 1 and not payers[0].endswith("/") else None


_Key = TypeVar("_Key")
_Item = TypeVar("_Item")
TURN: Final = 50
"""Images that each project may have looked at before it is the others' turn; a namespace 4 times
that."""


def by_turns(items: Iterable[tuple[_Item, tuple[str, ...], float]]) -> list[_Item]:
    """Return items with their payers and weights in the order to look at them.

    The most wanted go first, but only so many of each project and namespace before those of the
    others. What is charged to none is never held back.
    """
    seen: Counter[str] = Counter()
    ordered = []
    heavy = sorted(items, key=lambda item: -item[2])
    for place, (item, payers, _) in enumerate(heavy):
        turn = 0
        if payers:
            turn = min(max(seen[one] // TURN, seen[namespace(one)] // (4 * TURN)) for one in payers)
            seen.update({*payers, *map(namespace, payers)})
        ordered.append((turn, place, item))
    ordered.sort(key=lambda one: one[:2])
    return [item for _, _, item in ordered]


def in_turns(late: Mapping[_Key, deque[int]], turns: Callable[[_Key], int]) -> Iterator[int]:
    """Yield the places of those who had fewest shares first, then in their order.

    `late` has places in a demand by who uses the images there, `turns` tells how many shares they
    have had: what the caller pays for one place counts before the next.
    """
    waiting = [(0, places[0], number) for number, places in enumerate(late.values())]
    heapify(waiting)
    keys = list(late)
    while waiting:
        had, place, number = heappop(waiting)
        places = late[keys[number]]
        if (now := turns(keys[number])) > had:
            heappush(waiting, (now, place, number))
            continue
        yield places.popleft()
        if places:
            heappush(waiting, (had, places[0], number))


def own_window(
    project: str, share: int, spends: Iterable[Spend], seconds: int
) -> tuple[tuple[Spend, ...], Window, int]:
    """Return a project's part of each spend, its own window, and the parts that a pull has."""
    own = tuple(
        replace(spend, pulls=spend.pulls * _WHOLE // len(spend.payers))
        for spend in spends
        if project in spend.payers
    )
    return own, Window(share * _WHOLE, seconds), _WHOLE


class Shares:
    """How much each payer has had, of pulls or bytes.

    A project may have `share`, a namespace that or half of the `capacity`; the first image of a
    window is always allowed.
    """

    def __init__(
        self,
        share: int,
        capacity: int,
        spends: Iterable[Spend] = (),
    ) -> None:
        self.share = share
        self._limits = share * _WHOLE, max(share, capacity // 2) * _WHOLE
        self._held: Counter[str] = Counter()
        for spend in spends:
            self._charge(spend.payers, spend.pulls)

    def held(self, payer: str) -> int:
        """Return what a project or a namespace has had, rounded up."""
        return -(-self._held[payer] // _WHOLE)

    def exceeded(self, payers: tuple[str, ...], amount: int) -> str | None:
        """Return the project that alone uses an image, where that is more than its share."""
        project = only_project(payers)
        if project is None or self._fits(project, amount * _WHOLE):
            return None
        return project

    def left(self, payers: tuple[str, ...]) -> int | None:
        """Return what a project may still have for an image that it alone uses; None: anything."""
        project = only_project(payers)
        held = self._held[project] if project is not None else 0
        return max(0, self._limits[0] - held) // _WHOLE if held else None

    def able(self, payers: tuple[str, ...], amount: int) -> tuple[str, ...]:
        """Return those of the payers whose shares have room for their part of the amount."""
        if not payers:
            return ()
        part = amount * _WHOLE // len(payers)
        parts: Counter[str] = Counter()
        for payer in payers:
            parts[namespace(payer)] += part
        return tuple(
            payer
            for payer in payers
            if self._fits(payer, part) and self._fits(namespace(payer), parts[namespace(payer)])
        )

    def pay(self, payers: tuple[str, ...], amount: int) -> tuple[str, ...]:
        """Charge an amount to those who are able, or else to all, and return them."""
        payers = self.able(payers, amount) or payers
        self._charge(payers, amount)
        return payers

    def turns(self, payers: tuple[str, ...]) -> int:
        """Return how many shares the payers have had; of several, the one that had least."""
        most = min((max(map(self._times, (one, namespace(one)))) for one in payers), default=0)
        return min(_TURNS, most)

    def _times(self, payer: str) -> int:
        return self._held[payer] // max(1, self._limits[payer.endswith("/")])

    def _fits(self, payer: str, part: int) -> bool:
        held = self._held[payer]
        return not held or held + part <= self._limits[payer.endswith("/")]

    def _charge(self, payers: tuple[str, ...], amount: int) -> None:
        for payer in payers:
            part = amount * _WHOLE // len(payers)
            self._held[payer] += part
            if (group := namespace(payer)) != payer:
                self._held[group] += part
