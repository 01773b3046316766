"""The offline view: all demand as the state remembers it, without asking any registry.

What a sync saw of each image stands in the ledger: the descriptor of its tag, its state on each
mirror, and in the reports of the last runs what could not be done and what the budgets were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from prewarm.core.budget import Window
from prewarm.core.errors import Failure
from prewarm.core.manifest import OCI_INDEX, Descriptor
from prewarm.core.records import Known
from prewarm.core.reference import Reference, parse
from prewarm.core.settings import Allowance, Newest, Pin
from prewarm.core.tags import newest
from prewarm.planning.demand import Want
from prewarm.planning.plan import LATER, Holding, Quota, Seen, State
from prewarm.planning.pull_through import standing
from prewarm.reports.report import HOST_CODES, UPSTREAM_CODES
from prewarm.sync.inspect import BREAKING, MirrorSite, no_mirror, private, unlisted, unmirrorable
from prewarm.sync.session import Session

_RUNS: Final = 5
"""So many of the last reports are read: runs of single images lie between those of all."""
_TRANSIENT: Final = UPSTREAM_CODES | BREAKING | LATER | HOST_CODES
_STATES: Final[Mapping[str, State]] = {"fresh": "fresh", "stale": "stale"}


class Recall:
    """What the state remembers, read once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._observer = session.observer
        self._states: dict[str, dict[str, Known]] = {}
        now = session.clock().wall
        for known in standing(session.settings, session.ledger.states(), session.ledger, now):
            self._states.setdefault(known.image, {})[known.mirror] = known
        self._told: dict[str, dict[str, Any]] = {}
        self._budgets: dict[str, dict[str, Any]] = {}
        for run in reversed(session.ledger.runs(_RUNS)):
            report = json.loads(run.report or "{}")
            self._told.update({entry["image"]: entry for entry in report.get("images", ())})
            self._budgets.update(report.get("budgets", {}))

    def states(self, reference: Reference) -> Mapping[str, Known]:
        """Return the last known state of an image, by the URLs of the mirrors."""
        return self._states.get(str(reference), {})

    def told(self, reference: Reference) -> dict[str, Any] | None:
        """Return an image's entry in the newest of the last reports that has one."""
        return self._told.get(str(reference))

    def tags(self, pins: Sequence[Pin]) -> dict[Pin, tuple[str, ...]]:
        """Return the tags that each pin with a pattern means, of those that were ever seen."""
        known: dict[str, list[str]] = {}
        for image in self._states:
            reference = parse(image)
            if reference.tag is not None and reference.digest is None:
                known.setdefault(reference.name, []).append(reference.tag)
        return {
            pin: newest(known.get(pin.reference.name, ()), pin.tags)
            for pin in pins
            if isinstance(pin.tags, Newest)
        }

    def see(self, want: Want) -> Seen:
        """Return what was seen of an image; one never asked for is taken for an unread index.

        Mirrors that do not answer in this run have that failure.
        """
        if (unwanted := self._unwanted(want)) is not None:
            return Seen(failure=unwanted)
        holdings = tuple(
            self._hold(site, want.reference)
            for site in self._session.edges.mirrors
            if site.settings.serves(want.reference.registry)
        )
        if self._session.edges.mirrors and not any(holding.target for holding in holdings):
            return Seen(failure=no_mirror(want.reference))
        if (failure := self._failure(want.reference)) is not None:
            return Seen(failure=failure, holdings=holdings)
        seen = Seen(self._descriptor(want.reference), holdings=holdings)
        if not seen.open_targets:
            return seen
        assert seen.descriptor is not None
        judged = self._observer.judge(want, seen.descriptor, ())
        whole = frozenset((seen.descriptor.digest, *judged.required))
        return replace(
            judged,
            holdings=tuple(
                replace(one, present=whole) if one.state == "fresh" else one for one in holdings
            ),
        )

    def quotas(self) -> dict[str, Quota]:
        """Return the quotas; of upstreams that did not answer in this run, the last known ones."""
        session = self._session
        quotas = session.quotas()
        for name, told in self._budgets.items():
            upstream = session.edges.upstreams.get(name)
            if upstream is None or upstream.answered:
                continue
            if isinstance(upstream.settings.budget, Allowance):
                window, source = session.window(upstream)
            else:
                window = Window(told["pulls"], told["window_seconds"], told["reserve"])
                source = told["source"]
            account = told["account"]
            counted = window.counted_account(account)
            spends = session.ledger.spends(name, counted, session.clock(), window.seconds)
            quotas[name] = Quota(account, window, source, spends)
        return quotas

    def _unwanted(self, want: Want) -> Failure | None:
        reference = want.reference
        upstream = self._session.edges.upstreams.get(reference.registry)
        if upstream is None:
            return unlisted(reference)
        if (failure := unmirrorable(reference)) is not None:
            return failure
        if want.pinned or not upstream.has_login(reference.repository):
            return None
        public = self._session.ledger.is_public(reference.registry, reference.repository, 0.0)
        return private(reference) if public is False else None

    def _hold(self, site: MirrorSite, reference: Reference) -> Holding:
        repository = reference.mirror_repository
        holding = Holding(site.url, site.target, repository, through=site.through)
        if site.failure is not None:
            return replace(holding, state="unknown", failure=site.failure)
        known = self.states(reference).get(site.url)
        if known is None:
            return holding
        return replace(holding, state=_STATES.get(known.state, "missing"), digest=known.digest)

    def _failure(self, reference: Reference) -> Failure | None:
        """What was wrong with the image itself, when it was last tried."""
        told = self.told(reference)
        if told is None or told["action"] != "fail" or told["error"] is None:
            return None
        failure = Failure(told["error"]["code"], told["error"]["text"], told["error"]["cure"])
        return None if is_transient(failure) else failure

    def _descriptor(self, reference: Reference) -> Descriptor:
        ledger = self._session.ledger
        if reference.digest is not None:
            manifest = ledger.manifest(reference.digest)
            if manifest is not None:
                return manifest.descriptor
        elif reference.tag is not None:
            known = ledger.tag(reference.registry, reference.repository, reference.tag)
            if known is not None:
                return known.descriptor
        return Descriptor(OCI_INDEX, reference.digest or _unused_digest(reference), 0)


def _unused_digest(reference: Reference) -> str:
    """Return a digest of no manifest, different for each image, for one whose digest is unknown."""
    return f"sha256:{sha256(f'unseen {reference}'.encode()).hexdigest()}"


def is_transient(failure: Failure) -> bool:
    """Whether a failure is that of a registry or of this host, and says nothing about the image."""
    return failure.code in _TRANSIENT or failure.code.startswith("mirror-")
