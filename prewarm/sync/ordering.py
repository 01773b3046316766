"""Order among the workers of a run: whose turn it is to reserve, who waits for whose blob."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

HOLD_FOR = 300.0
"""Seconds that a copy waits for a blob that another one brings: then it brings the blob itself."""


class Turns:
    """Hands out turns: each is waited for until all earlier ones are over.

    So the most wanted image reserves its pulls first, however fast the others' HEADs come back.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._issued = 0
        self._next = 0
        self._over: set[int] = set()

    def issue(self, amount: int) -> range:
        """Return so many turns, after all that were issued before."""
        first, self._issued = self._issued, self._issued + amount
        return range(first, self._issued)

    def wait(self, turn: int) -> None:
        """Wait until it is this turn, or the run is being stopped."""
        with self._changed:
            while self._next < turn and not self._stop.is_set():
                self._changed.wait(0.5)

    def over(self, turn: int) -> None:
        """Let the next one go; may be said twice."""
        with self._changed:
            if turn >= self._next:
                self._over.add(turn)
            while self._next in self._over:
                self._over.remove(self._next)
                self._next += 1
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the turns."""

    turns: Turns
    number: int

    def wait(self) -> None:
        """Wait until it is this turn, or the run is being stopped."""
        self.turns.wait(self.number)

    def over(self) -> None:
        """Let the next one go; may be said twice."""
        self.turns.over(self.number)


class Slots(Generic[_Item]):
    """Hands out work of several registries: each time of the one that has the least under way.

    So one whose copies never end cannot take every slot while others wait.
    """

    def __init__(self, items: Iterable[tuple[str, _Item]]) -> None:
        self._waiting: dict[str, deque[tuple[int, _Item]]] = {}
        for number, (registry, item) in enumerate(items):
            self._waiting.setdefault(registry, deque()).append((number, item))
        self._running: Counter[str] = Counter()

    def take(self) -> tuple[str, _Item] | None:
        """Return the next, the first of the order among equals; None where all is under way."""
        if not self._waiting:
            return None
        waiting = self._waiting
        registry = min(waiting, key=lambda name: (self._running[name], waiting[name][0][0]))
        _, item = waiting[registry].popleft()
        if not waiting[registry]:
            del waiting[registry]
        self._running[registry] += 1
        return registry, item

    def ended(self, registry: str) -> None:
        """Note that something of the registry is over."""
        self._running[registry] -= 1


class Moving:
    """Blobs on their way to a mirror: a copy that lacks one of them waits until it has come.

    The mirror can then mount it, so that a layer shared by many images crosses the network once.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._busy: set[tuple[str, str]] = set()
        self._there: dict[tuple[str, str], str] = {}
        self._placed: dict[tuple[str, str], set[str]] = {}
        self._placing: dict[tuple[str, str], threading.Lock] = {}

    @contextmanager
    def hold(
        self, mirror: str, repository: str, digests: Iterable[str]
    ) -> Iterator[set[tuple[str, str]]]:
        """Hold the blobs that are not known to be there; left without an error, they are.

        Yields what is held; cleared, nothing is taken to have come.
        """
        wanted = {(mirror, digest) for digest in digests}
        until = time.monotonic() + HOLD_FOR
        with self._changed:
            while wanted & self._busy and not self._stop.is_set() and time.monotonic() < until:
                self._changed.wait(0.5)
            mine = wanted - self._there.keys() - self._busy
            self._busy |= mine
        moved: set[tuple[str, str]] = set()
        held = set(mine)
        try:
            yield held
            moved = held
        finally:
            with self._changed:
                self._busy -= mine
                for blob in moved:
                    self._placed.setdefault(blob, set()).add(repository)
                    self._there[blob] = repository
                self._changed.notify_all()

    def arrived(self, mirror: str, digest: str, repository: str) -> None:
        """Note that a repository of a mirror has stored a blob."""
        with self._changed:
            self._busy.discard((mirror, digest))
            self._there.setdefault((mirror, digest), repository)
            self._placed.setdefault((mirror, digest), set()).add(repository)
            self._changed.notify_all()

    def placing(self, mirror: str, repository: str) -> threading.Lock:
        """Return the lock under which blobs are put in their place in a repository.

        registry:2 writes the link to a blob in place, also when it is there already: who asks for
        the blob at that moment is answered 500 (measured on 2.8.2).
        """
        with self._changed:
            return self._placing.setdefault((mirror, repository), threading.Lock())

    def place(self, mirror: str, repository: str, digest: str) -> None:
        """Note that a repository of the mirror has the blob."""
        with self._changed:
            self._placed.setdefault((mirror, digest), set()).add(repository)

    def placed(self, mirror: str, repository: str, digest: str) -> bool:
        """Whether a repository of the mirror is known to have the blob."""
        with self._changed:
            return repository in self._placed.get((mirror, digest), ())

    def where(self, mirror: str, digest: str) -> str | None:
        """Return a repository of the mirror that has a blob, if one is known."""
        with self._changed:
            return self._there.get((mirror, digest))

    def gone(self, mirror: str, digest: str) -> None:
        """Note that a blob is not there after all."""
        with self._changed:
            self._there.pop((mirror, digest), None)
            self._placed.pop((mirror, digest), None)
