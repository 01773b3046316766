"""Explaining one image: who wants it, where it is, what the next plan does with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from prewarm.core.errors import Failure, UsageError
from prewarm.core.manifest import Manifest
from prewarm.core.platforms import ALL
from prewarm.core.records import ImageUser, Known, SeenTag
from prewarm.core.reference import InvalidReference, Reference
from prewarm.core.settings import Newest, Pin, Settings
from prewarm.core.tags import glob_match
from prewarm.core.text import iso, when
from prewarm.core.usage import UnresolvedImage, UsedImage, base_name, mirror_hosts, upstream_of
from prewarm.planning.demand import Want, chosen, platforms_of, wants, with_uses
from prewarm.planning.plan import (
    UNWANTED,
    Copy,
    Defer,
    Fail,
    Fresh,
    Holding,
    Quota,
    Seen,
    Skip,
    Step,
    action,
    plan,
)
from prewarm.planning.ranking import position, ranked
from prewarm.planning.schedule import Timetable
from prewarm.sync.filling import disk_of
from prewarm.sync.inspect import unlisted
from prewarm.sync.offline import Recall, is_transient
from prewarm.sync.resolve import list_tags, look, named, probe, used_images
from prewarm.sync.session import Session

LISTED: Final = 100
"""So many projects, and so many open names, are told; of how many is told in any case."""
_JOB_NAMES: Final = 10
_SCHEME: Final = re.compile(r"(?:https?|docker|oci)://", re.IGNORECASE)
_VARIABLE: Final = re.compile(r"\$\[\[[^\]$]*\]\]|\$\{[^}$]*\}|\$\w+|%\w+%")
"""None holds the start of another, so that the time to split by it is linear."""
_KNOWN_NAME: Final = re.compile(r"[a-z0-9]{2}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `prewarm explain` tells; `warm` is its exit code."""

    warm: bool
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _View:
    """An image among all that is wanted, as seen now or, where nobody was asked, as remembered."""

    want: Want
    """As the demand has it, or as a pin for this run."""
    seen: Seen
    asked: bool
    """Whether the registries were asked for it in this run."""
    rank: int | None
    """Its place among `of` wanted images; None where nobody wants it."""
    of: int
    step: Step | None
    """What the next plan does with it; None where nobody wants it."""
    ahead: int
    """How many images before it cost pulls, or wait for some."""
    alone: Step
    """What a sync of this image alone would do."""
    opened: Step
    """The same with leave to spend the reserve."""
    pattern: str | None
    """The `skip` pattern that hides it."""


def asked(text: str, settings: Settings) -> Reference:
    """Return the image that a person means, perhaps by its URL or its name on one of our mirrors.

    UsageError where the text names none, or none that can be mirrored.
    """
    reference = upstream_of(named(_SCHEME.sub("", text.strip(), 1)), mirror_hosts(settings.mirrors))
    try:
        _ = reference.mirror_repository
    except InvalidReference as error:
        raise UsageError("reference", f"{error.text!r} {error.problem}", error.cure) from error
    return reference


def explain(session: Session, reference: Reference, *, offline: bool) -> Explanation:
    """Look at one image by HEAD and tell all; `offline` tells from the state alone."""
    settings = session.settings
    recall = Recall(session)
    used = used_images(session)
    tags = recall.tags(settings.pins)
    if not offline and reference.registry in session.edges.upstreams:
        own = [pin for pin in settings.pins if pin.reference.name == reference.name]
        tags |= list_tags(own, session.edges.upstreams, settings.limits.checks)[0]
    view = _view(session, recall, used, tags, reference, offline=offline)
    pins = [pin for pin in settings.pins if _names(pin, reference, tags)]
    hidden = _hidden(session, view, recall)
    warm = _is_warm(view.seen)
    open_names = _open_names(session, reference)
    command, obstacle = _way(view) if not (warm or hidden) else (None, None)
    return Explanation(
        warm,
        {
            "version": 1,
            "image": str(reference),
            "warm": warm,
            "asked": view.asked,
            "hidden": hidden,
            "pins": [{"where": pin.where, "platforms": _platforms(settings, pin)} for pin in pins],
            "uses": _uses(session, reference, used),
            "unresolved": [_open_name(one) for one in open_names[:LISTED]],
            "unresolved_names": len(open_names),
            "rank": _rank(view, session.clock().wall),
            "upstream": _upstream(session, view),
            "mirrors": _mirrors(session, view, recall.states(reference)),
            "last_copy": _last_copy(session, reference),
            "next": None if hidden else _next(session, view),
            "command": command,
            "obstacle": obstacle,
        },
    )


def _is_warm(seen: Seen) -> bool:
    """Whether every mirror has it, by what upstream has, or had where it does not answer now."""
    if seen.failure is not None and not is_transient(seen.failure):
        return False
    return bool(seen.targets) and all(holding.state == "fresh" for holding in seen.targets)


def _view(
    session: Session,
    recall: Recall,
    used: Sequence[UsedImage],
    tags: Mapping[Pin, tuple[str, ...]],
    reference: Reference,
    *,
    offline: bool,
) -> _View:
    """Place the image among all that is wanted; the others are as the state remembers them."""
    settings = session.settings
    demand = with_uses(settings, wants(settings, settings.pins, tags), used)
    (want,) = chosen(demand, (Pin(reference),), settings)
    listed = reference.registry in session.edges.upstreams
    pinned = any(one.pinned and one.reference == reference for one in demand)
    pattern = None if pinned else _matching(settings.skip, reference)
    is_asked = listed and not offline and pattern is None
    seen = None
    if is_asked:
        probe(session.edges.mirrors)
        (seen,) = look(session, (want,))
    seen = recall.see(want) if seen is None else seen
    order = ranked((one, seen if one.reference == reference else recall.see(one)) for one in demand)
    quotas, now = recall.quotas(), session.clock().wall
    disk = disk_of(session.ledger, session.clock(), settings.limits, settings.mirrors)
    steps = plan(order, quotas, settings.limits, settings.skip, now, disk).steps
    at = next((at for at, step in enumerate(steps) if step.want.reference == reference), None)
    before = steps[:at] if at is not None else ()
    opened = {name: _without_reserve(quota) for name, quota in quotas.items()}
    return _View(
        want if at is None else steps[at].want,
        seen,
        is_asked,
        None if at is None else at + 1,
        len(steps),
        None if at is None else steps[at],
        sum(_costs(step, reference.registry) for step in before),
        _alone(session, want, seen, quotas),
        _alone(session, want, seen, opened),
        pattern,
    )


def _alone(session: Session, want: Want, seen: Seen, quotas: Mapping[str, Quota]) -> Step:
    settings, now = session.settings, session.clock().wall
    (step,) = plan([(want, seen)], quotas, settings.limits, settings.skip, now).steps
    return step


def _costs(step: Step, registry: str) -> bool:
    waits = isinstance(step, Defer) and step.cost is not None
    return step.want.reference.registry == registry and (waits or isinstance(step, Copy))


def _without_reserve(quota: Quota) -> Quota:
    return replace(quota, window=quota.window.without_reserve())


def _matching(skip: Sequence[str], reference: Reference) -> str | None:
    return next((pattern for pattern in skip if glob_match(pattern, str(reference))), None)


def _hidden(session: Session, view: _View, recall: Recall) -> dict[str, str] | None:
    """What keeps the image from being mirrored at all."""
    reference, step = view.want.reference, view.step or view.alone
    if reference.registry not in session.edges.upstreams:
        return _failure(unlisted(reference))
    if view.pattern is not None:
        return {
            "code": "skip",
            "text": f"skip: {view.pattern} matches it",
            "cure": "pin it, or narrow the pattern in images.yml",
        }
    if isinstance(step, Skip):
        cure = "raise the limit in images.yml"
        if step.seen.failure is not None:
            cure = step.seen.failure.cure
        return {"code": step.code, "text": step.reason, "cure": cure}
    told = recall.told(reference)
    if told is not None and told["code"] == "image-size" and isinstance(step, Copy | Defer):
        cure = "raise limits.image_size in images.yml and sync again"
        text = f"{told['reason']}, as the last sync found"
        return {"code": told["code"], "text": text, "cure": cure}
    return None


def _way(view: _View) -> tuple[str | None, dict[str, str] | None]:
    """Return the command that makes it warm now, or what stands in the way of each."""
    command = f"prewarm sync {view.want.reference.familiar}"
    step = view.alone
    if isinstance(step, Defer):
        if not isinstance(view.opened, Defer | Fail):
            return f"{command} --use-reserve", None
        cure = "wait: nobody can know how long"
        if step.until is not None:
            cure = f"wait until {when(step.until)}"
        return None, {"code": step.code, "text": step.reason, "cure": cure}
    if isinstance(step, Fail):
        return None, _failure(step.failure)
    return command, None


def _failure(failure: Failure | None) -> dict[str, str] | None:
    if failure is None:
        return None
    return {"code": failure.code, "text": failure.text, "cure": failure.cure}


# Who wants it


def _names(pin: Pin, reference: Reference, tags: Mapping[Pin, Sequence[str]]) -> bool:
    """Whether a pin means the image; a pattern by the `tags` that it means."""
    if pin.reference.name != reference.name or pin.tags is None:
        return pin.reference == reference
    if reference.digest is not None:
        return False
    return reference.tag in (tags.get(pin, ()) if isinstance(pin.tags, Newest) else pin.tags)


def _platforms(settings: Settings, pin: Pin) -> list[str]:
    wanted = platforms_of(settings, pin)
    return [wanted] if isinstance(wanted, str) else [str(platform) for platform in wanted]


def _uses(
    session: Session, reference: Reference, used: Sequence[UsedImage]
) -> dict[str, Any] | None:
    """What CI did with the image within the history window, as the last scans told."""
    gitlab = session.settings.gitlab
    named_there = [use for use in used if use.reference == str(reference)]
    if gitlab is None or not named_there:
        return None
    # What asks the mirror comes before what goes through GitLab's own proxies.
    use = min(named_there, key=lambda one: one.via is not None)
    since = session.clock().wall - gitlab.history
    users = session.ledger.image_users(str(reference), since)
    return {
        "jobs": use.jobs,
        "projects": use.projects,
        "last_used": iso(use.last_used),
        "kinds": list(use.kinds),
        "sources": list(use.sources),
        "platforms": list(use.platforms),
        "via": use.via,
        "pull_failures": use.pull_failures,
        "by_project": by_project(users)[:LISTED],
    }


def by_project(users: Sequence[ImageUser]) -> list[dict[str, Any]]:
    """Return what each project does with the image, the one of the most jobs first.

    `job_names` are those of the definition, the most used first, at most ten.
    """
    grouped: dict[tuple[str, str | None], list[ImageUser]] = {}
    for user in users:
        grouped.setdefault((user.project, user.via), []).append(user)
    told = []
    for (project, via), mine in grouped.items():
        names: Counter[str] = Counter()
        for user in mine:
            if user.job:
                names[base_name(user.job)] += user.jobs
        lasts = [user.last_used for user in mine if user.last_used is not None]
        told.append(
            {
                "project": project,
                "jobs": sum(user.jobs for user in mine),
                "last_used": iso(max(lasts, default=None)),
                "pull_failures": sum(user.pull_failures for user in mine),
                "job_names": [name for name, _ in names.most_common(_JOB_NAMES)],
                "via": via,
            }
        )
    return sorted(told, key=lambda one: (-one["jobs"], one["project"], one["via"] or ""))


def _open_names(session: Session, reference: Reference) -> tuple[UnresolvedImage, ...]:
    """The names in CI that may mean this image: all that is known of them fits it."""
    gitlab = session.settings.gitlab
    if gitlab is None:
        return ()
    since = session.clock().wall - gitlab.history
    return session.ledger.open_names(since, lambda text: may_mean(text, reference))


def _open_name(one: UnresolvedImage) -> dict[str, Any]:
    return {
        "project": one.project,
        "job": one.job,
        "text": one.text,
        "why": one.why,
        "jobs": one.jobs,
    }


def may_mean(text: str, reference: Reference) -> bool:
    """Whether a name with variables that nothing filled in may be that of the image.

    Not one of which only the tag is known: it may be any image.
    """
    parts = _VARIABLE.split(text)
    path = "".join(_VARIABLE.split(text.rpartition("/")[2].partition(":")[0]))
    if len(parts) == 1 or not _KNOWN_NAME.search(path):
        return False
    return any(_fits(parts, name) for name in _spellings(reference))


def _spellings(reference: Reference) -> set[str]:
    """The names that mean the image, without the default tag too."""
    names = {str(reference), reference.familiar}
    names |= {name.removeprefix("docker.io/") for name in names}
    return names | {name.removesuffix(":latest") for name in names}


def _fits(parts: Sequence[str], name: str) -> bool:
    """Whether the parts stand in the name, in order and from end to end: linear, not a regex."""
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first):
        return False
    if not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _rank(view: _View, now: float) -> dict[str, Any] | None:
    if view.rank is None or isinstance(view.step, Skip):
        return None
    return {"rank": view.rank, "of": view.of, "why": position(view.want, view.rank, now)}


# Where it is


def _upstream(session: Session, view: _View) -> dict[str, Any]:
    reference, seen = view.want.reference, view.seen
    known: SeenTag | None = None
    if reference.tag is not None and reference.digest is None:
        known = session.ledger.tag(reference.registry, reference.repository, reference.tag)
    digest = seen.key if view.asked and seen.failure is None else None
    moved = known is not None and digest is not None and known.descriptor.digest != digest
    checked = session.clock().wall if digest else known.checked if known else None
    return {
        "digest": digest or reference.digest or (known.descriptor.digest if known else None),
        "checked": iso(checked),
        "changed": iso(known.changed) if known and not moved else None,
        "moves": (known.moves if known else 0) + int(moved),
        "error": _upstream_error(seen.failure),
    }


def _upstream_error(failure: Failure | None) -> dict[str, Any] | None:
    """What upstream's failure is; `transient` ones say nothing about the image."""
    if failure is None or failure.code in UNWANTED:
        return None
    return {**(_failure(failure) or {}), "transient": is_transient(failure)}


def _mirrors(session: Session, view: _View, states: Mapping[str, Known]) -> dict[str, Any]:
    reference = view.want.reference
    selector = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    told = {}
    for holding in view.seen.targets:
        known = states.get(holding.mirror)
        mirrored = session.ledger.manifest(holding.digest) if holding.digest else None
        told[holding.mirror] = {
            "name": holding.repository + selector,
            "digest": holding.digest,
            "state": holding.state,
            "platforms": platform_states(view.want, view.seen, holding, mirrored),
            "error": _failure(holding.failure),
            "last_state": known.state if known else None,
            "last_seen": iso(known.wall) if known else None,
        }
    return told


def platform_states(
    want: Want, seen: Seen, holding: Holding, mirrored: Manifest | None
) -> dict[str, str]:
    """Return what a mirror holds for each wanted platform; empty where that is not known.

    `present`; `stale` (an older one is served); `missing`; `not-upstream`: the index has none.
    `mirrored` is what lies under the tag there. A single manifest does not tell its platform.
    """
    content = seen.content
    if content is None and holding.state == "fresh":
        content = mirrored
    single = seen.descriptor is not None and not seen.descriptor.is_index
    if holding.failure is not None or single or (content is not None and not content.is_index):
        return {}
    theirs = _digests(content)
    older = _digests(mirrored)
    names = list(theirs) if want.needed == ALL else [str(platform) for platform in want.needed]
    told = {}
    for name in names:
        if content is not None and name not in theirs:
            told[name] = "not-upstream"
        elif holding.state == "fresh" or theirs.get(name, {""}) <= holding.present:
            told[name] = "present"
        elif holding.state == "stale" and (name in older or not older):
            told[name] = "stale"
        else:
            told[name] = "missing"
    return told


def _digests(index: Manifest | None) -> dict[str, set[str]]:
    """The digests of an index, by platform."""
    found: dict[str, set[str]] = {}
    for child in index.children if index is not None else ():
        if child.platform is not None:
            found.setdefault(str(child.platform), set()).add(child.descriptor.digest)
    return found


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


# What comes next


def _next(session: Session, view: _View) -> dict[str, Any] | None:
    step = view.step
    if step is None:
        return None
    pulls = 0
    if isinstance(step, Copy):
        pulls = step.at_most if step.at_most is not None else step.cost.pulls or 0
    return {
        "action": action(step),
        "code": step.code,
        "reason": step.reason,
        "at": None if isinstance(step, Fresh) else iso(_next_sync(session)),
        "until": iso(step.until) if isinstance(step, Defer) else None,
        "ahead": view.ahead if isinstance(step, Copy | Defer) else 0,
        "pulls": pulls,
        "error": _failure(step.failure) if isinstance(step, Fail) else None,
        "transient": isinstance(step, Fail) and is_transient(step.failure),
    }


def _next_sync(session: Session) -> float | None:
    """When `prewarm run` syncs next, where a schedule is written."""
    settings, now = session.settings, session.clock()
    if not settings.schedule:
        return None
    last = next((run.started for run in session.ledger.runs(1)), None)
    moment = None if last is None else replace(now, wall=last, boot_id="")
    left = Timetable(settings.schedule, settings.timezone).seconds_left(now, moment, now.wall)
    return now.wall + max(0.0, left)
