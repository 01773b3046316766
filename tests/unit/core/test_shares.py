"""Fair shares: what one group asks for leaves the others their pulls, and none go unused."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.budget import Spend, Window
from prewarm.core.manifest import OCI_MANIFEST, Descriptor, digest_of
from prewarm.core.platforms import DEFAULT
from prewarm.core.reference import parse
from prewarm.core.settings import Limits, Settings
from prewarm.core.shares import FEW, TURN, Shares, by_turns, payers_of
from prewarm.core.usage import DAY, DayUses, Row, Runs, parts_of, used
from prewarm.planning.demand import Want, with_uses
from prewarm.planning.plan import Copy, Defer, Holding, Plan, Quota, Seen, plan
from prewarm.planning.ranking import ranked
from prewarm.planning.simulate import Recorded, simulate

NOW = 1_800_000_000.0
HOURS_6 = 6 * 3600


def missing(want: Want) -> tuple[Want, Seen]:
    digest = digest_of(str(want.reference).encode())
    holding = Holding("http://127.0.0.1:5000", True, want.reference.mirror_repository)
    return want, Seen(Descriptor(OCI_MANIFEST, digest, 100), holdings=(holding,))


def planned(demand: Sequence[Want], pulls: int, share: int, spends: Sequence[Spend] = ()) -> Plan:
    quota = Quota("acme", Window(pulls, HOURS_6), "written", tuple(spends))
    limits = replace(Limits(), pulls_per_project=share)
    return plan(ranked(map(missing, demand)), {"docker.io": quota}, limits, (), NOW)


def copied(found: Plan) -> list[str]:
    return [step.want.reference.familiar for step in found.steps if isinstance(step, Copy)]


def junk_and_honest(
    paths: Sequence[str], junk: int, runs: int, failures: int, honest_at: Sequence[str]
) -> list[Want]:
    """Demand: junk images that jobs of some projects ran with, and ten honest ones of two."""
    names = dict(enumerate([*paths, *honest_at], 1))
    rows: dict[tuple[int, str], list[Row]] = {}
    ran: dict[tuple[int, str], list[Runs]] = {}

    def use(project: int, name: str, number: int, failed: int) -> None:
        reference = f"docker.io/library/{name}:1"
        rows[project, name] = [Row(name, "image", name, reference, None, "definition")]
        sums = number * parts_of(0), failed * parts_of(0)
        ran[project, name] = [Runs(project, name, "linux/amd64", number, failed, NOW, *sums)]

    for project in range(1, len(paths) + 1):
        for number in range(junk):
            use(project, f"junk{number:02}", runs, failures)
    for project in range(len(paths) + 1, len(names) + 1):
        for number in range(10):
            use(project, f"honest{number}", 80, 0)
    return list(with_uses(Settings(None), (), used(rows, ran, now=NOW, paths=names)))


HONEST = [f"honest{number}:1" for number in range(10)]
TEAM = ("team/one", "team/two")


@pytest.mark.parametrize(
    ("paths", "runs", "failures", "honest"),
    [
        pytest.param(("eve/a", "eve/b"), 1, 1, TEAM, id="each failed once: the measured attack"),
        pytest.param(("eve/a", "eve/b"), 50, 50, TEAM, id="each failed often"),
        pytest.param(("eve/a", "eve/b"), 1000, 0, TEAM, id="jobs that do nothing, in great number"),
        pytest.param(("eve/a", "eve/b"), 1000, 500, TEAM, id="both"),
        pytest.param(("eve/a", "mallory/b"), 1000, 500, TEAM, id="in two namespaces"),
        pytest.param(tuple(f"eve/{n}" for n in range(30)), 1000, 9, TEAM, id="in many projects"),
        pytest.param(("eve/a",), 1000, 500, TEAM, id="in one project"),
        pytest.param(("eve/a", "eve/b"), 1000, 0, ("one/x", "two/x"), id="honest ones apart"),
    ],
)
def test_plan_junk_of_one_group_leaves_honest_images_their_pulls(
    paths: tuple[str, ...], runs: int, failures: int, honest: tuple[str, ...]
) -> None:
    demand = junk_and_honest(paths, 40, runs, failures, honest)
    found = copied(planned(demand, pulls=20, share=5))
    assert [name for name in found if name.startswith("honest")] == HONEST
    # What the others leave is not wasted, but for what one project alone may never have.
    assert len(found) == (15 if len(paths) == 1 else 20)


def test_plan_of_a_site_of_one_group_spends_all_it_has() -> None:
    demand = junk_and_honest(TEAM, 40, 10, 0, ())
    found = planned(demand, pulls=20, share=5)
    assert len(copied(found)) == 20
    waits = [step for step in found.steps if isinstance(step, Defer)]
    assert {step.code for step in waits} == {"budget"}
    assert all("its users have had their share" in step.reason for step in waits)


def test_plan_copies_late_what_is_beyond_a_share() -> None:
    demand = junk_and_honest(("eve/a", "eve/b"), 15, 1000, 0, TEAM)
    found = planned(demand, pulls=20, share=5)
    late = {s.want.reference.familiar for s in found.steps if isinstance(s, Copy) and s.late}
    assert late == set()
    more = planned(demand, pulls=24, share=5)
    late = {s.want.reference.familiar for s in more.steps if isinstance(s, Copy) and s.late}
    assert len(late) == 4
    assert all(name.startswith("junk") for name in late)


def test_plan_counts_what_was_charged_in_the_window_already() -> None:
    demand = junk_and_honest(("eve/a", "eve/b"), 40, 1000, 0, TEAM)
    spent = Spend(60.0, 10, payers=("eve/a", "eve/b"))
    found = copied(planned(demand, pulls=20, share=5, spends=[spent]))
    assert found == HONEST


NAMES = ("one/a", "one/b", "two/a", "three/a")


@st.composite
def demands(draw: st.DrawFn) -> list[Want]:
    users = st.frozensets(st.sampled_from(NAMES), max_size=4)
    return [
        Want(
            parse(f"i{number:02}:1"),
            DEFAULT,
            ("history",),
            "CI",
            weight=draw(st.floats(0, 100)),
            payers=payers_of(draw(users)),
        )
        for number in range(draw(st.integers(0, 25)))
    ]


@given(demands(), st.integers(0, 20), st.integers(1, 6))
def test_plan_leaves_no_pull_unused_that_somebody_may_have(
    demand: list[Want], pulls: int, share: int
) -> None:
    found = planned(demand, pulls, share)
    waits = [s for s in found.steps if isinstance(s, Defer) and s.code == "budget"]
    number = len(copied(found))
    assert number <= pulls
    assert not waits or number == pulls
    # Only a project that alone uses an image has a share that ends.
    for step in found.steps:
        if isinstance(step, Defer) and step.code == "project-share":
            (project,) = step.want.payers
            had = [s.want.payers for s in found.steps if isinstance(s, Copy)]
            assert sum(1 / len(payers) for payers in had if project in payers) > 0


@given(demands(), st.integers(2, 20), st.integers(1, 6))
def test_plan_nobody_goes_late_before_all_others_had_their_turn(
    demand: list[Want], pulls: int, share: int
) -> None:
    """Where anything was copied late, no image waits whose users had less than a share."""
    found = planned(demand, pulls, share)
    if not any(step.late for step in found.steps if isinstance(step, Copy)):
        return
    shares = Shares(share, pulls)
    for step in found.steps:
        if isinstance(step, Copy):
            shares.pay(step.want.payers, 1)
    for step in found.steps:
        if isinstance(step, Defer):
            assert step.want.payers
            assert not shares.able(step.want.payers, 1)


@given(
    st.lists(
        st.tuples(st.frozensets(st.sampled_from(NAMES), max_size=4), st.integers(0, 9)), max_size=9
    )
)
def test_shares_charge_each_pull_once(spends: list[tuple[frozenset[str], int]]) -> None:
    shares = Shares(5, 20)
    groups: dict[str, float] = defaultdict(float)
    for users, pulls in spends:
        payers = shares.pay(payers_of(users), pulls)
        assert set(payers) <= users
        for payer in payers:
            groups[payer.partition("/")[0]] += pulls / len(payers)
    for group, had in groups.items():
        assert had - 1e-9 <= shares.held(f"{group}/") < had + 1


@pytest.mark.parametrize(
    ("projects", "payers"),
    [
        ((), ()),
        (("a/x",), ("a/x",)),
        (("a/y", "a/x", "b/z"), ("a/x", "a/y", "b/z")),
        (tuple(f"a/{n}" for n in range(FEW + 1)), ("a/",)),
        ((*(f"a/{n}" for n in range(FEW + 1)), "b/x/y"), ("a/", "b/")),
        (tuple(f"g{n}/x" for n in range(FEW + 1)), ()),
    ],
)
def test_payers_are_the_projects_or_their_namespaces_or_nobody(
    projects: tuple[str, ...], payers: tuple[str, ...]
) -> None:
    assert payers_of(projects) == payers


def test_simulate_knows_the_same_shares() -> None:
    def every_day(name: str, runs: int, *users: str) -> Recorded:
        days = [DayUses(20_000 + day, 1, runs) for day in range(4)]
        return Recorded(f"docker.io/library/{name}:1", tuple(days), payers=payers_of(users))

    junk = [every_day(f"junk{n:02}", 90, "eve/a", "eve/b") for n in range(40)]
    honest = [every_day(f"honest{n}", 80, *TEAM) for n in range(10)]

    def coverage(images: Sequence[Recorded], share: int | None) -> Mapping[str, float]:
        (one,) = simulate(images, [20], DAY, 14 * DAY, share).reached
        return {"coverage": round(one.coverage, 3)}

    alone = {"coverage": 1.0}
    assert coverage(honest, 5) == alone
    # With shares the first window brings ten of each, without only junk.
    total = 40 * 90 + 10 * 80
    both = [*junk, *honest]
    assert coverage(both, None) == {"coverage": round((20 * 90 + 40 * 90) / 2 / total, 3)}
    first = 10 * 90 + 10 * 80
    second = first + 20 * 90
    assert coverage(both, 5) == {"coverage": round((first + second) / 2 / total, 3)}


@given(st.lists(st.tuples(st.frozensets(st.sampled_from(NAMES), max_size=4), st.floats(0, 9))))
def test_by_turns_is_the_demand_the_most_wanted_first(
    demand: list[tuple[frozenset[str], float]],
) -> None:
    items = [(place, payers_of(users), weight) for place, (users, weight) in enumerate(demand)]
    found = by_turns(items)
    assert sorted(found) == list(range(len(demand)))
    if len(demand) <= TURN:
        assert found == sorted(found, key=lambda place: -demand[place][1])


def test_by_turns_lets_no_project_or_group_go_before_all_others() -> None:
    flood = [(f"junk{n}", ("eve/a",), 1000.0) for n in range(3000)]
    group = [(f"more{n}", (f"eve/{n}",), 1000.0) for n in range(3000)]
    honest = [(f"honest{n}", ("team/a",), 1.0) for n in range(40)]
    common = [("common", (), 0.5)]
    pins = [("pin", (), math.inf)]
    found = by_turns([*flood, *group, *honest, *common, *pins])
    assert found[0] == "pin"
    last = max(found.index(name) for name, *_ in (*honest, *common))
    assert last <= 4 * TURN + len(honest) + 1
