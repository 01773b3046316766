"""Warming pull-through mirrors: what they lack is pulled through them, so that they keep it.

Such a mirror (registry:2 with `proxy:`) makes pulls of its own, by these rules (measured on 2.8.2):
asked for a tag it sends a HEAD upstream and, where it lacks what that names, one manifest GET;
asked for a digest that it lacks, one GET; what it has costs none. So every request here is made
under a reservation, the tag first: then the tag is known there, and it names what is paid for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from prewarm.core.errors import Failure, RegistryError
from prewarm.core.manifest import Descriptor, Manifest, wanted_children
from prewarm.core.reference import Reference
from prewarm.core.settings import Limits
from prewarm.planning.plan import Cost, Defer, Fail, Step, cost, cost_of
from prewarm.planning.pull_through import held
from prewarm.state.ledger import Ledger
from prewarm.sync.fetch import Bill, EndedError, Purchasing, too_many
from prewarm.sync.inspect import MirrorSite, Observer, UpstreamSite, no_platform
from prewarm.sync.task import Image

_TRIES = 2
"""Of a blob whose connection broke: blobs are no pulls."""
_ABOUT_BLOB = frozenset({"mirror-reset", "mirror-timeout", "mirror-server-error"})


@dataclass
class Warming:
    """Warms the pull-through mirrors of a run."""

    purchasing: Purchasing
    observer: Observer
    ledger: Ledger
    limits: Limits
    held_up: Callable[[Image], Step | None]
    moved: Callable[[int], None]
    """Told the bytes of blobs as they pass."""
    _streamed: set[tuple[str, str, str]] = field(default_factory=set)
    """Mirror, repository and digest of the blobs that passed in this run."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def buy(
        self,
        image: Image,
        site: MirrorSite,
        upstream: UpstreamSite,
        wait_for_turn: Callable[[], None],
        over: Callable[[], None],
    ) -> Step | None:
        """Have a mirror fetch the manifests that it lacks; their bytes are then at hand.

        Returns None, or the step that the image ends with: a Defer may leave some of them fetched.
        Raises RegistryError, and EndedError where the reservation is refused.
        """
        there = self._there(image, site)
        price = self._price(image, there)
        with self.purchasing.reserved(image, upstream, price, wait_for_turn, over) as bill:
            try:
                return self._fetch_all(image, site, upstream, bill, there)
            except RegistryError as error:
                if error.code != "upstream-quota":
                    raise
                upstream.closed = Failure(error.code, error.text, error.cure)
                return Defer(image.want, image.seen, price, error.code, error.text)

    def _there(self, image: Image, site: MirrorSite) -> frozenset[str]:
        repository = image.want.reference.mirror_repository
        return held(self.ledger, site.url, repository, self.observer.clock().wall)

    def _price(self, image: Image, there: frozenset[str]) -> Cost:
        """What one mirror may spend on the image: at least one GET, should its tag move now."""
        assert image.seen.descriptor is not None
        if image.content is None:
            one = tuple(holding for holding in image.seen.holdings if holding.through)[:1]
            return cost(image.want, replace(image.seen, holdings=one))
        needed = dict.fromkeys((image.digest, *image.required))
        price = cost_of([d for d in needed if d not in there], image.seen.descriptor)
        return Cost(max(1, price.known_pulls), max(1, price.known_gets))

    def _fetch_all(
        self,
        image: Image,
        site: MirrorSite,
        upstream: UpstreamSite,
        bill: Bill,
        there: frozenset[str],
    ) -> Step | None:
        selector = image.want.reference.selector
        due = image.digest not in there
        manifest = self._fetch(image, site, upstream, selector, bill, due=due)
        if manifest.digest != image.digest:
            self._follow(image, site, upstream, manifest, bill, paid=due)
        site.reads.ended()
        self._note(image, site, manifest, known=manifest.digest in there)
        needs_some = manifest.is_index and not image.want.whole
        if needs_some and not wanted_children(manifest, image.want.platforms):
            return Fail(image.want, image.seen, no_platform(image.want, manifest))
        image.use(manifest)
        lacking = [digest for digest in image.required if not self._at_hand(image, digest, there)]
        if len(lacking) > self.limits.pulls_per_image:
            return too_many(image, len(lacking), self.limits)
        fitting, refusal = self.purchasing.afford(image, upstream, bill, len(lacking))
        for digest in lacking[:fitting]:
            if (held_up := self.held_up(image)) is not None:
                raise EndedError(held_up)
            self.purchasing.renew(image, upstream, bill)
            child = self._fetch(image, site, upstream, digest, bill, due=True)
            image.manifests[digest] = child
            self._note(image, site, child, known=False)
        if fitting == len(lacking):
            return None
        left = len(lacking) - fitting
        return self.purchasing.in_parts(image, upstream, len(lacking), left, refusal)

    def _at_hand(self, image: Image, digest: str, there: frozenset[str]) -> bool:
        """Whether a single manifest is on the mirror and its bytes are here, or come here now."""
        if digest in image.manifests and digest == image.digest:
            return True
        known = self.ledger.manifest(digest) if digest in there else None
        if known is not None:
            image.manifests[digest] = known
        return known is not None

    def _fetch(
        self,
        image: Image,
        site: MirrorSite,
        upstream: UpstreamSite,
        selector: str,
        bill: Bill,
        *,
        due: bool,
    ) -> Manifest:
        """Ask the mirror for one manifest; where it is `due` there, that is a GET upstream."""
        top = {image.digest, image.want.reference.selector}
        child = not image.is_index or selector not in top
        # Counted until we know better, whatever ends it.
        bill.sent += due
        bill.counted += due
        bill.children += due and child
        try:
            repository = image.want.reference.mirror_repository
            manifest, _ = site.registry.manifest(repository, selector)
        except RegistryError as error:
            cause = self._cause(image, site, upstream, error)
            if due and (cause.code == "upstream-quota" or not error.answered):
                bill.counted -= 1
                bill.children -= child
                bill.sent -= not error.answered
            raise cause from error
        return manifest

    def _cause(
        self, image: Image, site: MirrorSite, upstream: UpstreamSite, error: RegistryError
    ) -> RegistryError:
        """Return what a mirror's refusal really means: it hides what upstream told it.

        A 429 becomes a 500 or, for a tag, a 404 (measured on 2.8.2). Upstream itself is asked by
        HEAD whether it has the image, and what remains.
        """
        name = upstream.settings.name
        wait = "wait for the window, or see who else uses the account of the mirror"
        if error.code == "mirror-upstream-quota":
            text = f"{name} refuses {site.url} the pull: the pull rate limit is reached"
            return RegistryError("upstream-quota", text, wait)
        if error.code not in {"not-found", "mirror-server-error"}:
            return error
        reference = image.want.reference
        try:
            head = upstream.head(reference.repository, reference.selector, self.observer.clock)
        except RegistryError as own:
            return own
        if head.limit is not None and head.limit.remaining <= 0:
            text = f"{name} has no pulls left for {site.url}"
            return RegistryError("upstream-quota", text, wait)
        text = f"does not get {reference.familiar} from {name}, which has it"
        return _unlike(site, reference, text)

    def _follow(
        self,
        image: Image,
        site: MirrorSite,
        upstream: UpstreamSite,
        manifest: Manifest,
        bill: Bill,
        *,
        paid: bool,
    ) -> None:
        """Go on with what the mirror serves, where the tag has moved since it was seen.

        Where upstream knows nothing of it the mirror could not ask, or asks another registry.
        """
        if not paid:
            bill.sent += 1
            bill.counted += 1
            bill.children += not manifest.is_index
        reference = image.want.reference
        head = upstream.head(reference.repository, reference.selector, self.observer.clock)
        if head.descriptor.digest != manifest.digest:
            name = upstream.settings.name
            text = f"serves {manifest.digest} as {reference.familiar}, which {name} does not"
            raise _unlike(site, reference, text)
        descriptor = Descriptor(manifest.media_type, manifest.digest, len(manifest.content))
        image.step = replace(image.step, seen=replace(image.seen, descriptor=descriptor))
        image.manifests.clear()

    def _note(self, image: Image, site: MirrorSite, manifest: Manifest, *, known: bool) -> None:
        now = self.observer.clock()
        self.ledger.keep_manifest(manifest, now)
        repository = image.want.reference.mirror_repository
        if not known:
            self.ledger.note_cached(site.url, repository, manifest.digest, now)
        image.note_present(site.url, (manifest.digest,))

    # Blobs

    def fill(self, image: Image, site: MirrorSite) -> None:
        """Read the blobs of the manifests that the mirror has, and throw them away.

        Where that is the whole image it is noted as warm. Raises RegistryError.
        """
        repository = image.want.reference.mirror_repository
        there = self._there(image, site)
        for digest in image.required:
            manifest = image.manifests.get(digest) if digest in there else None
            for blob in manifest.blobs if manifest is not None else ():
                key = (site.url, repository, blob.digest)
                with self._lock:
                    passed = key in self._streamed
                if not passed:
                    image.moved += self._stream(image, site, repository, blob)
                    with self._lock:
                        self._streamed.add(key)
        if image.digest not in there or not there.issuperset(image.required):
            return
        whole = frozenset({image.digest, *image.required})
        image.note_whole(self.ledger, site.url, image.digest, whole, self.observer.clock())

    def _stream(self, image: Image, site: MirrorSite, repository: str, blob: Descriptor) -> int:
        """Read one blob to its end; return its bytes."""
        for last in (number == _TRIES for number in range(1, _TRIES + 1)):
            try:
                return self._read(image, site, repository, blob)
            except RegistryError as error:
                if last or error.code not in _ABOUT_BLOB:
                    raise
        raise AssertionError("the last try returns or raises")

    def _read(self, image: Image, site: MirrorSite, repository: str, blob: Descriptor) -> int:
        algorithm = blob.digest.partition(":")[0]
        seen, size = hashlib.new(algorithm), 0
        with site.registry.open_blob(repository, blob.digest) as content:
            for piece in content:
                if (held_up := self.held_up(image)) is not None:
                    raise EndedError(held_up)
                seen.update(piece)
                size += len(piece)
                self.moved(len(piece))
        if f"{algorithm}:{seen.hexdigest()}" != blob.digest:
            raise RegistryError(
                "bad-digest",
                f"{site.url}/{repository}: its blob {blob.digest} has other bytes",
                "look at its disk; run again",
            )
        return size


def _unlike(site: MirrorSite, reference: Reference, text: str) -> RegistryError:
    return RegistryError(
        "mirror-upstream",
        f"{site.url}/{reference.mirror_repository}: {text}",
        "look at its log: its proxy: must name Docker Hub, with the login that prewarm uses",
    )
