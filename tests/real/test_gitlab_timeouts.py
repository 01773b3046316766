"""A GitLab that is silent, slow or says "later" without end is waited for for a bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from prewarm.core.settings import Gitlab
from prewarm.discovery.gitlab_client import Client, GitlabRefusal, Stopped, TimeBounds
from tests.real import dripping
from tests.real.dripping import Dripping, at_once

Drip = Callable[[], Iterator[bytes]]


def client(url: str, stop: threading.Event | None = None, **bounds: float) -> Client:
    allowed = TimeBounds(bounds.get("total", 60.0), bounds.get("silence", 60.0))
    return Client(Gitlab(url), None, {}, stop or threading.Event(), timeout=0.5, bounds=allowed)


@pytest.mark.parametrize("drip", dripping.HEADS + dripping.BODIES)
def test_gitlab_that_answers_byte_by_byte_is_given_up(drip: Drip) -> None:
    with Dripping(lambda _: drip()) as site, client(site.url, total=1.0) as own:
        with pytest.raises(GitlabRefusal) as caught:
            own.get("/version")
        with pytest.raises(GitlabRefusal) as after:
            own.get("/version")
        assert not site.ran_out
        assert own.sent == 1
    assert caught.value.code in ("gitlab-unreachable", "gitlab-slow")
    assert (after.value.code, after.value.whole) == ("gitlab-slow", True)


@pytest.mark.parametrize("retry_after", ["1", "0", "30", None])
def test_gitlab_that_answers_429_for_ever_is_given_up(retry_after: str | None) -> None:
    answer = at_once("429 Too Many Requests")
    if retry_after is not None:
        answer = at_once("429 Too Many Requests", retry_after=retry_after)
    with (
        Dripping(lambda _: answer) as site,
        client(site.url, silence=2.5) as own,
    ):
        began = time.monotonic()
        with pytest.raises(GitlabRefusal) as caught:
            own.get("/version")
        assert time.monotonic() - began < 20
    assert (caught.value.code, caught.value.whole) == ("gitlab-rate-limit", True)


def test_gitlab_that_accepts_and_never_answers_is_asked_twice_then_down() -> None:
    def silent() -> Iterator[bytes]:
        yield b""
        time.sleep(1.5)
        yield b""

    with Dripping(lambda _: silent()) as site, client(site.url, silence=0.8) as own:
        with pytest.raises(GitlabRefusal) as caught:
            own.get("/version")
        assert own.sent == 2
        with pytest.raises(GitlabRefusal) as after:
            own.get("/version")
        assert own.sent == 2
    assert (caught.value.code, after.value.whole) == ("gitlab-unreachable", True)


@pytest.mark.parametrize("drip", [dripping.headers, dripping.body])
def test_stop_is_heard_while_gitlab_answers_byte_by_byte(drip: Drip) -> None:
    stop = threading.Event()
    with Dripping(lambda _: drip()) as site, client(site.url, stop) as own:
        threading.Timer(0.5, stop.set).start()
        with pytest.raises((Stopped, GitlabRefusal)):
            own.get("/version")
        with pytest.raises(Stopped):
            own.get("/version")
        assert not site.ran_out
