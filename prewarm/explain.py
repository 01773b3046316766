"""Explaining one image: who wants it, where it is, what the next plan does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prewarm.budget import remaining
from prewarm.copying import Outcome
from prewarm.demand import platforms_of
from prewarm.ledger import Known
from prewarm.plan import Copy, Cost, Defer, Fresh, Step, action
from prewarm.reference import Reference
from prewarm.report import image_json, iso, planned
from prewarm.settings import Newest, Pin
from prewarm.sync import Session, make_plan, survey, used_images
from prewarm.tags import glob_match, newest


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `prewarm explain` tells; `warm` is its exit code."""

    warm: bool
    document: dict[str, Any]


def explain(session: Session, reference: Reference, *, offline: bool) -> Explanation:
    """Look at one image by HEAD and tell all; `offline` tells from the state alone."""
    seen = None
    if not offline and reference.registry in session.edges.upstreams:
        seen = survey(session, (Pin(reference),))
    pins = [
        pin
        for pin in session.settings.pins
        if _names(pin, reference, seen.tags if seen is not None else None)
    ]
    uses = _uses(session, reference)
    hidden = _hidden(session, reference, pinned=bool(pins))
    outcome = None
    if seen is not None and not hidden:
        (outcome,) = planned(make_plan(session, seen.images))
    states = [known for known in session.ledger.states() if known.image == str(reference)]
    if outcome is not None:
        warm = isinstance(outcome.step, Fresh) and not any(
            holding.failure for holding in outcome.holdings if holding.target
        )
    else:
        warm = bool(states) and all(known.state == "fresh" for known in states)
    wanted = bool(pins) or (uses is not None and uses["via"] is None)
    return Explanation(
        warm,
        {
            "version": 1,
            "image": str(reference),
            "warm": warm,
            "hidden": hidden,
            "pins": [{"where": pin.where, "platforms": _platforms(session, pin)} for pin in pins],
            "uses": uses,
            "upstream": _upstream(session, reference, outcome),
            "mirrors": _mirrors(outcome, states),
            "last_copy": _last_copy(session, reference),
            "next": _next(outcome.step, outcome) if outcome is not None and wanted else None,
            "command": None if warm or hidden else _command(session, reference, outcome),
        },
    )


def _command(session: Session, reference: Reference, outcome: Outcome | None) -> str:
    """What makes it warm now; where only the reserve is left, with leave to spend that."""
    command = f"prewarm sync {reference.familiar}"
    if outcome is not None and isinstance(outcome.step, Defer) and outcome.step.code == "budget":
        quota = session.quotas()[reference.registry]
        opened = remaining(quota.spends, quota.window.without_reserve())
        if opened is not None and opened >= (outcome.step.cost or Cost(1, 1)).known_pulls:
            return f"{command} --use-reserve"
    return command


def _hidden(session: Session, reference: Reference, *, pinned: bool) -> dict[str, str] | None:
    """What keeps the image from being mirrored at all."""
    if reference.registry not in session.edges.upstreams:
        return {
            "code": "registry",
            "text": f"registry {reference.registry} is not listed",
            "cure": f"add {reference.registry}: {{}} under registries: in images.yml",
        }
    for pattern in () if pinned else session.settings.skip:
        if glob_match(pattern, str(reference)):
            return {
                "code": "skip",
                "text": f"skip: {pattern} matches it",
                "cure": "pin it, or narrow the pattern in images.yml",
            }
    return None


def _uses(session: Session, reference: Reference) -> dict[str, Any] | None:
    """What CI did with the image within the history window, as the last scans told."""
    for use in used_images(session):
        if use.reference == str(reference):
            return {
                "jobs": use.jobs,
                "projects": use.projects,
                "last_used": iso(use.last_used),
                "sources": list(use.sources),
                "platforms": list(use.platforms),
                "via": use.via,
                "pull_failures": use.pull_failures,
            }
    return None


def _names(pin: Pin, reference: Reference, tags: Mapping[Pin, Sequence[str]] | None) -> bool:
    """Whether a pin means the image; a pattern by the `tags` it means, where they are known."""
    if pin.reference.name != reference.name or pin.tags is None:
        return pin.reference == reference
    if reference.digest is not None:
        return False
    if not isinstance(pin.tags, Newest):
        return reference.tag in pin.tags
    if tags is not None:
        return reference.tag in tags.get(pin, ())
    every = Newest(match=pin.tags.match, semver=pin.tags.semver)
    return reference.tag is not None and bool(newest([reference.tag], every))


def _platforms(session: Session, pin: Pin) -> list[str]:
    wanted = platforms_of(session.settings, pin)
    return [wanted] if isinstance(wanted, str) else [str(platform) for platform in wanted]


def _upstream(
    session: Session, reference: Reference, outcome: Outcome | None
) -> dict[str, Any] | None:
    known = None
    if reference.tag is not None and reference.digest is None:
        known = session.ledger.tag(reference.registry, reference.repository, reference.tag)
    digest = outcome.step.seen.key if outcome is not None else None
    if digest is None and known is None:
        return None
    moved = known is not None and digest is not None and known.descriptor.digest != digest
    return {
        "digest": digest or (known.descriptor.digest if known else None),
        "checked": iso(session.clock().wall if digest else known.checked if known else None),
        "changed": iso(known.changed) if known and not moved else None,
        "moves": (known.moves if known else 0) + int(moved),
    }


def _mirrors(outcome: Outcome | None, states: list[Known]) -> dict[str, Any]:
    if outcome is not None:
        mirrors: dict[str, Any] = image_json(outcome)["mirrors"]
        return mirrors
    return {
        known.mirror: {"state": known.state, "digest": known.digest, "seen": iso(known.wall)}
        for known in states
    }


def _last_copy(session: Session, reference: Reference) -> dict[str, Any] | None:
    copied = session.ledger.last_copy(str(reference))
    if copied is None:
        return None
    return {
        "at": iso(copied.wall),
        "pulls": copied.pulls,
        "gets": copied.gets,
        "bytes": copied.bytes,
        "seconds": round(copied.seconds, 3),
    }


def _next(step: Step, outcome: Outcome) -> dict[str, Any]:
    told = image_json(outcome)
    return {
        "action": action(step),
        "code": step.code,
        "reason": step.reason,
        "until": told["until"],
        "pulls": told["pulls"] if isinstance(step, Copy) else 0,
        "error": told["error"],
    }
