"""The report: JSON as the contract has it, problems each once, and one line for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.budget import Limit, Spend, Window
from prewarm.core.errors import Failure, Problem
from prewarm.core.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from prewarm.core.platforms import ALL, Platform, Wanted
from prewarm.core.reference import parse
from prewarm.core.text import iso, when
from prewarm.planning.demand import Want
from prewarm.planning.outcome import Outcome
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
    Step,
    Tag,
)
from prewarm.reports.report import (
    Report,
    budget_json,
    image_json,
    planned,
    platforms_of,
    problems_of,
    sentence,
    summary,
    to_json,
)

NOW = 1_800_000_000.0
AT = "2027-01-15T08:00:00Z"
HOURS_6 = 6 * 3600
AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")
NEAR, FAR = "http://127.0.0.1:5000", "https://far.example.org"
LONE = Manifest(OCI_MANIFEST, b'{"schemaVersion": 2}')
FULL = Failure("mirror-full", f"{NEAR}: has no space left", "add disk")
LOST = Failure("verify", f"{NEAR}: app is not whole", "run again")


def want(text: str = "golang:1", platforms: Wanted = (AMD,), *sources: str) -> Want:
    return Want(parse(text), platforms, sources or ("pin",), "images.yml:3")


def seen(*holdings: Holding) -> Seen:
    return Seen(LONE.descriptor, LONE, (LONE.digest,), {LONE.digest: 1000}, holdings)


def held(url: str = NEAR, **fields: Any) -> Holding:
    return Holding(url, **{"target": True, "repository": "library/golang", **fields})


FRESH = held(digest=LONE.digest, state="fresh", present=frozenset([LONE.digest]))


def outcome(step: Step, *holdings: Holding, **fields: Any) -> Outcome:
    return Outcome(step, LONE, holdings, **fields)


def report(*outcomes: Outcome, **fields: Any) -> Report:
    return Report(
        **{
            "run": "r1",
            "dry_run": False,
            "started": NOW,
            "finished": NOW + 2.5,
            "quotas": {},
            "outcomes": outcomes,
            "problems": problems_of(outcomes),
            **fields,
        }
    )


COPIED = outcome(
    Copy(want(), seen(), Cost(1, 2), "missing", "not on the mirror"),
    FRESH,
    pulls=1,
    gets=2,
    moved=123,
    sizes={LONE.digest: 1000},
    seconds=1.23456,
)
DEFERRED = outcome(Defer(want("b:1"), seen(), Cost(1, 1), "budget", "later", NOW + 60), held())
FAILURE = Failure("not-found", "b:1 does not exist", "check the name")


# JSON


def test_to_json_is_the_document_of_the_contract() -> None:
    quota = Quota("acme", Window(200, HOURS_6, 20), "written", (Spend(60, 37),))
    problem = Problem("warning", "code", "where", "what", "how")
    told = report(COPIED, quotas={"docker.io": quota}, problems=(problem,))
    assert json.loads(json.dumps(to_json(told))) == {
        "version": 1,
        "run": "r1",
        "dry_run": False,
        "started": AT,
        "finished": "2027-01-15T08:00:02Z",
        "budgets": {
            "docker.io": {
                "account": "acme",
                "pulls": 200,
                "window_seconds": HOURS_6,
                "reserve": 20,
                "used": 37,
                "remaining": 143,
                "reported_limit": None,
                "reported_remaining": None,
                "source": "written",
                "next_free": "2027-01-15T13:59:02Z",
            }
        },
        "images": [
            {
                "image": "docker.io/library/golang:1",
                "sources": ["pin"],
                "jobs": 0,
                "projects": 0,
                "last_used": None,
                "action": "copy",
                "code": "missing",
                "reason": "not on the mirror; rank 1: pinned at images.yml:3",
                "digest": LONE.digest,
                "platforms": ["linux/amd64"],
                "pulls": 1,
                "gets": 2,
                "bytes": 123,
                "seconds": 1.235,
                "until": None,
                "mirrors": {
                    NEAR: {
                        "name": "library/golang:1",
                        "digest": LONE.digest,
                        "state": "fresh",
                        "bytes": 1000,
                        "error": None,
                    }
                },
                "error": None,
            }
        ],
        "problems": [
            {
                "severity": "warning",
                "code": "code",
                "where": "where",
                "problem": "what",
                "cure": "how",
            }
        ],
        "summary": {
            "copied": 1,
            "tagged": 0,
            "fresh": 0,
            "deferred": 0,
            "skipped": 0,
            "failed": 0,
            "pulls": 1,
            "gets": 2,
            "bytes": 123,
        },
    }


@pytest.mark.parametrize(
    ("step", "action", "more"),
    [
        (Tag(want(), seen(), "sibling", "comes along"), "tag", {}),
        (Fresh(want(), seen()), "fresh", {"code": "fresh"}),
        (DEFERRED.step, "defer", {"until": "2027-01-15T08:01:00Z", "code": "budget"}),
        (
            Defer(want(), seen(), None, "upstream-quota", "no more"),
            "defer",
            {"until": None, "error": None},
        ),
        (Skip(want(), seen(), "skip", "hidden"), "skip", {"reason": "hidden"}),
        (
            Fail(want(), Seen(failure=FAILURE), FAILURE),
            "fail",
            {
                "code": "not-found",
                "digest": None,
                "error": {
                    "code": "not-found",
                    "text": "b:1 does not exist",
                    "cure": "check the name",
                },
            },
        ),
    ],
)
def test_image_json_of_each_step_has_its_action(
    step: Step, action: str, more: Mapping[str, Any]
) -> None:
    told = image_json(outcome(step, FRESH))
    assert told["action"] == action
    assert {key: told[key] for key in more} == more


def test_image_json_of_a_partial_success_tells_the_mirrors_error() -> None:
    source = held("https://source", target=False, failure=FULL)
    told = image_json(outcome(COPIED.step, FRESH, held(FAR, failure=FULL), source))
    assert list(told["mirrors"]) == [NEAR, FAR]
    assert told["mirrors"][FAR]["error"] == str(FULL)
    assert told["error"] == {"code": FULL.code, "text": FULL.text, "cure": FULL.cure}
    assert image_json(outcome(COPIED.step, FRESH, source))["error"] is None


def test_image_json_of_bytes_that_are_not_known_is_null() -> None:
    told = image_json(replace(COPIED, sizes={}))
    assert told["mirrors"][NEAR]["bytes"] is None


def test_image_json_of_a_digest_names_it_so_on_the_mirror() -> None:
    step = Fresh(want(f"golang@{LONE.digest}"), seen())
    assert image_json(outcome(step, FRESH))["mirrors"][NEAR]["name"] == (
        f"library/golang@{LONE.digest}"
    )


def test_platforms_of_an_index_are_those_that_it_has() -> None:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{letter * 64}",
            "size": 1,
            "platform": {"os": os, "architecture": architecture},
        }
        for letter, os, architecture in [
            ("a", "linux", "amd64"),
            ("b", "unknown", "unknown"),
            ("c", "linux", "arm64"),
            ("d", "linux", "amd64"),
        ]
    ]
    document = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    index = Manifest(OCI_INDEX, document)
    step = Fresh(want(platforms=ALL), seen())
    assert platforms_of(Outcome(step, index)) == ["linux/amd64", "linux/arm64"]
    assert platforms_of(Outcome(step, None)) == ["all"]
    assert platforms_of(Outcome(Fresh(want(platforms=(ARM, AMD)), seen()), None)) == [
        "linux/arm64",
        "linux/amd64",
    ]


@pytest.mark.parametrize(
    ("window", "spends", "remaining", "next_free"),
    [
        (Window(None), (), None, None),
        (Window(10), (), 10, None),
        (Window(10), (Spend(HOURS_6 - 60, 4),), 6, NOW + 60),
        (Window(10, HOURS_6, 2), (Spend(60, 8),), 0, NOW + HOURS_6 - 60),
        (Window(10), (Spend(60, 14), Spend(HOURS_6 - 5, 1)), 0, NOW + HOURS_6 - 60),
        (Window(0), (), 0, None),
        (Window(1), (Spend(0, 1, in_flight=True),), 0, NOW + HOURS_6),
    ],
)
def test_budget_json_tells_what_is_left_and_when_more_is(
    window: Window, spends: tuple[Spend, ...], remaining: int | None, next_free: float | None
) -> None:
    told = budget_json(Quota("acme", window, "s", spends), NOW)
    assert (told["remaining"], told["next_free"]) == (remaining, iso(next_free))
    assert told["pulls"] == window.pulls


def test_budget_json_tells_what_upstream_reports() -> None:
    limit = Limit(100, HOURS_6, -3, "192.0.2.7")
    told = budget_json(Quota("acme", Window(None), "s", reported=limit), NOW)
    assert (told["reported_limit"], told["reported_remaining"]) == (100, -3)


# A dry run


def test_planned_pulls_are_upper_bounds_and_null_where_nobody_knows() -> None:
    steps = (
        Copy(want("a:1"), seen(), Cost(3, 4), "missing", ""),
        Copy(want("b:1"), seen(), Cost(None, None), "missing", ""),
        Copy(want("c:1"), seen(), Cost(9, 9), "missing", "", 2),
        Tag(want("d:1"), seen(), "sibling", ""),
        Defer(want("e:1"), seen(), Cost(5, 6), "budget", ""),
    )
    outcomes = planned(Plan(steps))
    assert [(one.pulls, one.gets) for one in outcomes] == [
        (3, 4), (None, None), (2, 3), (0, 0), (0, 0)
    ]  # fmt: skip
    assert [one.step for one in outcomes] == list(steps)
    assert summary(outcomes)["pulls"] == 5


# Problems and exit codes


@pytest.mark.parametrize(
    ("told", "problem", "code"),
    [
        (outcome(Fail(want(), seen(), FAILURE), held()), ("error", "not-found", "images.yml:3"), 1),
        (
            outcome(Fail(want("a:1", (AMD,), "history"), seen(), FAILURE), held()),
            ("warning", "not-found", "images.yml:3"),
            0,
        ),
        (
            outcome(Fail(want(), seen(), Failure("unreachable", "down", "start it"))),
            ("error", "unreachable", "docker.io"),
            1,
        ),
        (
            outcome(Fail(want("a:1", (AMD,), "history"), seen(), FULL), held(failure=FULL)),
            ("error", "mirror-full", NEAR),
            1,
        ),
        (
            outcome(Fail(want(), seen(), Failure("skopeo-missing", "none", "install it"))),
            ("error", "skopeo-missing", "skopeo"),
            1,
        ),
        (outcome(COPIED.step, FRESH, held(failure=LOST)), ("error", "verify", NEAR), 1),
        (
            outcome(Skip(want(), seen(), "image-size", "is too large")),
            ("warning", "image-size", "images.yml:3"),
            0,
        ),
        (
            outcome(Fail(want(), seen(), Failure("bug", "a bug", "report it")), held()),
            ("error", "bug", "images.yml:3"),
            3,
        ),
    ],
)
def test_problems_of_an_outcome_have_severity_place_and_exit_code(
    told: Outcome, problem: tuple[str, str, str], code: int
) -> None:
    (found,) = problems_of([told])
    assert (found.severity, found.code, found.where) == problem
    assert found.cure
    assert report(told).exit_code == code


@pytest.mark.parametrize(
    "told",
    [
        COPIED,
        DEFERRED,
        outcome(Fresh(want(), seen()), FRESH),
        outcome(Skip(want(), seen(), "skip", "matches skip: *")),
        outcome(Defer(want(), seen(), None, "interrupted", "the run was ended"), held()),
        outcome(
            Defer(want(), seen(), None, "abuse-limit", "too many requests"),
            held(failure=Failure("abuse-limit", "too many requests (429)", "lower checks")),
        ),
    ],
)
def test_problems_of_what_is_planned_so_are_none(told: Outcome) -> None:
    assert problems_of([told]) == ()
    assert report(told).exit_code == 0


def test_problems_of_many_images_tell_each_cause_once() -> None:
    down = Failure("unreachable", "docker.io: refuses connections", "check it")
    outcomes = [outcome(Fail(want(f"a:{n}"), seen(), down)) for n in range(50)]
    outcomes += [outcome(COPIED.step, FRESH, held(FAR, failure=FULL)) for _ in range(50)]
    assert [(one.code, one.where) for one in problems_of(outcomes)] == [
        ("unreachable", "docker.io"),
        ("mirror-full", FAR),
    ]


# For people


def test_sentence_tells_counts_pulls_bytes_and_the_next_time() -> None:
    told = sentence(report(COPIED, DEFERRED))
    assert told == (
        "2 images: 1 copied, 1 deferred; 1 pull spent, 123 B moved in 2.5 s; "
        "next possible Fri 15 Jan 08:01 UTC"
    )


def test_sentence_of_a_dry_run_says_that_nothing_was_done() -> None:
    assert "would spend at most 1 pull; nothing was copied" in sentence(
        report(COPIED, dry_run=True)
    )


def test_sentence_of_nothing_says_so() -> None:
    assert sentence(report()).startswith("0 images: nothing to do; 0 pulls spent")


@given(st.floats(0, 4e9))
def test_iso_is_utc_with_z_and_reads_back(at: float) -> None:
    text = iso(at)
    assert text is not None
    assert text.endswith("Z")
    # Cut to whole seconds, after a rounding to microseconds.
    assert -1e-5 <= at - datetime.fromisoformat(text).timestamp() < 1


def test_when_is_utc() -> None:
    assert when(NOW) == "Fri 15 Jan 08:00 UTC"


def test_summary_counts_every_step_once() -> None:
    found = summary([COPIED, DEFERRED, COPIED])
    assert found["copied"] + found["deferred"] == 3
    assert (found["pulls"], found["gets"], found["bytes"]) == (2, 4, 246)


def test_descriptor_of_upstream_is_the_digest_of_the_image() -> None:
    other = Descriptor(OCI_INDEX, "sha256:" + "f" * 64, 10)
    step = Fresh(want(), replace(seen(), descriptor=other))
    told = image_json(outcome(step, FRESH))
    assert told["digest"] == other.digest
    assert told["mirrors"][NEAR]["digest"] == LONE.digest
