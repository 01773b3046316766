"""Answers of GitLab that are larger, or longer on their way, than any of a real one."""

from __future__ import annotations

import gzip
import json
import resource
import threading
import zlib

import pytest

from prewarm.core.settings import Gitlab
from prewarm.discovery import gitlab_client
from prewarm.discovery.gitlab_client import Client, GitlabRefusal
from tests.real.scripted import Scripted, reply
from tests.sandbox.wire import Request, Response


def client(url: str) -> Client:
    return Client(Gitlab(url), None, {}, threading.Event(), timeout=10)


def bomb(size: int) -> bytes:
    """Return so many bytes of JSON, compressed a thousand times."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b'["')]
    parts += [packer.compress(b"x" * (1 << 20)) for _ in range(size >> 20)]
    return b"".join((*parts, packer.compress(b'"]'), packer.flush()))


BOMB = bomb(600 << 20)


def bombs(_: Request) -> Response:
    return reply(200, BOMB, content_encoding="gzip", content_type="application/json")


def test_gzip_bomb_is_given_up_before_it_fills_the_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Scripted(bombs) as site, client(site.url) as gitlab:
        for ask in (
            lambda: gitlab.get("/projects/1/ci/lint"),
            lambda: gitlab.post("/projects/1/ci/lint", {"content": "x"}),
            lambda: next(gitlab.pages("/projects")),
        ):
            with pytest.raises(GitlabRefusal, match=r"larger than 16\.0 MiB") as caught:
                ask()
            assert caught.value.code == "gitlab-answer"
        assert len(site.requests) == 3  # it is not asked again
        assert gitlab.head("/projects/1/jobs/1/trace", 1000) == b'["' + b"x" * 998
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, f"{grown >> 10} MiB"


def test_gzip_bomb_in_a_redirect_is_given_up() -> None:
    def answer(request: Request) -> Response:
        if request.path.endswith("/there"):
            return reply(200, "[]")
        return reply(302, BOMB, content_encoding="gzip", location="/there")

    with Scripted(answer) as site, client(site.url) as gitlab:
        with pytest.raises(GitlabRefusal, match="larger than"):
            gitlab.get("/projects")
        with pytest.raises(GitlabRefusal, match="larger than"):
            gitlab.head("/projects/1/jobs/1/trace", 1000)


def test_error_of_any_size_is_bounded() -> None:
    with (
        Scripted(lambda _: reply(400, BOMB, content_encoding="gzip")) as site,
        client(site.url) as gitlab,
        pytest.raises(GitlabRefusal, match="larger than"),
    ):
        gitlab.get("/projects")


def test_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitlab_client, "ANSWER_TIME", 0.0)
    with (
        Scripted(lambda _: reply(200, json.dumps(["x" * 100_000]))) as site,
        client(site.url) as gitlab,
        pytest.raises(GitlabRefusal, match="to send an answer"),
    ):
        gitlab.get("/projects")


def test_compressed_answers_are_read() -> None:
    body = gzip.compress(json.dumps({"merged_yaml": "a: 1\n" * 100_000}).encode())
    with (
        Scripted(lambda _: reply(200, body, content_encoding="gzip")) as site,
        client(site.url) as gitlab,
    ):
        assert len(gitlab.get("/projects/1/ci/lint")["merged_yaml"]) == 500_000
        assert len(site.requests) == 1
