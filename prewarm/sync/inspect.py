"""Inspecting: what upstream and the mirrors hold of a wanted image, without spending a pull.

Upstreams are asked by HEAD alone. Mirrors are ours: a manifest GET there costs nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from threading import Lock
from typing import Protocol

from prewarm.core.budget import ANONYMOUS, Limit, Moment
from prewarm.core.errors import Failure, PrewarmError, RegistryError
from prewarm.core.manifest import (
    MANIFEST_LIMIT,
    Descriptor,
    Manifest,
    ManifestError,
    claims,
    covers,
    index_for,
    is_made_from,
    refuse_unsafe,
    required_of,
    upstream_digest,
    wanted_children,
)
from prewarm.core.platforms import Wanted
from prewarm.core.records import SeenTag, Written
from prewarm.core.reference import (
    INDEX_REPOSITORY,
    PROBE_REPOSITORY,
    InvalidReference,
    Reference,
)
from prewarm.core.settings import Limits, Mirror, Upstream
from prewarm.core.streak import Streak
from prewarm.planning.demand import Want
from prewarm.planning.plan import Holding, Seen, State
from prewarm.planning.pull_through import held, is_whole
from prewarm.registry.client import Head, Registry


class Memory(Protocol):
    """What is remembered: manifests by digest, and which repositories everybody can see."""

    def manifest(self, digest: str) -> Manifest | None: ...
    def keep_manifest(self, manifest: Manifest, now: Moment) -> None: ...
    def is_public(self, registry: str, repository: str, since: float) -> bool | None: ...
    def note_public(self, registry: str, repository: str, public: bool, now: Moment) -> None: ...
    def tag(self, registry: str, repository: str, tag: str) -> SeenTag | None: ...
    def cached(self, mirror: str, repository: str) -> Mapping[str, float]: ...
    def written(self, mirror: str | None, image: str | None) -> tuple[Written, ...]: ...


@dataclass
class MirrorSite:
    """A mirror, its client, and what went wrong with it in this run."""

    settings: Mirror
    registry: Registry
    failure: Failure | None = None
    """Set once the mirror itself is proven to fail, not only for one image: it is left alone."""
    reads: Streak = field(default_factory=Streak)
    """Repositories that could not be read."""
    connects: Streak = field(default_factory=Streak)
    """Repositories for which skopeo could not connect or log in."""
    damaged: Failure | None = None
    """Set by the first content there that is not what its digest says: it comes from elsewhere."""

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    def target(self) -> bool:
        return self.settings.role == "target"

    @property
    def through(self) -> bool:
        """Whether it is a pull-through mirror, which is asked for manifests only to warm it."""
        return self.settings.through

    def __post_init__(self) -> None:
        self._checking = Lock()
        self._checked = float("-inf")

    def check(self) -> bool:
        """Prove that the mirror works, else close it for this run; return whether it is open.

        The proof of a mirror that is filled is an upload into a repository of prewarm's own. A
        mirror that restarts is waited for, some seconds. Threads that wait share one proof.
        """
        came = time.monotonic()
        with self._checking:
            if self.failure is None and self._checked < came:
                self.failure = self._disproof()
                self._checked = time.monotonic()
            return self.failure is None

    def _disproof(self) -> Failure | None:
        """Return why the mirror does not work, None where it does."""
        for pause in (*_PAUSES, None):
            try:
                if self.target and not self.through:
                    self.registry.put_blob(PROBE_REPOSITORY, _PROOF)
                else:
                    self.registry.ping()
            except RegistryError as error:
                if error.code == "interrupted":
                    return None
                if pause is None or error.code not in _PASSING:
                    return self.of_all(error)
            else:
                return None
            self.registry.pause(pause)
        raise AssertionError("the last try returns")

    def of_all(self, error: PrewarmError) -> Failure:
        """Return a failure as the mirror's own: without the image that met it."""
        _, _, text = error.text.partition(": ")
        return Failure(error.code, f"{self.url}: {text or error.text}", error.cure)


_PROOF = bytes(1 << 20)
"""What is uploaded as a proof: always the same, so it is stored once. A full disk may have room for
a few bytes."""
_PAUSES = (0.5, 2.0)
_PASSING = frozenset({"mirror-server-error", "mirror-reset", "mirror-unreachable"})
"""Failures of a proof that another try may not meet."""


@dataclass
class UpstreamSite:
    """An upstream, its client, the account that it is asked as, and what it last reported."""

    settings: Upstream
    registry: Registry
    account: str | None
    """The user of the registry's own credentials; None: anonymous."""
    public: Registry | None = None
    """The same registry without credentials."""
    limit: Limit | None = None
    asked: Moment | None = None
    """When the HEAD that reported `limit` was sent."""
    answered: bool = False
    """Whether any HEAD was answered in this run."""
    failure: Failure | None = None
    """Set when it cannot be reached at all: it is not asked again in this run."""
    closed: Failure | None = None
    """Set by the first 429 on a pull: no more manifest GETs in this run."""
    breaking: Streak = field(default_factory=Streak)
    """Repositories about which it only broke off or erred."""
    gets: Streak = field(default_factory=Streak)
    """Repositories of which manifest GETs failed, each of which may have cost a pull."""
    down: Failure | None = None
    """Set when manifest GETs fail for one image after the other: none is sent in this run."""
    refused: set[str] = field(default_factory=set)
    """Repositories about which it answered 401 or 403."""
    account_of: Callable[[str], str | None] | None = None
    """The user that a repository is asked as, where some have a login of their own."""
    quota_name: str = ""
    """The name of the account's quota in a plan, where it is not the registry's own account."""
    lock: Lock = field(default_factory=Lock)
    _others: dict[str | None, UpstreamSite] = field(default_factory=dict)

    def of(self, repository: str) -> UpstreamSite:
        """Return the upstream as the account that this repository is asked as.

        Budgets and reports of what remains are per account: a login under a path key has its own.
        """
        try:
            account = self.account_of(repository) if self.account_of else self.account
        except RegistryError:
            # A credential helper failed; the request reports that before anything is counted.
            return self
        if account == self.account:
            return self
        with self.lock:
            if account not in self._others:
                self._others[account] = UpstreamSite(
                    self.settings,
                    self.registry,
                    account,
                    self.public,
                    quota_name=f"{self.settings.name} as {account or 'anonymous'}",
                )
            return self._others[account]

    @property
    def accounts(self) -> tuple[UpstreamSite, ...]:
        """The upstream once for each account that was used so far, its own account first."""
        with self.lock:
            return (self, *self._others.values())

    def has_login(self, repository: str) -> bool:
        """Return whether a login applies to the repository; true also where its helper fails."""
        try:
            account = self.account_of(repository) if self.account_of else self.account
        except RegistryError:
            return True
        return account is not None

    @property
    def account_name(self) -> str:
        """The account as the ledger counts it: the user, or anonymous at the reported address."""
        if self.account is not None:
            return self.account
        source = self.limit.source if self.limit else ""
        return f"{ANONYMOUS}@{source}" if source else ANONYMOUS

    @property
    def reported(self) -> tuple[int, Moment] | None:
        """What remained by the newest report, and when that was asked for."""
        with self.lock:
            if self.limit is None or self.asked is None:
                return None
            return self.limit.remaining, self.asked

    def note(self, limit: Limit | None, asked: Moment) -> None:
        """Keep the newest report; an answer without the header does not undo an earlier one."""
        with self.lock:
            self.answered = True
            if limit is not None and (self.asked is None or asked.boot >= self.asked.boot):
                self.limit, self.asked = limit, asked

    @contextmanager
    def limited(self, until: float) -> Iterator[None]:
        """Wait for nothing after `until`, by the monotonic clock, inside the block."""
        clients = [client for client in (self.registry, self.public) if client is not None]
        for client in clients:
            client.until = until
        try:
            yield
        finally:
            for client in clients:
                client.until = inf

    def head(self, repository: str, selector: str, clock: Callable[[], Moment]) -> Head:
        """HEAD a manifest and keep what it reports of the quota; raises RegistryError."""
        asked = clock()
        try:
            head = self._head(self.registry, repository, selector)
        except RegistryError as error:
            with self.lock:
                if error.status in {401, 403}:
                    self.refused.add(repository)
                elif error.status == 404:
                    self.answered = True
            raise
        self.note(head.limit, asked)
        return head

    def head_publicly(self, repository: str, selector: str) -> Head:
        """HEAD a manifest without credentials; raises RegistryError."""
        assert self.public is not None
        return self._head(self.public, repository, selector)

    def _head(self, registry: Registry, repository: str, selector: str) -> Head:
        if self.failure is not None:
            raise RegistryError(self.failure.code, self.failure.text, self.failure.cure)
        try:
            head = registry.head(repository, selector)
        except RegistryError as error:
            if error.elsewhere and error.code in UNREACHABLE:
                error = _redirected(error)
            if time.monotonic() < self.registry.until:  # else it is we who gave up
                self.note_error(repository, error)
            raise error from None
        self.breaking.ended()
        return head

    def note_error(self, repository: str, error: RegistryError) -> None:
        """Keep what is the registry's own: no image but every one would meet it.

        One that errs about several images in a row is asked for itself, and down if that fails.
        """
        if error.code in UNREACHABLE:
            self._close(error, error.code)
            return
        if error.code not in BREAKING and not error.elsewhere:
            self.breaking.ended()
            return
        failed = self.breaking.failed(repository)
        if failed >= _DOWN_ANYWAY or (failed and failed % _DOWN_AFTER == 0 and not self._answers()):
            self._close(error, "unreachable", "answers nothing but errors")

    def _answers(self) -> bool:
        """Whether the registry answers about itself, whatever it does about images."""
        for _ in range(_PINGS):
            try:
                self.registry.ping()
            except RegistryError as error:
                if error.code == "interrupted" or time.monotonic() >= self.registry.until:
                    return True
                if error.code == "timeout":
                    return False
            else:
                return True
        return False

    def note_get(self, repository: str, error: RegistryError | None) -> bool:
        """Note how a manifest GET ended; return whether one that failed may be sent again.

        What fails may cost a pull each time: a registry that fails every GET must not have many.
        """
        if error is None or error.code not in BREAKING | UNREACHABLE:
            self.gets.ended()
            return False
        self.gets.failed(repository)
        failed, times = self.gets.repositories, self.gets.times
        suspect = times >= _GETS_IN_A_ROW and failed >= _DOWN_AFTER
        if failed >= _DOWN_ANYWAY or (suspect and not self._answers()):
            text = f"{self.settings.name}: fails one manifest GET after the other ({error.text})"
            self.down = Failure("unreachable", text, error.cure)
        return self.down is None and times < _GETS_IN_A_ROW

    def _close(self, error: RegistryError, code: str, found: str = "") -> None:
        """Let the registry be for this run; the text is the same for all its images."""
        _, _, text = error.text.partition(": ")
        text = f"{found} ({error.text})" if found else text or error.text
        with self.lock:
            if self.failure is None:
                self.failure = Failure(code, f"{self.settings.name}: {text}", error.cure)

    def whole(self, seen: Seen, want: Want) -> Seen:
        """Return what was seen of an image, its failure being the registry's where that is down.

        So is a 401 to every image: that each of them is missing, or private, is less likely.
        """
        if seen.failure is None:
            return seen
        all_refused = len(self.refused) >= _DOWN_AFTER and not self.answered
        if all_refused and want.pinned and seen.failure.code == "not-found":
            name, number = self.settings.name, len(self.refused)
            text = f"{name}: unauthorized: it refused all {number} repositories that were asked for"
            cure = f"{self.registry.login_cure}, or check the names"
            return replace(seen, failure=Failure("unauthorized", text, cure))
        if self.failure is None:
            return seen
        if seen.failure.code not in BREAKING | UNREACHABLE | {"too-slow"}:
            return seen
        return replace(seen, failure=self.failure)


def _redirected(error: RegistryError) -> RegistryError:
    """Return the failure of a host to which one image's request was redirected, as that image's."""
    return RegistryError(
        "bad-redirect",
        f"{error.text} (it was redirected there)",
        "check the registry's redirects, and whether this host can reach theirs",
        answered=error.answered,
        elsewhere=True,
    )


UNREACHABLE = frozenset({"unreachable", "tls", "plain-http", "proxy", "plain-http-credentials"})
"""Failures that will be the same for every image of the registry."""
BREAKING = frozenset({"server-error", "reset", "timeout"})
"""Failures that may be about one image, or may show that the registry is down."""
CHILDREN_KNOWN = 1000
"""Manifests of one index that are looked up in memory: an index may name tens of thousands."""
_PUBLIC_FOR = 7 * 86400.0
"""Seconds that a repository is taken to be as public, or as private, as it was seen to be."""
_QUIET = 86400.0
"""Seconds without a move before a tag is asked for less often than in each run."""
_DOWN_AFTER = 3
"""Repositories in a row that met nothing else: the registry itself is then asked for a proof."""
_PINGS = 3
"""Tries to ask a registry for itself, where they fail at once."""
_GETS_IN_A_ROW = 10
"""Manifest GETs that failed without one that did not: none is then sent a second time."""
_DOWN_ANYWAY = 12
"""As many in a row are proof enough, though the registry may answer about itself."""
_OF_ALL = frozenset({f"mirror-{code}" for code in UNREACHABLE} | {"mirror-delete-disabled"})
"""Failures of a mirror that no image can cause."""
_WRITING = frozenset({"mirror-full", "mirror-read-only", "mirror-denied"})
"""Failures of a mirror for which a write is the proof."""
_ABOUT_ONE = frozenset({"mirror-unsupported-manifest", "mirror-bad-manifest", "mirror-incomplete"})
"""What a mirror has under one tag is no image: nothing is wrong with the others."""


@dataclass(frozen=True)
class Observer:
    """Sees one wanted image at a time; safe to use from many threads."""

    upstreams: dict[str, UpstreamSite]
    mirrors: Sequence[MirrorSite]
    manifests: Memory
    clock: Callable[[], Moment]
    recheck: float = 0.0
    """Seconds within which a quiet tag is asked for again at least; 0: in every run."""
    most_children: int = field(default_factory=lambda: Limits().pulls_per_image)
    """An index that lacks more than this is skipped, and asked no further about."""

    def see(self, want: Want) -> Seen:
        """Return what upstream and the mirrors hold of the image; failures are in the value."""
        reference = want.reference
        if (unwanted := self._unwanted(want)) is not None:
            return Seen(failure=unwanted)
        looks = self.looks(want)
        if self.mirrors and not any(look.site.target for look in looks):
            return Seen(failure=no_mirror(reference))
        if reference.digest is not None:
            seen = self._whole_by_digest(want, looks)
            if seen is not None and not seen.open_targets:
                return seen
        upstream = self.upstreams[reference.registry].of(reference.repository)
        if (quiet := self._quiet(want, upstream, looks)) is not None:
            return quiet
        try:
            head = upstream.head(reference.repository, reference.selector, self.clock)
        except RegistryError as error:
            return self._without_upstream(want, looks, error.failure)
        seen = self.judge(want, head.descriptor, looks)
        return replace(seen, metered=head.limit is not None, payer=upstream.quota_name)

    def _quiet(self, want: Want, upstream: UpstreamSite, looks: Sequence[Look]) -> Seen | None:
        """What is known of a tag that need not be asked for yet, where every mirror has that.

        The first images of a run are asked for in any case: their answers report the quota.
        """
        reference = want.reference
        if not self.recheck or not upstream.answered or reference.tag is None:
            return None
        known = self.manifests.tag(reference.registry, reference.repository, reference.tag)
        if known is None or is_due(known, self.recheck, self.clock().wall):
            return None
        seen = self.judge(want, known.descriptor, looks)
        if seen.failure is not None or any(one.state != "fresh" for one in seen.targets):
            return None
        return replace(seen, checked=known.checked)

    def _without_upstream(self, want: Want, looks: Sequence[Look], failure: Failure) -> Seen:
        """What the mirrors hold, measured by what upstream had when it last answered."""
        reference = want.reference
        known = None
        if reference.tag is not None:
            known = self.manifests.tag(reference.registry, reference.repository, reference.tag)
        found = next((look.manifest for look in looks if look.manifest is not None), None)
        if known is not None:
            last: Descriptor | None = known.descriptor
        elif found is not None:
            last = replace(found.descriptor, digest=upstream_digest(found))
        else:
            last = None
        holdings = tuple(look.holding for look in looks)
        if last is not None:
            holdings = self.judge(want, last, looks).holdings
        return Seen(failure=failure, holdings=holdings)

    def _unwanted(self, want: Want) -> Failure | None:
        """Why an image that only CI names is not for the mirror, which everybody can read."""
        if want.pinned:
            return None
        reference = want.reference
        upstream = self.upstreams.get(reference.registry)
        if upstream is None:
            return unlisted(reference)
        if (failure := unmirrorable(reference)) is not None:
            return failure
        try:
            public = self._is_public(upstream, reference)
        except RegistryError as error:
            return error.failure
        return None if public else private(reference)

    def _is_public(self, upstream: UpstreamSite, reference: Reference) -> bool:
        """Ask without credentials, once a week for each repository to which a login applies."""
        if not upstream.has_login(reference.repository):
            return True
        if upstream.public is None:
            return False
        now = self.clock()
        registry, repository = reference.registry, reference.repository
        known = self.manifests.is_public(registry, repository, now.wall - _PUBLIC_FOR)
        if known is not None:
            return known
        try:
            upstream.head_publicly(repository, reference.selector)
            public = True
        except RegistryError as error:
            if error.code not in {"not-found", "unauthorized"}:
                raise
            if error.status == 404:
                # The tag is missing, which is told when it is asked for; or some registries hide
                # so what strangers may not see, and then the login shows it.
                if self._shown_to_us(upstream, reference):
                    return False
                raise  # not asked for again with the login: the tag may be pushed just now
            public = False
        self.manifests.note_public(registry, repository, public, now)
        return public

    def _shown_to_us(self, upstream: UpstreamSite, reference: Reference) -> bool:
        try:
            upstream.of(reference.repository).head(
                reference.repository, reference.selector, self.clock
            )
        except RegistryError as error:
            if error.code == "not-found":
                return False
            raise
        return True

    def judge(self, want: Want, descriptor: Descriptor, looks: Sequence[Look]) -> Seen:
        """Return the picture, given upstream's descriptor and a look at each mirror."""
        seen = Seen(descriptor=descriptor, holdings=tuple(look.holding for look in looks))
        try:
            original = self._original(descriptor, looks)
            looks = [self._proven(want, descriptor, look, original) for look in looks]
            if original is not None and original.is_index and not want.whole:
                if not wanted_children(original, want.platforms):
                    return replace(seen, failure=no_platform(want, original))
                content: Manifest | None = index_for(original, want.platforms)
            elif original is not None:
                content = original
            else:
                content = next((look.manifest for look in looks if look.serves), None)
            required = required_of(content, descriptor)
            sizes = self._sizes(required)
            holdings = tuple(self._hold(want, descriptor, look, required) for look in looks)
        except ManifestError as error:
            return replace(seen, failure=unsupported(want, error))
        return replace(seen, content=content, required=required, sizes=sizes, holdings=holdings)

    def looks(self, want: Want) -> list[Look]:
        """Ask every mirror that can hold the image for its tag, or its digest."""
        registry = want.reference.registry
        return [
            self._recall(site, want) if site.through else self._look(site, want)
            for site in self.mirrors
            if site.settings.serves(registry)
        ]

    def _recall(self, site: MirrorSite, want: Want) -> Look:
        """What the state says of a pull-through mirror."""
        repository = want.reference.mirror_repository
        holding = Holding(site.url, site.target, repository, through=True)
        if site.failure is not None:
            return Look(site, replace(holding, state="unknown", failure=site.failure), None)
        present = held(self.manifests, site.url, repository, self.clock().wall)
        holding = replace(holding, present=present)
        written = next(iter(self.manifests.written(site.url, str(want.reference))), None)
        if written is None:
            return Look(site, holding, None)
        if written.digest not in present:
            return Look(site, replace(holding, expired=True), None)
        manifest = self.manifests.manifest(written.digest)
        return Look(site, replace(holding, digest=written.digest), manifest)

    def _look(self, site: MirrorSite, want: Want) -> Look:
        repository = want.reference.mirror_repository
        holding = Holding(site.url, site.target, repository)
        if site.failure is not None:
            return Look(site, replace(holding, state="unknown", failure=site.failure), None)
        try:
            head = site.registry.head(repository, want.reference.selector)
            manifest = self.fetch(site, repository, head.descriptor.digest)
        except RegistryError as error:
            # What is no image that we could have put there is in the way, not in use.
            if error.code in {"not-found", *_ABOUT_ONE}:
                site.reads.ended()
                return Look(site, holding, None)
            self.note_failure(site, error)
            return Look(site, replace(holding, state="unknown", failure=error.failure), None)
        site.reads.ended()
        return Look(site, replace(holding, digest=head.descriptor.digest), manifest)

    def note_failure(self, site: MirrorSite, error: RegistryError) -> None:
        """Keep a failure to read that is the mirror's own: it is asked no more in this run.

        registry:2 answers 500 for a tag whose manifest is damaged on its disk, and for no other
        (measured on 2.8.2), and a path may hang or be refused for one repository: so it takes
        several of them in a row, and then a proof.
        """
        if error.code == "bad-digest" and not site.target:
            # Of a target the image tells it, which is then not whole there.
            site.damaged = site.damaged or error.failure
        if error.code in _ABOUT_ONE or not error.code.startswith("mirror-"):
            return
        if error.code in _OF_ALL and not error.elsewhere:
            site.failure = site.failure or site.of_all(error)
            return
        failed = site.reads.failed(_repository(error))
        if error.code in _WRITING or (failed and failed % _DOWN_AFTER == 0):
            site.check()
        if failed >= _DOWN_ANYWAY and site.failure is None:
            failure = site.of_all(error)
            text = f"{failure.text}, as for {failed} repositories in a row"
            site.failure = replace(failure, text=text)

    def fetch(self, site: MirrorSite, repository: str, digest: str) -> Manifest:
        """Return a manifest that a mirror holds, from memory if it is there."""
        known = self.manifests.manifest(digest)
        if known is not None:
            return known
        manifest, _ = site.registry.manifest(repository, digest)
        self.manifests.keep_manifest(manifest, self.clock())
        return manifest

    def _whole_by_digest(self, want: Want, looks: Sequence[Look]) -> Seen | None:
        """A digest never moves: where a mirror has it, upstream need not be asked."""
        for look in looks:
            if look.manifest is not None and look.manifest.digest == want.reference.digest:
                return self.judge(want, look.manifest.descriptor, looks)
        return None

    def _original(self, descriptor: Descriptor, looks: Sequence[Look]) -> Manifest | None:
        """Upstream's own bytes, if memory or a mirror has them."""
        known = self.manifests.manifest(descriptor.digest)
        if known is not None:
            return known
        for look in looks:
            if look.manifest is not None and look.manifest.digest == descriptor.digest:
                return look.manifest
        for look in looks:
            if look.holding.failure is None and not look.site.through:
                try:
                    return self.fetch(look.site, look.holding.repository, descriptor.digest)
                except RegistryError as error:
                    if error.code != "not-found":
                        self.note_failure(look.site, error)
        kept = (
            self._kept_original(look, descriptor)
            for look in looks
            if look.manifest is not None and claims(look.manifest, descriptor)
        )
        return next((one for one in kept if one is not None), None)

    def _kept_original(self, look: Look, descriptor: Descriptor) -> Manifest | None:
        """Upstream's index, which prewarm stores on a mirror as a blob."""
        if look.site.through or look.site.failure is not None:
            return None
        try:
            with look.site.registry.open_blob(INDEX_REPOSITORY, descriptor.digest) as blob:
                content = b""
                while len(content) <= MANIFEST_LIMIT and (chunk := blob.read(MANIFEST_LIMIT)):
                    content += chunk
        except RegistryError as error:
            if error.code != "not-found":
                self.note_failure(look.site, error)
            return None
        original = Manifest(descriptor.media_type, content)
        if original.digest != descriptor.digest or not original.is_readable:
            return None
        self.manifests.keep_manifest(original, self.clock())
        return original

    def _proven(
        self, want: Want, descriptor: Descriptor, look: Look, original: Manifest | None
    ) -> Look:
        """Return the look, with what is proven of the manifest below the tag.

        Upstream's index decides, where it is at hand; else only what this state itself has written.
        """
        manifest = look.manifest
        if manifest is None:
            return look
        if manifest.digest == descriptor.digest:
            return replace(look, serves=True)
        if not claims(manifest, descriptor):
            return look
        if original is not None:
            proven = is_made_from(manifest, original)
            if not proven:
                look.site.damaged = look.site.damaged or forged(look)
        else:
            made = (manifest.digest, descriptor.digest)
            written = self.manifests.written(None, str(want.reference))
            proven = any((one.digest, one.upstream_digest) == made for one in written)
        serves = proven and not want.whole and covers(manifest, want.platforms)
        return replace(look, claims=True, serves=serves, proven=proven)

    def _hold(
        self, want: Want, descriptor: Descriptor, look: Look, required: Iterable[str]
    ) -> Holding:
        """Say what state a mirror's copy is in, and which required manifests it holds."""
        holding, manifest = look.holding, look.manifest
        if holding.failure is not None:
            return holding
        if look.site.through:
            return self._hold_through(want, descriptor, holding, required)
        due = set(required)
        if manifest is not None and look.serves:
            due.update(required_of(manifest, manifest.descriptor))
        try:
            present = self.present(look.site, holding.repository, due, manifest)
        except RegistryError as error:
            self.note_failure(look.site, error)
            return replace(holding, state="unknown", failure=error.failure)
        state: State = "missing"
        if manifest is not None:
            if not look.serves:
                state = "missing" if look.claims else "stale"
            elif present >= set(required_of(manifest, manifest.descriptor)):
                state = "fresh"
        unproven = look.claims and not look.proven
        return replace(holding, state=state, present=present, unproven=unproven)

    def _hold_through(
        self, want: Want, descriptor: Descriptor, holding: Holding, required: Iterable[str]
    ) -> Holding:
        """Say what state a pull-through mirror's copy is in, from the state alone."""
        needed = {descriptor.digest, *required}
        holding = replace(holding, present=holding.present & needed)
        if holding.digest != descriptor.digest:
            # One that moved is missing, too: asked for it the mirror pulls what it is now.
            return holding
        (written,) = self.manifests.written(holding.mirror, str(want.reference))
        whole = is_whole(self.manifests, written, needed, self.clock().wall)
        expired = not whole and holding.present == needed
        return replace(holding, state="fresh" if whole else "missing", expired=expired)

    def present(
        self, site: MirrorSite, repository: str, digests: Iterable[str], tagged: Manifest | None
    ) -> frozenset[str]:
        """Return which of the manifests a mirror holds, by HEAD; raises RegistryError.

        Where more are missing than a copy may fetch, some of those behind are left out.
        """
        found = set()
        missing = 0
        for digest in digests:
            if tagged is not None and not tagged.is_index and tagged.digest == digest:
                found.add(digest)
                continue
            try:
                site.registry.head(repository, digest)
            except RegistryError as error:
                if error.code != "not-found":
                    raise
                missing += 1
                if missing > self.most_children:
                    break
            else:
                found.add(digest)
        return frozenset(found)

    def _sizes(self, required: Iterable[str]) -> dict[str, int]:
        sizes = {}
        for digest in islice(required, CHILDREN_KNOWN):
            manifest = self.manifests.manifest(digest)
            if manifest is not None:
                refuse_unsafe(manifest)
                sizes[digest] = manifest.blob_bytes
        return sizes


def _repository(error: RegistryError) -> str:
    """Return the repository that a failure is about, as its text names it."""
    return re.sub(r"[:@][^/]*$", "", error.text.partition(": ")[0])


def is_due(tag: SeenTag, recheck: float, now: float) -> bool:
    """Whether upstream is to be asked for a tag again.

    One that was quiet for long will likely be quiet for a tenth of that time more, and for less
    the more often it has moved. The half of `recheck` is the most: who runs prewarm at least twice
    in that time has every tag asked within it, who runs it more seldom has it asked in each run.
    """
    quiet = tag.checked - tag.changed
    if quiet < _QUIET or tag.checked > now:
        return True
    return now - tag.checked >= min(recheck / 2, quiet / (10 * (1 + tag.moves)))


@dataclass(frozen=True, slots=True)
class Look:
    """One mirror's answer about a tag: where it stands, and the manifest below it."""

    site: MirrorSite
    holding: Holding
    manifest: Manifest | None
    claims: bool = False
    """Whether it is an index that says that it was made from upstream's, by an annotation."""
    proven: bool = False
    """Whether it was."""
    serves: bool = False
    """Whether it is proven to be what upstream has, for the wanted platforms."""


def forged(look: Look) -> Failure:
    """Return the failure of a mirror whose index is not made from the one that it names."""
    assert look.manifest is not None
    return Failure(
        "forged-index",
        f"{look.site.url}/{look.holding.repository}: index {look.manifest.digest} was not made "
        f"from {upstream_digest(look.manifest)}, the upstream index that it names; it was not used",
        "check who can write to this mirror",
    )


def unlisted(reference: Reference) -> Failure:
    """Return the failure of an image whose registry may not be mirrored."""
    return Failure(
        "unlisted-registry",
        f"registry {reference.registry} is not listed",
        f"add {reference.registry}: {{}} under registries: in images.yml",
    )


def no_mirror(reference: Reference) -> Failure:
    """Return the failure of an image that none of the mirrors can hold."""
    return Failure(
        "no-mirror",
        f"{reference}: pull-through mirrors have images of Docker Hub alone",
        "add a mirror with mode: push",
    )


def unmirrorable(reference: Reference) -> Failure | None:
    """Return the failure of an image whose name has no path of its own on a mirror."""
    try:
        _ = reference.mirror_repository
    except InvalidReference as error:
        return Failure("unmirrorable", error.problem, error.cure)
    return None


def private(reference: Reference) -> Failure:
    """Return the failure of an image that CI names and that not everybody may see.

    Docker Hub tells nobody without an account whether a repository is private or not there.
    """
    return Failure(
        "private",
        f"without an account {reference.name} is not to be seen: it is private, or there is no "
        "such repository",
        "check the name; if it is private, and everybody may read it on the mirror, pin it",
    )


def no_platform(want: Want, index: Manifest) -> Failure:
    """Return the failure of an image that has none of the wanted platforms."""
    has = sorted({str(child.platform) for child in index.children if child.platform})
    return Failure(
        "no-platform",
        f"{want.reference}: has none of {words(want.platforms)}, only {', '.join(has) or 'none'}",
        f"set platforms: of the image, at {want.where}",
    )


def unsupported(want: Want, error: ManifestError) -> Failure:
    """Return the failure of an image whose manifest cannot be mirrored."""
    return Failure("unsupported-manifest", f"{want.reference}: {error}", "pin another tag of it")


def bug(want: Want) -> Failure:
    """Return the failure of an image that met a bug of ours; its traceback is in the log."""
    return Failure(
        "bug", f"{want.reference}: a bug of prewarm stopped it", "report it with the log's lines"
    )


def words(platforms: Wanted) -> str:
    """Return the platforms for people."""
    return platforms if isinstance(platforms, str) else ", ".join(map(str, platforms))
