"""Verifying: is every tag that prewarm wrote whole on its mirror, down to the blobs?

Mirrors alone are asked. Repairing is a sync of what is broken, within the budget.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from prewarm.core.errors import Problem, RegistryError, UsageError
from prewarm.core.manifest import ManifestError, is_made_from, required_of
from prewarm.core.platforms import ALL, Wanted, parse_platform
from prewarm.core.records import Written
from prewarm.core.reference import parse
from prewarm.core.settings import Pin
from prewarm.planning.demand import Want
from prewarm.planning.plan import Holding, Seen
from prewarm.reports.report import Report, to_json
from prewarm.sync.inspect import MirrorSite
from prewarm.sync.relay import damaged_blob
from prewarm.sync.resolve import Survey, named_pins, probe, survey
from prewarm.sync.run import Doing, carry_out, record, report_of
from prewarm.sync.session import Session

_AT_ONCE = 16
_Checked = Literal["whole", "unasked"]


@dataclass(frozen=True, slots=True)
class Broken:
    """A tag on a mirror that is not whole."""

    image: str
    mirror: str
    text: str
    """What is wrong with it."""
    platforms: str
    """Those that it was written for, as the state notes them."""
    manifests: frozenset[str]
    """The single manifests that must be copied again."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found, and what repairing it did."""

    checked: int
    unchecked: int
    """Tags on mirrors that could not be asked, and those on pull-through mirrors."""
    broken: tuple[Broken, ...]
    problems: tuple[Problem, ...]
    repair: Report | None = None
    through: int = 0
    """How many of the unchecked are on pull-through mirrors, which are not asked."""

    @property
    def exit_code(self) -> int:
        """0 where all is whole now; 1 else."""
        repaired = self.repair is not None and all(
            holding.state == "fresh"
            for outcome in self.repair.outcomes
            for holding in outcome.holdings
            if holding.target
        )
        return int(bool(self.problems) or (bool(self.broken) and not repaired))

    def document(self) -> dict[str, Any]:
        """Return the document of `verify --json`."""
        return {
            "version": 1,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "broken": [
                {"image": one.image, "mirror": one.mirror, "problem": one.text}
                for one in self.broken
            ],
            "problems": [
                {"severity": p.severity, "code": p.code, "where": p.where}
                | {"problem": p.problem, "cure": p.cure}
                for p in self.problems
            ],
            "repair": to_json(self.repair) if self.repair else None,
        }


def verify(session: Session) -> Verification:
    """Check everything that the state says was written to a mirror that is still configured."""
    probe(session.edges.mirrors)
    sites = {site.url: site for site in session.edges.mirrors if site.target}
    written = [one for one in session.ledger.written() if one.mirror in sites]
    with ThreadPoolExecutor(_AT_ONCE, "verify") as pool:
        found = list(pool.map(lambda one: _check(session, sites[one.mirror], one), written))
    problems = tuple(
        Problem("error", site.failure.code, site.url, site.failure.text, site.failure.cure)
        for site in sites.values()
        if site.failure is not None
    )
    asked = [one for one in found if one != "unasked"]
    broken = tuple(one for one in asked if isinstance(one, Broken))
    through = sum(sites[one.mirror].through for one in written)
    unchecked = len(found) - len(asked)
    return Verification(len(asked), unchecked, broken, problems, through=through)


def _check(session: Session, site: MirrorSite, written: Written) -> Broken | _Checked:
    """Check one tag; `unasked` where its mirror cannot be asked at all."""
    observer = session.observer
    if _down(site) or site.through:
        # Asked for what it has lost a pull-through mirror would pull it, which nobody reserved.
        return "unasked"
    selector = written.tag or written.digest
    try:
        head = site.registry.head(written.repository, selector)
        if head.descriptor.digest != written.digest:
            return _broken(written, f"holds {head.descriptor.digest}, which prewarm did not write")
        content = observer.fetch(site, written.repository, written.digest)
        original = session.ledger.manifest(written.upstream_digest)
        if original and content.digest != original.digest and not is_made_from(content, original):
            return _broken(written, f"was not made from {original.digest}, upstream's index")
        required = required_of(content, content.descriptor)
        there = observer.present(site, written.repository, required, None)
        missing = {digest: "the manifest" for digest in required if digest not in there}
        for digest in there:
            manifest = observer.fetch(site, written.repository, digest)
            for blob in manifest.blobs:
                size = site.registry.blob_size(written.repository, blob.digest)
                if size is None:
                    missing[digest] = f"blob {blob.digest} of manifest"
                elif size != blob.size:
                    text = damaged_blob(f"{site.url}/{written.repository}", blob, size).text
                    return _broken(written, text, frozenset({digest}))
    except ManifestError as error:
        return _broken(written, str(error))
    except RegistryError as error:
        if error.code == "not-found":
            return _broken(written, "is gone")
        observer.note_failure(site, error)
        return "unasked" if _down(site) else _broken(written, error.text)
    if not missing:
        return "whole"
    text = "; ".join(f"{what} {digest} is gone" for digest, what in missing.items())
    return _broken(written, text, frozenset(missing))


def _down(site: MirrorSite) -> bool:
    return site.failure is not None


def _broken(written: Written, text: str, manifests: frozenset[str] = frozenset()) -> Broken:
    return Broken(written.image, written.mirror, text, written.platforms, manifests)


def mend(session: Session, found: Verification, doing: Doing) -> Verification:
    """Copy what is broken again; the caller holds the locks."""
    if not found.broken:
        return found
    started = session.clock()
    deadline = time.monotonic() + session.settings.limits.run_time
    session.ledger.recover(started)
    run = session.ledger.start_run(started)
    pins, problems = _pins(session, found.broken)
    seen = survey(session, pins) if pins else Survey(())
    images = [(want, _without(look, want, found.broken)) for want, look in seen.images]
    outcomes = carry_out(session, images, run, deadline, doing)
    report = report_of(session, run, started.wall, outcomes, seen, is_dry=False)
    record(session, report, whole=False)
    return replace(found, repair=report, problems=(*found.problems, *problems))


def _pins(
    session: Session, broken: Sequence[Broken]
) -> tuple[tuple[Pin, ...], tuple[Problem, ...]]:
    """Pins for what is broken; a problem for what images.yml no longer allows."""
    pins: list[Pin] = []
    problems = []
    for image, platforms in {one.image: one.platforms for one in broken}.items():
        try:
            (pin,) = named_pins(session.settings, (image,))
            pins.append(replace(pin, platforms=_written_for(platforms)))
        except UsageError as error:
            problems.append(Problem("error", error.code, image, error.text, error.cure))
    return tuple(pins), tuple(problems)


def _written_for(platforms: str) -> Wanted:
    return ALL if platforms == ALL else tuple(map(parse_platform, platforms.split(", ")))


def _without(seen: Seen, want: Want, broken: Sequence[Broken]) -> Seen:
    """What was seen, less the manifests that must be copied again."""
    lost = {one.mirror: one for one in broken if parse(one.image) == want.reference}

    def less(holding: Holding) -> Holding:
        one = lost.get(holding.mirror)
        if one is None or holding.failure is not None:
            return holding
        present = holding.present - one.manifests
        return replace(holding, state="missing", present=present, lost=one.manifests)

    return replace(seen, holdings=tuple(less(holding) for holding in seen.holdings))
