"""Filling: how much of the mirrors' disks the images of one project may take in a window."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from prewarm.core.budget import DEFAULT_WINDOW, Moment, Spend
from prewarm.core.settings import Limits, Mirror
from prewarm.planning.plan import Defer, Disk
from prewarm.state.ledger import Ledger
from prewarm.sync.fetch import EndedError
from prewarm.sync.task import Image

_LARGEST: Final = 5
"""Images of the largest size that a project may have copied in a window."""
_PART: Final = 4
"""A project may fill a quarter of the space that is left, its namespace half of it."""


def share_of(limits: Limits, mirrors: Iterable[Mirror]) -> int:
    """Return the bytes that one project may have copied in a window, given the space now."""
    share = _LARGEST * limits.image_size
    for mirror in mirrors:
        if mirror.role != "target":
            continue
        if mirror.max_size is not None:
            share = min(share, mirror.max_size // _PART)
        if mirror.storage is not None:
            # One that cannot be read is told when something is copied there.
            with suppress(OSError):
                left = shutil.disk_usage(mirror.storage).free - (mirror.min_free or 0)
                share = min(share, left // _PART)
    return max(1, share)


def disk_of(ledger: Ledger, now: Moment, limits: Limits, mirrors: Iterable[Mirror]) -> Disk:
    """Return what each project has had copied of late, and what it still may."""
    share = share_of(limits, mirrors)
    return Disk(share, ledger.filled(now, DEFAULT_WINDOW), DEFAULT_WINDOW)


class Filling:
    """The copies of a run, which many threads make at once."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], Moment],
        limits: Limits,
        mirrors: Iterable[Mirror],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._limits = limits
        self._mirrors = tuple(mirrors)
        self._lock = threading.Lock()
        self._moving: dict[int, Spend] = {}

    @contextmanager
    def room(self, image: Image) -> Iterator[None]:
        """Hold room for an image while it is copied, and charge what was really moved.

        EndedError where all who use it have had their share; pins always have room.
        """
        if not image.want.payers:
            yield
            return
        payers = self._take(image)
        before = image.moved
        try:
            yield
        finally:
            with self._lock:
                del self._moving[id(image)]
            if image.moved > before:
                self._ledger.note_filled(payers, image.moved - before, self._clock())

    def _take(self, image: Image) -> tuple[str, ...]:
        want, size = image.want, image.size
        with self._lock:
            now = self._clock()
            disk = disk_of(self._ledger, now, self._limits, self._mirrors)
            shares = disk.shares(self._moving.values())
            if (refused := disk.refusal(shares, want, size)) is not None:
                raise EndedError(_waits(image, *refused, now))
            payers = shares.pay(want.payers, size)
            self._moving[id(image)] = Spend(0.0, size, in_flight=True, payers=payers)
        return payers


def _waits(image: Image, reason: str, wait: float | None, now: Moment) -> Defer:
    until = None if wait is None else now.wall + wait
    return Defer(image.want, image.seen, None, "project-share", reason, until)
