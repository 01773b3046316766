"""Resolving: looks at all that is wanted, or at what a person named, by HEADs and lists of tags."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from prewarm.core.errors import Failure, PrewarmError, Problem, RegistryError, UsageError
from prewarm.core.reference import PROBE_REPOSITORY, InvalidReference, Reference, parse
from prewarm.core.settings import Limits, Newest, Pin, Settings
from prewarm.core.shares import by_turns
from prewarm.core.tags import newest
from prewarm.core.usage import UsedImage
from prewarm.planning.demand import Want, chosen, patterns, skipped_by, uncovered, wants, with_uses
from prewarm.planning.plan import Seen
from prewarm.planning.ranking import ranked
from prewarm.reports.coverage import used_of_late
from prewarm.sync.inspect import MirrorSite, UpstreamSite, bug
from prewarm.sync.session import Session

log = logging.getLogger("prewarm")

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Tags = tuple[str, ...] | RegistryError

LOOKING: Final = 300.0
"""Seconds in which a registry can be asked for its images and tags, beside the time that our own
limits.heads_per_minute takes; the others do not wait for it longer."""
_MANY: Final = 0.05
"""The share of the uses above which a platform that is missing is the operator's to cure."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is wanted and what was seen of it, in the order of the plan."""

    images: tuple[tuple[Want, Seen], ...]
    problems: tuple[Problem, ...] = ()
    complete: bool = True
    """Whether the demand is all there is, and was looked at: no list of tags is missing."""
    tags: Mapping[Pin, tuple[str, ...]] = field(default_factory=dict)
    """What the pins with patterns mean."""
    whole: bool = True
    """Whether it is of all that is wanted, not only of images that a person named."""


def named(text: str) -> Reference:
    """Return the image that a person named; UsageError where the text names none."""
    try:
        reference = parse(text)
        _ = reference.mirror_repository
    except InvalidReference as error:
        raise UsageError("reference", f"{error.text!r} {error.problem}", error.cure) from error
    return reference


def named_pins(settings: Settings, images: Sequence[str]) -> tuple[Pin, ...]:
    """Return pins for the images that a person named; UsageError for one that cannot be."""
    known = {upstream.name for upstream in settings.registries}
    pins = []
    for reference in map(named, images):
        if reference.registry not in known:
            raise UsageError(
                "registry",
                f"{reference}: registry {reference.registry} is not listed",
                f"add {reference.registry}: {{}} under registries: in images.yml",
            )
        pins.append(Pin(reference))
    return tuple(pins)


def survey(session: Session, asked: Sequence[Pin] = ()) -> Survey:
    """Look at every wanted image, or at those asked for; HEADs and tag lists only."""
    probe(session.edges.mirrors)
    settings, upstreams = session.settings, session.edges.upstreams
    used = used_images(session)
    pins: Sequence[Pin] = settings.pins
    if asked:
        names = {pin.reference.name for pin in asked}
        pins = [pin for pin in pins if pin.reference.name in names]
    limits = settings.limits
    tags, problems = list_tags(pins, upstreams, limits.checks, min(LOOKING, limits.run_time / 8))
    demand = with_uses(settings, wants(settings, pins, tags), used)
    met = (*problems, *platform_problems(demand, used))
    if asked:
        demand = chosen(demand, asked, settings)
    seen = look(session, demand, recheck=0 if asked else settings.recheck)
    images = zip(demand, seen, strict=True)
    # Images that a person named keep the order given.
    found = tuple(images) if asked else tuple(ranked(images))
    unchecked = any(one.failure == _unchecked(want.reference.registry) for want, one in found)
    return Survey(found, met, not problems and not unchecked, tags, not asked)


def used_images(session: Session) -> tuple[UsedImage, ...]:
    """Return what CI used within the history window, as far as scans have told."""
    return used_of_late(session.settings, session.ledger, session.clock().wall)


def platform_problems(demand: Sequence[Want], used: Iterable[UsedImage]) -> Iterator[Problem]:
    """What runners need and the mirrors will lack: above one use in twenty it breaks too much."""
    for platform, share in uncovered(demand, used).items():
        yield Problem(
            "error" if share > _MANY else "warning",
            "platform",
            "platforms",
            f"runners on {platform} make {share:.0%} of the uses, and it is not mirrored",
            f"add {platform} to platforms: in images.yml",
        )


def probe(mirrors: Iterable[MirrorSite]) -> None:
    """Begin and cancel an upload at each mirror, before it is asked for any manifest.

    A proxy that is declared as a push mirror would spend pulls on a HEAD; a mirror that takes no
    writes is known before a pull is spent for it.
    """
    targets = [site for site in mirrors if site.target]
    if not targets:
        return

    def begin(site: MirrorSite) -> None:
        if site.failure is not None:
            return
        try:
            site.registry.probe_upload(PROBE_REPOSITORY)
        except RegistryError as error:
            if not is_cache(error):
                site.failure = site.of_all(error)
            elif not site.through:
                site.failure = wrong_mode(site)
        else:
            if site.through:
                site.failure = wrong_mode(site)

    with ThreadPoolExecutor(len(targets), "probe") as pool:
        list(pool.map(begin, targets))


def is_cache(error: RegistryError) -> bool:
    """Whether an upload was refused as registry:2 does with `proxy:` (measured on 2.8.2)."""
    return error.code == "mirror-proxy" and error.status == 405


def wrong_mode(site: MirrorSite) -> Failure:
    """Return the failure of a mirror that is not what its `mode:` says."""
    if site.through:
        return Failure(
            "mirror-mode",
            f"{site.url} takes uploads, so it is no proxy, though mode: pull-through is written",
            "write mode: push, or give it proxy:",
        )
    return Failure(
        "mirror-mode",
        f"{site.url} is a pull-through proxy and takes no push, though mode: pull-through is not "
        "written",
        "write mode: pull-through, or take proxy: out of its configuration",
    )


def list_tags(
    pins: Sequence[Pin],
    upstreams: Mapping[str, UpstreamSite],
    checks: int,
    seconds: float = LOOKING,
) -> tuple[dict[Pin, tuple[str, ...]], tuple[Problem, ...]]:
    """Return the tags that each pin with a pattern means; a repository is asked once.

    Each registry has so many seconds for all of its repositories.
    """

    def ask(reference: Reference) -> tuple[str, ...] | RegistryError:
        try:
            return upstreams[reference.registry].registry.tags(reference.repository)
        except RegistryError as error:
            return error

    def ask_all(
        registry: str, repositories: Sequence[Reference]
    ) -> Iterable[tuple[Reference, _Tags]]:
        until = time.monotonic() + seconds
        with (
            upstreams[registry].limited(until),
            ThreadPoolExecutor(min(checks, len(repositories)), f"tags-{registry}") as pool,
        ):
            return zip(repositories, list(pool.map(ask, repositories)), strict=True)

    listed = dict(_each_registry(patterns(pins), lambda found: found.registry, ask_all))
    tags: dict[Pin, tuple[str, ...]] = {}
    problems = []
    for pin in pins:
        if not isinstance(pin.tags, Newest):
            continue
        found = listed[pin.reference]
        if isinstance(found, RegistryError):
            problems.append(Problem("error", found.code, pin.where, found.text, found.cure))
            continue
        tags[pin] = newest(found, pin.tags)
        if not tags[pin]:
            rule = pin.tags.match or pin.tags.semver
            text = f"{pin.reference.name}: none of its {len(found)} tags is meant by {rule}"
            problems.append(Problem("error", "no-tag", pin.where, text, "correct the pattern"))
    return tags, tuple(problems)


def look(session: Session, demand: Sequence[Want], *, recheck: float = 0.0) -> list[Seen]:
    """Look at every image, up to `limits.checks` at once per registry; in the demand's order.

    Pins are looked at first, then the most wanted, each project's and namespace's in their turn.
    A tag that has not moved for long is asked for upstream within `recheck` seconds only. Each
    registry has its own time (`looking_time`); what it does not answer until then fails.
    """
    observer = replace(session.observer, recheck=recheck)

    def see(want: Want, until: float) -> Seen:
        if skipped_by(want, session.settings.skip) is not None:
            return Seen()
        if session.stop.is_set():
            return Seen(failure=Failure("interrupted", "the run was ended", "run it again"))
        if time.monotonic() >= until:
            return Seen(failure=_unchecked(want.reference.registry))
        try:
            seen = observer.see(want)
        except PrewarmError:
            raise
        except Exception:
            # It must not take the other images with it.
            log.exception("a bug met %s", want.reference)
            return Seen(failure=bug(want))
        if (
            seen.failure is not None
            and seen.failure.code == "timeout"
            and time.monotonic() >= until
        ):
            return replace(seen, failure=_unchecked(want.reference.registry))
        return seen

    def see_all(registry: str, images: Sequence[Want]) -> list[tuple[Reference, Seen]]:
        site, limits = session.edges.upstreams[registry], session.settings.limits
        until = time.monotonic() + looking_time(limits, len(images))
        with (
            site.limited(until),
            ThreadPoolExecutor(min(limits.checks, len(images)), f"check-{registry}") as pool,
        ):
            site.registry.authorize(dict.fromkeys(want.reference.repository for want in images))
            seen = list(pool.map(lambda want: see(want, until), images))
        return [
            (want.reference, site.of(want.reference.repository).whole(one, want))
            for want, one in zip(images, seen, strict=True)
        ]

    turns = by_turns((w, w.payers, math.inf if w.pinned else w.weight) for w in demand)
    listed = [want for want in turns if want.reference.registry in session.edges.upstreams]
    found = dict(_each_registry(listed, lambda want: want.reference.registry, see_all))
    return [found.get(want.reference) or observer.see(want) for want in demand]


def looking_time(limits: Limits, images: int) -> float:
    """Return the seconds in which a registry can be asked for so many images."""
    paced = 60 * images / limits.heads_per_minute
    return min(limits.run_time / 4, LOOKING + 1.5 * paced)


def _each_registry(
    items: Iterable[_In],
    registry_of: Callable[[_In], str],
    work: Callable[[str, Sequence[_In]], Iterable[_Out]],
) -> list[_Out]:
    """Do the work for the items of each registry, all registries at once: none waits for another.

    What is slow is the work's to bound.
    """
    by_registry: dict[str, list[_In]] = {}
    for item in items:
        by_registry.setdefault(registry_of(item), []).append(item)
    if not by_registry:
        return []
    with ThreadPoolExecutor(len(by_registry), "registry") as pool:
        parts = list(pool.map(work, by_registry, by_registry.values()))
    return [one for part in parts for one in part]


def _unchecked(registry: str) -> Failure:
    """Return the failure of an image that its registry left no time to ask for."""
    return Failure(
        "too-slow",
        f"{registry}: timed out: it answers too slowly for all of its images to be checked",
        "check the network and the load of the registry; the next sync tries again",
    )
