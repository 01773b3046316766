"""The times that a plan tells: exact, over several registries and the shares of projects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from prewarm.core.budget import Limit, Spend, Window
from prewarm.core.manifest import OCI_INDEX, Descriptor, Manifest, digest_of
from prewarm.core.platforms import Platform
from prewarm.core.reference import parse
from prewarm.core.settings import Limits
from prewarm.core.shares import only_project
from prewarm.planning.demand import Want
from prewarm.planning.plan import Copy, Defer, Holding, Plan, Quota, Seen, action, plan

NOW = 1_800_000_000.0
HUB, QUAY = "docker.io", "quay.io"
LENGTHS = {HUB: 100, QUAY: 70}
PROJECTS = ("team/a", "team/b")
PLATFORMS = tuple(Platform("linux", f"cpu{n}") for n in range(7))


@dataclass(frozen=True)
class Pulled:
    """Pulls of one image, at seconds from now."""

    at: float
    registry: str
    project: str | None
    pulls: int


@dataclass(frozen=True)
class World:
    demand: tuple[tuple[Want, Seen], ...]
    quotas: Mapping[str, Quota]
    share: int

    def plan(self, after: float = 0.0, pulled: Iterable[Pulled] = (), due: object = None) -> Plan:
        """Plan so many seconds from now, given what was pulled since; `due`: those images only."""
        quotas = {}
        for name, quota in self.quotas.items():
            # What is in flight now is settled at once.
            aged = [replace(s, age=_age(s) + after, in_flight=False) for s in quota.spends]
            since = [
                Spend(after - one.at, one.pulls, payers=owned(one.project))
                for one in pulled
                if one.registry == name
            ]
            spends = (*aged, *since) if after else quota.spends
            quotas[name] = replace(quota, spends=spends)
        demand = [pair for pair in self.demand if due is None or pair[0] in due]  # type: ignore[operator]
        limits = replace(Limits(), pulls_per_project=self.share)
        return plan(demand, quotas, limits, (), NOW + after)

    def capacity(self, registry: str) -> int:
        capacity = self.quotas[registry].window.capacity
        assert capacity is not None
        return capacity


def owned(project: str | None) -> tuple[str, ...]:
    return () if project is None else (project,)


def _age(spend: Spend) -> float:
    return 0.0 if spend.in_flight else spend.age


def missing(text: str, project: str | None, children: int) -> tuple[Want, Seen]:
    """An image that is not on the mirror and costs so many pulls."""
    content = Manifest(OCI_INDEX, text.encode())
    required = tuple(digest_of(f"{text} {n}".encode()) for n in range(children))
    want = Want(
        parse(text), PLATFORMS[:children], ("history",), "CI", payers=owned(project), weight=1.0
    )
    holding = Holding("http://127.0.0.1:5000", True, want.reference.mirror_repository)
    descriptor = Descriptor(OCI_INDEX, content.digest, 100)
    return want, Seen(descriptor, content, required, holdings=(holding,))


owners = st.sampled_from([None, *PROJECTS])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    demand = []
    for number in range(draw(st.integers(1, 14))):
        registry = draw(st.sampled_from([HUB, HUB, QUAY]))
        children = draw(st.sampled_from([1, 1, 2, 3, 5, 7]))
        demand.append(missing(f"{registry}/team/app{number}:1", draw(owners), children))
    quotas = {}
    for name, length in LENGTHS.items():
        window = Window(draw(st.integers(1, 8)), length, draw(st.integers(0, 2)))
        ages = st.integers(0, 120).map(float)
        spend = st.builds(Spend, ages, st.integers(1, 4), st.booleans(), owners.map(owned))
        spends = draw(st.lists(spend, max_size=4))
        quotas[name] = Quota("acme", window, "written", tuple(spends))
    return World(tuple(demand), quotas, draw(st.integers(1, 4)))


def pulled_now(found: Plan) -> list[Pulled]:
    return [
        Pulled(
            0.0,
            step.want.reference.registry,
            only_project(step.want.payers),
            step.cost.known_pulls if step.at_most is None else step.at_most,
        )
        for step in found.steps
        if isinstance(step, Copy)
    ]


def spent_before(world: World) -> list[Pulled]:
    return [
        Pulled(-_age(spend), name, only_project(spend.payers), spend.pulls)
        for name, quota in world.quotas.items()
        for spend in quota.spends
    ]


def within_limits(world: World, before: Sequence[Pulled], started: Sequence[Pulled]) -> bool:
    """Whether every window that ends as an image starts has room for it, by counting.

    A registry's window holds its capacity at most, a project's share of it `share` at most, or
    one image.
    """
    for one in started:
        length = LENGTHS[one.registry]
        held = [
            other
            for other in (*before, *started)
            if other.registry == one.registry and one.at - length < other.at <= one.at
        ]
        if sum(other.pulls for other in held) > world.capacity(one.registry):
            return False
        own = [other.pulls for other in held if other.project == one.project]
        if one.project is not None and len(own) > 1 and sum(own) > world.share:
            return False
    return True


ONE_SHARE = World(
    tuple(missing(f"docker.io/team/app{n}:1", "team/a" if n < 3 else None, 2) for n in range(5)),
    {HUB: Quota("acme", Window(4, 100), "written"), QUAY: Quota("acme", Window(1, 70), "written")},
    2,
)
"""team/a goes once in each window, so there is room in the first for one that is everybody's."""


PART_OF_A_SHARE = World(
    (missing("docker.io/team/app:1", "team/a", 5),),
    {HUB: Quota("acme", Window(3, 100), "written", (Spend(0.0, 1, payers=("team/a",)),))},
    2,
)
"""An image that comes in parts takes what is left of the share, though the window has more."""


@settings(deadline=None)
@given(worlds())
@example(ONE_SHARE)
@example(PART_OF_A_SHARE)
def test_until_is_the_earliest_time_at_which_every_window_has_room(world: World) -> None:
    found = world.plan()
    before, started = spent_before(world), pulled_now(found)
    assert within_limits(world, before, started)
    for step in found.steps:
        if not isinstance(step, Defer):
            continue
        assert step.code in {"budget", "project-share"}
        registry, project = step.want.reference.registry, only_project(step.want.payers)
        capacity = world.capacity(registry)
        if capacity == 0:
            assert step.until is None
            continue
        assert step.cost is not None
        assert step.until is not None
        pulls = min(step.cost.known_pulls, capacity)
        ends = {one.at + LENGTHS[registry] for one in (*before, *started)}
        for at in sorted({0.0, *(end for end in ends if end > 0)}):
            placed = [*started, Pulled(at, registry, project, pulls)]
            if within_limits(world, before, placed):
                break
        assert step.until - NOW == at, str(step.want.reference)
        started = placed


@settings(deadline=None)
@given(worlds())
@example(ONE_SHARE)
def test_until_is_when_a_plan_of_the_images_that_are_due_copies_them(world: World) -> None:
    first = world.plan()
    pulled = pulled_now(first)
    due: dict[float, list[Want]] = {}
    for step in first.steps:
        if isinstance(step, Defer) and step.until is not None:
            due.setdefault(step.until - NOW, []).append(step.want)
    for at in sorted(due):
        found = world.plan(at, pulled, due[at])
        assert [action(step) for step in found.steps] == ["copy"] * len(due[at])
        pulled += [replace(one, at=at) for one in pulled_now(found)]


def test_plan_image_in_parts_takes_no_more_than_once_in_a_window_from_its_project() -> None:
    world = World(
        (
            missing("docker.io/team/small:1", "team/a", 1),
            missing("docker.io/team/large:1", "team/a", 7),
            missing("docker.io/team/other:1", None, 3),
        ),
        {HUB: Quota("acme", Window(4, 100), "written")},
        1,
    )
    found = world.plan()
    assert [(action(step), step.code) for step in found.steps] == [
        ("copy", "missing"),
        ("defer", "project-share"),
        ("copy", "missing"),
    ]
    (large,) = [step for step in found.steps if isinstance(step, Defer)]
    assert large.until == NOW + 100


def test_plan_image_in_parts_for_which_upstream_has_too_little_waits_for_no_known_time() -> None:
    demand = (missing("docker.io/team/large:1", None, 7),)
    for remaining, did, code in ((1, "defer", "upstream-quota"), (2, "copy", "missing")):
        hub = Quota("acme", Window(4, 100), "written", reported=Limit(9, 100, remaining, ""))
        (step,) = World(demand, {HUB: hub}, 9).plan().steps
        assert (action(step), step.code) == (did, code)
        assert not isinstance(step, Defer) or step.until is None
