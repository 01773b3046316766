"""Deciding what leaves a mirror: who stays, who goes first, and that the bytes add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.errors import Problem
from prewarm.planning.retention import (
    DAY,
    GRACE,
    Image,
    Key,
    Prune,
    Stock,
    Stored,
    decide,
    demand_refusal,
    size_refusal,
)

NOW = 1_800_000_000.0
KEEP = 30 * DAY
REPOSITORY = "library/x"
LEAVES = {
    "a": Stored(10, (), {"base": 100, "a-layer": 1000}),
    "b": Stored(10, (), {"base": 100, "b-layer": 2000}),
    "c": Stored(10, (), {"c-layer": 4000}),
}
INDEXES = {
    "ab": Stored(20, ("a", "b")),
    "bc": Stored(20, ("b", "c")),
    "a-": Stored(20, ("a",)),
    "-ab": Stored(20, ("ab",)),
}
STORED = {**LEAVES, **INDEXES}


def image(
    tag: str | None,
    digest: str,
    days: float = 0.0,
    *,
    used: float | None = None,
    wanted: bool = False,
    repository: str = REPOSITORY,
) -> Image:
    """An image last wanted, and perhaps last used, so many days ago."""
    return Image(
        f"docker.io/{repository}{f':{tag}' if tag else f'@{digest}'}",
        repository,
        tag,
        digest,
        NOW - days * DAY,
        None if used is None else NOW - used * DAY,
        "pinned" if wanted else None,
    )


def stock(
    *images: Image,
    tags: Mapping[str, str] | None = None,
    pushed: Mapping[str, float] | None = None,
    unread: Mapping[str, str] | None = None,
) -> Stock:
    """What the images make, with others' tags, and manifests pushed so many days ago."""
    found = {(one.repository, one.tag): one.digest for one in images if one.tag is not None}
    found |= {(REPOSITORY, tag): digest for tag, digest in (tags or {}).items()}
    old = {(one.repository, one.digest): NOW - 99 * DAY for one in images}
    old |= {(REPOSITORY, digest): NOW - days * DAY for digest, days in (pushed or {}).items()}
    return Stock(found, old, STORED, unread or {})


def decided(
    found: Stock,
    *images: Image,
    needed: Iterable[Key] = (),
    max_size: int | None = None,
    keep: float = KEEP,
) -> Prune:
    return decide(found, images, frozenset(needed), max_size=max_size, keep=keep, now=NOW)


def gone(prune: Prune) -> list[str]:
    return [f"{digest}" for removal in prune.removals for digest in removal.digests]


@pytest.mark.parametrize(
    ("one", "goes"),
    [
        pytest.param(image("1", "a", 31), True, id="not wanted for longer than keep"),
        pytest.param(image("1", "a", 30), False, id="just as long as keep"),
        pytest.param(image("1", "a", 99, wanted=True), False, id="wanted now"),
        pytest.param(image("1", "a", 31, used=29), False, id="used within keep"),
        pytest.param(image("1", "a", 31, used=31), True, id="used before that"),
        pytest.param(image(None, "a", 31), True, id="named by its digest"),
    ],
)
def test_decide_by_keep(one: Image, goes: bool) -> None:
    prune = decided(stock(one), one)
    assert gone(prune) == (["a"] if goes else [])
    assert prune.bytes_before == 1110
    assert prune.bytes_after == (0 if goes else 1110)
    assert prune.kept == (() if goes else (one,))


def test_decide_takes_the_index_first_and_leaves_children_that_others_need() -> None:
    old, kept = image("old", "ab", 31), image("new", "bc", wanted=True)
    prune = decided(stock(old, kept), old, kept)
    assert gone(prune) == ["ab", "a"]
    # Not the base layer, which b has as well.
    assert prune.freed == 20 + 10 + 1000


def test_decide_blobs_that_another_repository_needs_are_not_freed() -> None:
    old, kept = image("1", "a", 31), image("1", "a", wanted=True, repository="library/y")
    prune = decided(stock(old, kept), old, kept)
    assert gone(prune) == ["a"]
    assert prune.freed == 0


def test_decide_tags_of_one_digest_go_together_or_stay_together() -> None:
    old, young = image("1", "a", 40), image("2", "a", 31)
    prune = decided(stock(old, young), old, young)
    assert [removal.images for removal in prune.removals] == [(old, young)]

    young = image("2", "a", 1, wanted=True)
    prune = decided(stock(old, young), old, young)
    assert prune.removals == ()
    assert [(stay.image, stay.reason) for stay in prune.stays] == [
        (old.image, f"{young.image}, which is wanted, has the same digest")
    ]


@pytest.mark.parametrize("digest", ["a", "-ab", "ab"])
def test_decide_what_somebody_else_tagged_stays_with_all_below_it(digest: str) -> None:
    old = image("1", "a", 31)
    prune = decided(stock(old, tags={"theirs": digest}), old)
    assert prune.removals == ()
    (stay,) = prune.stays
    assert stay.image == old.image
    assert ("tag theirs, which prewarm did not write" in stay.reason) == (digest == "a")


@pytest.mark.parametrize(
    ("child", "index", "order"),
    [("a", "ab", ["ab", "b", "a"]), ("ab", "-ab", ["-ab", "ab", "a", "b"])],
)
def test_decide_an_image_that_is_a_child_of_one_that_goes_follows_it(
    child: str, index: str, order: list[str]
) -> None:
    older, younger = image("1", child, 50), image("2", index, 31)
    prune = decided(stock(older, younger), older, younger)
    assert gone(prune) == order
    assert prune.bytes_after == 0


def test_decide_what_was_pushed_and_has_no_tag_goes_after_a_day() -> None:
    kept = image("1", "c", wanted=True)
    days = GRACE / DAY
    found = stock(kept, pushed={"ab": days + 0.1, "a": days + 9, "b": days + 9})
    assert gone(decided(found, kept)) == ["ab", "a", "b"]
    # Its children are older, and are not taken from it.
    found = stock(kept, pushed={"ab": days - 0.1, "a": days + 9, "b": days + 9})
    assert gone(decided(found, kept)) == []


def test_decide_parts_of_an_image_that_is_on_its_way_stay() -> None:
    found = stock(pushed={"a": 9, "b": 9})
    assert gone(decided(found, needed=[(REPOSITORY, "a")])) == ["b"]


@pytest.mark.parametrize(
    ("wanted", "tags", "forgotten"),
    [(False, {}, True), (True, {}, False), (False, {"1": "b"}, True), (True, {"1": "b"}, False)],
)
def test_decide_an_image_that_others_deleted_or_overwrote_is_forgotten_where_unwanted(
    wanted: bool, tags: dict[str, str], forgotten: bool
) -> None:
    one = image("1", "a", 1, wanted=wanted)
    prune = decided(stock(tags=tags), one)
    assert prune.gone == ((one.image,) if forgotten else ())
    assert prune.kept == ()


def test_decide_nothing_of_a_repository_that_was_not_read_goes() -> None:
    old, unseen = image("1", "a", 31), image("2", "b", 31)
    found = stock(old, pushed={"c": 9}, unread={REPOSITORY: "damaged"})
    prune = decided(found, old, unseen)
    assert (prune.removals, prune.gone) == ((), ())


def test_decide_max_size_takes_the_longest_unwanted_first_until_it_fits() -> None:
    wanted, used = image("w", "c", wanted=True), image("u", "a", 20, used=20)
    spare = [
        image("1", "a", 3, repository="library/1"),
        image("2", "b", 9, repository="library/2"),
    ]
    found = stock(wanted, used, *spare)
    assert gone(decided(found, wanted, used, *spare, max_size=7130)) == []
    fits = decided(found, wanted, used, *spare, max_size=7129)
    assert [removal.images for removal in fits.removals] == [(spare[1],)]
    assert fits.failure is None
    small = decided(found, wanted, used, *spare, max_size=4000)
    assert len(small.removals) == 2
    assert small.failure is not None
    assert small.failure.code == "mirror-too-small"
    assert "5.0 KiB have to stay, 3.9 KiB of them for what is wanted" in small.failure.text


# --- the guards ---


BROKEN = Problem("error", "config", "more.yml:1", "is no YAML", "")


@pytest.mark.parametrize(
    ("files", "asks", "scanned", "same", "refusal"),
    [
        ((), True, 0.0, True, None),
        ((), True, 3 * DAY, True, None),
        ((), True, 3 * DAY + 1, True, ("scan-old", True)),
        ((), True, -60.0, True, ("scan-old", True)),
        ((), True, None, False, ("scan-old", True)),
        ((), True, 0.0, False, ("scan-scope", True)),
        ((), False, None, False, None),
        ((), False, 0.0, False, ("scan-scope", True)),
        ((BROKEN,), True, 0.0, True, ("pins-unknown", False)),
        ((BROKEN,), False, None, False, ("pins-unknown", False)),
    ],
)
def test_demand_refusal_where_nobody_can_know_what_is_wanted(
    files: tuple[Problem, ...],
    asks: bool,
    scanned: float | None,
    same: bool,
    refusal: tuple[str, bool] | None,
) -> None:
    found = demand_refusal(
        files=files,
        asks_gitlab=asks,
        scanned=None if scanned is None else NOW - scanned,
        same_scope=same,
        now=NOW,
    )
    assert (found and (found[0].code, found[1])) == refusal


@pytest.mark.parametrize(("old", "refused"), [("a", True), ("c", False)])
def test_size_refusal_above_the_share_of_the_bytes(old: str, refused: bool) -> None:
    kept = {"a": image("k", "b", wanted=True), "c": image("k", "ab", wanted=True)}[old]
    one = image("1", old, 31)
    found = decided(replace(stock(one, kept), stored={**STORED, "c": Stored(1334)}), one, kept)
    share = found.freed / found.bytes_before
    assert (size_refusal(found) is not None) == refused == (share > 0.30)


# --- whatever lies there ---


names = st.sampled_from(sorted(STORED))
repositories = st.sampled_from(["r/1", "r/2"])
ages = st.sampled_from([0, 2, 29, 31, 60])


@st.composite
def sites(draw: st.DrawFn) -> tuple[Stock, list[Image], frozenset[Key]]:
    """A mirror with tags of prewarm and of others, and leftovers; some tags moved or deleted."""
    images: dict[tuple[str, str], Image] = {}
    tags: dict[Key, str] = {}
    pushed: dict[Key, float] = {}
    for _ in range(draw(st.integers(0, 5))):
        repository, digest, tag = draw(repositories), draw(names), draw(st.sampled_from("123"))
        used = draw(st.none() | ages)
        days = draw(ages)
        one = image(
            tag,
            digest,
            days if used is None else min(days, used),
            used=used,
            wanted=draw(st.booleans()),
            repository=repository,
        )
        images[repository, tag] = one
        tags[repository, tag] = digest
        pushed[repository, digest] = NOW - draw(ages) * DAY
    for repository, tag, digest in draw(
        st.lists(st.tuples(repositories, st.sampled_from("1234"), names), max_size=3)
    ):
        tags[repository, tag] = digest
    for repository, digest, days in draw(
        st.lists(st.tuples(repositories, names, ages), max_size=4)
    ):
        pushed[repository, digest] = NOW - days * DAY
    needed = draw(st.frozensets(st.tuples(repositories, names), max_size=2))
    unread = draw(st.sampled_from([{}, {}, {}, {"r/2": "damaged"}]))
    return Stock(tags, pushed, STORED, unread), list(images.values()), needed


def below(key: Key) -> set[Key]:
    repository, digest = key
    found = {key}
    for child in STORED[digest].children:
        found |= below((repository, child))
    return found


def size(manifests: Iterable[Key]) -> int:
    blobs: dict[str, int] = {}
    for _, digest in manifests:
        blobs |= {digest: STORED[digest].size, **STORED[digest].blobs}
    return sum(blobs.values())


@given(sites(), st.none() | st.integers(0, 8000))
def test_decide_never_takes_what_anything_that_stays_needs(
    site: tuple[Stock, list[Image], frozenset[Key]], max_size: int | None
) -> None:
    found, images, needed = site
    prune = decided(found, *images, needed=needed, max_size=max_size)
    deleted = [(removal.repository, d) for removal in prune.removals for d in removal.digests]
    taken = {one for removal in prune.removals for one in removal.images}

    assert len(set(deleted)) == len(deleted)
    assert not any(one.wanted for one in taken)
    assert not any(one.used is not None and NOW - one.used <= KEEP for one in taken)
    assert not any(repository in found.unread for repository, _ in deleted)
    left = {
        key: digest
        for key, digest in found.tags.items()
        if key not in {(one.repository, one.tag) for one in taken}
    }
    roots = {(repository, digest) for (repository, _), digest in left.items()} | needed
    staying = {key for root in roots for key in below(root)}
    assert staying.isdisjoint(deleted)
    # Only what prewarm pushed, or what an index of prewarm's stands on.
    own = {key for root in found.pushed for key in below(root)}
    assert own.issuperset(deleted)

    there = {(repository, digest) for (repository, _), digest in found.tags.items()}
    before = {key for root in there | set(found.pushed) | needed for key in below(root)}
    assert prune.bytes_before == size(before)
    assert prune.bytes_after == size(before - set(deleted))
    assert (prune.failure is not None) == (max_size is not None and prune.bytes_after > max_size)


@given(sites())
def test_decide_again_after_all_was_done_takes_nothing(
    site: tuple[Stock, list[Image], frozenset[Key]],
) -> None:
    found, images, needed = site
    prune = decided(found, *images, needed=needed)
    deleted = {(removal.repository, d) for removal in prune.removals for d in removal.digests}
    tags = {
        (repository, tag): digest
        for (repository, tag), digest in found.tags.items()
        if (repository, digest) not in deleted
    }
    pushed = {key: since for key, since in found.pushed.items() if key not in deleted}
    taken = {one for removal in prune.removals for one in removal.images}
    left = [one for one in images if one not in taken and one.image not in prune.gone]
    again = decided(replace(found, tags=tags, pushed=pushed), *left, needed=needed)
    assert (again.removals, again.gone) == ((), ())
