"""The comparison with gitlab-ci-local: what it is given, and that no difference stays silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import differential
from bench.differential import Case, Compared, UnavailableError, installed, judged, own_cases, table
from prewarm.discovery.ci_evaluate import evaluate_file

IMAGES = "a: {script: [x], image: 'x:$V', variables: {V: '1'}}\nb: {script: [x], services: [s]}\n"


def compared(tmp_path: Path, preview: str, *, name: str = "a case", reason: str = "") -> Compared:
    file = tmp_path / ".gitlab-ci.yml"
    file.write_text(IMAGES)
    return judged(Case(name, {}), evaluate_file(file, tmp_path), preview, reason)


def test_judged_expands_the_preview_and_tells_what_it_printed(tmp_path: Path) -> None:
    assert compared(tmp_path, IMAGES) == Compared("a case", "agree")
    printed = IMAGES.replace("x:$V", "x:1")
    assert compared(tmp_path, printed) == Compared("a case", "agree", printed=True)


def test_judged_difference_without_a_reason_is_unexplained(tmp_path: Path) -> None:
    found = compared(tmp_path, IMAGES.replace("[s]", "[t]"))
    assert (found.verdict, found.explained) == ("differ", False)
    assert found.ours == {("b", "service", "s")}
    assert found.theirs == {("b", "service", "t")}
    assert "UNEXPLAINED" in table({"cases": [found]})


@pytest.mark.parametrize(
    ("name", "reason"), [("services as text", ""), ("another", "include:rules")]
)
def test_judged_difference_with_a_reason_is_explained(
    tmp_path: Path, name: str, reason: str
) -> None:
    found = compared(tmp_path, "a: {script: [x], image: y}", name=name, reason=reason)
    assert found.explained
    assert "UNEXPLAINED" not in table({"cases": [found]})


def test_table_counts_each_verdict_and_reason() -> None:
    results = {
        "small": [Compared("a", "agree", printed=True), Compared("b", "differ", "a reason")],
        "real": [Compared("c", "no answer", "a stop"), Compared("d", "no answer", "a stop")],
    }
    lines = table(results).splitlines()
    assert "| 2 small | 1 | 1 | 1 | 0 |" in lines
    assert "| 2 real | 0 | 0 | 0 | 2 |" in lines
    assert "| differ | 1 | a reason |" in lines
    assert "| no answer | 2 | a stop |" in lines


def test_own_cases_are_many_and_give_every_job_a_script() -> None:
    cases = {case.name: case for case in own_cases()}
    assert len(cases) >= 150
    files = cases["matrix"].files
    assert isinstance(files, dict)
    assert files[".gitlab-ci.yml"] == 'include: case.yml\n"j": {script: [x]}\n'


def test_installed_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(differential, "CACHE", tmp_path / "cache")
    with pytest.raises(UnavailableError, match="node is not on PATH"):
        installed()
    text, explained = differential.measure()
    assert text == "no comparison with gitlab-ci-local: node is not on PATH"
    assert explained
