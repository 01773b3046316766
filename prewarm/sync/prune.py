"""Pruning: reads the mirrors, lets `retention` decide, deletes by digest, checks what is left.

Mirrors are asked and changed here, and upstreams for the tags that pins with patterns mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from prewarm.core.errors import Failure, PrewarmError, Problem, RegistryError
from prewarm.core.manifest import Manifest, ManifestError, wanted_children
from prewarm.core.reference import InvalidReference, parse
from prewarm.core.settings import Gitlab, Mirror, Newest
from prewarm.planning.demand import Want, wants, with_uses
from prewarm.planning.retention import (
    Image,
    Key,
    Prune,
    Pruned,
    PruneReport,
    Removal,
    Stock,
    Stored,
    decide,
    demand_refusal,
    document,
    size_refusal,
)
from prewarm.reports.report import Report, distinct
from prewarm.state.ledger import Ledger
from prewarm.state.tenant import scope_of
from prewarm.sync.inspect import MirrorSite, Observer
from prewarm.sync.resolve import list_tags, probe, used_images
from prewarm.sync.session import Session

log = logging.getLogger("prewarm")

_AT_ONCE: Final = 16
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class _Demand:
    """What is wanted now."""

    wants: Mapping[str, Want]
    """By the image's full name."""
    unlisted: frozenset[str]
    """Repositories, in full, of pins whose tags are not known: all of them count as pins."""
    used: Mapping[str, float]
    """When CI last used each image, in epoch seconds, as far back as any mirror keeps one."""
    needed: frozenset[Key]
    """Manifests that syncs go on with."""
    named: frozenset[Key]
    """Those of them that are wanted by their digest, and so may lie on a mirror without a tag."""
    problems: tuple[Problem, ...]

    def why(self, image: str) -> str | None:
        """Return why an image is wanted, None where nobody wants it."""
        if (want := self.wants.get(image)) is not None:
            return f"pinned at {want.where}" if want.pinned else "CI uses it"
        if self.unlisted and parse(image).name in self.unlisted:
            return "a pin with a pattern may mean it"
        return None


def prune(session: Session, *, dry_run: bool, force: bool) -> PruneReport:
    """Remove what nobody wants from every push mirror; the caller holds the locks.

    A dry run asks the mirrors and changes nothing, neither there nor in the state. What fails with
    one image or mirror does not stop the rest: it is a problem.
    """
    demand = _demand(session)
    unknown = _unknown_demand(session)
    problems = list(demand.problems)
    sites = [
        site
        for site in session.edges.mirrors
        if site.target and site.settings.mode == "push" and not session.stop.is_set()
    ]
    if sites:
        probe(sites)
    done = []
    for site in sites:
        if site.failure is not None and site.failure.code == "mirror-full":
            # Less is what it needs.
            site.failure = None
        pruned, met = _prune_mirror(session, site, demand, unknown, dry_run=dry_run, force=force)
        done.append(pruned)
        problems += met
        if site.failure is not None:
            failure = site.failure
            problems.append(Problem("error", failure.code, site.url, failure.text, failure.cure))
    return PruneReport(dry_run, tuple(done), distinct(problems))


def prune_after(session: Session, report: Report) -> Report:
    """Prune after a sync, never with force, and return its report with what came of that."""
    try:
        pruned = prune(session, dry_run=report.dry_run, force=False)
    except PrewarmError:
        raise
    except Exception:
        # What the sync did is to be recorded all the same.
        log.exception("a bug met the prune")
        text = "a bug of prewarm stopped it"
        met = Problem("error", "bug", "prune", text, "report it with the log's lines")
        return replace(report, problems=(*report.problems, met))
    refusals = {one.refused.code for one in pruned.mirrors if one.refused is not None}
    problems = [
        replace(problem, severity="warning") if problem.code in refusals else problem
        for problem in pruned.problems
    ]
    return replace(report, prune=document(pruned), problems=distinct((*report.problems, *problems)))


# What is wanted


def _demand(session: Session) -> _Demand:
    settings = session.settings
    tags, problems = list_tags(settings.pins, session.edges.upstreams, settings.limits.checks)
    wanted = with_uses(settings, wants(settings, settings.pins, tags), used_images(session))
    unlisted = {
        pin.reference.name
        for pin in settings.pins
        if isinstance(pin.tags, Newest) and not tags.get(pin)
    }
    return _Demand(
        {str(want.reference): want for want in wanted},
        frozenset(unlisted),
        _last_used(session),
        frozenset(_needed(wanted, session.ledger)),
        frozenset(_named(wanted)),
        tuple(problems),
    )


def _last_used(session: Session) -> dict[str, float]:
    settings = session.settings
    longest = max((mirror.keep for mirror in settings.mirrors), default=0)
    since = session.clock().wall - max(longest, (settings.gitlab or Gitlab("")).history)
    return {
        one.reference: one.last_used
        for one in session.ledger.used_images(since)
        if one.via is None and one.last_used is not None
    }


def _unknown_demand(session: Session) -> tuple[Failure, bool] | None:
    """Return why what is wanted cannot be known, and whether a person may force it."""
    settings = session.settings
    last = session.ledger.last_scan(complete=True)
    gitlab = settings.gitlab
    return demand_refusal(
        files=settings.problems,
        asks_gitlab=gitlab is not None,
        scanned=last.finished if last else None,
        same_scope=last is not None and gitlab is not None and last.scope == scope_of(gitlab),
        now=session.clock().wall,
    )


def _needed(demand: Iterable[Want], ledger: Ledger) -> Iterator[Key]:
    """Yield what syncs go on with, by what upstream last had: an image may come in parts."""
    for want in demand:
        reference = want.reference
        digest = reference.digest
        if digest is None and reference.tag is not None:
            seen = ledger.tag(reference.registry, reference.repository, reference.tag)
            digest = seen.descriptor.digest if seen else None
        if digest is None:
            continue
        try:
            repository = reference.mirror_repository
            content = ledger.manifest(digest)
            children = wanted_children(content, want.needed) if content else ()
        except (InvalidReference, ManifestError):
            continue
        for one in (digest, *(child.descriptor.digest for child in children)):
            yield repository, one


def _named(demand: Iterable[Want]) -> Iterator[Key]:
    for want in demand:
        if (digest := want.reference.digest) is not None:
            with suppress(InvalidReference):
                yield want.reference.mirror_repository, digest


def _images(ledger: Ledger, mirror: Mirror, demand: _Demand, now: float) -> tuple[Image, ...]:
    """Return what prewarm wrote to the mirror, with when it was last wanted, and by whom.

    What another host that shares the state wanted within `keep` is wanted still.
    """
    url = mirror.url
    others = ledger.wanted_elsewhere(url, now - mirror.keep)
    elsewhere = {image: f"{host} wants it" for image, host in others.items()}
    used = demand.used
    return tuple(
        Image(
            written.image,
            written.repository,
            written.tag,
            written.digest,
            max(written.wanted, used.get(written.image) or 0.0),
            used.get(written.image),
            demand.why(written.image) or elsewhere.get(written.image),
        )
        for written in ledger.written(mirror=url)
    )


# One mirror


def _prune_mirror(
    session: Session,
    site: MirrorSite,
    demand: _Demand,
    unknown: tuple[Failure, bool] | None,
    *,
    dry_run: bool,
    force: bool,
) -> tuple[Pruned, list[Problem]]:
    if site.failure is not None:
        return Pruned(site.url, None), []
    settings, ledger = site.settings, session.ledger
    images = _images(ledger, settings, demand, session.clock().wall)
    stock = _read(session, site, images, demand.named)
    if stock is None:
        return Pruned(site.url, None), []
    found = decide(
        stock,
        images,
        demand.needed,
        max_size=settings.max_size,
        keep=settings.keep,
        now=session.clock().wall,
    )
    problems = [
        Problem("warning", "prune-unread", f"{site.url}/{name}", text, "nothing of it is pruned")
        for name, text in stock.unread.items()
    ]
    if found.failure is not None:
        problems.append(_problem(site, found.failure))
    refused = _refusal(found, unknown, force=force)
    if refused is not None:
        problems.append(_problem(site, refused))
    if dry_run:
        return Pruned(site.url, found, found.removals, refused), problems
    if refused is not None:
        return Pruned(site.url, found, refused=refused), problems
    removed, failed = _remove(session, site, found)
    problems += failed
    problems += _look_again(session.observer, site, stock, found, removed)
    return Pruned(site.url, found, removed), problems


def _problem(site: MirrorSite, failure: Failure) -> Problem:
    return Problem("error", failure.code, site.url, failure.text, failure.cure)


def _refusal(found: Prune, unknown: tuple[Failure, bool] | None, *, force: bool) -> Failure | None:
    if not found.removals:
        return None
    if unknown is not None and not (force and unknown[1]):
        return unknown[0]
    return None if force else size_refusal(found)


# Reading


def _read(
    session: Session, site: MirrorSite, images: Iterable[Image], named: Iterable[Key]
) -> Stock | None:
    """Read the repositories that prewarm pushed to: every tag, and what its manifest stands on.

    So are the `named` manifests there, which need no tag and which a lost state does not know.
    None where the mirror cannot be asked.
    """
    observer, url = session.observer, site.url
    known = {(one.repository, one.digest): one.since for one in session.ledger.pushed(url)}
    names = {image.repository for image in images} | {repository for repository, _ in known}
    unread: dict[str, str] = {}

    def kept(repository: str, ask: Callable[[], _T]) -> _T | None:
        """Return the answer; None where it is not there, or cannot be read, which is noted."""
        try:
            return ask()
        except RegistryError as error:
            if error.code != "not-found":
                observer.note_failure(site, error)
                unread.setdefault(repository, error.text)
        except ManifestError as error:
            unread.setdefault(repository, str(error))
        return None

    def list_of(name: str) -> list[Key]:
        found = kept(name, lambda: site.registry.tags(name))
        return [(name, tag) for tag in found or ()]

    def digest_of(key: Key) -> str | None:
        head = kept(key[0], lambda: site.registry.head(*key))
        return head.descriptor.digest if head else None

    def below(key: Key) -> dict[str, Stored]:
        return kept(key[0], lambda: _below(observer, site, *key)) or {}

    listed = [key for keys in _each(list_of, sorted(names)) for key in keys]
    tags = {
        key: digest for key, digest in zip(listed, _each(digest_of, listed), strict=True) if digest
    }
    tagged = {(repository, digest) for (repository, _), digest in tags.items()}
    stored = {d: one for found in _each(below, sorted(tagged)) for d, one in found.items()}
    # What is below a tag need not be asked for.
    held = {(name, d) for name, top in tagged for d in _closure(top, stored)}
    asked = {*known, *(key for key in named if key[0] in names)}
    bare = sorted(key for key in asked if key not in held)
    there = {key for key, digest in zip(bare, _each(digest_of, bare), strict=True) if digest}
    for found in _each(below, sorted(there)):
        stored |= found
    lost = [key for key in bare if key in known and key not in there and key[0] not in unread]
    if site.failure is not None:
        return None
    for repository, digest in lost:
        session.ledger.forget_pushed(url, repository, (digest,))
    pushed = {key: since for key, since in known.items() if key in held or key in there}
    return Stock(tags, pushed, stored, unread)


def _each(ask: Callable[[_T], _R], asked: Iterable[_T]) -> list[_R]:
    with ThreadPoolExecutor(_AT_ONCE, "prune") as pool:
        return list(pool.map(ask, asked))


def _below(observer: Observer, site: MirrorSite, repository: str, digest: str) -> dict[str, Stored]:
    """Return the manifest and all that it stands on, as far as it is there."""
    found: dict[str, Stored] = {}
    waiting = [digest]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        try:
            manifest = observer.fetch(site, repository, one)
        except RegistryError as error:
            if error.code != "not-found":
                raise
            continue
        found[one] = _stored(manifest)
        waiting += found[one].children
    return found


def _stored(manifest: Manifest) -> Stored:
    return Stored(
        len(manifest.content),
        tuple(dict.fromkeys(child.descriptor.digest for child in manifest.children)),
        {blob.digest: blob.size for blob in manifest.blobs},
    )


def _closure(digest: str, stored: Mapping[str, Stored]) -> set[str]:
    found: set[str] = set()
    waiting = [digest]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += stored[one].children if one in stored else ()
    return found


# Deleting


def _remove(
    session: Session, site: MirrorSite, found: Prune
) -> tuple[tuple[Removal, ...], list[Problem]]:
    """Delete what was decided; what fails stays for the next prune, and the rest goes on."""
    ledger, url = session.ledger, site.url
    removed = []
    problems: list[Problem] = []
    for image in found.gone:
        ledger.forget_written(url, image)
    for removal in found.removals:
        if session.stop.is_set() or site.failure is not None:
            break
        # Known first: what a killed run leaves of it, the next prune deletes.
        ledger.note_pushed(url, removal.repository, removal.digests, 0.0)
        try:
            _delete(ledger, site, removal)
        except RegistryError as error:
            session.observer.note_failure(site, error)
            if site.failure is None:
                problems.append(_problem(site, error.failure))
            continue
        removed.append(removal)
        log.info("removed %s@%s: %s", removal.repository, removal.digests[0], removal.reason)
    return tuple(removed), problems


def _delete(ledger: Ledger, site: MirrorSite, removal: Removal) -> None:
    """Delete an index, then what only it needed; its tags are gone with it."""
    top = removal.digests[0]
    for digest in removal.digests:
        try:
            site.registry.delete_manifest(removal.repository, digest)
        except RegistryError as error:
            if error.code != "not-found":
                raise
        if digest == top:
            for image in removal.images:
                ledger.forget_written(site.url, image.image)
        ledger.forget_pushed(site.url, removal.repository, (digest,))


def _look_again(
    observer: Observer,
    site: MirrorSite,
    stock: Stock,
    found: Prune,
    removed: Iterable[Removal],
) -> Iterator[Problem]:
    """Yield a problem for each tag of the touched repositories that should be whole and is not."""
    touched = {removal.repository for removal in removed}
    gone = {(image.repository, image.tag) for removal in found.removals for image in removal.images}
    own = {(image.repository, image.tag) for image in found.kept}
    for key, digest in stock.tags.items():
        if key[0] not in touched or key in gone:
            continue
        due = _closure(digest, stock.stored) if key in own else {digest}
        try:
            head = site.registry.head(*key)
            whole = (
                head.descriptor.digest == digest
                and observer.present(site, key[0], due, None) >= due
            )
        except RegistryError as error:
            if error.code != "not-found":
                yield _problem(site, error.failure)
                continue
            whole = False
        if not whole:
            yield Problem(
                "error",
                "verify",
                site.url,
                f"{site.url}: {key[0]}:{key[1]} is not whole after the prune",
                "run prewarm verify --repair",
            )
