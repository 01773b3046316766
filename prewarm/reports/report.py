"""The report: what a run did, or would do, as values, JSON and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prewarm.core.budget import next_free, remaining, used
from prewarm.core.errors import Failure, Problem, Severity, problem_json
from prewarm.core.manifest import Manifest
from prewarm.core.platforms import ALL
from prewarm.core.text import counted, iso, size_words, when
from prewarm.planning.outcome import Outcome
from prewarm.planning.plan import LATER, Copy, Defer, Fail, Holding, Plan, Quota, Skip, action
from prewarm.planning.ranking import position

UPSTREAM_CODES: Final = frozenset(
    {
        "unreachable",
        "tls",
        "plain-http",
        "plain-http-credentials",
        "proxy",
        "unauthorized",
        "too-slow",
    }
)
"""Failures that are the registry's as a whole: one problem, whatever the number of images."""
_OVER_LIMIT: Final = frozenset({"pulls-per-image", "image-size"})
"""Skips that a person may not have expected."""
HOST_CODES: Final = frozenset({"skopeo-missing", "skopeo-old", "policy-missing"})
"""Failures that are this host's: no image can be copied."""


@dataclass(frozen=True, slots=True)
class Report:
    """A run, told."""

    run: str
    dry_run: bool
    started: float
    finished: float
    quotas: Mapping[str, Quota]
    outcomes: tuple[Outcome, ...]
    """In the order of the plan."""
    problems: tuple[Problem, ...]
    ended: int | None = None
    """The exit code of a run that a signal ended early."""
    whole: bool = True
    """Whether all that is wanted is here, not only images that a person named: their places are
    ranks then."""
    prune: Mapping[str, Any] | None = None
    """What `sync --prune` removed: the document of `prune --json`."""

    @property
    def exit_code(self) -> int:
        """0, or 1 where the operator must act; 3 where an image met a bug of ours."""
        if self.ended is not None:
            return self.ended
        if any(problem.code == "bug" for problem in self.problems):
            return 3
        return int(any(problem.severity == "error" for problem in self.problems))


def planned(plan: Plan) -> tuple[Outcome, ...]:
    """Return the outcomes of a dry run: the plan itself, its pulls as upper bounds."""
    return tuple(
        Outcome(step, step.seen.content, step.seen.holdings, pulls, gets, sizes=step.seen.sizes)
        for step in plan.steps
        for pulls, gets in (_bounds(step),)
    )


def _bounds(step: object) -> tuple[int | None, int | None]:
    if not isinstance(step, Copy):
        return 0, 0
    if step.at_most is not None:
        return step.at_most, step.at_most + 1
    return step.cost.pulls, step.cost.gets


def problems_of(outcomes: Iterable[Outcome]) -> tuple[Problem, ...]:
    """Return what a person should know of the outcomes, each cause once.

    An image that a pin names is the operator's to cure, one that only CI names is its author's.
    """
    found: dict[tuple[str, str], Problem] = {}
    for outcome in outcomes:
        for problem in _problems(outcome):
            found.setdefault((problem.code, problem.problem), problem)
    return tuple(found.values())


def _problems(outcome: Outcome) -> Iterable[Problem]:
    step = outcome.step
    for holding in outcome.holdings:
        if holding.failure is not None and _of_mirror(holding.failure.code):
            failure = holding.failure
            yield Problem("error", failure.code, holding.mirror, failure.text, failure.cure)
    if isinstance(step, Fail):
        failure = step.failure
        if _of_mirror(failure.code):
            return  # reported above, for the mirror
        if failure.code in UPSTREAM_CODES:
            where = step.want.reference.registry
            yield Problem("error", failure.code, where, failure.text, failure.cure)
            return
        if failure.code in HOST_CODES:
            yield Problem("error", failure.code, "skopeo", failure.text, failure.cure)
            return
        severity: Severity = "error" if step.want.pinned else "warning"
        yield Problem(severity, failure.code, step.want.where, failure.text, failure.cure)
    elif isinstance(step, Skip) and step.code in _OVER_LIMIT:
        text = f"{step.want.reference}: {step.reason}"
        yield Problem("warning", step.code, step.want.where, text, "raise the limit, or unpin it")
    else:
        for holding in outcome.holdings:
            told = holding.failure
            later = told is not None and told.code in LATER
            if told is not None and not later and not _of_mirror(told.code):
                yield Problem("error", told.code, holding.mirror, told.text, told.cure)


def _of_mirror(code: str) -> bool:
    """Whether a failure is a mirror's, and so the operator's to cure, whoever named the image."""
    return code.startswith("mirror-") or code == "verify"


def distinct(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return each problem once, and what is wrong with a whole registry once for the registry."""
    told = tuple(problems)
    whole = {(one.code, one.where) for one in told if _of_all(one)}
    found: dict[tuple[str, str, str], Problem] = {}
    for problem in told:
        place = problem.code, problem.where
        found.setdefault((*place, "" if place in whole else problem.problem), problem)
    return tuple(found.values())


def _of_all(problem: Problem) -> bool:
    """Whether a problem is that of a whole registry, not of one image on it."""
    if problem.code == "mirror-unauthorized":
        return True  # a login is missing, whichever image met that first
    if problem.code.startswith("mirror-"):
        return problem.problem.startswith((f"{problem.where}: ", f"{problem.where} "))
    return problem.code in UPSTREAM_CODES


def to_json(report: Report) -> dict[str, Any]:
    """Return the document of `sync --json` (CONTRACT, 3)."""
    return {
        "version": 1,
        "run": report.run,
        "dry_run": report.dry_run,
        "started": iso(report.started),
        "finished": iso(report.finished),
        "budgets": {
            name: budget_json(quota, report.finished) for name, quota in report.quotas.items()
        },
        "images": [{**image_json(outcome), "reason": why} for outcome, why in explained(report)],
        "problems": [problem_json(problem) for problem in report.problems],
        "summary": summary(report.outcomes),
        **({} if report.prune is None else {"prune": report.prune}),
    }


def explained(report: Report) -> Iterator[tuple[Outcome, str]]:
    """Yield each outcome with its reason, which ends with its rank and why it has that."""
    for rank, outcome in enumerate(report.outcomes, 1):
        step = outcome.step
        if report.whole and not isinstance(step, Skip | Fail):
            yield outcome, f"{step.reason}; {position(step.want, rank, report.finished)}"
        else:
            yield outcome, step.reason


def budget_json(quota: Quota, now: float) -> dict[str, Any]:
    """Return one entry of `budgets`; `pulls` is null where there is no limit."""
    window, limit = quota.window, quota.reported
    left = remaining(quota.spends, window)
    wait = next_free(quota.spends, window, (left or 0) + 1) if left is not None else 0.0
    return {
        "account": quota.account,
        "pulls": window.pulls,
        "window_seconds": window.seconds,
        "reserve": window.reserve,
        "used": used(quota.spends, window),
        "remaining": left,
        "reported_limit": limit.limit if limit else None,
        "reported_remaining": limit.remaining if limit else None,
        "source": quota.source,
        "next_free": iso(now + wait) if wait else None,
    }


def image_json(outcome: Outcome) -> dict[str, Any]:
    """Return one entry of `images`."""
    step = outcome.step
    want, seen = step.want, step.seen
    failure = step.failure if isinstance(step, Fail) else _partial_failure(outcome)
    return {
        "image": str(want.reference),
        "sources": list(want.sources),
        "jobs": want.jobs,
        "projects": want.projects,
        "last_used": iso(want.last_used),
        "action": action(step),
        "code": step.code,
        "reason": step.reason,
        "digest": seen.key,
        "platforms": platforms_of(outcome),
        "pulls": outcome.pulls,
        "gets": outcome.gets,
        "bytes": outcome.moved,
        "seconds": round(outcome.seconds, 3),
        "until": iso(step.until) if isinstance(step, Defer) else None,
        "mirrors": {
            holding.mirror: mirror_json(outcome, holding)
            for holding in outcome.holdings
            if holding.target
        },
        "error": None
        if failure is None
        else {"code": failure.code, "text": failure.text, "cure": failure.cure},
    }


def _partial_failure(outcome: Outcome) -> Failure | None:
    failures = (holding.failure for holding in outcome.holdings if holding.target)
    return next((failure for failure in failures if failure is not None), None)


def mirror_json(outcome: Outcome, holding: Holding) -> dict[str, Any]:
    """Return what one mirror holds of an image; `bytes` is null where it is not known."""
    reference = outcome.step.want.reference
    selector = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    size = None
    descriptor = outcome.step.seen.descriptor
    index = {descriptor.digest} if descriptor is not None and descriptor.is_index else set()
    singles = holding.present - index
    if holding.state == "fresh" and set(outcome.sizes) >= singles:
        size = sum(outcome.sizes[digest] for digest in singles)
    return {
        "name": holding.repository + selector,
        "digest": holding.digest,
        "state": holding.state,
        "bytes": size,
        "error": str(holding.failure) if holding.failure else None,
    }


def platforms_of(outcome: Outcome) -> list[str]:
    """Return the platforms that the image has on a mirror, or those wanted while unknown."""
    want, content = outcome.step.want, outcome.content
    if content is not None and content.is_index:
        return _named(content)
    return [ALL] if isinstance(want.needed, str) else [str(one) for one in want.needed]


def _named(index: Manifest) -> list[str]:
    return list(dict.fromkeys(str(child.platform) for child in index.children if child.platform))


_COUNTED: Final = {
    "copy": "copied",
    "tag": "tagged",
    "fresh": "fresh",
    "defer": "deferred",
    "skip": "skipped",
    "fail": "failed",
}


_TO_DO: Final = {"copied": "to copy", "tagged": "to tag", "failed": "would fail"}
"""The same words where nothing has been done yet."""


def summary(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return the sums of a report."""
    sums = dict.fromkeys((*_COUNTED.values(), "pulls", "gets", "bytes"), 0)
    for outcome in outcomes:
        sums[_COUNTED[action(outcome.step)]] += 1
        sums["pulls"] += outcome.pulls or 0
        sums["gets"] += outcome.gets or 0
        sums["bytes"] += outcome.moved
    return sums


def sentence(report: Report) -> str:
    """Return the run in one line for people."""
    sums = summary(report.outcomes)
    said = _TO_DO if report.dry_run else {}
    parts = [f"{sums[name]} {said.get(name, name)}" for name in _COUNTED.values() if sums[name]]
    head = f"{counted(len(report.outcomes), 'image')}: {', '.join(parts) or 'nothing to do'}"
    pulls = counted(sums["pulls"], "pull")
    waits = [
        outcome.step.until
        for outcome in report.outcomes
        if isinstance(outcome.step, Defer) and outcome.step.until is not None
    ]
    if report.dry_run:
        tail = f"would spend at most {pulls}; nothing was copied (dry run)"
    else:
        seconds = report.finished - report.started
        tail = f"{pulls} spent, {size_words(sums['bytes'])} moved in {seconds:.1f} s"
    next_go = f"; next possible {when(min(waits))}" if waits else ""
    return f"{head}; {tail}{next_go}"
