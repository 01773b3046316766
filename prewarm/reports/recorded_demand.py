"""The record: what the state remembers of the demand, its tags and its budget (for `simulate`)."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Final

from prewarm.core.budget import Moment, Window, window_for
from prewarm.core.manifest import wanted_children
from prewarm.core.records import SeenTag
from prewarm.core.reference import InvalidReference, Reference
from prewarm.core.settings import DOCKER_HUB, Allowance, Settings
from prewarm.core.usage import DAY
from prewarm.planning.demand import Want, skipped_by, wants, with_uses
from prewarm.planning.plan import Seen, cost
from prewarm.planning.simulate import REPLAYED_DAYS, Recorded
from prewarm.state.ledger import Ledger

_NEVER: Final = frozenset({"skip", "not-found"})
"""Actions and codes of the last sync that say that an image cannot be warm."""


def metered_registry(settings: Settings) -> str:
    """Return the registry whose budget a simulation varies: Docker Hub, else one with a budget."""
    names = [upstream.name for upstream in settings.registries]
    written = [one.name for one in settings.registries if isinstance(one.budget, Allowance)]
    return DOCKER_HUB if DOCKER_HUB in names else (*written, *names, DOCKER_HUB)[0]


def present_window(settings: Settings, ledger: Ledger) -> Window:
    """Return the budget of that registry as `images.yml` or the last sync's report tells it."""
    name = metered_registry(settings)
    written = next((one.budget for one in settings.registries if one.name == name), None)
    last = next((run for run in ledger.runs(10) if run.report is not None), None)
    told = json.loads((last and last.report) or "{}").get("budgets", {}).get(name)
    if told is not None and not isinstance(written, Allowance):
        return Window(told["pulls"], told["window_seconds"], told["reserve"])
    return window_for(name, written, None, reachable=False)[0]


def record_of(settings: Settings, ledger: Ledger, now: Moment) -> tuple[Recorded, ...]:
    """Return what CI or a pin names of the listed registries, with all that is recorded of it.

    Pins that are patterns of tags are left out: what they mean is only known upstream.
    """
    if settings.gitlab is None:
        return ()
    since = now.wall - settings.gitlab.history - REPLAYED_DAYS * DAY
    today = int(now.wall // DAY)
    uses = ledger.daily_uses(since)
    moves = _moves(ledger)
    never = _never(ledger)
    pins = wants(settings, settings.pins, {})
    places = {want.reference: place for place, want in enumerate(pins)}
    listed = {upstream.name for upstream in settings.registries}
    metered = metered_registry(settings)
    found = []
    for want in with_uses(settings, pins, ledger.used_images(since, now=now.wall)):
        if want.reference.registry not in listed:
            continue
        name = str(want.reference)
        tag = _tag(ledger, want.reference)
        pulls = _pulls(ledger, want, tag)
        found.append(
            Recorded(
                name,
                tuple(use for use in uses.get(name, ()) if use.day <= today),
                # The digest that was there first is no move.
                moves.get(name, ())[-tag.moves :] if tag and tag.moves else (),
                pulls if want.reference.registry == metered else 0,
                places.get(want.reference),
                payers=want.payers,
                mirrored=name not in never
                and _may_be_mirrored(want, settings)
                and pulls <= settings.limits.pulls_per_image,
            )
        )
    return tuple(found)


def _moves(ledger: Ledger) -> dict[str, tuple[float, ...]]:
    """Return when each tag was seen with another digest, the first among them."""
    found: dict[str, list[float]] = {}
    for move in ledger.tag_moves(0.0):
        found.setdefault(f"{move.registry}/{move.repository}:{move.tag}", []).append(move.at)
    return {name: tuple(times) for name, times in found.items()}


def _never(ledger: Ledger) -> frozenset[str]:
    """Return the images of which the last sync said that they cannot be warm."""
    last = next((run for run in ledger.runs(10) if run.report is not None), None)
    copies = ledger.copies(last.id) if last else ()
    return frozenset(one.image for one in copies if {one.action, one.code} & _NEVER)


def _may_be_mirrored(want: Want, settings: Settings) -> bool:
    with suppress(InvalidReference):
        return bool(want.reference.mirror_repository) and not skipped_by(want, settings.skip)
    return False


def _tag(ledger: Ledger, reference: Reference) -> SeenTag | None:
    if reference.tag is None or reference.digest is not None:
        return None
    return ledger.tag(reference.registry, reference.repository, reference.tag)


def _pulls(ledger: Ledger, want: Want, tag: SeenTag | None) -> int:
    """Return what a copy costs, as far as is known; one where it was never seen."""
    digest = want.reference.digest or (tag and tag.descriptor.digest)
    content = ledger.manifest(digest) if digest else None
    if content is not None and content.is_index:
        return max(1, len(wanted_children(content, want.needed)))
    return cost(want, Seen(tag.descriptor)).known_pulls if tag else 1
