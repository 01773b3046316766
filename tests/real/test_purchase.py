"""Buying: what is charged, kept and released, with a real ledger and the stand-in for the Hub."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from prewarm.core.budget import Limit, Spend, Window
from prewarm.core.errors import RegistryError
from prewarm.core.manifest import Manifest, required_of
from prewarm.core.platforms import Platform, Wanted
from prewarm.core.records import Reservation
from prewarm.core.reference import parse
from prewarm.core.settings import Limits, Upstream
from prewarm.planning.demand import Want
from prewarm.planning.plan import Copy, Defer, Fail, Holding, Seen, Skip, Step, cost
from prewarm.registry import client as module
from prewarm.registry.client import Registry
from prewarm.state import clock
from prewarm.state.ledger import Ledger
from prewarm.sync import fetch
from prewarm.sync.fetch import EndedError, Purchasing
from prewarm.sync.inspect import UpstreamSite
from prewarm.sync.task import Image
from tests.sandbox import Fault, Quota, Sandbox
from tests.sandbox.hub import PULL_LIMIT
from tests.sandbox.server import Server

AMD, ARM, S390 = (Platform("linux", name) for name in ("amd64", "arm64", "s390x"))
THREE = ["linux/amd64", "linux/arm64", "linux/s390x"]
NEAR = "http://127.0.0.1:5000"
HOURS_6 = 6 * 3600


class Buyer:
    """The purchasing of one run, its ledger, and the Hub that it buys at."""

    def __init__(
        self,
        url: str,
        window: Window | None = None,
        *,
        limits: Limits | None = None,
        registry: type[Registry] = Registry,
        **options: Any,
    ) -> None:
        self.window = window or Window(100)
        self.ledger = Ledger.memory()
        self.registry = registry("docker.io", url, environ={}, **options)
        self.upstream = UpstreamSite(Upstream("docker.io", url), self.registry, "acme")
        self.stopped: Callable[[Image], Step | None] = lambda _: None
        self.purchasing = Purchasing(
            run="run",
            ledger=self.ledger,
            clock=clock.now,
            windows=lambda _: self.window,
            limits=limits or Limits(),
            held_up=lambda image: self.stopped(image),
        )

    def look(self, text: str, platforms: Wanted = (AMD,), at_most: int | None = None) -> Image:
        """Return an image that one mirror lacks, as it is known after a HEAD."""
        want = Want(parse(text), platforms, ("pin",), "images.yml:1")
        reference = want.reference
        head = self.upstream.head(reference.repository, reference.selector, clock.now)
        holding = Holding(NEAR, True, reference.mirror_repository)
        required = required_of(None, head.descriptor)
        seen = Seen(head.descriptor, None, required, holdings=(holding,))
        step = Copy(want, seen, cost(want, seen), "missing", "not there", at_most)
        return Image(step, None, required, holdings={NEAR: holding})

    def find(self, image: Image) -> None:
        for digest in image.due:
            if (known := self.ledger.manifest(digest)) is not None:
                image.manifests[digest] = known

    def buy(self, image: Image) -> Step | None:
        try:
            return self.purchasing.buy(image, self.upstream, self.find, lambda: None, lambda: None)
        except EndedError as early:
            return early.step

    def bought(self, text: str, platforms: Wanted = (AMD,)) -> Image:
        """Buy an image that must succeed."""
        image = self.look(text, platforms)
        assert self.buy(image) is None
        assert image.due == ()
        return image

    @property
    def spends(self) -> tuple[Spend, ...]:
        return self.ledger.spends("docker.io", "acme", clock.now(), HOURS_6)

    @property
    def charged(self) -> int:
        """Pulls of the steps that are settled; none may be in flight."""
        assert not any(spend.in_flight for spend in self.spends)
        return sum(spend.pulls for spend in self.spends)


@contextmanager
def buying(url: str, window: Window | None = None, **options: Any) -> Iterator[Buyer]:
    buyer = Buyer(url, window, **options)
    with buyer.ledger, buyer.registry:
        yield buyer


@pytest.fixture
def buyer(box: Sandbox) -> Iterator[Buyer]:
    with buying(box.hub.url) as made:
        yield made


def gets(box: Sandbox) -> list[str]:
    return [entry.reference for entry in box.hub.access.gets()]


def wait_for_gets(box: Sandbox, number: int) -> None:
    deadline = time.monotonic() + 10
    while len(box.hub.access.gets()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# What is charged


@pytest.mark.parametrize(
    ("platforms", "pulls"), [((AMD,), 1), ((AMD, S390), 2), ((AMD, ARM, S390), 3), ("all", 6)]
)
def test_buy_index_sends_one_get_more_than_it_charges(
    box: Sandbox, buyer: Buyer, platforms: Wanted, pulls: int
) -> None:
    pushed = box.push("library/app", "1", platforms=THREE, attestations=True)
    image = buyer.bought("app:1", platforms)
    assert (image.pulls, image.gets) == (pulls, pulls + 1)
    assert buyer.charged == pulls
    assert gets(box) == [pushed.digest, *image.required]
    assert all(image.manifests[digest].digest == digest for digest in image.required)


def test_buy_single_manifest_is_one_get_and_one_pull(box: Sandbox, buyer: Buyer) -> None:
    pushed = box.push("library/app", "1", single=True)
    image = buyer.bought("app:1")
    assert (image.pulls, image.gets, buyer.charged) == (1, 1, 1)
    assert image.content is not None
    assert image.content.digest == pushed.digest


def test_buy_children_that_are_remembered_are_not_fetched_again(box: Sandbox, buyer: Buyer) -> None:
    pushed = box.push("library/app", "1", platforms=THREE)
    buyer.bought("app:1", (AMD,))
    box.hub.access.clear()
    # As a run that died after it had lost the index alone would find it.
    image = buyer.bought("app:1", (AMD, ARM))
    assert gets(box) == [pushed.digest, pushed.child("linux/arm64").digest]
    assert image.pulls == 1


def test_buy_index_whose_children_are_remembered_is_still_one_pull(
    box: Sandbox, buyer: Buyer
) -> None:
    box.push("library/app", "1", platforms=THREE)
    buyer.bought("app:1")
    image = buyer.bought("app:1")
    assert (image.pulls, image.gets) == (1, 1)
    assert buyer.charged == 2


def test_buy_what_is_bought_is_remembered_before_the_step_ends(box: Sandbox, buyer: Buyer) -> None:
    box.push("library/app", "1", platforms=THREE)
    box.hub.faults.add(Fault("GET", "*/manifests/sha256:*", nth=3, status=418))
    image = buyer.look("app:1", (AMD, ARM, S390))
    with pytest.raises(RegistryError):
        buyer.buy(image)
    kept = [buyer.ledger.manifest(digest) is not None for digest in gets(box)]
    assert kept == [True, True, False]


def test_buy_image_without_the_platform_fails_and_charges_its_index(
    box: Sandbox, buyer: Buyer
) -> None:
    box.push("library/app", "1", platforms=["linux/arm64"])
    image = buyer.look("app:1")
    ended = buyer.buy(image)
    assert isinstance(ended, Fail)
    assert ended.code == "no-platform"
    assert (image.pulls, image.gets, buyer.charged) == (1, 1, 1)


def test_buy_image_of_more_children_than_allowed_is_skipped_after_its_index(
    box: Sandbox,
) -> None:
    box.push("library/app", "1", platforms=THREE)
    with buying(box.hub.url, limits=Limits(pulls_per_image=2)) as buyer:
        image = buyer.look("app:1", "all")
        ended = buyer.buy(image)
        assert isinstance(ended, Skip)
        assert ended.code == "pulls-per-image"
        assert (image.gets, buyer.charged) == (1, 1)


def test_buy_upper_bound_is_lowered_as_soon_as_the_index_is_read(
    box: Sandbox, buyer: Buyer
) -> None:
    box.push("library/app", "1", platforms=["linux/amd64"])
    image = buyer.look("app:1", (AMD, ARM, S390))
    box.hub.faults.add(Fault("GET", "*/manifests/sha256:*", nth=1, hang=0.3))
    box.hub.faults.add(Fault("GET", "*/manifests/sha256:*", nth=1, hang=0.3))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(buyer.buy, image)
        held = []
        for number in (1, 2):
            wait_for_gets(box, number)
            held.append(sum(spend.pulls for spend in buyer.spends if spend.in_flight))
        assert future.result() is None
    assert held == [3, 1]
    assert (image.pulls, image.gets, buyer.charged) == (1, 2, 1)


# What is kept and what is released


@pytest.mark.parametrize(("nth", "pulls", "sent"), [(1, 0, 1), (2, 1, 2), (3, 1, 3), (4, 2, 4)])
def test_buy_429_defers_and_releases_only_where_nothing_was_answered(
    box: Sandbox, buyer: Buyer, nth: int, pulls: int, sent: int
) -> None:
    box.push("library/app", "1", platforms=THREE)
    body = f'{{"errors":[{{"code":"TOOMANYREQUESTS","message":"{PULL_LIMIT}"}}]}}'.encode()
    box.hub.faults.add(Fault("GET", "*/manifests/*", nth=nth, count=None, status=429, body=body))
    image = buyer.look("app:1", (AMD, ARM, S390))
    ended = buyer.buy(image)
    assert isinstance(ended, Defer)
    assert (ended.code, ended.until) == ("upstream-quota", None)
    assert (image.pulls, image.gets, len(gets(box))) == (pulls, sent, sent)
    assert buyer.charged == pulls
    assert bool(buyer.spends) == bool(pulls)


def test_buy_after_a_429_sends_nothing_more(box: Sandbox, buyer: Buyer) -> None:
    box.push("library/app", "1")
    box.push("library/other", "1")
    body = PULL_LIMIT.encode()
    box.hub.faults.add(Fault("GET", "*/manifests/*", status=429, body=body))
    first, second = buyer.look("app:1"), buyer.look("other:1")
    assert isinstance(buyer.buy(first), Defer)
    ended = buyer.buy(second)
    assert isinstance(ended, Defer)
    assert ended.code == "upstream-quota"
    assert len(gets(box)) == 1
    assert (second.pulls, second.gets, buyer.charged) == (0, 0, 0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries that follow each other without a pause."""
    monkeypatch.setattr(fetch, "_PAUSE", (0.0, 0.0))
    monkeypatch.setattr(module, "_BACKOFF", (0.005, 0.02))


FAILING = [{"reset": True}, {"drop": True}, {"status": 500}, {"status": 502}, {"cut": 10}]


@pytest.mark.parametrize("fault", [*FAILING, {"hang": 2.0}])
@pytest.mark.parametrize(("nth", "pulls"), [(1, 1), (2, 1), (3, 2)])
def test_buy_get_that_may_have_been_counted_stays_charged(
    box: Sandbox, fault: dict[str, Any], nth: int, pulls: int
) -> None:
    box.push("library/app", "1", platforms=THREE)
    with buying(box.hub.url, Window(2, HOURS_6), read_timeout=0.25) as buyer:
        image = buyer.look("app:1", (AMD, ARM))
        box.hub.faults.add(Fault("GET", "*/manifests/*", nth=nth, **fault))
        with pytest.raises(RegistryError):
            # The window has no room for a second GET of what failed.
            buyer.buy(image)
        assert (image.pulls, image.gets, buyer.charged) == (pulls, nth, pulls)
    assert len(gets(box)) == nth


@pytest.mark.parametrize("fault", FAILING)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_buy_get_that_failed_is_sent_again_under_a_reservation_of_its_own(
    box: Sandbox, at_once: None, fault: dict[str, Any], nth: int
) -> None:
    box.push("library/app", "1", platforms=THREE)
    with buying(box.hub.url, Window(3, HOURS_6)) as buyer:
        image = buyer.look("app:1", (AMD, ARM))
        box.hub.faults.add(Fault("GET", "*/manifests/*", nth=nth, **fault))
        assert buyer.buy(image) is None
        assert (image.pulls, image.gets, buyer.charged) == (3, 4, 3)
    assert len(gets(box)) == 4


def test_buy_get_that_fails_again_and_again_is_charged_each_time(
    box: Sandbox, at_once: None
) -> None:
    box.push("library/app", "1", single=True)
    box.hub.faults.add(Fault("GET", "*/manifests/*", count=None, status=500))
    with buying(box.hub.url) as buyer:
        image = buyer.look("app:1")
        with pytest.raises(RegistryError):
            buyer.buy(image)
        assert (image.pulls, image.gets, buyer.charged) == (6, 6, 6)
    assert len(gets(box)) == 6


@pytest.mark.parametrize(("window", "sent"), [(3, 3), (1, 1)])
def test_buy_from_a_registry_that_fails_never_spends_more_than_the_window(
    box: Sandbox, at_once: None, window: int, sent: int
) -> None:
    for n in range(4):
        box.push(f"library/app{n}", "1", single=True)
    box.hub.faults.add(Fault("GET", "*/manifests/*", count=None, status=502))
    with buying(box.hub.url, Window(window, HOURS_6)) as buyer:
        for n in range(4):
            with suppress(RegistryError):
                buyer.buy(buyer.look(f"app{n}:1"))
        assert buyer.charged == sent
    assert len(gets(box)) == sent


@pytest.mark.parametrize("also", ["/none", "/v2/"])
@pytest.mark.parametrize("threads", [1, 4])
def test_buy_from_a_registry_that_fails_every_get_spends_few_pulls(
    box: Sandbox, at_once: None, threads: int, also: str
) -> None:
    """A registry that is down, or only fails its manifests, must not eat the budget."""
    for n in range(40):
        box.push(f"library/app{n}", "1", single=True)
    with buying(box.hub.url, Window(200, HOURS_6)) as buyer:
        images = [buyer.look(f"app{n}:1") for n in range(40)]
        for path in ("*/manifests/*", also):
            box.hub.faults.add(Fault("GET", path, count=None, status=503))

        def buy(image: Image) -> str:
            with pytest.raises(RegistryError) as caught:
                buyer.buy(image)
            return caught.value.code

        with ThreadPoolExecutor(threads) as pool:
            codes = list(pool.map(buy, images))
        assert codes[-1] == "unreachable"
        assert buyer.charged == len(gets(box)) <= 10 + 12 + threads


def test_buy_get_that_only_was_refused_is_unauthorized(box: Sandbox) -> None:
    """The HEAD of the same manifest was answered: it is neither missing nor private."""
    box.push("library/app", "1", single=True)
    box.hub.faults.add(Fault("GET", "*/manifests/*", count=None, status=401))
    with buying(box.hub.url) as buyer:
        image = buyer.look("app:1")
        with pytest.raises(RegistryError) as caught:
            buyer.buy(image)
    assert caught.value.code == "unauthorized"
    assert "401 to GET" in caught.value.text


def test_buy_get_whose_connection_is_refused_for_a_moment_is_sent_once(box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    with buying(box.hub.url) as buyer:
        image = buyer.look("app:1")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        closed = Registry("docker.io", f"http://127.0.0.1:{port}", environ={})
        buyer.upstream.registry = closed
        with closed, ThreadPoolExecutor(1) as pool:
            future = pool.submit(buyer.buy, image)
            time.sleep(0.7)
            with Server(box.hub, port=port):
                assert future.result() is None
        assert (image.pulls, image.gets, buyer.charged) == (1, 1, 1)
    assert len(gets(box)) == 1


def test_buy_get_redirected_to_a_dead_host_stays_charged(box: Sandbox, at_once: None) -> None:
    """The registry has answered, and may have counted it."""
    box.push("library/app", "1", single=True)
    gone = {"Location": "http://127.0.0.1:9/v2/x"}
    box.hub.faults.add(Fault("GET", "*/manifests/*", count=None, status=307, headers=gone))
    with buying(box.hub.url) as buyer:
        image = buyer.look("app:1")
        with pytest.raises(RegistryError):
            buyer.buy(image)
        assert (image.pulls, image.gets, buyer.charged) == (1, 1, 1)
    assert len(gets(box)) == 1


def test_buy_refused_connection_releases_what_was_reserved(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", (0.005, 0.02))
    box.push("library/app", "1")
    with buying(box.hub.url) as buyer:
        image = buyer.look("app:1")
        with socket.create_server(("127.0.0.1", 0)) as free:
            closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Registry("docker.io", closed, environ={}) as gone:
            buyer.upstream.registry = gone
            with pytest.raises(RegistryError) as caught:
                buyer.buy(image)
        assert caught.value.code == "unreachable"
        assert (image.pulls, image.gets, buyer.spends) == (0, 0, ())


class Buggy(Registry):
    """A client with a bug after its request was sent."""

    def manifest(self, repository: str, selector: str) -> tuple[Manifest, Limit | None]:
        super().manifest(repository, selector)
        raise ZeroDivisionError


def test_buy_bug_after_a_get_keeps_it_charged(box: Sandbox) -> None:
    box.push("library/app", "1")
    with buying(box.hub.url, registry=Buggy) as buyer:
        image = buyer.look("app:1")
        with pytest.raises(ZeroDivisionError):
            buyer.buy(image)
        assert (image.pulls, image.gets, buyer.charged) == (1, 1, 1)


# Budgets


def test_buy_more_than_the_window_has_is_deferred_until_it_frees_and_sends_nothing(
    box: Sandbox,
) -> None:
    box.push("library/app", "1", platforms=THREE)
    box.push("library/other", "1")
    with buying(box.hub.url, Window(3, HOURS_6, reserve=1)) as buyer:
        buyer.bought("other:1")
        before = len(gets(box))
        ended = buyer.buy(buyer.look("app:1", (AMD, ARM)))
        assert isinstance(ended, Defer)
        assert ended.code == "budget"
        assert ended.until == pytest.approx(clock.now().wall + HOURS_6, abs=20)
        assert len(gets(box)) == before
        assert buyer.charged == 1


def test_buy_image_larger_than_a_window_is_bought_in_parts(box: Sandbox) -> None:
    pushed = box.push("library/app", "1", platforms=THREE)
    with buying(box.hub.url, Window(2, HOURS_6)) as buyer:
        first = buyer.look("app:1", (AMD, ARM, S390), at_most=2)
        ended = buyer.buy(first)
        assert isinstance(ended, Defer)
        assert ended.code == "budget"
        assert ended.until == pytest.approx(clock.now().wall + HOURS_6, abs=20)
        assert (first.pulls, first.gets, len(first.due)) == (2, 3, 1)
        box.hub.access.clear()
        # In the next window, the index being remembered, one is left to buy.
        buyer.window = Window(3, HOURS_6)
        rest = buyer.look("app:1", (AMD, ARM, S390))
        index = buyer.ledger.manifest(pushed.digest)
        assert index is not None
        rest.use(index)
        buyer.find(rest)
        assert buyer.buy(rest) is None
        assert gets(box) == [pushed.children[2].digest]
        assert (rest.pulls, buyer.charged) == (1, 3)


def test_buy_index_of_more_children_than_fit_waits_whole_after_its_index(box: Sandbox) -> None:
    box.push("library/app", "1", platforms=THREE)
    box.push("library/other", "1")
    with buying(box.hub.url, Window(3, HOURS_6)) as buyer:
        buyer.bought("other:1")
        box.hub.access.clear()
        image = buyer.look("app:1", "all")
        ended = buyer.buy(image)
        assert isinstance(ended, Defer)
        assert (ended.code, ended.cost and ended.cost.pulls) == ("budget", 3)
        assert len(gets(box)) == 1
        assert (image.pulls, buyer.charged) == (1, 2)


def test_buy_index_of_more_children_than_its_project_has_left_waits_after_its_index(
    box: Sandbox,
) -> None:
    box.push("library/app", "1", platforms=THREE)
    box.push("library/other", "1")
    with buying(box.hub.url, Window(99, HOURS_6), limits=Limits(pulls_per_project=3)) as buyer:

        def look(text: str) -> Image:
            image = buyer.look(text, "all")
            want = replace(image.want, sources=("history",), payers=("team/a",))
            image.step = replace(image.step, want=want)
            return image

        assert buyer.buy(look("other:1")) is None
        box.hub.access.clear()
        ended = buyer.buy(look("app:1"))
        assert isinstance(ended, Defer)
        assert ended.code == "project-share"
        assert ended.until == pytest.approx(clock.now().wall + HOURS_6, abs=20)
        assert (len(gets(box)), buyer.charged) == (1, 2)
        # What is everybody's goes on.
        assert buyer.buy(buyer.look("app:1", "all")) is None


def test_buy_index_of_more_children_than_upstream_has_left_waits_for_no_time() -> None:
    with Sandbox(quota=Quota(10, count="gets")) as box, buying(box.hub.url) as buyer:
        box.push("library/app", "1", platforms=THREE, attestations=True)
        box.hub.spend(5)
        image = buyer.look("app:1", "all")
        ended = buyer.buy(image)
        assert isinstance(ended, Defer)
        assert (ended.code, ended.until) == ("upstream-quota", None)
        assert (len(gets(box)), image.pulls, buyer.charged) == (1, 1, 1)


def test_buy_image_whose_pulls_do_not_count_is_not_held_by_the_reported_quota() -> None:
    """The answers about a sponsored image carry no report: it is not limited."""
    with (
        Sandbox(quota=Quota(4), unmetered=["sponsor/*"]) as box,
        buying(box.hub.url) as buyer,
    ):
        box.push("library/app", "1")
        box.push("sponsor/app", "1")
        metered, free = buyer.look("app:1"), buyer.look("sponsor/app:1")
        assert buyer.buy(metered) is None
        box.hub.spend(3)
        asked = len(box.hub.access.heads())
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(buyer.buy, free)
            try:
                assert future.result(timeout=20) is None
            finally:
                buyer.stopped = lambda image: Defer(image.want, image.seen, None, "stop", "")
        assert len(box.hub.access.heads()) == asked + 1
        assert free.gets == 2


@pytest.mark.parametrize(("quota", "reserve"), [(10, 3), (9, 0), (2, 2)])
def test_buy_by_many_threads_never_meets_a_429_and_leaves_the_reserve(
    quota: int, reserve: int
) -> None:
    with (
        Sandbox(quota=Quota(quota, count="gets"), latency=0.01) as box,
        buying(box.hub.url, Window(None, HOURS_6, reserve)) as buyer,
    ):
        for n in range(8):
            box.push(f"library/app{n}", "1")
        images = [buyer.look(f"app{n}:1") for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            ended = list(pool.map(buyer.buy, images))
        assert 429 not in box.hub.access.statuses()
        fits = (quota - reserve) // 2
        assert sum(step is None for step in ended) == fits
        assert box.hub.remaining() == quota - 2 * fits
        codes = {step.code for step in ended if step is not None}
        assert codes == ({"upstream-quota"} if fits < 8 else set())


def test_buy_by_many_threads_keeps_to_our_own_budget(box: Sandbox) -> None:
    for n in range(8):
        box.push(f"library/app{n}", "1")
    with buying(box.hub.url, Window(5, HOURS_6, reserve=2)) as buyer:
        images = [buyer.look(f"app{n}:1") for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            ended = list(pool.map(buyer.buy, images))
        assert sum(step is None for step in ended) == buyer.charged == 3
        assert len(gets(box)) == 6


def test_buy_that_waits_for_others_ends_when_the_run_does() -> None:
    with (
        Sandbox(quota=Quota(4, count="gets")) as box,
        buying(box.hub.url, Window(None)) as buyer,
    ):
        box.push("library/app", "1")
        image = buyer.look("app:1")
        # Another step of the account is in flight and does not end.
        held = buyer.ledger.reserve(
            "run", "docker.io", "acme", "library/x", "sha256:x", 1, 4, Window(None), clock.now()
        )
        assert isinstance(held, Reservation)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(buyer.buy, image)
            time.sleep(0.1)
            assert not future.done()
            buyer.stopped = lambda image: Defer(image.want, image.seen, None, "interrupted", "")
            ended = future.result(timeout=5)
        assert ended is not None
        assert ended.code == "interrupted"
        assert gets(box) == []
