"""Demand: which images are wanted, by whom, in which order.

Pins come first, in the order of the file; then what CI used, the most jobs first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from prewarm.core.platforms import ALL, DEFAULT, Platform, Wanted, parse_platform
from prewarm.core.reference import Reference, parse
from prewarm.core.settings import Newest, Pin, Settings
from prewarm.core.shares import payers_of
from prewarm.core.tags import glob_match
from prewarm.core.usage import UsedImage


@dataclass(frozen=True, slots=True)
class Want:
    """An image that should be on the mirrors."""

    reference: Reference
    """With a tag or a digest."""
    platforms: Wanted
    sources: tuple[str, ...]
    """Why it is wanted: `pin`, `definition`, `history`, `trace`, `runner-log`."""
    where: str
    """The line that names it: `images.yml:12`."""
    jobs: int = 0
    projects: int = 0
    last_used: float | None = None
    """Seconds since the epoch."""
    pull_failures: int = 0
    """Jobs that failed because they could not pull it."""
    weight: float = 0.0
    """What the recent uses count for in the order of the plan (`weight_of`)."""
    payers: tuple[str, ...] = ()
    """Whose shares it is charged to (`shares.payers_of`); a pin to none."""

    @property
    def pinned(self) -> bool:
        return "pin" in self.sources

    @property
    def needed(self) -> Wanted:
        """The platforms that are copied: all of an index that is named by its digest."""
        return ALL if self.whole else self.platforms

    @property
    def whole(self) -> bool:
        """Whether the index must be kept byte for byte: a digest names it, or all are wanted."""
        return self.reference.digest is not None or self.platforms == ALL


def patterns(pins: Iterable[Pin]) -> tuple[Reference, ...]:
    """Return the repositories whose tags must be listed before the pins can be expanded."""
    return tuple(dict.fromkeys(p.reference for p in pins if isinstance(p.tags, Newest)))


def wants(
    settings: Settings, pins: Iterable[Pin], tags: Mapping[Pin, Sequence[str]]
) -> tuple[Want, ...]:
    """Return the pinned images in the order of the pins, each once.

    `tags` holds for each pin with a pattern the tags that it means. An image pinned twice is
    wanted for the platforms of both.
    """
    found: dict[Reference, Want] = {}
    for pin in pins:
        platforms = platforms_of(settings, pin)
        for reference in _references(pin, tags.get(pin, ())):
            want = Want(reference, platforms, ("pin",), pin.where)
            if (earlier := found.get(reference)) is not None:
                want = replace(earlier, platforms=_both(earlier.platforms, platforms))
            found[reference] = want
    return tuple(found.values())


def platforms_of(settings: Settings, pin: Pin) -> Wanted:
    """Return the pin's platforms: its own, its registry's, the general ones, linux/amd64."""
    return pin.platforms or written_platforms(settings, pin.reference.registry) or DEFAULT


def written_platforms(settings: Settings, registry: str) -> Wanted | None:
    """Return the platforms that `images.yml` writes for a registry's images, or for all."""
    upstream = next((one for one in settings.registries if one.name == registry), None)
    return (upstream and upstream.platforms) or settings.platforms


def with_uses(
    settings: Settings, pinned: Sequence[Want], used: Iterable[UsedImage]
) -> tuple[Want, ...]:
    """Return the pins, with what CI did with them, and after them what else CI used.

    An image runs on the architectures of the runners that used it, where no platforms are written.
    What jobs take from GitLab's own proxies is no demand: they would not ask the mirror.
    """
    uses = {one.reference: one for one in used if one.via is None}
    known = {pin.where for pin in settings.pins if pin.platforms}
    demand = []
    for want in pinned:
        use = uses.pop(str(want.reference), None)
        demand.append(want if use is None else _used_pin(settings, want, use, known))
    return (*demand, *(_used(settings, use) for use in uses.values()))


_SPREAD: Final = 0.75
"""Below 1, so that the same uses weigh more when many projects share them."""
_UNUSED: Final = 1e-4
"""Runs that a definition which no job ran yet stands for."""


def weight_of(use: UsedImage) -> float:
    """Return what an image's uses count for: each more counts, of many projects the most."""
    return weight(runs for _, runs in use.weights)


def weight(runs: Iterable[float]) -> float:
    """Return what the decayed runs of projects, given for each, count for together."""
    return math.fsum((each + _UNUSED) ** _SPREAD for each in runs)


def _used_pin(settings: Settings, want: Want, use: UsedImage, known: Container[str]) -> Want:
    written = want.where in known or written_platforms(settings, want.reference.registry)
    return replace(
        want,
        platforms=want.platforms if written else _architectures(use),
        sources=tuple(dict.fromkeys((*want.sources, *use.sources))),
        jobs=use.jobs,
        projects=use.projects,
        last_used=use.last_used,
        pull_failures=use.pull_failures,
        weight=weight_of(use),
    )


def _used(settings: Settings, use: UsedImage) -> Want:
    reference = parse(use.reference)
    return Want(
        reference,
        written_platforms(settings, reference.registry) or _architectures(use),
        use.sources,
        "CI",
        use.jobs,
        use.projects,
        use.last_used,
        use.pull_failures,
        weight_of(use),
        payers_of(project for project, _ in use.weights),
    )


def _architectures(use: UsedImage) -> tuple[Platform, ...]:
    found: list[Platform] = []
    for text in use.platforms:
        with suppress(ValueError):
            found.append(parse_platform(text))
    return tuple(found) or DEFAULT


def uncovered(demand: Iterable[Want], used: Iterable[UsedImage]) -> dict[Platform, float]:
    """Return the platforms of runners that are not mirrored, each with its share of the uses.

    An index without the platform of a runner breaks its jobs: containerd and podman do not fall
    back to upstream then.
    """
    wanted = {str(want.reference): want.platforms for want in demand}
    total = 0
    lacking: Counter[Platform] = Counter()
    for use in used:
        platforms = wanted.get(use.reference)
        if platforms is None or use.via is not None:
            continue
        total += use.jobs
        for text, jobs in use.jobs_on or ((str(DEFAULT[0]), use.jobs),):
            with suppress(ValueError):
                platform = parse_platform(text)
                if platforms != ALL and platform not in platforms:
                    lacking[platform] += jobs
    return {platform: jobs / total for platform, jobs in lacking.items() if jobs}


def chosen(all_wants: Sequence[Want], asked: Sequence[Pin], settings: Settings) -> tuple[Want, ...]:
    """Return only the images that a person named, in that order, as pins or CI already want them.

    One that nothing names is wanted as a pin for this run.
    """
    known = {want.reference: want for want in all_wants}
    named = wants(settings, asked, {})
    # Fair shares are for what nobody asked for.
    return tuple(replace(known.get(want.reference, want), payers=()) for want in named)


def skipped_by(want: Want, skip: Sequence[str]) -> str | None:
    """Return the `skip` pattern that hides the image; pins are never hidden."""
    if not skip or want.pinned:
        return None
    return next((pattern for pattern in skip if glob_match(pattern, str(want.reference))), None)


def _references(pin: Pin, listed: Sequence[str]) -> tuple[Reference, ...]:
    if pin.tags is None:
        return (pin.reference,)
    tags = listed if isinstance(pin.tags, Newest) else pin.tags
    return tuple(pin.reference.with_tag(tag) for tag in tags)


def _both(one: Wanted, other: Wanted) -> Wanted:
    if one == ALL or other == ALL:
        return ALL
    return tuple(dict.fromkeys((*one, *other)))
