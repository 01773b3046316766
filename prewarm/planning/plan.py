"""The plan: what to do with each wanted image, and why.

The plan is data. A dry run prints the object that a real run executes; planning again with what a
run has learned gives the rest of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final, Literal, assert_never

from prewarm.core.budget import NO_LIMIT, Forecast, Limit, Spend, Window, remaining, upstream_allows
from prewarm.core.errors import Failure
from prewarm.core.manifest import Descriptor, Manifest
from prewarm.core.platforms import ALL, Platform
from prewarm.core.settings import Limits
from prewarm.core.shares import Shares, in_turns, namespace, only_project, own_window
from prewarm.core.text import counted, duration_words, size_words
from prewarm.planning.demand import Want, skipped_by

State = Literal["fresh", "stale", "missing", "unknown"]
SERVED: Final[frozenset[str]] = frozenset({"fresh", "stale"})
"""States in which a runner gets the image from the mirror."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one mirror holds of a wanted image."""

    mirror: str
    """The mirror's URL."""
    target: bool
    """Whether the image belongs there; a source is only read."""
    repository: str
    digest: str | None = None
    """Of what lies under the tag now; the mirror's own digest."""
    state: State = "missing"
    present: frozenset[str] = frozenset()
    """Which of the manifests that the image needs are there."""
    lost: frozenset[str] = frozenset()
    """Manifests that answer, although some of their blobs are gone: they must be copied again."""
    failure: Failure | None = None
    """Why the mirror could not be asked, or written to."""
    through: bool = False
    """A pull-through mirror: what it lacks it pulls for itself, and `present` is what the state
    says that it has, the index included."""
    expired: bool = False
    """Whether a pull-through mirror had it, and has forgotten it by its own rule."""
    unproven: bool = False
    """Whether an index lies there that is not proven to be made from upstream's, which it names."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a wanted image, upstream and on the mirrors."""

    descriptor: Descriptor | None = None
    """Upstream's, by HEAD; of a digest pin that is on a mirror, the mirror's."""
    content: Manifest | None = None
    """What belongs under the tag, where it is known without a pull."""
    required: tuple[str, ...] = ()
    """Digests of the single manifests that the content stands on."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the required manifests' blobs, where their bytes are at hand."""
    holdings: tuple[Holding, ...] = ()
    metered: bool = True
    """Whether upstream reported a quota with it; where it does not, that pull does not count."""
    payer: str = ""
    """The quota that pays for it, where that is not the registry's own: that of a path's login."""
    failure: Failure | None = None
    """Why upstream could not be asked, or has nothing that is wanted."""
    checked: float | None = None
    """When upstream last told the descriptor, in epoch seconds, where it was not asked now."""
    open_targets: tuple[Holding, ...] = field(init=False, repr=False, compare=False)
    """The mirrors that still need the image and can take it."""
    open_caches: tuple[Holding, ...] = field(init=False, repr=False, compare=False)
    """The pull-through mirrors among them: each makes pulls of its own."""

    def __post_init__(self) -> None:
        # Asked several times for each image of a plan: told once.
        still = [h for h in self.holdings if h.target and h.failure is None and h.state != "fresh"]
        object.__setattr__(self, "open_targets", tuple(still))
        object.__setattr__(self, "open_caches", tuple([h for h in still if h.through]))

    @property
    def targets(self) -> tuple[Holding, ...]:
        return tuple(holding for holding in self.holdings if holding.target)

    @property
    def unfetched(self) -> tuple[str, ...]:
        """Required manifests that are to be pushed and whose bytes only upstream has."""
        return tuple(digest for digest in self.absent if digest not in self.sizes)

    @property
    def absent(self) -> tuple[str, ...]:
        """Required manifests that no push mirror holds, where one is to be filled.

        Their blobs come from upstream. A pull-through mirror is never asked for a manifest that
        another needs: it might have to pull it.
        """
        if self.open_targets and len(self.open_caches) == len(self.open_targets):
            return ()
        asked = [h for h in self.holdings if h.failure is None and not h.through]
        held = {digest for holding in asked for digest in holding.present}
        return tuple(digest for digest in self.required if digest not in held)

    def uncached(self, cache: Holding) -> tuple[str, ...]:
        """Manifests that a pull-through mirror lacks, the index first, where they are known."""
        assert self.descriptor is not None
        needed = dict.fromkeys((self.descriptor.digest, *self.required))
        return tuple(digest for digest in needed if digest not in cache.present)

    @property
    def key(self) -> str | None:
        return self.descriptor.digest if self.descriptor else None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a copy asks of upstream; an upper bound while its index is unread."""

    pulls: int | None
    """None: nobody can know before the index is read (`platforms: all`)."""
    gets: int | None

    @property
    def known_pulls(self) -> int:
        """The pulls to count on while planning: one for an index that nobody has read."""
        return 1 if self.pulls is None else self.pulls

    @property
    def known_gets(self) -> int:
        return 1 if self.gets is None else self.gets


def cost(want: Want, seen: Seen) -> Cost:
    """Return the pulls charged and the manifest GETs sent for the image.

    A step is charged `max(1, children fetched in it)`: Docker Hub counts an index and one child
    as one pull (docs.docker.com, docker-hub/usage/pulls; DESIGN.md, 2).
    """
    descriptor = seen.descriptor
    assert descriptor is not None
    if seen.content is None:
        times = len(seen.open_caches) or 1
        if not descriptor.is_index:
            return Cost(times, times)
        if want.whole or want.platforms == ALL:
            return Cost(None, None)
        return _unread(len(want.platforms), times)
    unfetched = set(seen.unfetched)
    pulls = gets = 0
    for through in seen.open_caches:
        # What one pull-through mirror brings, no push mirror has to fetch.
        lacking = seen.uncached(through)
        price = cost_of(lacking, descriptor)
        pulls, gets = pulls + price.known_pulls, gets + price.known_gets
        unfetched.difference_update(lacking)
    return Cost(pulls + len(unfetched), gets + len(unfetched))


def cost_of(lacking: Collection[str], descriptor: Descriptor) -> Cost:
    """Return the cost of an image's manifests, by digest, perhaps with its index among them."""
    indexes = int(descriptor.is_index and descriptor.digest in lacking)
    children = len(lacking) - indexes
    return Cost(max(children, indexes), len(lacking))


@cache
def _unread(platforms: int, times: int) -> Cost:
    """The most that an index of so many wanted platforms can cost, fetched so many times."""
    return Cost(times * max(1, platforms), times * (1 + platforms))


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy from upstream."""

    want: Want
    seen: Seen
    cost: Cost
    code: str
    reason: str
    at_most: int | None = None
    """Pulls that may be spent now, where the image is larger than an empty window."""
    late: bool = False
    """Its users have had their share of the window: it goes after what others use."""


@dataclass(frozen=True, slots=True)
class Tag:
    """Make it on the mirrors from what is there, or comes with an earlier step: no pull."""

    want: Want
    seen: Seen
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fresh:
    """Nothing to do."""

    want: Want
    seen: Seen
    code: str = "fresh"
    reason: str = "the mirrors have what upstream has"


@dataclass(frozen=True, slots=True)
class Defer:
    """Not now."""

    want: Want
    seen: Seen
    cost: Cost | None
    code: str
    reason: str
    until: float | None = None
    """Seconds since the epoch when it could be; None where nobody can know."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Not wanted, or no image can be made of it."""

    want: Want
    seen: Seen
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """It cannot be done."""

    want: Want
    seen: Seen
    failure: Failure

    @property
    def code(self) -> str:
        return self.failure.code

    @property
    def reason(self) -> str:
        return self.failure.text


Step = Copy | Tag | Fresh | Defer | Skip | Fail


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps, in the order of the demand: a partition of it, each want once."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one upstream still gives to one account."""

    account: str
    window: Window
    source: str
    """Where the window comes from, in words."""
    spends: tuple[Spend, ...] = ()
    reported: Limit | None = None
    closed: Failure | None = None
    """Set when upstream said 429 in this run: no more GETs go there."""


@dataclass(frozen=True, slots=True)
class Disk:
    """How much the images of each project may add to the mirrors in a window, and what they did."""

    share: int
    """Bytes for a project; twice as much for a namespace."""
    filled: tuple[Spend, ...] = ()
    """The bytes that were copied."""
    seconds: int = 0
    """The window."""

    def shares(self, moving: Iterable[Spend] = ()) -> Shares:
        """Return the shares as they are now, what is being copied included."""
        return Shares(self.share, 4 * self.share, (*self.filled, *moving))

    def refusal(self, shares: Shares, want: Want, size: int) -> tuple[str, float | None] | None:
        """Return why so many bytes have no room now, and the seconds until they may have."""
        if not want.payers or not size or shares.able(want.payers, size):
            return None
        who = " and ".join(want.payers[:2]) + (" and others" if len(want.payers) > 2 else "")
        reason = (
            f"has {size_words(size)}; the images of {who} have filled their share of the mirror's "
            f"disk for now ({size_words(self.share)} for a project in "
            f"{duration_words(self.seconds)})"
        )
        return reason, min(filter(None, map(self._wait, want.payers)), default=None)

    def _wait(self, payer: str) -> float | None:
        """Return the seconds until some of what a payer has filled leaves the window."""
        group = namespace(payer)
        mine = [one for one in self.filled if group in map(namespace, one.payers)]
        return min((self.seconds - one.age for one in mine if one.age < self.seconds), default=None)


def action(step: Step) -> Literal["copy", "tag", "fresh", "defer", "skip", "fail"]:
    """Return the word for the step in the report."""
    match step:
        case Copy():
            return "copy"
        case Tag():
            return "tag"
        case Fresh():
            return "fresh"
        case Defer():
            return "defer"
        case Skip():
            return "skip"
        case Fail():
            return "fail"
        case _:
            assert_never(step)


def plan(
    demand: Iterable[tuple[Want, Seen]],
    quotas: Mapping[str, Quota],
    limits: Limits,
    skip: Sequence[str],
    now: float,
    disk: Disk | None = None,
) -> Plan:
    """Decide each wanted image in the order given; `now` is seconds since the epoch.

    Two passes: first who goes now, the most wanted first and each only as a whole, so that two
    pulls left go to the next image that fits, and those whose users have had their share last;
    then when the others could.
    """
    purses = {name: _Purse(quota, limits) for name, quota in quotas.items()}
    steps = _first_pass(demand, purses, limits, skip)
    if disk is not None:
        shares = disk.shares()
        steps = [_on_disk(step, disk, shares, now) for step in steps]
    calendar = _Calendar(quotas, limits.pulls_per_project)
    for step in steps:
        if isinstance(step, Copy):
            pulls = step.cost.known_pulls if step.at_most is None else step.at_most
            calendar.place(step.want, step.seen, pulls)
    return Plan(tuple([_dated(s, calendar, now) if isinstance(s, _Waiting) else s for s in steps]))


_Digest = tuple[str, str, str | None]
"""Registry, repository and digest: its tags share its pulls."""
_UNLIMITED: Final = Quota("", NO_LIMIT, "")
_DATED: Final = frozenset({"budget", "project-share"})
"""Codes of deferrals that end when pulls leave a window."""
_MISSING: Final = ("missing", "not on the mirror")
_STALE: Final = ("stale", "the tag moved upstream")
UNWANTED: Final = frozenset({"unlisted-registry", "private", "unmirrorable"})
"""Failures that say that an image which CI names is not to be mirrored."""
LATER: Final = frozenset({"upstream-quota", "abuse-limit", "interrupted"})
"""Failures that say "not now" and nothing about the image."""
_LATE: Final = "its users have had their share of this window, so images of others go first"
_QUIET: Final = "the mirrors have what upstream had; quiet for long, so not asked in this run"
_PARTS: Final = ("parts", "parts of it are missing on the mirror")
_UNPROVEN: Final = (
    "unproven",
    "the index on the mirror is not proven to be made from upstream's",
)
_EXPIRED: Final = ("expired", "the pull-through mirror forgets what it has had for 7 days")


class _Purse:
    """What is left of a quota, and of each project's share of it, while a plan is made."""

    def __init__(self, quota: Quota, limits: Limits) -> None:
        self._quota = quota
        self._capacity = quota.window.capacity
        self._pulls = remaining(quota.spends, quota.window)
        self._gets = 0
        self._shares: Shares | None = None
        if self._capacity is not None:
            spends = [one for one in quota.spends if one.leaves_in(quota.window) > 0]
            self._shares = Shares(limits.pulls_per_project, self._capacity, spends)
        self._words: dict[tuple[int, int], str] = {}

    def refusal(self, want: Want, price: Cost, *, metered: bool) -> tuple[str, str] | None:
        """Return the code and the reason why the price cannot be paid now."""
        quota = self._quota
        if price.known_gets == 0:
            return None
        if quota.closed is not None:
            return quota.closed.code, quota.closed.text
        if self._pulls is not None and price.known_pulls > self._pulls:
            asked = price.known_pulls, self._pulls
            if (words := self._words.get(asked)) is None:
                words = self._words[asked] = _budget_words(quota.window, *asked)
            return "budget", words
        reported = quota.reported if metered else None
        if reported is not None and not upstream_allows(
            reported.remaining, self._gets, price.known_gets, quota.window.reserve
        ):
            return (
                "upstream-quota",
                f"upstream reports {reported.remaining} pulls left, "
                f"of which {quota.window.reserve} are the reserve",
            )
        return self._unfair(want, price)

    def _unfair(self, want: Want, price: Cost) -> tuple[str, str] | None:
        """Refuse what would take more than its project's share; one image is always allowed."""
        shares = self._shares
        project = (
            shares.exceeded(want.payers, price.known_pulls) if shares and want.payers else None
        )
        if shares is None or project is None:
            return None
        return (
            "project-share",
            f"only {project} uses it, which has {counted(shares.held(project), 'pull')} of this "
            f"window already (limits.pulls_per_project {shares.share})",
        )

    def is_late(self, want: Want, price: Cost) -> bool:
        """Whether all who use the image have had their share: others go first."""
        shares = self._shares
        pulls = price.known_pulls
        if shares is None or not want.payers or not pulls or not self._pulls:
            return False
        return shares.exceeded(want.payers, pulls) is None and not shares.able(want.payers, pulls)

    def turns(self, payers: tuple[str, ...]) -> int:
        """Return how many shares the users of an image have had."""
        return 0 if self._shares is None else self._shares.turns(payers)

    def part(self, want: Want, *, metered: bool) -> int:
        """Return how many pulls an image larger than an empty window may spend now."""
        quota = self._quota
        if quota.closed is not None:
            return 0
        left = self._pulls or 0
        if quota.reported is not None and metered:
            # The index itself may be one GET more.
            left = min(left, quota.reported.remaining - self._gets - quota.window.reserve - 1)
        own = self._shares.left(want.payers) if self._shares is not None else None
        return max(0, left if own is None else min(left, own))

    def larger(self, price: Cost) -> bool:
        return self._capacity is not None and 0 < self._capacity < price.known_pulls

    def pay(self, want: Want, price: Cost) -> None:
        if self._pulls is not None:
            self._pulls -= price.known_pulls
        self._gets += price.known_gets
        if want.payers and self._shares is not None:
            self._shares.pay(want.payers, price.known_pulls)


def _budget_words(window: Window, pulls: int, left: int) -> str:
    if window.capacity == 0:
        return "the budget has no pulls to spend"
    return f"needs {counted(pulls, 'pull')}, {max(0, left)} left in the window"


@dataclass(slots=True)
class _Waiting:
    """An image that its registry has no pulls for now: a deferral whose time is not known yet."""

    want: Want
    seen: Seen
    cost: Cost
    code: str
    reason: str
    first: _Waiting | None
    """The first that waits for the same digest: its tags go together."""
    until: float | None = None
    placed: bool = False


def _first_pass(
    demand: Iterable[tuple[Want, Seen]],
    purses: dict[str, _Purse],
    limits: Limits,
    skip: Sequence[str],
) -> list[Step | _Waiting]:
    steps: list[Step | _Waiting | None] = []
    late: dict[tuple[str, tuple[str, ...]], deque[int]] = {}
    brought: dict[_Digest, _Siblings] = {}
    waiting: dict[_Digest, _Waiting] = {}
    pairs = list(demand)

    def decide(want: Want, seen: Seen, *, last: bool) -> Step | _Waiting | None:
        reference = want.reference
        digest = (reference.registry, reference.repository, seen.key)
        if (purse := purses.get(account := _account(want, seen))) is None:
            purse = purses[account] = _Purse(_UNLIMITED, limits)
        same, first = brought.get(digest, _ALONE), waiting.get(digest)
        step = _decide(want, seen, same, first, purse, limits, skip, last=last)
        if isinstance(step, _Waiting):
            if step.first is None:
                waiting[digest] = step
        elif isinstance(step, Copy) and step.at_most is None:
            brought.setdefault(digest, _Siblings()).note(step)
        return step

    for place, (want, seen) in enumerate(pairs):
        step = decide(want, seen, last=False)
        if step is None:
            late.setdefault((_account(want, seen), want.payers), deque()).append(place)
        steps.append(step)
    for place in in_turns(late, lambda key: purses[key[0]].turns(key[1])):
        step = decide(*pairs[place], last=True)
        if isinstance(step, Copy):
            step = replace(step, reason=f"{step.reason}; {_LATE}")
        elif isinstance(step, _Waiting) and step.code == "budget":
            step.reason += f"; {_LATE}"
        steps[place] = step
    return [step for step in steps if step is not None]


def _account(want: Want, seen: Seen) -> str:
    """Return the name of the quota that the image's pulls are charged to."""
    return seen.payer or want.reference.registry


@dataclass(slots=True)
class _Siblings:
    """What earlier steps of the same digest of a repository do with it."""

    by: Want | None = None
    """The first that brings it in this run."""
    whole: bool = False
    """The whole index comes."""
    platforms: frozenset[Platform] = frozenset()

    def note(self, step: Copy) -> None:
        """Add all that an image wants, which comes as a whole."""
        self.by = self.by or step.want
        self.whole = self.whole or step.want.whole
        if step.want.platforms != ALL:
            self.platforms |= frozenset(step.want.platforms)

    def bring(self, want: Want, seen: Seen) -> bool:
        """Whether all that the image needs comes with them."""
        assert seen.descriptor is not None
        if self.by is None:
            return False
        if self.whole or not seen.descriptor.is_index:
            return True
        return not want.whole and set(want.platforms) <= self.platforms


_ALONE: Final = _Siblings()
"""Of an image whose digest no earlier step brings; never noted."""


def _decide(
    want: Want,
    seen: Seen,
    same: _Siblings,
    first: _Waiting | None,
    purse: _Purse,
    limits: Limits,
    skip: Sequence[str],
    *,
    last: bool,
) -> Step | _Waiting | None:
    """Decide one image; None where its users have had their share, and it is not the `last` try."""
    if skip and (pattern := skipped_by(want, skip)) is not None:
        return Skip(want, seen, "skip", f"matches skip: {pattern}")
    if seen.failure is not None:
        if seen.failure.code in UNWANTED:
            return Skip(want, seen, seen.failure.code, seen.failure.text)
        if seen.failure.code in LATER:
            return Defer(want, seen, None, seen.failure.code, seen.failure.text)
        return Fail(want, seen, seen.failure)
    if not seen.open_targets:
        if all(holding.failure for holding in seen.targets):
            return Fail(want, seen, _first_failure(seen.targets))
        return Fresh(want, seen) if seen.checked is None else Fresh(want, seen, reason=_QUIET)
    # A sibling of one that waits, or comes in parts, may need less and go alone.
    if same.bring(want, seen):
        assert same.by is not None
        return Tag(want, seen, "sibling", f"the same digest as {same.by.reference.familiar}")
    price = _price(want, seen, same)
    if price.known_gets == 0 and not seen.absent:
        return _without_pull(want, seen)
    if (price.pulls or 0) > limits.pulls_per_image:
        return Skip(
            want,
            seen,
            "pulls-per-image",
            f"costs {price.pulls} pulls, more than limits.pulls_per_image {limits.pulls_per_image}",
        )
    # Of one that is larger than a window one child would do, with the index.
    larger = purse.larger(price)
    asked = Cost(1, 2) if larger else price
    if not last and purse.is_late(want, asked):
        return None
    if larger and (part := purse.part(want, metered=seen.metered)) > 0:
        purse.pay(want, Cost(part, part + 1))
        code, reason = _why(seen)
        reason = f"{reason}; larger than a window, so in parts"
        return Copy(want, seen, price, code, reason, part, late=last)
    if (refused := purse.refusal(want, asked, metered=seen.metered)) is not None:
        why_not, words = refused
        if first is not None and first.code == why_not:
            words = f"with {first.want.reference.familiar}"
        return _Waiting(want, seen, price, why_not, words, first)
    purse.pay(want, price if seen.metered else replace(price, gets=0))
    return Copy(want, seen, price, *_why(seen), late=last)


def _first_failure(holdings: Iterable[Holding]) -> Failure:
    for holding in holdings:
        if holding.failure is not None:
            return holding.failure
    return Failure("no-mirror", "no mirror is to be filled", "add one under mirrors:")


def _why(seen: Seen) -> tuple[str, str]:
    why = _MISSING
    for holding in seen.open_targets:
        moved = holding.through and holding.digest not in {None, seen.key}
        if holding.state == "stale" or moved:
            return _STALE
        if holding.expired:
            why = _EXPIRED
        elif holding.unproven:
            why = _UNPROVEN
        elif holding.digest is not None:
            why = _PARTS
    return why


def _price(want: Want, seen: Seen, same: _Siblings) -> Cost:
    """The cost, given that earlier steps of the same digest bring some of it."""
    price = cost(want, seen)
    if same.by is None or want.whole:
        return price
    extra = len(set(want.platforms) - same.platforms)
    return Cost(min(extra, price.known_pulls), min(extra, price.known_gets))


def _without_pull(want: Want, seen: Seen) -> Tag:
    states = [h for h in seen.holdings if h.failure is None and h.state == "fresh"]
    if states:
        return Tag(want, seen, "from-mirror", f"{states[0].mirror} has it")
    return Tag(want, seen, "digest-there", "all of it is on the mirror, only the tag is not")


def _on_disk(step: Step | _Waiting, disk: Disk, shares: Shares, now: float) -> Step | _Waiting:
    """Let a copy of known size wait where its users have filled their share of the disk."""
    if not isinstance(step, Copy) or set(step.seen.required) - step.seen.sizes.keys():
        return step
    size = sum(step.seen.sizes.values())
    if (refused := disk.refusal(shares, step.want, size)) is None:
        shares.pay(step.want.payers, size)
        return step
    reason, wait = refused
    until = None if wait is None else now + wait
    return Defer(step.want, step.seen, step.cost, "project-share", reason, until)


class _Calendar:
    """When each registry's window, and a project's share of it, will have room."""

    def __init__(self, quotas: Mapping[str, Quota], share: int) -> None:
        self._quotas = quotas
        self._share = share
        self._registries: dict[str, tuple[Forecast, int]] = {}
        self._projects: dict[tuple[str, str], tuple[Forecast, int]] = {}

    def place(self, want: Want, seen: Seen, pulls: int) -> float | None:
        """Place pulls and return the seconds from now until their time; None if they never fit.

        An image larger than an empty window comes in parts: the time is that of the first.
        """
        registry, project = _account(want, seen), only_project(want.payers)
        if (known := self._registries.get(registry)) is None:
            window = self._quotas.get(registry, _UNLIMITED).window
            if window.capacity is None:
                return 0.0
            forecast = Forecast(self._quotas[registry].spends, window)
            known = self._registries[registry] = forecast, max(1, window.capacity)
        forecast, capacity = known
        fitting = min(pulls, capacity)
        if project is None:
            return forecast.place(fitting)
        if (its_own := self._projects.get((registry, project))) is None:
            quota = self._quotas[registry]
            spends, window, parts = own_window(
                project, self._share, quota.spends, quota.window.seconds
            )
            its_own = self._projects[registry, project] = Forecast(spends, window), parts
        own, parts = its_own
        return _place_in_both(forecast, fitting, own, min(pulls, self._share) * parts)


def _place_in_both(wide: Forecast, pulls: int, own: Forecast, share: int) -> float | None:
    """Place pulls in two forecasts at the first time at which both have room; None for never."""
    after = 0.0
    while (start := wide.earliest(pulls, after)) is not None:
        if (found := own.earliest(share, start)) is None:
            return None
        if found == start:
            wide.place_at(pulls, start)
            own.place_at(share, start)
            return start
        after = found
    return None


def _dated(waiting: _Waiting, calendar: _Calendar, now: float) -> Defer:
    """Return the deferral, with the time when it could go where it waits for a window."""
    want, seen, cost, code = waiting.want, waiting.seen, waiting.cost, waiting.code
    until = None
    if code in _DATED:
        first = waiting.first or waiting
        if not first.placed:
            wait = calendar.place(want, seen, cost.known_pulls)
            first.until = None if wait is None else now + wait
            first.placed = True
        until = first.until
    return Defer(want, seen, cost, code, waiting.reason, until)
