"""The main job: look, plan, copy, record, report. The only place that puts the parts in order."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from prewarm.core.budget import Moment, window_problem
from prewarm.core.errors import PrewarmError, Problem
from prewarm.core.records import Known
from prewarm.core.reference import Reference
from prewarm.core.settings import Pin
from prewarm.discovery.scan_result import Scan
from prewarm.planning.demand import Want
from prewarm.planning.outcome import Outcome, Progress
from prewarm.planning.plan import Copy, Defer, Plan, Seen, Step, Tag, action, plan
from prewarm.planning.pull_through import LIFETIME
from prewarm.registry.credentials import authfile_in_memory
from prewarm.reports.coverage import coverages, used_of_late, uses_of
from prewarm.reports.report import Report, distinct, planned, problems_of, to_json
from prewarm.state.ledger import Ledger
from prewarm.sync.executor import Carrier, Tools
from prewarm.sync.filling import disk_of
from prewarm.sync.gate import Gate
from prewarm.sync.resolve import Survey, survey
from prewarm.sync.session import Session

log = logging.getLogger("prewarm")

_KEPT: Final = 90 * 86400.0
"""Seconds that runs, and manifests that no image needs any more, are remembered."""


def make_plan(session: Session, images: Iterable[tuple[Want, Seen]]) -> Plan:
    """Plan from what was seen and what the ledger holds now."""
    settings = session.settings
    now = session.clock().wall
    disk = disk_of(session.ledger, session.clock(), settings.limits, settings.mirrors)
    return plan(images, session.quotas(), settings.limits, settings.skip, now, disk)


@dataclass(frozen=True)
class Doing:
    """What a run needs beyond looking."""

    tools: Tools | PrewarmError
    progress: Progress


Scanner = Callable[[Ledger], Scan]
"""Asks GitLab what CI used, into the ledger; raises PrewarmError where it cannot be asked."""

Follow = Callable[[Session, Report], Report]
"""Does what comes after the copies and returns the report with what came of it."""


def scan_if_due(session: Session, scanner: Scanner | None) -> tuple[Problem, ...]:
    """Scan where the last scan is too old; without a GitLab the remembered demand must do."""
    gitlab = session.settings.gitlab
    if gitlab is None or scanner is None or session.ledger.lost is not None:
        return ()
    from prewarm.discovery.scan import scan_due  # python-gitlab is slow to load

    if not scan_due(gitlab, session.ledger, session.clock().wall):
        return ()
    try:
        with session.ledger.scanning() as alone:
            # Another host that shares the state may be at it, or have done it meanwhile.
            if not alone:
                log.info("another host asks GitLab; the demand is that of the last scan")
                return ()
            if not scan_due(gitlab, session.ledger, session.clock().wall):
                return ()
            return scanner(session.ledger).problems
    except PrewarmError as error:
        text = f"{error.text}; the demand is that of the last scan"
        return (Problem("error", error.code, gitlab.url, text, error.cure),)


def dry_run(
    session: Session,
    asked: Sequence[Pin],
    scanner: Scanner | None = None,
    follow: Follow | None = None,
) -> Report:
    """Return the plan as a report: no pull is spent, nothing is written to a mirror."""
    started = session.clock().wall
    met = scan_if_due(session, None if asked else scanner)
    seen = survey(session, asked)
    seen = replace(seen, problems=(*met, *seen.problems))
    outcomes = planned(make_plan(session, seen.images))
    report = report_of(session, "dry-run", started, outcomes, seen, is_dry=True)
    return report if follow is None else follow(session, report)


def sync(
    session: Session,
    asked: Sequence[Pin],
    doing: Doing,
    scanner: Scanner | None = None,
    follow: Follow | None = None,
) -> Report:
    """Do the main job once, and record it; the caller holds the locks.

    Without a `scanner`, or where the last scan is young, the remembered demand counts. `follow`
    comes after the copies, unless a signal or a bug has ended them.
    """
    started = session.clock()
    deadline = time.monotonic() + session.settings.limits.run_time
    session.ledger.recover(started)
    run = session.ledger.start_run(started)
    met = scan_if_due(session, None if asked else scanner)
    seen = survey(session, asked)
    seen = replace(seen, problems=(*met, *seen.problems))
    outcomes = carry_out(session, seen.images, run, deadline, doing)
    wanted = [str(want.reference) for want, _ in seen.images]
    session.ledger.note_wanted(wanted, session.clock())
    report = report_of(session, run, started.wall, outcomes, seen, is_dry=False)
    ended = session.stop.is_set() or session.ledger.lost is not None
    if follow is not None and report.exit_code in (0, 1) and not ended:
        report = follow(session, report)
    # A file or a list of tags that could not be read, or a stop, hides what is wanted still.
    complete = seen.complete and not (session.settings.problems or session.stop.is_set())
    record(session, report, whole=not asked, complete=complete)
    return report


def carry_out(
    session: Session,
    images: Sequence[tuple[Want, Seen]],
    run: str,
    deadline: float,
    doing: Doing,
) -> tuple[Outcome, ...]:
    """Plan and copy, and plan again with what was learned, until nothing more can be done now.

    Costs are upper bounds until an index is read, so the budget may reach further than the first
    plan could promise; and what others had in flight, when an image was refused, may have cost less
    than was reserved for it. Each image is tried once, a refused one twice.
    """
    done: dict[Reference, Outcome] = {}
    refused: dict[Reference, Outcome] = {}
    with Gate() as gate, ExitStack() as stack:
        authfile = authfile_in_memory({gate.host: gate.login})
        stack.callback(os.close, authfile)
        carrier = Carrier(
            run,
            session.observer,
            session.ledger,
            gate,
            authfile,
            doing.tools,
            lambda upstream: session.window(upstream)[0],
            session.settings.limits,
            doing.progress,
            session.stop,
            deadline,
        )
        while True:
            waiting = [(want, seen) for want, seen in images if want.reference not in done]
            current = make_plan(session, waiting)
            acted = [step for step in current.steps if isinstance(step, Copy | Tag)]
            if not acted:
                break
            for outcome in carrier.carry_out(current):
                reference = outcome.step.want.reference
                if reference not in refused and _may_go_later(outcome.step):
                    refused[reference] = outcome
                else:
                    done[reference] = _together(refused.get(reference), outcome)
    rest = {
        outcome.step.want.reference: _together(refused.get(outcome.step.want.reference), outcome)
        for outcome in planned(current)
    }
    return tuple(
        done[want.reference] if want.reference in done else rest[want.reference]
        for want, _ in images
    )


def _may_go_later(step: Step) -> bool:
    return isinstance(step, Defer) and step.code in {"budget", "project-share", "upstream-quota"}


def _together(first: Outcome | None, last: Outcome) -> Outcome:
    """The outcome of an image that was tried twice: what it came to, and what both tries took."""
    if first is None:
        return last
    step = last.step
    if isinstance(step, Defer) and isinstance(first.step, Defer) and first.gets:
        # What was bought and what waits is told by the step that bought.
        step = replace(first.step, until=step.until or first.step.until)
    idle = isinstance(last.step, Defer) and not last.gets and not last.moved
    return replace(
        last,
        step=step,
        # The plan tells what it does not try again as it was seen before the first try.
        holdings=first.holdings if idle else last.holdings,
        content=last.content or first.content,
        pulls=(last.pulls or 0) + (first.pulls or 0),
        gets=(last.gets or 0) + (first.gets or 0),
        moved=last.moved + first.moved,
        seconds=last.seconds + first.seconds,
    )


def report_of(
    session: Session,
    run: str,
    started: float,
    outcomes: tuple[Outcome, ...],
    seen: Survey,
    *,
    is_dry: bool,
) -> Report:
    """Return what a run did, or would do, with everything that a person should know of it."""
    quotas = session.quotas()
    used = {outcome.step.want.reference.registry for outcome in outcomes}
    problems = [*session.settings.problems, *session.edges.problems, *seen.problems]
    if (lost := session.ledger.lost) is not None:
        problems.append(Problem("error", lost.code, "state", lost.text, lost.cure))
    for site in session.edges.mirrors:
        if site.failure is not None:
            failure = site.failure
            problems.append(Problem("error", failure.code, site.url, failure.text, failure.cure))
        if (damaged := site.damaged) is not None:
            problems.append(Problem("warning", damaged.code, site.url, damaged.text, damaged.cure))
    for name, upstream in session.edges.upstreams.items():
        problem = window_problem(name, upstream.settings.budget, upstream.limit)
        if problem is not None:
            problems.append(problem)
        problems += [
            Problem("warning", closed.code, name, closed.text, closed.cure)
            for account in upstream.accounts
            if (closed := account.closed) is not None
        ]
    problems += problems_of(outcomes)
    return Report(
        run,
        is_dry,
        started,
        session.clock().wall,
        {
            name: quotas[name]
            for name in session.edges.upstreams
            if name in used or quotas[name].spends
        },
        outcomes,
        distinct(problems),
        session.ended(),
        seen.whole,
    )


def record(session: Session, report: Report, *, whole: bool, complete: bool = True) -> None:
    """Write to the state what `status` and `explain` tell later without a network.

    After a `whole` run, one of all that is wanted, images that are no longer wanted are forgotten,
    where the demand is known to be `complete`.
    """
    now = session.clock()
    ledger = session.ledger
    known = {(state.image, state.mirror): state for state in ledger.states()}
    # In one order on all hosts, lest two wait for each other.
    outcomes = sorted(report.outcomes, key=lambda outcome: str(outcome.step.want.reference))

    def note() -> None:
        for outcome in outcomes:
            _record_image(ledger, report.run, outcome, known, now)

    ledger.together(note)
    if whole and complete:
        ledger.forget_states(report.started)
    _note_coverage(session, report, now, whole=whole)
    if whole:
        _tidy(session, report, now)
    document = json.dumps(to_json(report))
    ledger.finish_run(report.run, report.exit_code, document, now, whole=whole)


def _note_coverage(session: Session, report: Report, now: Moment, *, whole: bool) -> None:
    """Note the coverage that `status` shows from now on, whatever part of the images the run did.

    Where no use is known the images count, and only a whole run to its end has met them all.
    """
    settings, ledger = session.settings, session.ledger
    uses = uses_of(settings, used_of_late(settings, ledger, now.wall))
    if not uses and (not whole or session.stop.is_set()):
        return
    failing = {problem.where for problem in report.problems}
    for one in coverages(settings, ledger.states(), uses, failing, now.wall).values():
        if one.total:
            ledger.note_coverage(one.mirror, one.served, one.total, now)


def _tidy(session: Session, report: Report, now: Moment) -> None:
    """Forget what nobody will ask for; manifests in use and every window's pulls are kept."""
    ledger = session.ledger
    used: set[str] = set()
    for outcome in report.outcomes:
        seen = outcome.step.seen
        used.update(seen.required, outcome.sizes, filter(None, (seen.key,)))
        used.update(holding.digest for holding in outcome.holdings if holding.digest)
    ledger.use_manifests(used, now)
    ledger.forget_manifests(now.wall - _KEPT)
    ledger.shrink_manifests(now.wall)
    ledger.forget_cached(now.wall - 2 * LIFETIME)
    for site in session.edges.mirrors:
        for one in ledger.written(site.url) if site.through else ():
            # The mirror has forgotten it, and no sync wants it: it is nowhere.
            if max(one.wall, one.wanted) < now.wall - 2 * LIFETIME:
                ledger.forget_written(site.url, one.image)
    windows = [quota.window.seconds for quota in session.quotas().values()]
    ledger.tidy(max(_KEPT, *(2 * seconds for seconds in windows)), now)


def _record_image(
    ledger: Ledger,
    run: str,
    outcome: Outcome,
    known: Mapping[tuple[str, str], Known],
    now: Moment,
) -> None:
    step = outcome.step
    reference = step.want.reference
    told = step.seen.descriptor if step.seen.checked is None else None
    if told is not None and reference.tag is not None and reference.digest is None:
        ledger.note_tag(reference.registry, reference.repository, reference.tag, told, now)
    ledger.note_copy(
        run,
        str(reference),
        action(step),
        step.code,
        outcome.pulls or 0,
        outcome.gets or 0,
        outcome.moved,
        outcome.seconds,
        now,
    )
    image = str(reference)
    for holding in outcome.holdings:
        state, digest = str(holding.state), holding.digest
        if state == "unknown" and (before := known.get((image, holding.mirror))) is not None:
            # What a mirror that cannot be asked holds is what it held when it last answered.
            state, digest = before.state, before.digest
        if holding.target:
            ledger.note_state(image, holding.mirror, state, digest, now)
