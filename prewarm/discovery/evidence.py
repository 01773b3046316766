"""Evidence: what definitions, job logs and runner logs say that the jobs of history used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Final

from prewarm.core.usage import Row, base_name, plain, upstream_of
from prewarm.discovery.ci_evaluate import Evaluation
from prewarm.discovery.ci_jobs import Definition, JobImage, read_definition
from prewarm.discovery.ci_variables import PER_RUN, unknown
from prewarm.discovery.job_log import Trace

_CONTAINERS: Final = re.compile(r"docker|kubernetes")
"""Executors that start a container for the job."""
TOOLS_MAX: Final = 20
"""Images of build tools that one trace may add: its author controls every word."""
TRACE_IMAGES_MAX: Final = 50
"""Images that one trace may name."""
NAMES_MAX: Final = 500
"""Images that the definition of one project may name, and those of its jobs that ran."""
UNUSED_MAX: Final = 200
"""Images that it may name for jobs that never ran."""
ROWS_MAX: Final = 10_000
"""Jobs with an image that are kept of one project."""
TEXT_MAX: Final = 500
"""Characters of a name that are kept."""

BARE: Final = "names no image: the runner's own default is used"
ABSENT: Final = (
    "the job is not in the project's definition (a child pipeline, perhaps, or a policy)"
)


@dataclass(frozen=True, slots=True)
class Question:
    """What only a trace can tell: the image of some jobs of a project, alike in the definition."""

    key: str
    """Changes with what the definition says of them."""
    jobs: tuple[str, ...]
    """All jobs that the answer holds for."""
    sample: bool = False
    """The image is known; the trace is to confirm it."""


# --- names ---


@lru_cache(4096)
def named(text: str, registry_prefix: str | None = None) -> JobImage:
    """Return what an expanded name of an image means, as in a definition."""
    known = {"CI_REGISTRY_IMAGE": registry_prefix} if registry_prefix else {}
    (image, *_) = read_definition({"job": {"image": text}}, known).images
    return image


def reference_of(image: JobImage, hosts: Collection[str]) -> str | None:
    """Return what is to be pulled, fully qualified; None where that is not known."""
    return None if image.reference is None else str(upstream_of(image.reference, hosts))


# --- definitions ---


def definition_rows(definition: Definition | Evaluation, hosts: Collection[str]) -> list[Row]:
    """Return what a definition says of the jobs that come from it, by their names in history."""
    rows: dict[Row, None] = {}
    for image in definition.images:
        row = Row(
            "",
            image.kind,
            image.text,
            reference_of(image, hosts),
            image.unresolved,
            "definition",
            image.certain,
            image.platform,
            image.via,
        )
        if image.guessed and image.reference is not None:
            # No demand for a guess: a trace is asked first (`questions`).
            row = replace(row, text=image.guessed, reference=None, unresolved=image.guess)
        rows |= dict.fromkeys(replace(row, job=plain(name)) for name in image.names)
    bare = frozenset(definition.bare)
    for name in definition.jobs:
        if base_name(name) in bare or name in bare:
            rows[Row(plain(name), "image", "", None, BARE, "definition")] = None
    return list(rows)


def absent_rows(rows: Iterable[Row], ran: Iterable[str], why: str = ABSENT) -> list[Row]:
    """Return rows for the jobs that ran and that the definition does not name."""
    known = {row.job for row in rows if row.source != "trace"}
    return [Row(job, "image", "", None, why, "history") for job in ran if job not in known]


def bounded(rows: Iterable[Row], runs: Mapping[str, int]) -> tuple[list[Row], int]:
    """Return the rows that are kept of one project, and how many names are left out.

    What jobs ran with goes first, the most runs first, then what only the definition names.
    `runs` has the runs of each job.
    """
    kept: list[Row] = []
    names: set[str] = set()
    unused = 0
    left_out: set[str] = set()
    for row in sorted(rows, key=lambda row: -runs.get(row.job, 0)):
        name = row.reference or row.text
        if name and name not in names:
            is_unused = not runs.get(row.job)
            if len(names) >= NAMES_MAX or (is_unused and unused >= UNUSED_MAX):
                left_out.add(name)
                continue
            names.add(name)
            unused += is_unused
        if len(kept) < ROWS_MAX:
            text = row.text if len(row.text) <= TEXT_MAX else row.text[: TEXT_MAX - 1] + "…"
            kept.append(replace(row, text=text))
    return kept, len(left_out - names)


# --- what to ask traces ---


def questions(rows: Sequence[Row], ran: Collection[str]) -> list[Question]:
    """Return what is unknown of the jobs that ran and that a trace can tell, each once."""
    by_job: dict[str, list[Row]] = {}
    for row in rows:
        if row.source != "trace" and row.unresolved is not None and _askable(row):
            by_job.setdefault(row.job, []).append(row)
    groups: dict[str, list[str]] = {}
    for job, open_rows in by_job.items():
        # Jobs that are in no definition may differ in everything.
        own = any(row.source == "history" for row in open_rows)
        groups.setdefault(_key(job if own else base_name(job), open_rows), []).append(job)
    return [
        Question(key, tuple(jobs))
        for key, jobs in groups.items()
        if any(job in ran for job in jobs)
    ]


def _askable(row: Row) -> bool:
    """Whether a trace may hold an image to pull: not where the pipeline builds it itself."""
    if row.text and "$" not in row.text:
        return False
    left = unknown(row.text)
    return not any(PER_RUN.fullmatch(name) or name == "CI_REGISTRY_IMAGE" for name in left)


def samples(rows: Sequence[Row], ran: Iterable[str], share: int = 20) -> list[Question]:
    """Return questions about one in `share` of the jobs whose image is known; always the same."""
    images: dict[str, list[Row]] = {}
    for row in rows:
        if row.source != "trace" and row.kind == "image":
            images.setdefault(row.job, []).append(row)
    found = []
    for job in ran:
        mine = images.get(job, [])
        if len(mine) == 1 and mine[0].reference is not None and mine[0].certain:
            key = f"sample {_key(job, mine)}"
            if int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % share == 0:
                found.append(Question(key, (job,), sample=True))
    return found


def _key(name: str, rows: Iterable[Row]) -> str:
    told = "\n".join(sorted(f"{row.kind} {row.source} {row.text}" for row in rows))
    return f"{name} {hashlib.sha256(told.encode()).hexdigest()[:12]}"


def trace_rows(
    question: Question, trace: Trace, registry_prefix: str | None, hosts: Collection[str]
) -> list[Row]:
    """Return what a trace answers, for every job that the question is about."""
    rows: dict[Row, None] = {}
    tools = 0
    for seen in trace.images:
        if seen.kind == "tool":
            tools += 1
        image = named(seen.text, registry_prefix)
        reference = reference_of(image, hosts)
        if reference is None or tools > TOOLS_MAX or len(rows) >= TRACE_IMAGES_MAX:
            continue
        certain = seen.trust == "runner"
        row = Row("", seen.kind, seen.text, reference, None, "trace", certain, None, image.via)
        rows[row] = None
    if trace.executor and not _CONTAINERS.search(trace.executor):
        rows[Row("", "image", "", None, None, "trace")] = None
    told = (replace(row, job=job, question=question.key) for job in question.jobs for row in rows)
    return list(islice(told, ROWS_MAX))


def disagreement(question: Question, rows: Iterable[Row], told: Iterable[Row]) -> str | None:
    """Return how a trace contradicts the definition, for people; None where it does not."""
    (job,) = question.jobs
    expected = {
        row.reference
        for row in rows
        if row.job == job and row.kind == "image" and row.source == "definition"
    }
    ran = {row.reference for row in told if row.job == job and row.kind == "image"}
    if not ran or ran & expected:
        return None
    names = " and ".join(sorted(filter(None, expected)))
    return f"job {job!r}: the definition says {names}, its trace {' and '.join(map(str, ran))}"


# --- joining ---
