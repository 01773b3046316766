"""Fetching: the only code that sends a manifest GET to an upstream, always under a reservation.

For one image: ask by HEAD what is left, reserve when the turn comes, GET the index and the
manifests that nobody has, settle at once. What was bought is remembered by digest, so a run that
dies afterwards pays nothing twice.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prewarm.core.budget import Moment, Window, next_free
from prewarm.core.errors import Failure, RegistryError
from prewarm.core.manifest import Manifest, wanted_children
from prewarm.core.records import STEP_SECONDS, Refusal, Reservation
from prewarm.core.settings import Limits
from prewarm.core.shares import only_project
from prewarm.planning.plan import Copy, Cost, Defer, Fail, Skip, Step, cost
from prewarm.state.ledger import Ledger
from prewarm.sync.inspect import UpstreamSite, no_platform
from prewarm.sync.task import Image

log = logging.getLogger("prewarm")

Now = Callable[[], Moment]

_TRIES: Final = 6
"""Of one manifest GET, each under its own reservation."""
_PAUSE: Final = (0.2, 0.8)
"""Seconds before the second try, at random between these; twice as long before the third."""
_PASSING: Final = frozenset({"server-error", "reset"})
"""Failures of a GET that may be gone at a second try."""


class EndedError(Exception):
    """An image's way ends here, with the step that says how; raised and caught within a run."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step


@dataclass
class Bill:
    """A reservation and its GETs, as they go out."""

    reservation: Reservation
    reported: tuple[int, Moment] | None
    """What remained upstream when it was reserved, and when that was asked for."""
    renewed: Moment
    """When it was reserved or last extended."""
    held_pulls: int
    held_gets: int
    children: int = 0
    """Manifests, not indexes, that upstream may have counted."""
    counted: int = 0
    """GETs that upstream may have counted: answered with anything but 429, or broken off."""
    sent: int = 0
    extra: int = 0
    """Pulls for GETs of an index that failed and were sent again."""

    @property
    def pulls(self) -> int:
        """The charge: `max(1, children)` and what failed, or nothing where no GET can count."""
        return self.pulls_with(0) if self.counted else 0

    def pulls_with(self, children: int) -> int:
        """The charge once so many more children are fetched."""
        return max(1, self.children + children) + self.extra


class Purchasing:
    """Buys for all the images of a run."""

    def __init__(
        self,
        *,
        run: str,
        ledger: Ledger,
        clock: Now,
        windows: Callable[[UpstreamSite], Window],
        limits: Limits,
        held_up: Callable[[Image], Step | None],
    ) -> None:
        self._run = run
        self._ledger = ledger
        self._clock = clock
        self._windows = windows
        self._limits = limits
        self._held_up = held_up
        self._settled = threading.Condition()

    def buy(
        self,
        image: Image,
        upstream: UpstreamSite,
        find: Callable[[Image], None],
        wait_for_turn: Callable[[], None],
        over: Callable[[], None],
    ) -> Step | None:
        """GET what nobody has of the image; return None, or the step that the image ends with.

        `find` looks in memory and on the mirrors for what an index turns out to name. A Defer may
        leave some manifests bought: those of an image larger than a window. Raises RegistryError.
        """
        price = cost(image.want, image.seen) if image.content is None else _exact(len(image.due))
        with self.reserved(image, upstream, price, wait_for_turn, over) as bill:
            try:
                return self._get_all(image, upstream, find, bill)
            except RegistryError as error:
                if error.code != "upstream-quota":
                    raise
                upstream.closed = Failure(error.code, error.text, error.cure)
                return Defer(image.want, image.seen, price, error.code, error.text)

    @contextmanager
    def reserved(
        self,
        image: Image,
        upstream: UpstreamSite,
        price: Cost,
        wait_for_turn: Callable[[], None],
        over: Callable[[], None],
    ) -> Iterator[Bill]:
        """Reserve the price when it is the image's turn, and settle what was really spent.

        EndedError where it is refused. Whoever sends the GETs keeps the bill.
        """
        most = image.step.at_most if isinstance(image.step, Copy) else None
        pulls, gets = price.known_pulls, price.known_gets
        if most is not None and most < pulls:
            pulls, gets = most, most + 1
        reported = self._ask(image, upstream)
        wait_for_turn()
        while True:
            self._turned_away(image, upstream, price)
            answer = self._ledger.reserve(
                self._run,
                upstream.settings.name,
                upstream.account_name,
                image.want.reference.repository,
                image.digest,
                pulls,
                gets,
                self._windows(upstream),
                self._clock(),
                reported,
                image.want.payers,
                self._limits.pulls_per_project,
            )
            if isinstance(answer, Reservation):
                break
            if answer.kind != "upstream-quota" or not (answer.in_flight or answer.stale):
                raise EndedError(_refused(image, price, answer, self._clock()))
            # What is in flight may stand in the reported number already: wait, then ask again.
            if answer.in_flight:
                with self._settled:
                    self._settled.wait(0.5)
            reported = self._ask(image, upstream)
        over()
        bill = Bill(answer, reported, self._clock(), pulls, gets)
        try:
            yield bill
        finally:
            self._settle(bill)
            image.pulls += bill.pulls
            image.gets += bill.sent

    def _ask(self, image: Image, upstream: UpstreamSite) -> tuple[int, Moment] | None:
        """Ask upstream what remains, where it reports that at all."""
        if upstream.limit is None:
            return None
        reference = image.want.reference
        head = upstream.head(reference.repository, reference.selector, self._clock)
        # No header on this repository's answer: its pulls do not count (DESIGN.md, 2).
        return None if head.limit is None else upstream.reported

    def _turned_away(self, image: Image, upstream: UpstreamSite, price: Cost) -> None:
        """End here when the run ends, or upstream has said 429, or failed, since the plan."""
        if (down := upstream.down) is not None:
            raise RegistryError(down.code, down.text, down.cure, answered=False)
        held_up = self._held_up(image)
        closed = upstream.closed
        if held_up is None and closed is not None:
            held_up = Defer(image.want, image.seen, price, closed.code, closed.text)
        if held_up is not None:
            raise EndedError(held_up)

    def _settle(self, bill: Bill) -> None:
        if bill.counted:
            self._ledger.settle(bill.reservation, bill.pulls, bill.sent, "spent", self._clock())
        else:
            self._ledger.release(bill.reservation, self._clock())
        with self._settled:
            self._settled.notify_all()

    def _get_all(
        self,
        image: Image,
        upstream: UpstreamSite,
        find: Callable[[Image], None],
        bill: Bill,
    ) -> Step | None:
        if image.content is None:
            original = self._get(image, upstream, image.digest, bill)
            needs_some = original.is_index and not image.want.whole
            if needs_some and not wanted_children(original, image.want.platforms):
                return Fail(image.want, image.seen, no_platform(image.want, original))
            image.use(original)
            find(image)
        due = image.due
        if len(due) > self._limits.pulls_per_image:
            return too_many(image, len(due), self._limits)
        affordable, refusal = self.afford(image, upstream, bill, len(due))
        for digest in due[:affordable]:
            self.renew(image, upstream, bill)
            # Another image may share it, and have brought it meanwhile.
            known = self._ledger.manifest(digest)
            image.manifests[digest] = known or self._get(image, upstream, digest, bill)
        if affordable == len(due):
            return None
        return self.in_parts(image, upstream, len(due), len(image.due), refusal)

    def afford(
        self, image: Image, upstream: UpstreamSite, bill: Bill, children: int
    ) -> tuple[int, Refusal | None]:
        """Fit the reservation to the children that are really due; return how many it allows.

        All or none, but for an image larger than an empty window: that is bought in parts. With
        none of them, what refused comes along.
        """
        window = self._windows(upstream)
        capacity = window.capacity
        wanted, refusal = [children], None
        if capacity is not None and children > capacity:
            wanted = list(range(capacity, 0, -1))
        for number in wanted:
            answer = self._ledger.extend(
                bill.reservation,
                bill.pulls_with(number),
                bill.sent + number,
                window,
                self._clock(),
                bill.reported,
                image.want.payers,
                self._limits.pulls_per_project,
            )
            if not isinstance(answer, Refusal):
                bill.renewed, bill.held_pulls = self._clock(), bill.pulls_with(number)
                bill.held_gets = bill.sent + number
                return number, None
            refusal = answer
        return 0, refusal

    def renew(self, image: Image, upstream: UpstreamSite, bill: Bill) -> None:
        """Keep the reservation young: should we die, it counts until STEP_SECONDS from here.

        EndedError where that is refused: the step was taken for dead, or the ledger is away.
        """
        now = self._clock()
        if now.since(bill.renewed) > STEP_SECONDS / 4:
            held, window = bill.reservation, self._windows(upstream)
            answer = self._ledger.extend(held, bill.held_pulls, bill.held_gets, window, now)
            if isinstance(answer, Refusal):
                price = _exact(bill.held_pulls)
                raise EndedError(_refused(image, price, answer, now))
            bill.renewed = now

    def _get(self, image: Image, upstream: UpstreamSite, digest: str, bill: Bill) -> Manifest:
        """GET one manifest; again, under a reservation of its own, where that failed and may pass.

        A server error or a broken connection may have been counted as a pull, so it stays charged.
        """
        repository = image.want.reference.repository
        for tried in range(1, _TRIES + 1):
            try:
                manifest = self._get_once(image, upstream, digest, bill)
            except RegistryError as error:
                again = upstream.note_get(repository, error) and tried < _TRIES
                if not again or error.code not in _PASSING or not error.answered:
                    raise
                upstream.registry.pause(random.uniform(*_PAUSE) * tried)
                if not self._reserve_again(image, upstream, digest, bill):
                    raise
                log.debug("%s; asking again", error.text)
            else:
                upstream.note_get(repository, None)
                return manifest
        raise AssertionError("the last try returns or raises")

    def _reserve_again(self, image: Image, upstream: UpstreamSite, digest: str, bill: Bill) -> bool:
        """Raise the reservation by a second GET of what was just asked for; whether it is granted.

        The failed GET of an index becomes a pull of its own, as that of a child is.
        """
        if self._held_up(image) is not None or upstream.closed is not None:
            return False
        extra = digest == image.digest and image.is_index
        pulls, gets = bill.held_pulls + 1, bill.held_gets + 1
        now = self._clock()
        answer = self._ledger.extend(
            bill.reservation,
            pulls,
            gets,
            self._windows(upstream),
            now,
            bill.reported,
            image.want.payers,
            self._limits.pulls_per_project,
        )
        if isinstance(answer, Refusal):
            return False
        bill.extra += extra
        bill.held_pulls, bill.held_gets, bill.renewed = pulls, gets, now
        return True

    def _get_once(self, image: Image, upstream: UpstreamSite, digest: str, bill: Bill) -> Manifest:
        """Send one manifest GET and remember what it brought; the bill is kept whatever comes."""
        child = digest != image.digest or not image.is_index
        asked = self._clock()
        # Counted until we know better, whatever ends the GET.
        bill.sent += 1
        bill.counted += 1
        bill.children += child
        try:
            manifest, limit = upstream.registry.manifest(image.want.reference.repository, digest)
        except RegistryError as error:
            if not error.answered:
                bill.counted -= 1
                bill.children -= child
                bill.sent -= error.status is None
            if error.code == "not-found" and error.status in {401, 403}:
                raise _unauthorized(upstream, error) from None
            raise
        upstream.note(limit, asked)
        self._ledger.keep_manifest(manifest, self._clock())
        return manifest

    def in_parts(
        self,
        image: Image,
        upstream: UpstreamSite,
        children: int,
        left: int,
        refusal: Refusal | None,
    ) -> Defer:
        """Return the step of an image of which `left` of so many children must wait."""
        if refusal is not None and refusal.kind != "budget":
            return _refused(image, _exact(children), refusal, self._clock())
        window = self._windows(upstream)
        at_hand = children - left
        reason = (
            f"{at_hand} of {children} parts copied, the others wait for the window"
            if at_hand
            else f"needs {children} pulls, which the window does not have"
        )
        now = self._clock()
        counted = window.counted_account(upstream.account_name)
        spends = self._ledger.spends(upstream.settings.name, counted, now, window.seconds)
        wait = next_free(spends, window, 1 if at_hand else children)
        until = None if wait is None else now.wall + wait
        return Defer(image.want, image.seen, _exact(left), "budget", reason, until)


def _unauthorized(upstream: UpstreamSite, error: RegistryError) -> RegistryError:
    """Return the refusal of a GET as what it is: the HEAD of the same manifest was answered."""
    where, _, _ = error.text.partition(": ")
    return RegistryError(
        "unauthorized",
        f"{where}: unauthorized: it answers HEAD, but {error.status} to GET",
        f"{upstream.registry.login_cure}, or check a proxy before the registry",
        status=error.status,
        answered=error.answered,
    )


def _exact(children: int) -> Cost:
    return Cost(children, children)


def _refused(image: Image, price: Cost, refusal: Refusal, now: Moment) -> Defer:
    if refusal.kind == "budget":
        reason = "the window has been spent meanwhile"
        until = None if refusal.until is None else now.wall + refusal.until
        return Defer(image.want, image.seen, price, "budget", reason, until)
    if refusal.kind == "project-share":
        project = only_project(image.want.payers)
        reason = f"only {project} uses it, which has had its share of the window meanwhile"
        until = None if refusal.until is None else now.wall + refusal.until
        return Defer(image.want, image.seen, price, "project-share", reason, until)
    if refusal.kind == "state":
        reason = "the shared state cannot be reached, and nothing is pulled without the ledger"
        return Defer(image.want, image.seen, price, "state-unreachable", reason)
    return Defer(
        image.want,
        image.seen,
        price,
        "upstream-quota",
        "upstream reports no more pulls above the reserve",
    )


def too_many(image: Image, pulls: int, limits: Limits) -> Skip:
    """Return the step of an image that costs more pulls than one image may."""
    return Skip(
        image.want,
        image.seen,
        "pulls-per-image",
        f"costs {pulls} pulls, more than limits.pulls_per_image {limits.pulls_per_image}",
    )
