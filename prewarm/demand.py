"""Demand: which images are wanted, by whom, in which order (pure).

Until CI is read, demand is the pins of `images.yml`, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prewarm.platforms import ALL, DEFAULT, Wanted
from prewarm.reference import Reference
from prewarm.settings import Newest, Pin, Settings
from prewarm.tags import glob_match


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

    @property
    def pinned(self) -> bool:
        return "pin" in self.sources

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
    registry = next((r for r in settings.registries if r.name == pin.reference.registry), None)
    for platforms in (pin.platforms, registry and registry.platforms, settings.platforms):
        if platforms:
            return platforms
    return DEFAULT


def chosen(all_wants: Sequence[Want], asked: Sequence[Pin], settings: Settings) -> tuple[Want, ...]:
    """Return only the images that a person named, in that order, as pins or CI already want them.

    One that nothing names is wanted as a pin for this run.
    """
    known = {want.reference: want for want in all_wants}
    named = wants(settings, asked, {})
    return tuple(known.get(want.reference, want) for want in named)


def skipped_by(want: Want, skip: Sequence[str]) -> str | None:
    """Return the `skip` pattern that hides the image; pins are never hidden."""
    if want.pinned:
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
