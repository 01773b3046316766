"""Usage: rows from definitions and traces, what to ask traces, and names on our own mirrors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prewarm.core.reference import parse
from prewarm.core.settings import Mirror
from prewarm.core.usage import Row, mirror_hosts, unresolved, upstream_of, used
from prewarm.discovery.ci_jobs import read_definition
from prewarm.discovery.evidence import (
    BARE,
    NAMES_MAX,
    ROWS_MAX,
    TEXT_MAX,
    UNUSED_MAX,
    Question,
    absent_rows,
    bounded,
    definition_rows,
    disagreement,
    named,
    questions,
    samples,
    trace_rows,
)
from prewarm.discovery.job_log import Trace, TraceImage

HOSTS = frozenset({"mirror.example.org", "10.0.0.1:5000"})
NO_HOSTS: frozenset[str] = frozenset()
DIGEST = f"sha256:{'a' * 64}"
SCRIPT: dict[str, Any] = {"script": ["make"]}


def rows_of(jobs: dict[str, Any], hosts: frozenset[str] = NO_HOSTS) -> list[Row]:
    written = {name: job if name == "variables" else SCRIPT | job for name, job in jobs.items()}
    return definition_rows(read_definition(written), hosts)


def asked(jobs: dict[str, Any], *ran: str) -> list[tuple[str, ...]]:
    rows = rows_of(jobs)
    return sorted(question.jobs for question in questions(rows + absent_rows(rows, ran), ran))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mirror.example.org/library/golang:1.22", "docker.io/library/golang:1.22"),
        ("mirror.example.org/team/app", "docker.io/team/app:latest"),
        ("10.0.0.1:5000/quay.io/team/app:2", "quay.io/team/app:2"),
        ("10.0.0.1:5000/localhost_5000/app:2", "localhost:5000/app:2"),
        ("mirror.example.org/reg.example.com_8443/a/b:2", "reg.example.com:8443/a/b:2"),
        (f"mirror.example.org/library/a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
        ("other.example.org/library/golang:1", "other.example.org/library/golang:1"),
        ("golang:1", "docker.io/library/golang:1"),
    ],
)  # fmt: skip
def test_upstream_of_a_name_on_our_mirror_is_what_it_mirrors(text: str, expected: str) -> None:
    assert str(upstream_of(parse(text), HOSTS)) == expected


def test_mirror_hosts_are_those_of_both_urls() -> None:
    mirror = Mirror("http://127.0.0.1:5000", "https://Mirror.example.org/")
    assert mirror_hosts([mirror]) == {"127.0.0.1:5000", "mirror.example.org"}


def test_definition_rows_name_jobs_as_history_does() -> None:
    rows = rows_of(
        {
            "a": {"image": "go:$V", "parallel": {"matrix": [{"V": ["1", "2"]}]}},
            "b": {"image": "alpine", "parallel": 3, "services": ["redis:7"]},
            "c": {},
        }
    )
    assert [(row.job, row.kind, row.reference) for row in rows] == [
        ("a: [1]", "image", "docker.io/library/go:1"),
        ("a: [2]", "image", "docker.io/library/go:2"),
        ("b", "image", "docker.io/library/alpine:latest"),
        ("b", "service", "docker.io/library/redis:7"),
        ("c", "image", None),
    ]
    assert rows[-1].unresolved == BARE


def test_definition_rows_map_names_on_our_mirror_back() -> None:
    (row,) = rows_of({"a": {"image": "mirror.example.org/library/go:1"}}, HOSTS)
    assert (row.text, row.reference) == (
        "mirror.example.org/library/go:1",
        "docker.io/library/go:1",
    )


@pytest.mark.parametrize(
    ("jobs", "ran", "expected"),
    [
        ({"a": {"image": "alpine"}}, ["a"], []),
        ({"a": {"image": "$X"}}, ["a"], [("a",)]),
        ({"a": {"image": "$X"}}, [], []),
        ({"a": {}}, ["a"], [("a",)]),
        ({}, ["child"], [("child",)]),
        ({"a": {"image": "alpine", "services": ["$S"]}}, ["a"], [("a",)]),
        ({"a": {"image": "$CI_REGISTRY_IMAGE/x:1"}}, ["a"], []),
        ({"a": {"image": "x:$CI_COMMIT_SHA"}}, ["a"], []),
        ({"a": {"image": "windows-2022"}}, ["a"], []),
        ({"a": {"image": "$X"}, "b": {"image": "$X"}}, ["a", "b"], [("a",), ("b",)]),
        (
            {"a": {"image": "$X", "parallel": {"matrix": [{"V": ["1", "2"]}]}}},
            ["a: [1]"],
            [("a: [1]", "a: [2]")],
        ),
        (
            {"a": {"image": "$X:$V", "parallel": {"matrix": [{"V": ["1", "2"]}]}}},
            ["a: [1]", "a: [2]"],
            [("a: [1]",), ("a: [2]",)],
        ),
        ({}, ["child: [1]", "child: [2]"], [("child: [1]",), ("child: [2]",)]),
    ],
)
def test_questions_are_what_a_trace_can_tell_each_once(
    jobs: dict[str, Any], ran: list[str], expected: list[tuple[str, ...]]
) -> None:
    assert asked(jobs, *ran) == expected


GUESSED: dict[str, Any] = {
    "a": {"image": "fam:1${HOST}", "services": ["pg:1"], "variables": {"HOST": "-arm"}},
    "b": {"image": "fam:1${HOST}", "services": ["pg:1"]},
}


def test_definition_rows_guess_has_no_reference_and_says_what_is_undefined() -> None:
    rows = {(row.job, row.kind): row for row in rows_of(GUESSED)}
    assert rows["a", "image"].reference == "docker.io/library/fam:1-arm"
    open_ = rows["b", "image"]
    assert (open_.reference, open_.text, open_.certain) == (None, "fam:1${HOST}", False)
    assert "$HOST" in (open_.unresolved or "")
    assert rows["b", "service"].reference == "docker.io/library/pg:1"


def test_questions_of_a_guess_is_asked_and_its_answer_is_the_demand() -> None:
    rows = rows_of(GUESSED)
    (question,) = questions(rows, ["a", "b"])
    assert question.jobs == ("b",)
    seen = Trace((TraceImage("fam:1-x86", "image", "runner"),), executor="docker")
    answered = [*rows, *trace_rows(question, seen, None, NO_HOSTS)]
    for known, expected in (
        (rows, {"docker.io/library/fam:1-arm", "docker.io/library/pg:1"}),
        (
            answered,
            {
                "docker.io/library/fam:1-arm",
                "docker.io/library/fam:1-x86",
                "docker.io/library/pg:1",
            },
        ),
    ):
        joined = {(1, job): [row for row in known if row.job == job] for job in ("a", "b")}
        assert {one.reference for one in used(joined, {})} == expected
        left = [one.text for one in unresolved(joined, {}, {1: "p"})]
        assert left == ([] if known is answered else ["fam:1${HOST}"])


def test_questions_change_their_key_with_the_definition_only() -> None:
    def key(image: str, services: list[str]) -> str:
        (question,) = questions(rows_of({"a": {"image": image, "services": services}}), {"a"})
        return question.key

    assert key("$X", ["redis"]) == key("$X", ["redis", "postgres"])
    assert key("$X", []) != key("$Y", [])


def test_samples_are_a_share_of_the_jobs_with_one_known_image() -> None:
    jobs = {f"job-{number}": {"image": "alpine"} for number in range(400)}
    rows = rows_of({**jobs, "open": {"image": "$X"}, "none": {}})
    found = samples(rows, [*jobs, "open", "none"])
    assert 5 < len(found) < 50
    assert found == samples(rows, [*jobs, "open", "none"])
    assert {"open", "none"}.isdisjoint(job for question in found for job in question.jobs)


def told(*images: TraceImage, executor: str | None = "docker") -> list[Row]:
    question = Question("q", ("a", "b"))
    return trace_rows(question, Trace(images, executor=executor), "reg.test/team/app", HOSTS)


def test_trace_rows_hold_for_every_job_of_the_question() -> None:
    rows = told(TraceImage("golang:1", "image"))
    assert [(row.job, row.reference, row.question) for row in rows] == [
        ("a", "docker.io/library/golang:1", "q"),
        ("b", "docker.io/library/golang:1", "q"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mirror.example.org/library/go:1", ("docker.io/library/go:1", None)),
        ("gl.test:443/grp/dependency_proxy/containers/go:1",
         ("docker.io/library/go:1", "dependency-proxy")),
        ("reg.test/team/app/built:1", None),
        ("windows-2022", None),
    ],
)  # fmt: skip
def test_trace_rows_read_names_as_definitions_do(
    text: str, expected: tuple[str, str | None] | None
) -> None:
    rows = told(TraceImage(text, "image"))
    assert {(row.reference, row.via) for row in rows} == ({expected} if expected else set())


def test_trace_rows_of_tools_are_few_and_never_certain() -> None:
    tools = [TraceImage(f"evil:{number}", "tool", trust="tool") for number in range(32)]
    rows = told(TraceImage("golang:1", "image"), *tools)
    assert len({row.reference for row in rows}) == 21
    assert {row.kind for row in rows if not row.certain} == {"tool"}


def test_trace_rows_of_a_shell_say_that_no_image_is_needed() -> None:
    (row, _) = told(executor="shell")
    assert (row.reference, row.unresolved, row.certain) == (None, None, True)
    assert told(executor="docker+machine") == []


@pytest.mark.parametrize(
    ("seen", "contradicts"), [("alpine:3", False), ("alpine:4", True), (None, False)]
)
def test_disagreement_of_a_trace_is_told(seen: str | None, contradicts: bool) -> None:
    rows = rows_of({"a": {"image": "alpine:3"}})
    question = Question("q", ("a",), sample=True)
    images = (TraceImage(seen, "image"),) if seen else ()
    text = disagreement(question, rows, trace_rows(question, Trace(images), None, NO_HOSTS))
    assert (text is not None) is contradicts
    if contradicts:
        assert "alpine:3" in str(text)
        assert "alpine:4" in str(text)


def test_named_of_a_plain_text_is_its_reference() -> None:
    assert str(named("golang").reference) == "docker.io/library/golang:latest"


def test_bounded_keeps_what_ran_most_and_counts_what_is_left_out() -> None:
    def row(job: str, name: str) -> Row:
        return Row(job, "image", name, f"docker.io/library/{name}:1", None, "definition")

    flood = [row("one", f"junk{number}") for number in range(50_000)]
    unused = [row(f"idle{number}", f"idle{number}") for number in range(1000)]
    good = [row(f"good{number}", f"good{number}") for number in range(20)]
    runs = {"one": 1} | {f"good{number}": 5 for number in range(20)}
    kept, left_out = bounded([*unused, *flood, *good], runs)
    assert kept[:20] == good
    assert len(kept) == NAMES_MAX
    assert left_out == 50_000 + 1000 + 20 - NAMES_MAX
    kept, left_out = bounded([*unused, *good], runs)
    assert (len(kept), left_out) == (20 + UNUSED_MAX, 1000 - UNUSED_MAX)


def test_bounded_keeps_jobs_of_the_same_images_and_cuts_texts() -> None:
    same = Row("", "image", "a:1", "docker.io/library/a:1", None, "definition")
    open_ = Row("x", "image", "$X" * 10**6, None, "unknown", "definition")
    rows = [replace(same, job=str(number)) for number in range(2 * ROWS_MAX)]
    kept, left_out = bounded([open_, *rows], {})
    assert (len(kept), left_out) == (ROWS_MAX, 0)
    assert len(kept[0].text) == TEXT_MAX
    assert kept[1:] == rows[: ROWS_MAX - 1]
