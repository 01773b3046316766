"""The result of a scan: what a scan found, as values, JSON and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from prewarm.core.errors import Problem, problem_json
from prewarm.core.text import counted, iso
from prewarm.core.usage import UnresolvedImage, UsedImage
from prewarm.discovery.ci_evaluate import Evaluation
from prewarm.discovery.ci_jobs import JobImage

_SHOWN: Final = 5
"""Jobs that one line names."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found: the uses of the whole history window, and what it met."""

    images: tuple[UsedImage, ...]
    """The most used first."""
    unresolved: tuple[UnresolvedImage, ...]
    problems: tuple[Problem, ...]
    requests: int
    complete: bool
    """It ran to its end, over the whole of what it was to read."""
    finished: float

    @property
    def exit_code(self) -> int:
        """0, or 1 where the operator must act."""
        return int(any(problem.severity == "error" for problem in self.problems))


def of_file(evaluation: Evaluation, name: str, finished: float) -> Scan:
    """Return what one definition on disk says; `jobs` counts its jobs, not runs."""
    found: dict[tuple[str, str | None], list[JobImage]] = {}
    for image in evaluation.resolved:
        found.setdefault((str(image.reference), image.via), []).append(image)
    images = [
        UsedImage(
            reference,
            tuple(sorted({image.kind for image in mine})),
            ("definition",),
            len({image.job for image in mine}),
            1,
            None,
            tuple(sorted({image.platform for image in mine if image.platform})),
            via,
            0,
        )
        for (reference, via), mine in found.items()
    ]
    left = dict.fromkeys(
        UnresolvedImage(
            name,
            image.job,
            image.kind,
            image.text if image.reference is None else image.guessed,
            image.unresolved or image.guess,
            1,
        )
        for image in evaluation.images
        if image.reference is None or image.guessed
    )
    ordered = sorted(images, key=lambda one: (-one.jobs, one.reference, one.via or ""))
    return Scan(tuple(ordered), tuple(left), evaluation.problems, 0, True, finished)


def without_image(jobs: Sequence[str]) -> str:
    """Return in one line that these jobs name no image: a container's is then the runner's own."""
    rest = f" and {len(jobs) - _SHOWN} more" if len(jobs) > _SHOWN else ""
    verbs = ("names", "uses") if len(jobs) == 1 else ("name", "use")
    told = f"{counted(len(jobs), 'job')} {verbs[0]} no image and {verbs[1]} the runner's default"
    return f"{told}: {', '.join(jobs[:_SHOWN])}{rest}"


def document(scan: Scan) -> dict[str, Any]:
    """Return the document of `scan --json` (CONTRACT, 3)."""
    return {
        "version": 1,
        "images": [
            {
                "image": one.reference,
                "kinds": list(one.kinds),
                "sources": list(one.sources),
                "jobs": one.jobs,
                "projects": one.projects,
                "last_used": iso(one.last_used),
                "platforms": list(one.platforms),
                "via": one.via,
            }
            for one in scan.images
        ],
        "unresolved": [
            {
                "project": one.project,
                "job": one.job,
                "kind": one.kind,
                "text": one.text,
                "why": one.why,
            }
            for one in scan.unresolved
        ],
        "problems": [problem_json(problem) for problem in scan.problems],
        "requests": scan.requests,
    }


def sentence(scan: Scan) -> str:
    """Return the scan in one line for people."""
    parts = [counted(len(scan.images), "image")]
    if scan.unresolved:
        parts.append(f"{counted(len(scan.unresolved), 'name')} unresolved")
    if scan.problems:
        parts.append(counted(len(scan.problems), "problem"))
    if scan.requests:
        parts.append(f"{counted(scan.requests, 'request')} to GitLab")
    return ", ".join(parts) + ("" if scan.complete else "; not the whole scope was read")
