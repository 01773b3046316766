"""Explaining an image: which open names may mean it, who uses it, and the words for people."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.errors import UsageError
from prewarm.core.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    digest_of,
    index_for,
)
from prewarm.core.platforms import ALL, Platform, Wanted
from prewarm.core.records import ImageUser
from prewarm.core.reference import parse
from prewarm.core.settings import Mirror, Settings
from prewarm.planning.demand import Want
from prewarm.planning.plan import Holding, Seen
from prewarm.reports.explanation import headline, lines
from prewarm.sync.explain import asked, by_project, may_mean, platform_states

MIRROR = "http://127.0.0.1:5000"
SECOND = "http://127.0.0.1:5001"
AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")
S390X = Platform("linux", "s390x")


@pytest.mark.parametrize(
    ("text", "image", "may"),
    [
        ("golang:$GO_VERSION", "golang:1.22", True),
        ("golang:${GO_VERSION}-alpine", "golang:1.22-alpine", True),
        ("golang:${GO_VERSION}-alpine", "golang:1.22", False),
        ("golang:%GO_VERSION%", "golang:1.22", True),
        ("golang:$[[ inputs.go ]]", "golang:1.22", True),
        ("docker.io/library/golang:$V", "golang:1.22", True),
        ("library/golang:$V", "golang:1.22", True),
        ("$REGISTRY/golang:1.22", "quay.io/team/golang:1.22", True),
        ("$REGISTRY/golang:1.22", "quay.io/team/golang:1.23", False),
        ("$REGISTRY/golang", "quay.io/team/golang:latest", True),
        ("golang:1.$MINOR.$PATCH", "golang:1.22.3", True),
        ("golang:1.$MINOR.$PATCH", "golang:1.22", False),
        # Nothing is known of the repository, so it may be any.
        ("$IMAGE", "golang:1.22", False),
        ("$IMAGE:1.22", "golang:1.22", False),
        ("$REGISTRY/$IMAGE:latest", "golang:latest", False),
        # Nothing is open.
        ("golang:1.22", "golang:1.22", False),
        ("", "golang:1.22", False),
        # The parts may not overlap.
        ("golang:1.2${V}2.2", "golang:1.2.2", False),
        ("$A" * 5000 + "golangx:$B", "golang:1.22", False),
        ("golang:" + "${" * 4000 + "$[[" * 4000, "golang:1.22", False),
    ],
)
def test_may_mean_compares_all_that_is_known_of_a_name(text: str, image: str, may: bool) -> None:
    assert may_mean(text, parse(image)) is may


@given(st.integers(0, 11), st.integers(0, 11))
def test_may_mean_any_part_of_a_name_left_open_still_means_it(start: int, length: int) -> None:
    name = "golang:1.22-alpine"
    cut = len("golang:") + start
    text = name[:cut] + "${V}" + name[cut + length :]
    assert may_mean(text, parse(name))


def user(project: str, job: str, jobs: int, **more: Any) -> ImageUser:
    fields: dict[str, Any] = {"via": None, "pull_failures": 0, "last_used": None}
    return ImageUser(project, job, jobs=jobs, **(fields | more))


def test_by_project_sums_jobs_and_folds_those_of_a_matrix() -> None:
    told = by_project(
        [
            user("team/b", "test: [3.12]", 2, last_used=100.0),
            user("team/b", "test: [3.13]", 2, last_used=200.0, pull_failures=1),
            user("team/b", "build 1/2", 3, last_used=50.0),
            user("team/a", "", 9),
            user("team/c", "named", 0),
            user("team/a", "proxied", 1, via="dependency-proxy"),
        ]
    )
    assert [(one["project"], one["jobs"], one["job_names"], one["via"]) for one in told] == [
        ("team/a", 9, [], None),
        ("team/b", 7, ["test", "build"], None),
        ("team/a", 1, ["proxied"], "dependency-proxy"),
        ("team/c", 0, ["named"], None),
    ]
    assert (told[1]["last_used"], told[1]["pull_failures"]) == ("1970-01-01T00:03:20Z", 1)
    assert told[3]["last_used"] is None


def test_by_project_names_ten_jobs_at_most() -> None:
    (told,) = by_project([user("team/a", f"job-{n}", n) for n in range(30)])
    assert told["job_names"] == [f"job-{n}" for n in range(29, 19, -1)]


# --- platforms ---


def index_of(*platforms: Platform) -> Manifest:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": digest_of(str(one).encode()),
            "size": 1,
            "platform": {"os": one.os, "architecture": one.architecture},
        }
        for one in platforms
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return Manifest(OCI_INDEX, json.dumps(document).encode())


def child(platform: Platform) -> str:
    return digest_of(str(platform).encode())


INDEX = index_of(AMD, ARM)
UNREAD = Seen(Descriptor(OCI_INDEX, "sha256:x", 1))
READ = replace(UNREAD, content=INDEX)
HELD = Holding(MIRROR, target=True, repository="app")
WANTED = (AMD, ARM, S390X)


@pytest.mark.parametrize(
    ("wanted", "seen", "holding", "mirrored", "told"),
    [
        (WANTED, UNREAD, HELD, None, ["missing", "missing", "missing"]),
        (WANTED, READ, HELD, None, ["missing", "missing", "not-upstream"]),
        (
            WANTED,
            READ,
            replace(HELD, present=frozenset({child(AMD)})),
            None,
            ["present", "missing", "not-upstream"],
        ),
        (
            WANTED,
            UNREAD,
            replace(HELD, state="fresh"),
            index_for(INDEX, (AMD,)),
            ["present", "not-upstream", "not-upstream"],
        ),
        (
            WANTED,
            UNREAD,
            replace(HELD, state="stale"),
            index_of(AMD),
            ["stale", "missing", "missing"],
        ),
        (
            WANTED,
            READ,
            replace(HELD, state="stale", present=frozenset({child(ARM)})),
            index_of(AMD),
            ["stale", "present", "not-upstream"],
        ),
        (ALL, READ, replace(HELD, state="fresh"), INDEX, ["present", "present"]),
        ((AMD,), Seen(Descriptor(OCI_MANIFEST, "sha256:x", 1)), HELD, None, []),
    ],
)
def test_platform_states_tell_what_the_mirror_holds(
    wanted: Wanted, seen: Seen, holding: Holding, mirrored: Manifest | None, told: list[str]
) -> None:
    want = Want(parse("app:1"), wanted, ("pin",), "images.yml:3")
    assert list(platform_states(want, seen, holding, mirrored).values()) == told


# --- names ---


def test_asked_name_on_a_mirror_is_the_image_that_it_mirrors() -> None:
    settings = Settings(None, mirrors=(Mirror(MIRROR, "https://mirror.example.org"),))
    for text, image in (
        ("127.0.0.1:5000/library/golang:1.22", "docker.io/library/golang:1.22"),
        ("https://mirror.example.org/quay.io/team/app:1", "quay.io/team/app:1"),
        ("GHCR.IO/team/app:1", "ghcr.io/team/app:1"),
    ):
        assert str(asked(text, settings)) == image


def test_asked_url_with_a_password_is_refused_without_it() -> None:
    with pytest.raises(UsageError) as raised:
        asked("https://user:sesame@example.org/Team/app", Settings(None))
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "http://", "golang:$V", "a b", "quay_1/app", "a:1\x1b[2J"])
def test_asked_text_that_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        asked(text, Settings(None))
    assert raised.value.cure


# --- words ---


def mirror(state: str = "fresh", **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"last_state": None, "last_seen": None, "error": None}
    return {"state": state, "digest": None, "platforms": {}, **fields, **more}


def document(*states: str, **more: Any) -> dict[str, Any]:
    """Return what explain tells of an image that nobody wants, on so many mirrors."""
    mirrors = {f"{MIRROR}{number or ''}": mirror(state) for number, state in enumerate(states)}
    told: dict[str, Any] = {
        "image": "docker.io/library/golang:1.22",
        "warm": all(state == "fresh" for state in states),
        "asked": True,
        "mirrors": mirrors,
        "upstream": {"digest": None, "checked": None, "changed": None, "moves": 0, "error": None},
        "pins": [],
        "unresolved": [],
        "unresolved_names": 0,
    }
    rest = ("hidden", "uses", "rank", "last_copy", "next", "command", "obstacle")
    return told | dict.fromkeys(rest) | more


SKIP = {"code": "skip", "text": "skip: * matches it", "cure": "pin it"}
LACKS = {
    "code": "not-found",
    "text": "docker.io/library/golang:1.22: does not exist",
    "cure": "check the name",
    "transient": False,
}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (document("fresh"), "is warm on the mirror"),
        (document("fresh", "fresh"), "is warm on 2 of 2 mirrors"),
        (
            document("fresh", "missing"),
            "is warm only on 1 of 2 mirrors: missing on 1 (jobs pull it from docker.io)",
        ),
        (document("missing"), "is not warm: missing on the mirror (jobs pull it from docker.io)"),
        (document("stale"), "is not warm: stale on the mirror (jobs get an older one)"),
        (document("unknown"), "is not warm: the mirror did not answer"),
        (document("fresh", "unknown"), "is warm only on 1 of 2 mirrors: 1 did not answer"),
        (document("missing", hidden=SKIP), "is not mirrored: skip: * matches it"),
        (document("fresh", hidden=SKIP), "is warm on the mirror"),
        (document(warm=False), "is not warm"),
        (
            document("missing", asked=False),
            "is not warm: missing on the mirror (jobs pull it from docker.io); "
            "it was in no sync yet",
        ),
        (
            document("missing", upstream={**document()["upstream"], "error": LACKS}),
            "cannot be copied: does not exist",
        ),
    ],
)
def test_headline_says_the_answer(told: dict[str, Any], line: str) -> None:
    assert headline(told) == f"golang:1.22 {line}"


@pytest.mark.parametrize(
    ("told", "last"),
    [
        (document("missing", command="prewarm sync x"), "to warm it now: prewarm sync x"),
        (
            document("missing", obstacle=LACKS),
            "nothing warms it now: does not exist; check the name",
        ),
        (document("missing", hidden=SKIP), "to have it mirrored: pin it"),
        (document("fresh"), "  next       nothing: nobody wants it"),
    ],
)
def test_lines_end_with_what_makes_it_warm(told: dict[str, Any], last: str) -> None:
    assert list(lines(told, verbose=False))[-1] == last


def test_lines_cut_what_an_author_of_ci_wrote_at_length() -> None:
    open_name = {"project": "team/a", "job": "j" * 9000, "text": "golang:$V", "why": "", "jobs": 1}
    told = document("missing", unresolved=[open_name], unresolved_names=4)
    found = list(lines(told, verbose=False))
    assert max(map(len, found)) < 300
    assert any("3 other names" in line for line in found)


def test_lines_of_an_image_that_jobs_take_from_gitlab_say_so() -> None:
    uses: dict[str, Any] = {
        "jobs": 1,
        "projects": 1,
        "last_used": None,
        "pull_failures": 0,
        "via": "dependency-proxy",
        "by_project": [],
    }
    text = "\n".join(lines(document("missing", uses=uses), verbose=False))
    assert "through the dependency proxy" in text
    assert "nobody wants it" not in text


def test_lines_of_a_warm_image_tell_that_it_will_not_be_kept() -> None:
    told = list(lines(document("fresh", hidden=SKIP), verbose=False))
    assert "  not kept   skip: * matches it; pin it" in told


def test_lines_tell_the_top_projects_and_how_many_more() -> None:
    projects = [
        {
            "project": f"team/p{number}",
            "jobs": 20 - number,
            "last_used": None,
            "pull_failures": 0,
            "job_names": ["a", "b", "c", "d"],
            "via": None,
        }
        for number in range(9)
    ]
    uses = {
        "jobs": 144,
        "projects": 12,
        "last_used": "2026-11-24T12:00:00Z",
        "pull_failures": 2,
        "via": None,
        "by_project": projects,
    }
    text = "\n".join(lines(document("fresh", uses=uses), verbose=False))
    assert "144 jobs of 12 projects, last Tue 24 Nov 12:00 UTC, 2 failed to pull it" in text
    assert [f"team/p{number}" in text for number in range(9)] == [True] * 5 + [False] * 4
    assert "a, b, c, …" in text
    assert "7 other projects" in text
