"""What a scan found, told: one file's images, its jobs without one, the closing sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prewarm.core.errors import Problem
from prewarm.core.usage import UnresolvedImage
from prewarm.discovery.ci_evaluate import evaluate_file
from prewarm.discovery.scan_result import Scan, of_file, sentence, without_image

OPEN = UnresolvedImage("team/app", "j", "image", "$X", "why", 1)
WARNING = Problem("warning", "definition", "team/app", "is odd", "look at it")


def test_of_file_counts_jobs_of_the_definition_not_their_copies(tmp_path: Path) -> None:
    file = tmp_path / "ci.yml"
    file.write_text(
        "a: {script: x, image: 'go:$V', services: [pg], parallel: {matrix: [{V: ['1', '2']}]}}\n"
        "b: {script: x, image: pg}\n"
    )
    found = of_file(evaluate_file(file, tmp_path), "ci.yml", 5.0)
    assert [(one.reference, one.kinds, one.jobs) for one in found.images] == [
        ("docker.io/library/pg:latest", ("image", "service"), 2),
        ("docker.io/library/go:1", ("image",), 1),
        ("docker.io/library/go:2", ("image",), 1),
    ]
    assert {one.last_used for one in found.images} == {None}


def test_of_file_guess_is_reported_and_its_open_name_too(tmp_path: Path) -> None:
    file = tmp_path / "ci.yml"
    file.write_text(
        "a: {script: x, image: 'x:1$V', variables: {V: -b}}\nb: {script: x, image: 'x:1$V'}\n"
    )
    found = of_file(evaluate_file(file, tmp_path), "ci.yml", 5.0)
    assert {one.reference for one in found.images} == {
        "docker.io/library/x:1",
        "docker.io/library/x:1-b",
    }
    (left,) = found.unresolved
    assert (left.job, left.kind, left.text) == ("b", "image", "x:1$V")
    assert "$V" in left.why


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ("a", "1 job names no image and uses the runner's default: a"),
        ("a b", "2 jobs name no image and use the runner's default: a, b"),
        ("a b c d e", "5 jobs name no image and use the runner's default: a, b, c, d, e"),
        (
            "a b c d e f g",
            "7 jobs name no image and use the runner's default: a, b, c, d, e and 2 more",
        ),
    ],
)
def test_without_image_names_the_first_and_counts_the_rest(jobs: str, words: str) -> None:
    assert without_image(jobs.split()) == words


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (Scan((), (), (), 0, True, 0.0), "0 images"),
        (Scan((), (OPEN,), (), 1, True, 0.0), "0 images, 1 name unresolved, 1 request to GitLab"),
        (
            Scan((), (OPEN, OPEN), (WARNING, WARNING), 12, False, 0.0),
            "0 images, 2 names unresolved, 2 problems, 12 requests to GitLab; "
            "not the whole scope was read",
        ),
    ],
)
def test_sentence_counts_what_there_is(scan: Scan, words: str) -> None:
    assert sentence(scan) == words


@pytest.mark.parametrize(
    ("where", "problem", "line"),
    [
        ("team/app", "is odd", "team/app: is odd; look at it"),
        ("http://g.io", "http://g.io is not reached", "http://g.io is not reached; look at it"),
        ("http://g.io", "http://g.io: no scope", "http://g.io: no scope; look at it"),
        ("team/app", "team/apple is odd", "team/app: team/apple is odd; look at it"),
    ],
)
def test_problem_names_its_place_once(where: str, problem: str, line: str) -> None:
    assert str(replace(WARNING, where=where, problem=problem)) == line
