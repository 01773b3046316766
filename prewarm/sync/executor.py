"""The executor: carries out a plan, step by step, and reports the outcome of each.

For one image: buy the manifests that nobody has (`fetch`), let skopeo copy what each mirror
lacks, by digest and through the gate, put the index under its tag, and look whether all is there.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from prewarm.core.budget import Window
from prewarm.core.errors import Failure, PrewarmError, RegistryError
from prewarm.core.manifest import (
    Manifest,
    ManifestError,
    is_of,
    refuse_unsafe,
    required_of,
    stand_in,
)
from prewarm.core.platforms import ALL, Platform, normalise, well_formed
from prewarm.core.reference import INDEX_REPOSITORY
from prewarm.core.settings import Limits, Mirror
from prewarm.core.text import duration_words, size_words
from prewarm.planning.outcome import Outcome, Progress
from prewarm.planning.plan import LATER, Copy, Defer, Fail, Plan, Skip, Step, Tag
from prewarm.registry.policy_json import Policy
from prewarm.state.ledger import Ledger
from prewarm.sync import skopeo
from prewarm.sync.causes import Cause, cause_of, last_words
from prewarm.sync.fetch import EndedError, Purchasing, too_many
from prewarm.sync.filling import Filling
from prewarm.sync.gate import BlobSource, Gate, Offer
from prewarm.sync.inspect import (
    CHILDREN_KNOWN,
    MirrorSite,
    Observer,
    UpstreamSite,
    bug,
    unsupported,
    words,
)
from prewarm.sync.ordering import Moving, Slots, Turn, Turns
from prewarm.sync.relay import Relay
from prewarm.sync.task import Image
from prewarm.sync.warm import Warming

log = logging.getLogger("prewarm")

_CONFIG_MAX: Final = 4 << 20
STALLED = 300.0
"""Seconds without a byte after which a copy is given up: the mirror does not take it."""
_SLOWEST: Final = 500_000
"""Bytes per second: a copy that is slower on the whole is given up."""
_BASE_TIMEOUT: Final = 600.0
_ODD: Final = Platform("unknown", "unknown")
"""Of a config whose words are none that a platform has."""
_TRIES: Final = 2
"""Of a copy whose failure may pass: manifests are at hand, so a second try costs no pull."""
_PAUSE: Final = (0.5, 1.5)
"""Seconds before the second try, at random between these."""
_UNCONNECTED: Final = 3
"""Repositories in a row for which skopeo could not connect to a mirror, or log in there."""


@dataclass(frozen=True)
class Tools:
    """What copies: skopeo, its private folders, and the host's policy."""

    program: str
    environment: Mapping[str, str]
    policy: Policy


@dataclass
class Carrier:
    """Carries out the plans of one run; `stop` ends it early, cleanly."""

    run: str
    observer: Observer
    ledger: Ledger
    gate: Gate
    authfile: int
    """The descriptor of the login at the gate."""
    tools: Tools | PrewarmError
    """An error where nothing can be copied: images that need no copy are done all the same."""
    windows: Callable[[UpstreamSite], Window]
    limits: Limits
    progress: Progress
    stop: threading.Event
    deadline: float
    """By the monotonic clock: no step starts after it."""
    _right: set[str] = field(default_factory=set)
    """Configs that are for a wanted platform."""

    def __post_init__(self) -> None:
        self._turns: dict[str, Turns] = {}
        self._moving = Moving(self.stop)
        mirrors = [site.settings for site in self.observer.mirrors]
        self._filling = Filling(self.ledger, self.observer.clock, self.limits, mirrors)
        self._sites = {site.url: site for site in self.observer.mirrors}
        self._purchasing = Purchasing(
            run=self.run,
            ledger=self.ledger,
            clock=self.observer.clock,
            windows=self.windows,
            limits=self.limits,
            held_up=self._held_up,
        )
        self._warming = Warming(
            self._purchasing,
            self.observer,
            self.ledger,
            self.limits,
            self._held_up,
            self.progress.moved,
        )

    def carry_out(self, plan: Plan) -> Iterator[Outcome]:
        """Do the steps that do something, at most `limits.parallel` at once; yield as they end.

        Pulls are reserved in the order of the plan, those of users who have had their share last.
        Steps that share a digest run one after another, so that the first brings it and the others
        find it.
        """
        groups: dict[tuple[str, str | None], list[Copy | Tag]] = {}
        for step in plan.steps:
            if isinstance(step, Copy | Tag):
                groups.setdefault((step.want.reference.name, step.seen.key), []).append(step)
        if groups:
            lost = {
                (holding.mirror, digest)
                for step in plan.steps
                for holding in step.seen.holdings
                for digest in holding.lost
            }
            self._remember_blobs(lost)
        for group in groups.values():
            group.sort(key=lambda step: isinstance(step, Tag))
        ordered = sorted(groups.values(), key=_is_late)
        self.progress.begin(sum(map(len, ordered)))
        slots = Slots((group[0].want.reference.registry, group) for group in ordered)
        pending: dict[Future[list[Outcome]], str] = {}
        with ThreadPoolExecutor(self.limits.parallel, "copy") as pool:
            while True:
                while len(pending) < self.limits.parallel and (taken := slots.take()) is not None:
                    registry, group = taken
                    pending[pool.submit(self._group, group, self._turn(registry))] = registry
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    slots.ended(pending.pop(future))
                    yield from future.result()

    def _turn(self, registry: str) -> Turn:
        """Return the next turn to reserve pulls of a registry, in the order of the plan."""
        turns = self._turns.setdefault(registry, Turns(self.stop))
        return Turn(turns, turns.issue(1)[0])

    def _group(self, steps: Sequence[Copy | Tag], turn: Turn) -> list[Outcome]:
        outcomes = []
        try:
            for step in steps:
                started = time.monotonic()
                outcome = replace(self._step(step, turn), seconds=time.monotonic() - started)
                self.progress.done(outcome)
                outcomes.append(outcome)
        finally:
            turn.over()
        return outcomes

    def _step(self, step: Copy | Tag, turn: Turn) -> Outcome:
        """Carry out one step; whatever goes wrong with it becomes its outcome."""
        image = Image(step, step.seen.content, step.seen.required)
        image.holdings = {holding.mirror: holding for holding in step.seen.holdings}
        try:
            ended = self._carry(image, turn)
        except EndedError as early:
            ended = early.step
        except ManifestError as error:
            ended = Fail(step.want, step.seen, unsupported(step.want, error))
        except PrewarmError as error:
            if error.code in LATER:
                ended = Defer(step.want, step.seen, None, error.code, error.text)
            else:
                ended = Fail(step.want, step.seen, error.failure)
        except Exception:
            # It must not take the other images with it.
            log.exception("a bug met %s", step.want.reference)
            ended = Fail(step.want, step.seen, bug(step.want))
        return Outcome(
            ended,
            image.content,
            tuple(image.holdings.values()),
            image.pulls,
            image.gets,
            image.moved,
            {
                **step.seen.sizes,
                **{digest: m.blob_bytes for digest, m in image.manifests.items()},
            },
        )

    def _carry(self, image: Image, turn: Turn) -> Step:
        if (held_up := self._held_up(image)) is not None:
            return held_up
        self._check(image)
        ended = self._warm(image, turn)
        if ended is None and any(not holding.through for holding in image.open_targets):
            ended = self._obtain(image, turn)
        turn.over()
        if ended is not None and not (isinstance(ended, Defer) and image.content):
            return ended
        if not image.open_targets:
            return _verdict(image)
        assert image.content is not None
        with self._filling.room(image):
            self._fill(image, image.content, whole=not image.due)
        return ended or _verdict(image)

    def _held_up(self, image: Image) -> Step | None:
        if self.stop.is_set():
            return Defer(image.want, image.seen, None, "interrupted", "the run was ended")
        if time.monotonic() > self.deadline:
            return Defer(image.want, image.seen, None, "run-time", "limits.run_time is over")
        return None

    def _check(self, image: Image) -> None:
        """Make sure, before a pull is spent, that the copy can be made."""
        for holding in image.open_targets:
            site = self._sites[holding.mirror]
            if site.failure is None:
                site.failure = too_little_space(site.settings, 0)
            if site.failure is not None:
                image.note_failure(site.url, site.failure)
        if not image.open_targets:
            failure = next(h.failure for h in image.holdings.values() if h.target and h.failure)
            raise PrewarmError(failure.code, failure.text, failure.cure)
        if isinstance(self.tools, PrewarmError):
            if all(holding.through for holding in image.open_targets):
                return
            raise self.tools
        if (refusal := self.tools.policy.refusal(image.want.reference)) is not None:
            raise refusal

    def _warm(self, image: Image, turn: Turn) -> Step | None:
        """Have each pull-through mirror pull what it lacks; a Step where that ends the image."""
        upstream = self._upstream(image)
        for holding in image.open_targets:
            if not holding.through:
                continue
            site = self._sites[holding.mirror]
            try:
                ended = self._warming.buy(
                    image,
                    site,
                    upstream,
                    turn.wait,
                    turn.over,
                )
            except EndedError as early:
                # What came to another mirror until now is not lost.
                return early.step
            except RegistryError as error:
                if not error.code.startswith("mirror-"):
                    raise
                self.observer.note_failure(site, error)
                image.note_failure(site.url, error.failure)
            else:
                if ended is not None:
                    return ended
        return None

    def _obtain(self, image: Image, turn: Turn) -> Step | None:
        """Get the bytes of every manifest that some mirror needs; a Step where that fails."""
        if image.content is None:
            # A step of the same digest, or an earlier run, may have brought it meanwhile.
            original = self.ledger.manifest(image.digest)
            if original is not None:
                image.use(original)
        if image.content is not None or not image.is_index:
            self._find(image)
            if image.content is not None and not image.due:
                return None
        return self._purchasing.buy(
            image,
            self._upstream(image),
            self._find,
            turn.wait,
            turn.over,
        )

    def _upstream(self, image: Image) -> UpstreamSite:
        """The upstream as the account that the image is asked as."""
        reference = image.want.reference
        return self.observer.upstreams[reference.registry].of(reference.repository)

    def _find(self, image: Image) -> None:
        """Look for the required manifests in memory and on the mirrors, which costs no pull."""
        for url, holding in image.holdings.items():
            site = self._sites[url]
            unseen = set(image.required) - holding.present - holding.lost
            if holding.failure is not None or site.failure is not None or not unseen:
                continue
            if site.through:
                continue
            try:
                found = self.observer.present(site, holding.repository, unseen, None)
            except RegistryError as error:
                self.observer.note_failure(site, error)
                image.note_failure(url, error.failure)
            else:
                image.note_present(url, found)
        if len(image.due) > CHILDREN_KNOWN:
            raise EndedError(too_many(image, len(image.due), self.limits))
        for digest in image.due:
            known = self.ledger.manifest(digest) or self._from_mirror(image, digest)
            if known is not None:
                image.manifests[digest] = known
                if digest == image.digest and image.content is None:
                    image.use(known)

    def _from_mirror(self, image: Image, digest: str) -> Manifest | None:
        for holding in image.holdings.values():
            site = self._sites[holding.mirror]
            if digest in holding.present and site.failure is None and not site.through:
                try:
                    return self.observer.fetch(site, holding.repository, digest)
                except RegistryError as error:
                    self.observer.note_failure(site, error)
        return None

    def _fill(self, image: Image, content: Manifest, *, whole: bool) -> None:
        """Bring the image to every mirror that needs it; one mirror's failure stays with it."""
        for manifest in image.manifests.values():
            refuse_unsafe(manifest)
        if image.size > self.limits.image_size:
            raise EndedError(too_large(image, self.limits))
        if not content.is_index:
            self._check_platform(image, content)
        # A pull-through mirror that was read through gives the others the blobs.
        for holding in sorted(image.open_targets, key=lambda one: not one.through):
            site = self._sites[holding.mirror]
            try:
                if site.failure is not None:
                    raise PrewarmError(site.failure.code, site.failure.text, site.failure.cure)
                if site.through:
                    self._read_through(image, site)
                    continue
                self._fill_mirror(image, site)
                if whole:
                    self._tag(image, content, site)
            except PrewarmError as error:
                image.note_failure(site.url, error.failure)

    def _read_through(self, image: Image, site: MirrorSite) -> None:
        needed = image.size
        if (failure := too_little_space(site.settings, needed)) is not None:
            raise PrewarmError(failure.code, failure.text, failure.cure)
        self.progress.expect(needed)
        try:
            self._warming.fill(image, site)
        except RegistryError as error:
            self.observer.note_failure(site, error)
            image.note_failure(site.url, error.failure)

    def _fill_mirror(self, image: Image, site: MirrorSite) -> None:
        """Copy the manifests at hand that the mirror lacks."""
        lacking = [
            image.manifests[digest]
            for digest in image.required
            if digest not in image.holdings[site.url].present and digest in image.manifests
        ]
        self.progress.expect(sum(manifest.blob_bytes for manifest in lacking))
        for manifest in lacking:
            needed = sum(
                blob.size
                for blob in manifest.blobs
                if self._moving.where(site.url, blob.digest) is None
            )
            if (failure := too_little_space(site.settings, needed)) is not None:
                raise PrewarmError(failure.code, failure.text, failure.cure)
            # Before it is there: what a killed run leaves behind can be found and pruned.
            self.ledger.note_pushed(
                site.url,
                image.holdings[site.url].repository,
                (manifest.digest,),
                self.observer.clock().wall,
            )
            self._copy(image, site, manifest)
            image.note_present(site.url, (manifest.digest,))

    def _tag(self, image: Image, content: Manifest, site: MirrorSite) -> None:
        """Put the content under its tag, and look whether the mirror has all of it."""
        holding, reference = image.holdings[site.url], image.want.reference
        found = None
        try:
            if content.digest != image.digest:
                self._keep_original(image.digest, site)
            if content.is_index or reference.digest is None:
                site.registry.put_manifest(holding.repository, reference.selector, content)
            with _absent_is_none():
                found = site.registry.head(holding.repository, reference.selector).descriptor.digest
            there = self.observer.present(site, holding.repository, image.required, None)
        except RegistryError as error:
            raise self._blamed(site, error) from None
        if found != content.digest or there < set(image.required):
            raise PrewarmError(
                "verify",
                f"{site.url}: {holding.repository} is not whole after the copy of {reference}",
                "restart the mirror if its garbage was collected, then run again",
            )
        now = self.observer.clock()
        self._know_all(image)
        self.ledger.keep_manifest(content, now)
        image.note_whole(self.ledger, site.url, content.digest, there, now)

    def _keep_original(self, digest: str, site: MirrorSite) -> None:
        """Store upstream's index on the mirror, as a blob: it proves what was made from it.

        So a lost state costs no pull. It is needed for nothing else, so a failure costs no image.
        """
        original = self.ledger.manifest(digest)
        if original is None:
            return
        with suppress(RegistryError):
            if site.registry.blob_size(INDEX_REPOSITORY, original.digest) is None:
                site.registry.put_blob(INDEX_REPOSITORY, original.content)

    def _know_all(self, image: Image) -> None:
        """Add the manifests that were there already, as far as they are remembered: for its size.

        They were not at hand, since nobody lacked them.
        """
        for digest in image.required:
            if digest not in image.manifests and (known := self.ledger.manifest(digest)):
                image.manifests[digest] = known

    def _copy(self, image: Image, site: MirrorSite, manifest: Manifest) -> None:
        """Let skopeo copy one manifest with its blobs to a mirror."""
        blobs = [blob.digest for blob in manifest.blobs]
        repository = image.holdings[site.url].repository
        for _ in range(len(blobs) + 1):
            # A blob that is not where it was thought to be must be held by one copy, too.
            with self._moving.hold(site.url, repository, blobs) as mine:
                if not self._mount(site, repository, blobs):
                    mine.clear()
                    continue
                self._copy_held(image, site, manifest)
                return
        self._copy_held(image, site, manifest)

    def _copy_held(self, image: Image, site: MirrorSite, manifest: Manifest) -> None:
        repository = image.holdings[site.url].repository
        sources = self._sources(image, manifest.digest, site)
        copied = stand_in(manifest)
        if copied is not manifest:
            now = self.observer.clock().wall
            self.ledger.note_pushed(site.url, repository, (copied.digest,), now)
        for last in (number == _TRIES for number in range(1, _TRIES + 1)):
            arrived = partial(self._moving.arrived, site.url, repository=repository)
            relay = Relay(site.registry, repository, copied, arrived)
            offer = Offer(copied, sources, self.progress.moved, relay, image.known)
            pace = _Pace(offer)
            result = self._run(image, offer, pace)
            if result.returncode == 0:
                site.connects.ended()
                if copied is not manifest:
                    self._put_in_place(site, repository, copied, manifest)
                return
            if result.stopped and (held_up := self._held_up(image)) is not None:
                relay.cancel()
                raise EndedError(held_up)
            if pace.gave_up and offer.failure is None:
                relay.cancel()
                raise self._blamed(site, pace.error(f"{site.url}/{repository}"))
            cause = cause_of(
                result.stderr,
                f"{site.url}/{repository}",
                login=site.registry.login_cure,
                source=offer.failure,
                mirror=relay.failure,
            )
            log.debug("skopeo: %s", last_words(result.stderr))
            error = self._judged(site, repository, cause)
            # After the proof: of a full disk they take the last bytes.
            relay.cancel()
            if last or not cause.passing or error is not cause.error:
                raise error
            if error.code == "bad-digest" and len(sources) > 1:
                # A mirror's disk may be; upstream's bytes decide.
                self._note_damaged(*sources[0])
                sources = sources[-1:]
            self.stop.wait(random.uniform(*_PAUSE))

    def _put_in_place(
        self, site: MirrorSite, repository: str, copied: Manifest, manifest: Manifest
    ) -> None:
        """Put a manifest where skopeo has put a stand-in with the same blobs, and delete that."""
        try:
            site.registry.put_manifest(repository, manifest.digest, manifest)
        except RegistryError as error:
            blamed = self._blamed(site, error)
            if manifest.has_urls and blamed is error and error.status in {400, 500}:
                raise PrewarmError(
                    "layer-urls",
                    f"{site.url}/{repository}: the mirror refused manifest {manifest.digest}, "
                    f"whose layers have urls (status {error.status})",
                    "allow their hosts under validation.manifests.urls.allow in the configuration "
                    "of the mirror's registry, or add the image to skip:",
                ) from None
            raise blamed from None
        finally:
            # Where the mirror deletes nothing it stays, for prune to find.
            with suppress(RegistryError):
                site.registry.delete_manifest(repository, copied.digest)
                self.ledger.forget_pushed(site.url, repository, (copied.digest,))

    def _run(self, image: Image, offer: Offer, pace: _Pace) -> skopeo.Result:
        """Run skopeo for one manifest, from the gate to the gate."""
        assert isinstance(self.tools, Tools)
        timeout = _BASE_TIMEOUT + offer.manifest.blob_bytes / _SLOWEST
        source = self.gate.offer(offer)
        command = skopeo.copy_command(
            self.tools.program,
            source,
            self.authfile,
            offer.manifest.digest,
            timeout,
        )
        try:
            return skopeo.run(
                command,
                self.tools.environment,
                timeout,
                self.stop,
                (self.authfile,),
                pace.is_too_slow,
            )
        finally:
            self.gate.withdraw(source)
            image.moved += offer.sent

    def _judged(self, site: MirrorSite, repository: str, cause: Cause) -> PrewarmError:
        """Return what a failed copy means, after the mirror had to prove that it works."""
        error = cause.error
        if cause.side != "mirror" and error.code != "timeout":
            return error
        if not cause.reached and site.connects.failed(repository) >= _UNCONNECTED:
            # No image has a part in that: prewarm may connect there, but skopeo cannot.
            site.failure = site.failure or site.of_all(error)
        error = self._blamed(site, error)
        if error is cause.error and cause.uploading and error.code == "mirror-server-error":
            try:
                # skopeo does not say what the mirror answered, or why.
                site.registry.probe_upload(repository)
            except RegistryError as own:
                return self._blamed(site, own)
        return error

    def _blamed(self, site: MirrorSite, error: PrewarmError) -> PrewarmError:
        """Return a failure at a mirror as that image's, or as the mirror's where that is proven."""
        if error.code == "timeout" or (
            error.code.startswith("mirror-") and error.code != "mirror-incomplete"
        ):
            site.check()
        if (failure := site.failure) is not None:
            return PrewarmError(failure.code, failure.text, failure.cure)
        return error

    def _note_damaged(self, source: BlobSource, repository: str) -> None:
        """Keep that a mirror sent a blob of another content, for a person to look at its disk."""
        site = next(site for site in self._sites.values() if site.registry is source)
        site.damaged = site.damaged or Failure(
            "bad-digest",
            f"{site.url}: a blob of {repository} is not what its digest says, upstream's was taken",
            "check its disk, delete the image there and let it be filled again",
        )

    def _mount(self, site: MirrorSite, repository: str, blobs: Sequence[str]) -> bool:
        """Have the blobs that other repositories of the mirror hold in this one, too.

        skopeo would do so by its own memory, which may be lost and is written only when a copy is
        over. False where one turned out not to be there. What else is wrong with the mirror skopeo
        will tell.
        """
        for digest in blobs:
            with self._moving.placing(site.url, repository):
                landing = self._moving.where(site.url, digest)
                if landing is None or self._moving.placed(site.url, repository, digest):
                    continue
                try:
                    if landing == repository or site.registry.mount_blob(
                        repository, digest, landing
                    ):
                        self._moving.place(site.url, repository, digest)
                        continue
                except RegistryError:
                    return True
            self._moving.gone(site.url, digest)
            return False
        return True

    def _remember_blobs(self, lost: Container[tuple[str, str]]) -> None:
        """Learn from the state which blobs the mirrors hold, in which of their repositories.

        Not of the manifests that are `lost` on a mirror: some of their blobs are gone.
        """
        for written in self.ledger.written():
            if written.mirror not in self._sites:
                continue
            content = self.ledger.manifest(written.digest)
            if content is None:
                continue
            with suppress(ManifestError):
                for digest in required_of(content, content.descriptor):
                    if (written.mirror, digest) in lost:
                        continue
                    manifest = self.ledger.manifest(digest)
                    for blob in manifest.blobs if manifest else ():
                        self._moving.arrived(written.mirror, blob.digest, written.repository)

    def _sources(
        self, image: Image, digest: str, to: MirrorSite | None = None
    ) -> list[tuple[BlobSource, str]]:
        """Where the blobs of a manifest can be read: mirrors that hold it, then upstream."""
        near: list[tuple[BlobSource, str]] = [
            (site.registry, holding.repository)
            for holding in image.holdings.values()
            if digest in holding.present
            and (site := self._sites[holding.mirror]) is not to
            and site.failure is None
        ]
        reference = image.want.reference
        upstream = self.observer.upstreams[reference.registry].registry
        return [*near, (upstream, reference.repository)]

    def _check_platform(self, image: Image, manifest: Manifest) -> None:
        """A lone manifest runs on the platform of its config: refuse one that nobody wants."""
        want = image.want
        if want.whole or want.platforms == ALL or not manifest.blobs:
            return
        config = manifest.blobs[0]
        if config.digest in self._right or config.size > _CONFIG_MAX:
            return
        content = self._read(image, manifest, config.digest, config.size)
        image.known[config.digest] = content
        found = platform_of(content)
        if found is not None and found not in want.platforms:
            raise PrewarmError(
                "no-platform",
                f"{want.reference}: is only for {found}, wanted is {words(want.platforms)}",
                f"set platforms: of the image, at {want.where}",
            )
        self._right.add(config.digest)

    def _read(self, image: Image, manifest: Manifest, digest: str, size: int) -> bytes:
        failure: RegistryError | None = None
        sources = self._sources(image, manifest.digest)
        # Upstream twice: bytes that were damaged on the way may come well.
        for source, repository in (*sources, sources[-1]):
            try:
                content = _blob(source, repository, digest, size)
            except RegistryError as error:
                failure = error
                continue
            if is_of(digest, content):
                return content
            failure = RegistryError(
                "bad-digest",
                f"{image.want.reference}: the bytes of its config are not those of the digest",
                "run again; if it stays so, the image is broken upstream",
            )
        assert failure is not None
        raise failure


def _is_late(group: Sequence[Copy | Tag]) -> bool:
    """Whether what a group brings is for users who have had their share."""
    copies = [step.late for step in group if isinstance(step, Copy)]
    return bool(copies) and all(copies)


def _blob(source: BlobSource, repository: str, digest: str, size: int) -> bytes:
    blob = source.open_blob(repository, digest)
    try:
        content = b""
        while len(content) < size and (chunk := blob.read(size - len(content))):
            content += chunk
        return content
    finally:
        blob.close()


@contextmanager
def _absent_is_none() -> Iterator[None]:
    """Go on where a registry does not have what it is asked for."""
    try:
        yield
    except RegistryError as error:
        if error.code != "not-found":
            raise


class _Pace:
    """Watches that a copy moves: neither stalls nor falls behind what its timeout allows."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._began = self._moved = time.monotonic()
        self._sent = 0
        self.gave_up = False

    def is_too_slow(self) -> bool:
        """Whether it is to be given up now."""
        now, sent = time.monotonic(), self._offer.sent
        if sent > self._sent:
            self._sent, self._moved = sent, now
        behind = sent < _SLOWEST * (now - self._began - _BASE_TIMEOUT)
        self.gave_up = behind or now - self._moved > STALLED
        return self.gave_up

    def error(self, where: str) -> PrewarmError:
        """Return why it was given up."""
        size = size_words(self._offer.manifest.blob_bytes)
        seconds = duration_words(int(time.monotonic() - self._began))
        return PrewarmError(
            "timeout",
            f"{where}: timed out: the copy stalled after {size_words(self._sent)} of {size} in "
            f"{seconds}",
            "look at the mirror's log, and at the network between upstream, this host and the "
            "mirror",
        )


def _verdict(image: Image) -> Step:
    """The step as it ended: failed only where no mirror got the image."""
    targets = [h for h in image.holdings.values() if h.target]
    tried = [h for h in targets if h.failure is not None]
    got = any(h.state == "fresh" and h.failure is None for h in targets)
    if tried and not got:
        failure = tried[0].failure
        assert failure is not None
        if failure.code in LATER:
            return Defer(image.want, image.seen, None, failure.code, failure.text)
        return Fail(image.want, image.seen, failure)
    if isinstance(image.step, Copy) and not image.gets and not image.moved:
        # An earlier step brought it after all.
        text = "all of it was on the mirror, only the tag was not"
        return Tag(image.want, image.seen, "digest-there", text)
    return image.step


def too_little_space(mirror: Mirror, needed: int) -> Failure | None:
    """Return the failure of a mirror whose local disk would fall below `min_free`."""
    storage, least = mirror.storage, mirror.min_free or 0
    if storage is None:
        return None
    try:
        free = shutil.disk_usage(storage).free
    except OSError as error:
        return Failure(
            "mirror-storage",
            f"{mirror.url}: storage {storage} cannot be read: {error.strerror}",
            "correct storage: of the mirror, or leave it out",
        )
    if free - needed >= least:
        return None
    text = f"{mirror.url}: {size_words(free)} are free at {storage}, "
    if needed:
        beside = f" beside min_free {size_words(least)}" if least else ""
        text += f"too little for {size_words(needed)}{beside}"
    else:
        text += f"below min_free {size_words(least)}"
    return Failure(
        "mirror-full",
        text,
        "free space on the mirror (delete images, then garbage-collect) or lower min_free",
    )


def too_large(image: Image, limits: Limits) -> Skip:
    """Return the step of an image that is larger than one image may be."""
    return Skip(
        image.want,
        image.seen,
        "image-size",
        f"has {size_words(image.size)}, {size_words(image.size - limits.image_size)} more than "
        f"limits.image_size {size_words(limits.image_size)}",
    )


def platform_of(config: bytes) -> Platform | None:
    """Return the platform that an image's config names; None where it is no image's config."""
    try:
        document = json.loads(config)
    except (ValueError, RecursionError):
        return None
    match document:
        case {"os": str(os), "architecture": str(architecture), **more} if os and architecture:
            variant = more.get("variant")
            variant = variant if isinstance(variant, str) else ""
            if not well_formed(os, architecture, variant or "-"):
                return _ODD
            return normalise(os, architecture, variant)
        case _:
            return None
