"""Mirrors that hang: one image's path costs that image, the mirror itself a bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from prewarm.core.platforms import Platform
from prewarm.core.reference import parse
from prewarm.core.settings import Mirror, Upstream
from prewarm.planning.demand import Want
from prewarm.registry.client import Registry
from prewarm.state import clock
from prewarm.state.ledger import Ledger
from prewarm.sync.inspect import MirrorSite, Observer, UpstreamSite
from tests.sandbox import Fault, Sandbox

AMD = Platform("linux", "amd64")


@contextmanager
def observing(box: Sandbox) -> Iterator[tuple[Observer, MirrorSite]]:
    """An observer that is not patient with the mirror."""
    url = box.taps[0].url
    with (
        Registry("docker.io", box.hub.url, environ={}) as hub,
        Registry(url, url, role="mirror", environ={}, read_timeout=0.3, retry_for=0.5) as client,
        Ledger.memory() as ledger,
    ):
        upstream = UpstreamSite(Upstream("docker.io", box.hub.url), hub, None)
        site = MirrorSite(Mirror(url, url), client)
        yield Observer({"docker.io": upstream}, [site], ledger, clock.now), site


def seen(observer: Observer, amount: int, threads: int = 4) -> list[str | None]:
    """Look at so many images at once; return the failure of each at the mirror."""
    wants = [Want(parse(f"app{n}:1"), (AMD,), ("pin",), "") for n in range(amount)]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(observer.see, wants))
    return [one.holdings[0].failure.code if one.holdings[0].failure else None for one in found]


def push(box: Sandbox, amount: int) -> None:
    for number in range(amount):
        box.push(f"library/app{number}", "1", single=True)


@pytest.mark.parametrize("fault", [{"reset": True}, {"hang": 30.0}], ids=["resets", "hangs"])
@pytest.mark.parametrize("broken", [1, 4])
def test_images_whose_paths_break_do_not_end_a_mirror(
    box: Sandbox, fault: dict[str, float], broken: int
) -> None:
    push(box, 8)
    for number in range(broken):
        box.taps[0].faults.add(Fault("HEAD", f"*/app{number}/*", count=None, **fault))  # type: ignore[arg-type]
    with observing(box) as (observer, site):
        found = seen(observer, 8)
        assert site.failure is None
    assert all(code in {"mirror-timeout", "mirror-reset"} for code in found[:broken])
    assert found[broken:] == [None] * (8 - broken)


def test_mirror_that_hangs_is_left_alone_after_few_images(box: Sandbox) -> None:
    push(box, 40)
    box.taps[0].faults.add(Fault("*", "*", count=None, hang=60.0))
    began = time.monotonic()
    with observing(box) as (observer, site):
        found = seen(observer, 40)
        assert site.failure is not None
        assert site.failure.code == "mirror-timeout"
    assert set(found) == {"mirror-timeout"}
    # Far less than a wait for each image.
    assert time.monotonic() - began < 20
