"""The plan: who goes now, who waits until when, and what always holds whatever was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.budget import Limit, Spend, Window, next_free, remaining
from prewarm.core.errors import Failure
from prewarm.core.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, digest_of
from prewarm.core.platforms import Platform, Wanted
from prewarm.core.reference import parse
from prewarm.core.settings import Limits
from prewarm.core.shares import only_project
from prewarm.planning.demand import Want
from prewarm.planning.plan import (
    Copy,
    Cost,
    Defer,
    Fail,
    Fresh,
    Holding,
    Plan,
    Quota,
    Seen,
    Skip,
    State,
    Step,
    Tag,
    action,
    cost,
    plan,
)

NOW = 1_800_000_000.0
HOUR = 3600
NEAR, FAR = "http://127.0.0.1:5000", "https://far.example.org"
AMD, ARM, S390 = (Platform("linux", name) for name in ("amd64", "arm64", "s390x"))
DOWN = Failure("mirror-unreachable", "it is down", "start it")


def want(text: str, platforms: Wanted = (AMD,), sources: tuple[str, ...] = ("pin",)) -> Want:
    return Want(parse(text), platforms, sources, "images.yml:1")


def digest(text: str) -> str:
    return digest_of(text.encode())


def index(name: str, *children: str, read: bool = True, at_hand: Sequence[str] = ()) -> Seen:
    """What was seen of an index; unread, nobody knows its children."""
    content = Manifest(OCI_INDEX, name.encode())
    return Seen(
        Descriptor(OCI_INDEX, content.digest, 100),
        content if read else None,
        tuple(map(digest, children)) if read else (),
        {digest(child): 1000 for child in at_hand},
    )


def lone(name: str, *, at_hand: bool = False) -> Seen:
    """What was seen of a single manifest."""
    content = Manifest(OCI_MANIFEST, name.encode())
    own = content.digest
    known = {own: 1000} if at_hand else {}
    return Seen(Descriptor(OCI_MANIFEST, own, 100), content if at_hand else None, (own,), known)


def at(
    seen: Seen,
    url: str = NEAR,
    state: State = "missing",
    *present: str,
    target: bool = True,
    failure: Failure | None = None,
    under_tag: str | None = None,
) -> Seen:
    """Return the same, with what one more mirror holds of it."""
    holding = Holding(
        url, target, "library/x", under_tag, state, frozenset(map(digest, present)), failure=failure
    )
    return replace(seen, holdings=(*seen.holdings, holding))


def quota(
    pulls: int | None = 100,
    *,
    reserve: int = 0,
    spends: Sequence[Spend] = (),
    reported: int | None = None,
    closed: Failure | None = None,
) -> Quota:
    limit = None if reported is None else Limit(200, 6 * HOUR, reported, "")
    window = Window(pulls, 6 * HOUR, reserve)
    return Quota("acme", window, "written", tuple(spends), limit, closed)


def planned(
    demand: Sequence[tuple[Want, Seen]],
    hub: Quota | None = None,
    limits: Limits | None = None,
    skip: Sequence[str] = (),
) -> Plan:
    return plan(demand, {"docker.io": hub or quota()}, limits or Limits(), skip, NOW)


def one(seen: Seen, hub: Quota | None = None, text: str = "golang:1") -> Step:
    (step,) = planned([(want(text), seen)], hub).steps
    return step


def actions(found: Plan) -> list[str]:
    return [action(step) for step in found.steps]


# One image


MISSING = at(lone("m"))


@pytest.mark.parametrize(
    ("seen", "did", "code"),
    [
        (MISSING, "copy", "missing"),
        (at(lone("m"), NEAR, "stale", under_tag=digest("old")), "copy", "stale"),
        (at(index("i", "a", "b"), NEAR, "missing", "a", under_tag="x"), "copy", "parts"),
        (at(index("i", read=False)), "copy", "missing"),
        (at(lone("m"), NEAR, "fresh", "m"), "fresh", "fresh"),
        (at(lone("m", at_hand=True), NEAR, "missing", "m"), "tag", "digest-there"),
        (at(index("i", "a", "b"), NEAR, "stale", "a", "b"), "tag", "digest-there"),
        (at(at(lone("m", at_hand=True)), FAR, "fresh", "m"), "tag", "from-mirror"),
        (at(at(lone("m", at_hand=True)), FAR, "fresh", "m", target=False), "tag", "from-mirror"),
        # The manifests are at hand, but the blobs are upstream's alone: a copy, for no pull.
        (at(lone("m", at_hand=True)), "copy", "missing"),
        # One mirror is down: the other is filled, and a fresh one needs nothing.
        (at(MISSING, FAR, "unknown", failure=DOWN), "copy", "missing"),
        (at(at(lone("m"), NEAR, "fresh", "m"), FAR, "unknown", failure=DOWN), "fresh", "fresh"),
        (at(lone("m"), NEAR, "unknown", failure=DOWN), "fail", "mirror-unreachable"),
        (lone("m"), "fail", "no-mirror"),
        (at(lone("m"), NEAR, target=False), "fail", "no-mirror"),
        (replace(MISSING, failure=Failure("not-found", "no", "")), "fail", "not-found"),
        (replace(MISSING, failure=Failure("abuse-limit", "429", "")), "defer", "abuse-limit"),
        (replace(MISSING, failure=Failure("interrupted", "end", "")), "defer", "interrupted"),
    ],
)  # fmt: skip
def test_plan_of_one_image_has_action_and_code(seen: Seen, did: str, code: str) -> None:
    step = one(seen)
    assert (action(step), step.code) == (did, code)
    assert step.reason


@pytest.mark.parametrize(
    ("platforms", "seen", "pulls", "gets"),
    [
        ((AMD,), lone("m"), 1, 1),
        ((AMD,), index("i", read=False), 1, 2),
        ((AMD, ARM, S390), index("i", read=False), 3, 4),
        ("all", index("i", read=False), None, None),
        ((AMD, ARM), index("i", "a", "b"), 2, 2),
        ((AMD, ARM), index("i", "a", "b", at_hand=["a"]), 1, 1),
        ((AMD, ARM), index("i", "a", "b", at_hand=["a", "b"]), 0, 0),
        ((AMD, ARM), at(index("i", "a", "b"), FAR, "stale", "b"), 1, 1),
        # What a mirror that failed is said to hold cannot be had from it.
        ((AMD, ARM), at(index("i", "a", "b"), FAR, "unknown", "b", failure=DOWN), 2, 2),
        ("all", index("i", "a", "b", "c"), 3, 3),
    ],
)
def test_cost_counts_children_as_pulls_and_manifests_as_gets(
    platforms: Wanted, seen: Seen, pulls: int | None, gets: int | None
) -> None:
    found = cost(want("golang:1", platforms), seen)
    assert (found.pulls, found.gets) == (pulls, gets)


def test_cost_of_a_digest_pin_of_an_unread_index_is_not_known() -> None:
    pinned = want(f"golang@{index('i').key}")
    assert cost(pinned, index("i", read=False)).pulls is None


def test_plan_skips_what_a_pattern_hides_but_never_a_pin() -> None:
    demand = [
        (want("golang:1", sources=("history",)), MISSING),
        (want("golang:2"), at(lone("n"))),
        (want("python:1", sources=("history",)), at(lone("p"))),
    ]
    found = planned(demand, skip=["docker.io/library/golang:*"])
    assert actions(found) == ["skip", "copy", "copy"]
    assert found.steps[0].reason == "matches skip: docker.io/library/golang:*"


def test_plan_skips_an_image_above_pulls_per_image_and_spends_nothing_on_it() -> None:
    demand = [
        (want("golang:1", (AMD, ARM, S390)), at(index("i", "a", "b", "c"))),
        (want("golang:2", (AMD, ARM)), at(index("j", "d", "e"))),
    ]
    found = planned(demand, quota(2), replace(Limits(), pulls_per_image=2))
    assert [(action(step), step.code) for step in found.steps] == [
        ("skip", "pulls-per-image"),
        ("copy", "missing"),
    ]


# Budgets


def singles(*texts: str) -> list[tuple[Want, Seen]]:
    return [(want(text), at(lone(text))) for text in texts]


def test_plan_budget_of_three_takes_the_first_three() -> None:
    found = planned(singles("a:1", "b:1", "c:1", "d:1", "e:1"), quota(4, reserve=1))
    assert actions(found) == ["copy"] * 3 + ["defer"] * 2
    assert {step.code for step in found.steps[3:]} == {"budget"}


def test_plan_two_pulls_left_go_to_the_next_that_fits() -> None:
    demand = [
        (want("big:1", (AMD, ARM, S390)), at(index("i", "a", "b", "c"))),
        *singles("a:1", "b:1", "c:1"),
    ]
    spends = [Spend(5 * HOUR, 1)]
    found = planned(demand, quota(3, spends=spends))
    assert actions(found) == ["defer", "copy", "copy", "defer"]
    # The large one waits for the two that pass it, and the last, behind it, never delays it.
    assert [step.until for step in found.steps if isinstance(step, Defer)] == [
        NOW + 6 * HOUR,
        NOW + 12 * HOUR,
    ]


def test_plan_image_larger_than_an_empty_window_goes_in_parts() -> None:
    big = (want("big:1", (AMD, ARM, S390)), at(index("i", "a", "b", "c")))
    found = planned([big, *singles("a:1")], quota(2))
    assert isinstance(found.steps[0], Copy)
    assert found.steps[0].at_most == 2
    assert actions(found) == ["copy", "defer"]


def test_plan_tag_of_an_image_that_comes_in_parts_is_not_promised() -> None:
    seen = at(index("i", "a", "b", "c"))
    platforms = (AMD, ARM, S390)
    found = planned([(want("big:1", platforms), seen), (want("big:2", platforms), seen)], quota(2))
    assert actions(found) == ["copy", "defer"]


@pytest.mark.parametrize(
    ("reported", "reserve", "wanted"),
    [
        (12, 10, ["copy", "defer"]),
        (13, 10, ["copy", "defer"]),
        (14, 10, ["copy", "copy"]),
        (11, 10, ["defer", "defer"]),
        (-3, 0, ["defer", "defer"]),
        (None, 0, ["copy", "copy"]),
    ],
)
def test_plan_leaves_the_reserve_of_what_upstream_reports(
    reported: int | None, reserve: int, wanted: list[str]
) -> None:
    demand = [(want(name), at(index(name, read=False))) for name in ("a:1", "b:1")]
    hub = quota(None, reserve=reserve, reported=reported)
    found = planned(demand, hub)
    assert actions(found) == wanted
    for step in found.steps:
        if isinstance(step, Defer):
            assert (step.code, step.until) == ("upstream-quota", None)


def test_plan_copies_what_upstream_does_not_count_whatever_remains() -> None:
    seen = replace(at(index("a:1", read=False)), metered=False)
    demand = [(want("a:1"), seen), (want("b:1"), at(index("b:1", read=False)))]
    assert actions(planned(demand, quota(None, reported=0))) == ["copy", "defer"]


def test_plan_closed_upstream_gets_no_more_manifests_but_what_costs_none_goes_on() -> None:
    closed = quota(closed=Failure("upstream-quota", "429", "wait"))
    demand = [
        *singles("a:1"),
        (want("b:1"), at(lone("b", at_hand=True))),
        (want("c:1"), at(lone("c", at_hand=True), NEAR, "missing", "c")),
    ]
    found = planned(demand, closed)
    assert actions(found) == ["defer", "copy", "tag"]
    assert (found.steps[0].code, found.steps[0].reason) == ("upstream-quota", "429")


def test_plan_budget_of_no_pulls_waits_for_no_time() -> None:
    found = one(MISSING, quota(0))
    assert isinstance(found, Defer)
    assert (found.code, found.until) == ("budget", None)
    assert found.reason == "the budget has no pulls to spend"


def test_plan_other_registries_have_no_limit_of_the_hub() -> None:
    found = planned([*singles("a:1"), *singles("quay.io/a/b:1")], quota(0))
    assert actions(found) == ["defer", "copy"]


# Several tags of one digest


def test_plan_five_tags_of_a_digest_cost_one() -> None:
    demand = [(want(f"golang:{n}"), at(lone("m"))) for n in range(5)]
    found = planned(demand, quota(1))
    assert actions(found) == ["copy"] + ["tag"] * 4
    assert {step.code for step in found.steps[1:]} == {"sibling"}


def test_plan_same_digest_in_another_repository_is_another_image() -> None:
    demand = [(want("golang:1"), at(lone("m"))), (want("python:1"), at(lone("m")))]
    assert actions(planned(demand)) == ["copy", "copy"]


def test_plan_tags_of_an_image_that_waits_wait_with_it() -> None:
    demand = [(want(f"golang:{n}"), at(lone("m"))) for n in range(3)]
    spends = [Spend(4 * HOUR, 1)]
    found = planned([*demand, *singles("z:1")], quota(1, spends=spends))
    assert actions(found) == ["defer"] * 4
    untils = [step.until for step in found.steps if isinstance(step, Defer)]
    # They are one pull: the image after them goes in the window after the next.
    assert untils == [NOW + 2 * HOUR] * 3 + [NOW + 8 * HOUR]
    assert found.steps[1].reason == "with golang:0"


def test_plan_tag_whose_manifests_are_there_does_not_wait_with_its_sibling() -> None:
    both = at(index("i", "a", "b"), NEAR, "missing", "a")
    mine = at(index("i", "a"), NEAR, "missing", "a")
    found = planned([(want("go:1", (AMD, ARM)), both), (want("go:2"), mine)], quota(0))
    assert actions(found) == ["defer", "tag"]


def test_plan_smaller_tag_goes_where_its_sibling_does_not_fit() -> None:
    large = at(index("i", "a", "b", "c"))
    small = at(index("i", "a"))
    demand = [(want("go:1", (AMD, ARM, S390)), large), (want("go:2"), small)]
    hub = quota(3, spends=[Spend(HOUR, 2)])
    assert actions(planned(demand, hub)) == ["defer", "copy"]


def test_plan_sibling_of_more_platforms_pays_for_those_alone() -> None:
    demand = [
        (want("go:1"), at(index("i", read=False))),
        (want("go:2", (AMD, ARM, S390)), at(index("i", read=False))),
        (want("go:3", (ARM,)), at(index("i", read=False))),
    ]
    found = planned(demand, quota(3))
    costs = [step.cost.pulls for step in found.steps if isinstance(step, Copy)]
    assert costs[:2] == [1, 2]


# What always holds


@dataclass(frozen=True)
class World:
    demand: tuple[tuple[Want, Seen], ...]
    hub: Quota


def subset(items: Sequence[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(items), unique=True).map(tuple) if items else st.just(())


PLATFORMS: st.SearchStrategy[Wanted] = st.sampled_from(
    ["all", (AMD,), (ARM,), (AMD, ARM), (AMD, ARM, S390)]
)
STATES: tuple[State, ...] = ("fresh", "stale", "missing")


@st.composite
def images(draw: st.DrawFn) -> tuple[Want, Seen]:
    """An image of few repositories and digests, so that siblings are common."""
    repository = draw(st.sampled_from(["go", "py"]))
    name = f"{repository}-{draw(st.sampled_from('aaab'))}"
    platforms: Wanted = draw(PLATFORMS)
    read = draw(st.booleans())
    if draw(st.booleans()):
        children = [f"{name}-lone"]
        seen = lone(children[0], at_hand=read)
    else:
        wanted = [AMD, ARM, S390] if platforms == "all" else list(platforms)
        children = [f"{name}-{platform}" for platform in wanted]
        seen = index(name, *children, read=read, at_hand=draw(subset(children)) if read else ())
    held = children if seen.required else []
    for url in [NEAR, FAR][: draw(st.integers(1, 2))]:
        if draw(st.integers(0, 5)) == 0:
            seen = at(seen, url, "unknown", failure=DOWN)
            continue
        present = draw(subset(held))
        whole = set(present) == set(children) and bool(held)
        state = draw(st.sampled_from(STATES if whole else STATES[1:]))
        seen = at(seen, url, state, *present, target=url == NEAR or draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0:
        seen = replace(seen, failure=Failure("not-found", "does not exist", ""))
    tag = draw(st.integers(0, 10**9))
    return want(f"{repository}:{tag}", platforms), seen


@st.composite
def worlds(draw: st.DrawFn) -> World:
    demand = draw(st.lists(images(), max_size=12, unique_by=lambda pair: pair[0].reference))
    ages = st.floats(0, 7 * HOUR).map(lambda age: round(age, 1))
    spend = st.builds(Spend, ages, st.integers(1, 4), st.booleans())
    hub = quota(
        draw(st.none() | st.integers(0, 12)),
        reserve=draw(st.integers(0, 3)),
        spends=draw(st.lists(spend, max_size=4)),
        reported=draw(st.none() | st.integers(-2, 15)),
        closed=draw(st.sampled_from([None, None, None, Failure("upstream-quota", "429", "")])),
    )
    return World(tuple(demand), hub)


def pulls_of(step: Step) -> int:
    if not isinstance(step, Copy):
        return 0
    return step.cost.known_pulls if step.at_most is None else step.at_most


def gets_of(step: Step) -> int:
    if not isinstance(step, Copy):
        return 0
    return step.cost.known_gets if step.at_most is None else step.at_most + 1


@settings(deadline=None)
@given(worlds())
def test_plan_is_a_partition_of_the_demand_in_its_order(world: World) -> None:
    found = planned(world.demand, world.hub)
    assert [(step.want, step.seen) for step in found.steps] == list(world.demand)
    assert planned(world.demand, world.hub) == found


@settings(deadline=None)
@given(worlds())
def test_plan_never_spends_more_than_is_left_in_either_currency(world: World) -> None:
    found, hub = planned(world.demand, world.hub), world.hub
    left = remaining(hub.spends, hub.window)
    assert left is None or sum(map(pulls_of, found.steps)) <= left
    gets = sum(map(gets_of, found.steps))
    if gets and hub.reported is not None:
        assert hub.reported.remaining - gets >= hub.window.reserve
    assert not gets or hub.closed is None


@settings(deadline=None)
@given(worlds())
def test_plan_step_without_a_pull_needs_none(world: World) -> None:
    """Fresh is whole everywhere; a Tag is at hand, or comes with an earlier copy of its digest."""
    brought: dict[tuple[str, str | None], set[str]] = {}
    for step in planned(world.demand, world.hub).steps:
        key = (step.want.reference.name, step.seen.key)
        match step:
            case Fresh():
                assert not step.seen.open_targets
            case Tag(code="sibling"):
                assert key in brought
            case Tag():
                assert step.seen.content is not None or not step.seen.descriptor.is_index  # type: ignore[union-attr]
                assert not step.seen.absent
            case Copy(at_most=None):
                brought.setdefault(key, set())
            case _:
                pass


@settings(deadline=None)
@given(worlds())
def test_plan_defers_for_the_budget_only_what_does_not_fit(world: World) -> None:
    left = remaining(world.hub.spends, world.hub.window)
    for step in planned(world.demand, world.hub).steps:
        if isinstance(step, Defer) and step.code == "budget":
            assert left is not None
            assert step.cost is not None
            assert step.cost.known_pulls > left
            assert cost(step.want, step.seen).known_gets > 0
        elif left is not None:
            left -= pulls_of(step)


@settings(deadline=None)
@given(worlds())
def test_plan_fails_only_for_a_failure_that_was_seen(world: World) -> None:
    for step in planned(world.demand, world.hub).steps:
        told = step.seen.failure is not None or all(h.failure for h in step.seen.targets)
        assert isinstance(step, Fail) == told
        assert not isinstance(step, Skip)


@settings(deadline=None)
@given(worlds())
def test_plan_is_a_schedule_that_no_window_exceeds(world: World) -> None:
    """Were each image copied at its `until`, no window would hold more than its capacity."""
    window = world.hub.window
    found = planned(world.demand, world.hub)
    starts = [(0.0, pulls_of(step)) for step in found.steps]
    groups: dict[tuple[str, str | None], tuple[float, int]] = {}
    for step in found.steps:
        if not isinstance(step, Defer) or step.code != "budget":
            assert not isinstance(step, Defer) or step.until is None
            continue
        assert step.cost is not None
        capacity = window.capacity
        assert capacity is not None
        if step.until is None:
            assert capacity == 0
            continue
        wait, price = step.until - NOW, min(step.cost.known_pulls, capacity)
        soonest = next_free(world.hub.spends, window, price)
        assert soonest is not None
        key = (step.want.reference.name, step.seen.key)
        if key in groups:
            assert groups[key][0] == wait
        else:
            assert wait >= soonest - 0.001
            groups[key] = (wait, price)
    starts += groups.values()
    for at_, pulls in starts:
        held = sum(other for begun, other in starts if begun <= at_ < begun + window.seconds)
        held += sum(s.pulls for s in world.hub.spends if s.leaves_in(window) > at_ + 0.001)
        assert not pulls or window.capacity is None or held <= window.capacity


@settings(deadline=None)
@given(worlds(), st.integers(1, 12))
def test_plan_more_budget_never_defers_an_earlier_image(world: World, more: int) -> None:
    """The first image that waits for the budget is no earlier one with more of it.

    An image larger than an empty window is out of this: with more budget it may have to wait
    whole, where before it went in parts.
    """
    hub = world.hub
    pulls = hub.window.pulls
    if pulls is None:
        return
    richer = replace(hub, window=replace(hub.window, pulls=pulls + more))
    before, after = (planned(world.demand, quota) for quota in (hub, richer))

    def first(found: Plan) -> int:
        waits = [isinstance(step, Defer) and step.code == "budget" for step in found.steps]
        return waits.index(True) if True in waits else len(waits)

    parts = [isinstance(step, Copy) and step.at_most is not None for step in before.steps]
    if not any(parts):
        assert first(after) >= first(before)


def owned(project: str | None) -> tuple[str, ...]:
    return () if project is None else (project,)


@st.composite
def projects_alone(draw: st.DrawFn) -> tuple[World, int]:
    """A world whose images and earlier pulls belong to projects, and the share of each."""
    world = draw(worlds())
    owners = st.sampled_from([None, "team/a", "team/b"])
    demand = tuple(
        (replace(want, sources=("history",), payers=owned(draw(owners))), seen)
        for want, seen in world.demand
    )
    spends = tuple(replace(spend, payers=owned(draw(owners))) for spend in world.hub.spends)
    return World(demand, replace(world.hub, spends=spends)), draw(st.integers(1, 4))


@settings(deadline=None)
@given(projects_alone())
def test_plan_gives_a_project_its_share_of_a_window_or_one_image(case: tuple[World, int]) -> None:
    world, share = case
    window = world.hub.window
    spent: dict[str | None, int] = {None: 0, "team/a": 0, "team/b": 0}
    users = Counter((want.reference.name, seen.key) for want, seen in world.demand)
    for spend in world.hub.spends:
        spent[only_project(spend.payers)] += spend.pulls if spend.leaves_in(window) > 0 else 0
    for step in planned(world.demand, world.hub, replace(Limits(), pulls_per_project=share)).steps:
        project, price = only_project(step.want.payers), pulls_of(step)
        if isinstance(step, Defer) and step.code == "project-share":
            assert step.cost is not None
            assert project is not None
            assert spent[project] + step.cost.known_pulls > share
            own = [spend for spend in world.hub.spends if spend.payers == owned(project)]
            soonest = next_free(
                own, Window(share, window.seconds), min(step.cost.known_pulls, share)
            )
            assert soonest is not None
            assert step.until is not None
            # A tag of the same digest may come first, at the cost of others.
            alone = users[step.want.reference.name, step.seen.key] == 1
            assert not alone or step.until - NOW >= soonest - 0.001
        elif isinstance(step, Copy) and project is not None and window.capacity is not None:
            assert not price or not spent[project] or spent[project] + price <= share
            spent[project] += price


def test_plan_without_a_window_knows_no_shares() -> None:
    demand = [
        (replace(one_want, payers=("team/a",)), seen) for one_want, seen in singles("a:1", "b:1")
    ]
    limits = replace(Limits(), pulls_per_project=1)
    assert actions(planned(demand, quota(None), limits)) == ["copy", "copy"]
    assert actions(planned(demand, quota(9), limits)) == ["copy", "defer"]


def test_plan_more_budget_may_defer_a_later_image() -> None:
    """The most wanted first: what a larger image takes is not there for those behind it."""
    demand = [
        (want("big:1", (AMD, ARM, S390)), at(index("i", "a", "b", "c"))),
        *singles("small:1"),
    ]
    spent = [Spend(HOUR, 1)]
    assert actions(planned(demand, quota(3, spends=spent))) == ["defer", "copy"]
    assert actions(planned(demand, quota(4, spends=spent))) == ["copy", "defer"]


# Siblings of one digest that want different parts of it


def test_plan_digest_pin_takes_the_whole_index_which_a_tag_of_one_platform_does_not_bring() -> None:
    seen = at(index("i", read=False))
    whole = Want(parse(f"golang@{seen.key}"), (AMD,), ("pin",), "images.yml:2")
    found = planned([(want("golang:1"), seen), (whole, seen)])
    assert actions(found) == ["copy", "copy"]
    last = found.steps[-1]
    assert isinstance(last, Copy)
    assert last.cost == Cost(None, None)


def test_plan_tags_of_platforms_that_earlier_siblings_bring_together_cost_nothing() -> None:
    seen = at(index("i", read=False))
    other = Platform("linux", "s390x")
    demand = [
        (want("p:3.12"), seen),
        (want("p:3.11", (other,)), seen),
        (want("p:3.10", (other,)), seen),
        (want("p:3.9", (AMD, other)), seen),
    ]
    found = planned(demand)
    assert actions(found) == ["copy", "copy", "tag", "tag"]
    assert [step.code for step in found.steps] == ["missing", "missing", "sibling", "sibling"]


def test_plan_tag_without_its_only_child_has_lost_parts() -> None:
    assert one(at(index("i", "a"), NEAR, "missing", under_tag="sha256:" + "0" * 64)).code == "parts"
