"""An image while it is being carried to the mirrors: what is at hand of it, and what is where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from prewarm.core.budget import Moment
from prewarm.core.errors import Failure
from prewarm.core.manifest import Manifest, index_for, required_of
from prewarm.planning.demand import Want
from prewarm.planning.plan import Copy, Holding, Seen, Tag
from prewarm.state.ledger import Ledger
from prewarm.sync.inspect import words


@dataclass
class Image:
    """The working record of one step; it belongs to one worker."""

    step: Copy | Tag
    content: Manifest | None = None
    """What goes under the tag."""
    required: tuple[str, ...] = ()
    """The single manifests that the content stands on."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """The bytes of required manifests that are at hand."""
    known: dict[str, bytes] = field(default_factory=dict)
    """Blobs that were read to look into them, by digest."""
    holdings: dict[str, Holding] = field(default_factory=dict)
    """By the mirror's URL."""
    pulls: int = 0
    gets: int = 0
    moved: int = 0

    @property
    def want(self) -> Want:
        return self.step.want

    @property
    def seen(self) -> Seen:
        return self.step.seen

    @property
    def digest(self) -> str:
        """Upstream's digest."""
        assert self.seen.descriptor is not None
        return self.seen.descriptor.digest

    @property
    def is_index(self) -> bool:
        """Whether upstream has an index under that digest."""
        assert self.seen.descriptor is not None
        return self.seen.descriptor.is_index

    @property
    def open_targets(self) -> tuple[Holding, ...]:
        """The mirrors that still need the image and can take it."""
        return tuple(
            h
            for h in self.holdings.values()
            if h.target and h.failure is None and h.state != "fresh"
        )

    @property
    def lacking(self) -> tuple[str, ...]:
        """Required manifests that some push mirror still needs."""
        targets = [holding for holding in self.open_targets if not holding.through]
        return tuple(d for d in self.required if any(d not in h.present for h in targets))

    @property
    def due(self) -> tuple[str, ...]:
        """Lacking manifests whose bytes are not at hand."""
        return tuple(digest for digest in self.lacking if digest not in self.manifests)

    @property
    def size(self) -> int:
        """Bytes of the blobs of all manifests at hand, each blob once."""
        return sum({b.digest: b.size for m in self.manifests.values() for b in m.blobs}.values())

    def use(self, original: Manifest) -> None:
        """Take upstream's own manifest or index as that which the image is made from."""
        whole = self.want.whole or not original.is_index
        self.take(original if whole else index_for(original, self.want.platforms))
        if not original.is_index:
            self.manifests[original.digest] = original

    def take(self, content: Manifest) -> None:
        """Take what goes under the tag; raises ManifestError where it cannot be mirrored."""
        self.content = content
        self.required = required_of(content, content.descriptor)

    def note_present(self, mirror: str, digests: Iterable[str]) -> None:
        """Note that a mirror holds these manifests."""
        holding = self.holdings[mirror]
        self.holdings[mirror] = replace(holding, present=holding.present | frozenset(digests))

    def note_whole(
        self, ledger: Ledger, mirror: str, digest: str, present: frozenset[str], now: Moment
    ) -> None:
        """Note, here and in the ledger, that a mirror has all of the image, as this digest."""
        holding, reference = self.holdings[mirror], self.want.reference
        ledger.note_written(
            mirror,
            str(reference),
            holding.repository,
            None if reference.digest else reference.tag,
            digest,
            self.digest,
            words(self.want.platforms),
            self.size,
            now,
        )
        self.holdings[mirror] = replace(
            holding, digest=digest, state="fresh", present=present, expired=False
        )

    def note_failure(self, mirror: str, failure: Failure) -> None:
        """Note that the image did not get to a mirror."""
        self.holdings[mirror] = replace(self.holdings[mirror], failure=failure)
