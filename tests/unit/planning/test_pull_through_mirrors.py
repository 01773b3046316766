"""Pull-through mirrors as the state knows them, and what warming them costs by the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.budget import Moment, Window
from prewarm.core.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, digest_of
from prewarm.core.platforms import Platform
from prewarm.core.records import Written
from prewarm.core.reference import parse
from prewarm.core.settings import Limits, Mirror, Settings
from prewarm.planning.demand import Want
from prewarm.planning.plan import Copy, Cost, Defer, Holding, Quota, Seen, Tag, cost, plan
from prewarm.planning.pull_through import LIFETIME, held, is_whole, standing
from prewarm.state.ledger import Ledger

NOW = 1_800_000_000.0
AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")
PUSH, CACHE, SECOND = "http://127.0.0.1:5000", "https://cache.org", "https://second.org"
WANT = Want(parse("app:1"), (AMD, ARM), ("pin",), "images.yml:1")
INDEX = Manifest(OCI_INDEX, b"index")
ONE, TWO = digest_of(b"one"), digest_of(b"two")
SINGLE = Manifest(OCI_MANIFEST, b"single")


def moment(age: float) -> Moment:
    return Moment(NOW - age, "boot", 1e9 - age)


def warmed(ledger: Ledger, age: float, *digests: str, image_age: float | None = None) -> Written:
    """Note manifests that the mirror fetched so long ago, and the image as warmed thereafter."""
    for digest in digests:
        ledger.note_cached(CACHE, "library/app", digest, moment(age))
    ledger.note_written(
        CACHE,
        str(WANT.reference),
        "library/app",
        "1",
        digests[0],
        digests[0],
        "linux/amd64",
        1,
        moment(age if image_age is None else image_age),
    )
    (written,) = ledger.written(CACHE)
    return written


# --- a week ---


@pytest.mark.parametrize(
    ("age", "there"),
    [(0, True), (-100, True), (LIFETIME, True), (LIFETIME + 299, True), (LIFETIME + 300, False)],
)
def test_held_manifest_is_there_until_it_has_certainly_expired(age: float, there: bool) -> None:
    with Ledger.memory() as ledger:
        ledger.note_cached(CACHE, "library/app", ONE, moment(age))
        assert held(ledger, CACHE, "library/app", NOW) == ({ONE} if there else set())
        assert held(ledger, SECOND, "library/app", NOW) == set()
        assert held(ledger, CACHE, "library/other", NOW) == set()


def test_is_whole_needs_every_manifest_and_none_that_came_after_the_image() -> None:
    with Ledger.memory() as ledger:
        written = warmed(ledger, 1000, INDEX.digest, ONE)
        assert is_whole(ledger, written, (INDEX.digest, ONE), NOW)
        assert not is_whole(ledger, written, (INDEX.digest, ONE, TWO), NOW)
        ledger.note_cached(CACHE, "library/app", TWO, moment(10))
        assert is_whole(ledger, written, (INDEX.digest, ONE), NOW)
        # It was fetched again, and nobody says that its blobs came.
        ledger.note_cached(CACHE, "library/app", ONE, moment(10))
        assert not is_whole(ledger, written, (INDEX.digest, ONE), NOW)


@pytest.mark.parametrize(
    ("age", "state"), [(1000, "fresh"), (LIFETIME + 299, "fresh"), (LIFETIME + 300, "missing")]
)
def test_standing_of_a_pull_through_mirror_ends_with_the_week(age: float, state: str) -> None:
    settings = Settings(None, mirrors=(Mirror(PUSH, PUSH), Mirror(CACHE, CACHE, "pull-through")))
    with Ledger.memory() as ledger:
        warmed(ledger, age, SINGLE.digest)
        image = str(WANT.reference)
        for mirror in (PUSH, CACHE):
            ledger.note_state(image, mirror, "fresh", SINGLE.digest, moment(age))
        found = standing(settings, ledger.states(), ledger, NOW)
    assert {one.mirror: one.state for one in found} == {PUSH: "fresh", CACHE: state}


def test_forget_cached_forgets_what_is_older() -> None:
    with Ledger.memory() as ledger:
        ledger.note_cached(CACHE, "library/app", ONE, moment(100))
        ledger.note_cached(CACHE, "library/app", TWO, moment(10))
        assert ledger.forget_cached(NOW - 50) == 1
        assert ledger.cached(CACHE, "library/app") == {TWO: NOW - 10}


# --- what it costs ---


def seen_index(*holdings: Holding, read: bool = True, bytes_of: tuple[str, ...] = ()) -> Seen:
    return Seen(
        Descriptor(OCI_INDEX, INDEX.digest, 100),
        INDEX if read else None,
        (ONE, TWO) if read else (),
        dict.fromkeys(bytes_of, 1000),
        holdings,
    )


def seen_single(*holdings: Holding) -> Seen:
    descriptor = Descriptor(OCI_MANIFEST, SINGLE.digest, 100)
    return Seen(descriptor, None, (SINGLE.digest,), holdings=holdings)


def cache(*present: str, url: str = CACHE) -> Holding:
    return Holding(url, True, "library/app", present=frozenset(present), through=True)


def push(*present: str) -> Holding:
    return Holding(PUSH, True, "library/app", present=frozenset(present))


@pytest.mark.parametrize(
    ("seen", "price"),
    [
        (seen_index(cache(), read=False), Cost(2, 3)),
        (seen_index(cache(), cache(url=SECOND), read=False), Cost(4, 6)),
        (seen_index(cache(), push(), read=False), Cost(2, 3)),
        (seen_single(cache()), Cost(1, 1)),
        (seen_single(cache(), push()), Cost(1, 1)),
        (seen_index(cache()), Cost(2, 3)),
        (seen_index(cache(), push()), Cost(2, 3)),
        (seen_index(cache(), push(ONE, TWO)), Cost(2, 3)),
        # Bytes at hand are of no use to a mirror that fetches for itself.
        (seen_index(cache(), bytes_of=(ONE, TWO)), Cost(2, 3)),
        (seen_index(cache(INDEX.digest)), Cost(2, 2)),
        (seen_index(cache(INDEX.digest, ONE)), Cost(1, 1)),
        (seen_index(cache(ONE, TWO)), Cost(1, 1)),
        (seen_index(cache(INDEX.digest, ONE, TWO)), Cost(0, 0)),
        # A push mirror lacks what the other has, and may not take it there.
        (seen_index(cache(INDEX.digest, ONE, TWO), push(TWO)), Cost(1, 1)),
        (seen_index(cache(), cache(ONE, url=SECOND), push()), Cost(3, 5)),
    ],
)
def test_cost_of_pull_through_mirrors_is_what_they_will_ask_for(seen: Seen, price: Cost) -> None:
    assert cost(WANT, seen) == price


def test_cost_of_a_pull_through_mirror_that_is_fresh_or_down_is_none() -> None:
    fresh = replace(cache(INDEX.digest, ONE, TWO), state="fresh")
    assert cost(WANT, seen_index(fresh, push())) == Cost(2, 2)


digests = st.sets(st.sampled_from([INDEX.digest, ONE, TWO]))


@given(digests, digests, st.booleans(), st.integers(0, 6))
def test_plan_of_pull_through_mirrors_stays_in_the_window(
    first: set[str], second: set[str], with_push: bool, pulls: int
) -> None:
    holdings = [cache(*first), cache(*second, url=SECOND), *([push()] if with_push else ())]
    seen = seen_index(*holdings)
    quota = Quota("acme", Window(pulls), "")
    (step,) = plan([(WANT, seen)], {"docker.io": quota}, Limits(), (), NOW).steps
    lacking = [{INDEX.digest, ONE, TWO} - there for there in (first, second)]
    if isinstance(step, Copy):
        spent = step.at_most if step.at_most is not None else step.cost.pulls
        assert spent is not None
        assert spent <= pulls
        if not with_push:
            assert step.cost.gets == sum(map(len, lacking))
    elif isinstance(step, Tag):
        assert lacking == [set(), set()]
    else:
        assert isinstance(step, Defer)
        price = cost(WANT, seen).pulls
        assert price is not None
        assert price > pulls


def test_plan_tells_what_expired_from_what_never_was_there() -> None:
    quotas = {"docker.io": Quota("acme", Window(10), "")}
    for holding, code in (
        (cache(), "missing"),
        (replace(cache(), expired=True), "expired"),
        (replace(cache(), digest=ONE), "stale"),
        (replace(cache(INDEX.digest), digest=INDEX.digest), "parts"),
    ):
        (step,) = plan([(WANT, seen_index(holding))], quotas, Limits(), (), NOW).steps
        assert step.code == code
