"""The evaluator against real definitions and against what they are known to name.

The corpus belongs to its authors and is not part of the project. It is read from
`$PREWARM_CORPUS`, else from `shared/corpus` beside the project's folder; without it these tests
are skipped and say so.
"""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import pytest

from prewarm.core.reference import InvalidReference, parse
from prewarm.discovery.ci_evaluate import Evaluation, evaluate_file

BESIDE = Path(__file__).parents[4] / "shared" / "corpus"
# Read when the module is: the tests' own environment is cleared of PREWARM_*.
CORPUS = Path(os.environ.get("PREWARM_CORPUS", BESIDE))
FOUND = (CORPUS / "index.tsv").is_file()
EXPECTED = FOUND or "PREWARM_CORPUS" in os.environ or BESIDE.parent.is_dir()
"""A corpus that is half there is no reason to skip."""

pytestmark = pytest.mark.skipif(
    not EXPECTED,
    reason=f"no corpus of real definitions at {CORPUS}: set PREWARM_CORPUS to its folder",
)


def repositories() -> list[tuple[str, Path, Path]]:
    """Return name, root file and folder of each repository."""
    if not FOUND:
        return []
    with (CORPUS / "index.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = [(row["repo"].replace("/", "__"), row["root file"]) for row in rows]
    return [(name, CORPUS / "files" / name / path, CORPUS / "files" / name) for name, path in names]


KNOWN = [row for row in repositories() if (CORPUS / "truth" / f"{row[0]}.json").is_file()]


def normal(text: str) -> str:
    try:
        return str(parse(text))
    except InvalidReference:
        return text


def names(found: Evaluation, kind: str) -> set[str]:
    return {str(image.reference) for image in found.resolved if image.kind == kind}


def test_evaluate_file_every_repository_is_read_in_seconds() -> None:
    started = time.process_time()
    found = {name: evaluate_file(path, root) for name, path, root in repositories()}
    assert time.process_time() - started < 5
    assert len(found) >= 100
    failed = [
        name for name, one in found.items() if any(p.severity == "error" for p in one.problems)
    ]
    assert failed == []
    assert sum(bool(one.jobs) for one in found.values()) >= 100


@pytest.mark.parametrize(("name", "path", "root"), KNOWN, ids=[row[0] for row in KNOWN])
def test_evaluate_file_known_repository_is_named_exactly(name: str, path: Path, root: Path) -> None:
    truth = json.loads((CORPUS / "truth" / f"{name}.json").read_text())
    found = evaluate_file(path, root)
    neutral = {normal(text) for text in truth["neutral"]}
    assert names(found, "image") - neutral == {normal(text) for text in truth["images"]}
    assert names(found, "service") == {normal(text) for text in truth["services"]}
    for kind, key in (("image", "unresolved"), ("service", "unresolved_services")):
        left = {image.text for image in found.unresolved if image.kind == kind}
        assert left - set(truth["neutral"]) == set(truth[key])
