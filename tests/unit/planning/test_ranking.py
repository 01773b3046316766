"""Ranking: the most wanted first, whatever order the demand comes in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.errors import Failure
from prewarm.core.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, digest_of
from prewarm.core.platforms import DEFAULT, Platform
from prewarm.core.reference import parse
from prewarm.core.usage import LOUD, Row, Runs, UsedImage, parts_of, used
from prewarm.planning.demand import Want, weight_of
from prewarm.planning.plan import Holding, Seen, State
from prewarm.planning.ranking import position, ranked

DAY = 86400
NOW = 1_800_000_000.0
MIRROR = "http://127.0.0.1:5000"
ARM = Platform("linux", "arm64")
STATES: tuple[State, ...] = ("fresh", "stale", "missing")
Pair = tuple[Want, Seen]


def used_want(text: str, weight: float, failures: int = 0) -> Want:
    return Want(parse(text), DEFAULT, ("history",), "CI", weight=weight, pull_failures=failures)


def seen(content: str, *states: State, media_type: str = OCI_MANIFEST) -> Seen:
    """What was seen of an image whose content is named, on one mirror for each state."""
    digest = digest_of(content.encode())
    descriptor = Descriptor(media_type, digest, 100)
    required = () if media_type == OCI_INDEX else (digest,)
    return Seen(
        descriptor,
        required=required,
        holdings=tuple(
            Holding(f"{MIRROR}/{at}", target=True, repository="x", state=state)
            for at, state in enumerate(states or ("missing",))
        ),
    )


def at_hand(found: Seen) -> Seen:
    """Return the same, its manifest known: its bytes need no pull."""
    content = Manifest(OCI_MANIFEST, b"b")
    assert found.required == (content.digest,)
    return replace(found, content=content, sizes={content.digest: 1})


def names(demand: Sequence[Pair]) -> list[str]:
    return [want.reference.familiar for want, _ in ranked(demand)]


PINNED = (Want(parse("pin:1"), DEFAULT, ("pin",), "images.yml:3"), seen("pin"))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(PINNED, (used_want("a:1", 1000), seen("a")), id="a pin before any use"),
        pytest.param(
            (used_want("b:1", 2), seen("b")), (used_want("a:1", 1), seen("a")), id="more uses"
        ),
        pytest.param(
            (used_want("b:1", 3), seen("b")),
            (used_want("a:1", 10), seen("a", "stale")),
            id="a missing image before a stale one",
        ),
        pytest.param(
            (used_want("b:1", 10), seen("b", "stale")),
            (used_want("a:1", 2), seen("a")),
            id="unless the stale one is used far more",
        ),
        pytest.param(
            (used_want("b:1", 10), seen("b", "stale", "missing")),
            (used_want("a:1", 10), seen("a", "stale")),
            id="one mirror that has none of it counts",
        ),
        pytest.param(
            (used_want("b:1", 3), seen("b")),
            (
                replace(used_want("a:1", 5), platforms=(*DEFAULT, ARM)),
                seen("a", media_type=OCI_INDEX),
            ),
            id="more gain for a pull",
        ),
        pytest.param(
            (used_want("b:1", 1), at_hand(seen("b"))),
            (used_want("a:1", 9), seen("a")),
            id="what costs no pull",
        ),
        pytest.param(
            (used_want("pin:latest", 1), seen("pin")),
            (used_want("a:1", 9), seen("a")),
            id="what comes with a pin",
        ),
        pytest.param(
            (used_want("b:1", 1), seen("b")),
            (used_want("a:1", 9), seen("a", "fresh")),
            id="what is needed before what is there",
        ),
        pytest.param(
            (used_want("b:1", 1), seen("b")),
            (used_want("a:1", 9, failures=5), Seen(failure=Failure("not-found", "", ""))),
            id="what can be had",
        ),
        pytest.param(
            (used_want("a:1", 1), seen("a")), (used_want("b:1", 1), seen("b")), id="by reference"
        ),
    ],
)
def test_ranked_puts_first(first: Pair, then: Pair) -> None:
    expected = [first[0].reference.familiar, then[0].reference.familiar]
    for demand in ([first, then], [then, first]):
        pins = [] if PINNED in demand else [PINNED]
        assert [name for name in names([*pins, *demand]) if name in expected] == expected


def test_ranked_tags_of_one_digest_stand_together_by_what_they_gain_in_all() -> None:
    demand = [
        (used_want("a:1", 3), seen("a")),
        (used_want("b:1", 2), seen("b")),
        (used_want("b:latest", 2), seen("b")),
    ]
    assert names(demand) == ["b:1", "b:latest", "a:1"]


def test_ranked_pins_keep_their_order() -> None:
    pins = [
        (Want(parse(text), DEFAULT, ("pin",), "images.yml:1"), seen(text, state))
        for text, state in zip(("z:1", "y:1", "a:1"), STATES, strict=True)
    ]
    assert names(pins) == ["z:1", "y:1", "a:1"]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    repository = draw(st.sampled_from(["a", "b"]))
    states = draw(st.lists(st.sampled_from(STATES), min_size=1, max_size=2))
    content = f"{repository}{draw(st.integers(0, 3))}"
    media_type = draw(st.sampled_from([OCI_INDEX, OCI_MANIFEST]))
    found = seen(content, *states, media_type=media_type)
    failure = draw(st.sampled_from([None, None, None, Failure("not-found", "", "")]))
    weight = draw(st.sampled_from([0.0, 0.001, 1.0, 2.5]) | st.floats(0, 1e6))
    text = f"{repository}:{draw(st.integers(0, 10**6))}"
    want = used_want(text, weight, failures=draw(st.sampled_from([0, 0, 1])))
    if draw(st.integers(0, 4)) == 0:
        want = replace(want, sources=("pin", *want.sources))
    return want, replace(found, failure=failure)


DEMANDS = st.lists(pairs(), max_size=12, unique_by=lambda pair: pair[0].reference)


@settings(deadline=None)
@given(DEMANDS, st.randoms(use_true_random=False))
def test_ranked_is_the_demand_whatever_order_it_came_in(
    demand: list[Pair], chance: random.Random
) -> None:
    found = ranked(demand)
    assert sorted(found, key=lambda pair: pair[0].reference) == sorted(
        demand, key=lambda pair: pair[0].reference
    )
    pins = [pair for pair in demand if pair[0].pinned]
    assert found[: len(pins)] == pins
    rest = [pair for pair in demand if not pair[0].pinned]
    chance.shuffle(rest)
    mixed = [*pins, *rest]
    assert ranked(mixed) == found
    # Pins may stand anywhere among the others.
    assert ranked([*rest, *pins]) == found
    assert ranked(found) == found


@settings(deadline=None)
@given(DEMANDS, st.data())
def test_ranked_more_uses_never_move_an_image_back(demand: list[Pair], data: st.DataObject) -> None:
    if not demand:
        return
    at = data.draw(st.integers(0, len(demand) - 1))
    want, found = demand[at]
    more = replace(want, weight=want.weight + data.draw(st.floats(0.1, 1e6)))
    louder = [*demand[:at], (more, found), *demand[at + 1 :]]

    def place(among: Sequence[Pair]) -> int:
        return next(
            place for place, (one, _) in enumerate(ranked(among)) if one.reference == want.reference
        )

    assert place(louder) <= place(demand)


# What uses weigh


def weights(*runs: tuple[int, int, int], failures: int = 0) -> UsedImage:
    """An image used by projects, each with its runs and the days since, and failed pulls."""
    row = Row("build", "image", "a:1", "docker.io/library/a:1", None, "definition")
    (image,) = used(
        {(project, "build"): [row] for project, _, _ in runs},
        {
            (project, "build"): [ran(project, number, ago, failures)]
            for project, number, ago in runs
        },
        now=NOW,
        paths={project: f"team/{project}" for project, _, _ in runs},
    )
    return image


def ran(project: int, number: int, ago: int = 0, failures: int = 0, job: str = "build") -> Runs:
    """So many runs of a job and failed pulls, days ago."""
    sums = number * parts_of(ago), failures * parts_of(ago)
    return Runs(project, job, "linux/amd64", number, failures, NOW, *sums)


def test_weights_halve_every_week() -> None:
    assert weights((1, 8, 0)).weights == (("team/1", 8.0),)
    assert weights((1, 8, 7)).weights == (("team/1", 4.0),)
    assert weights((1, 8, 21)).weights == (("team/1", 1.0),)


def test_weight_of_many_projects_is_more_than_that_of_one_noisy_one() -> None:
    many = weights(*((project, 10, 0) for project in range(5)))
    assert many.jobs == 50
    assert weight_of(many) > weight_of(weights((1, 60, 0))) > weight_of(weights((1, 50, 0)))


def failing(images: int, failures: int, honest: int) -> list[float]:
    """Weigh images that a project's jobs failed to pull so often each, beside its other runs."""
    names = [f"docker.io/library/i{number}:1" for number in range(images)]
    rows = {(1, name): [Row(name, "image", name, name, None, "definition")] for name in names}
    runs = {(1, name): [ran(1, failures, 0, failures, name)] for name in names}
    rows[1, "good"] = [Row("good", "image", "z:1", "docker.io/library/z:1", None, "definition")]
    runs[1, "good"] = [ran(1, honest, job="good")]
    found = used(rows, runs, now=NOW, paths={1: "team/1"})
    return [dict(one.weights)["team/1"] for one in found if one.reference in names]


@pytest.mark.parametrize(
    ("images", "failures", "honest", "each"),
    [
        pytest.param(1, 1, 1000, 1 + LOUD, id="a failed pull is far more than a run"),
        pytest.param(1, 40, 1000, 40 + LOUD, id="once for all of them"),
        pytest.param(40, 1, 1000, 1 + LOUD / 40, id="images share it"),
        pytest.param(40, 1, 20, 1 + 20 / 40, id="no more than there are other runs"),
        pytest.param(40, 1, 0, 1, id="jobs that do nothing but fail are runs"),
    ],
)
def test_weight_of_failed_pulls_is_bounded_for_each_project(
    images: int, failures: int, honest: int, each: float
) -> None:
    assert failing(images, failures, honest) == pytest.approx([each] * images)


def test_weight_of_a_definition_without_runs_is_little_but_not_nothing() -> None:
    row = Row("build", "image", "a:1", "docker.io/library/a:1", None, "definition")
    (unused,) = used({(1, "build"): [row]}, {}, now=NOW, paths={1: "team/1"})
    assert 0 < weight_of(unused) < weight_of(weights((1, 1, 60)))


# In words


@pytest.mark.parametrize(
    ("want", "words"),
    [
        (PINNED[0], "rank 4: pinned at images.yml:3"),
        (
            replace(used_want("a:1", 1), jobs=1, projects=1, last_used=NOW - 50),
            "rank 4: 1 job of 1 project, last used just now",
        ),
        (
            replace(used_want("a:1", 1, 2), jobs=30, projects=4, last_used=NOW - 3 * DAY - 5),
            "rank 4: 30 jobs of 4 projects, 2 failed to pull it, last used 3 d ago",
        ),
        (replace(used_want("a:1", 1), projects=2), "rank 4: 0 jobs of 2 projects"),
    ],
)
def test_position_says_why(want: Want, words: str) -> None:
    assert position(want, 4, NOW) == words
