"""What pull-through mirrors hold, by what the state says of them: they are never asked.

registry:2 with `proxy:` answers even a HEAD of a manifest that it lacks by pulling it (measured on
2.8.2), so that to look there would spend what nobody reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from prewarm.core.manifest import Manifest
from prewarm.core.records import Known, Written
from prewarm.core.settings import Settings

LIFETIME: Final = 7 * 86400.0
"""Seconds after which registry:2 forgets what it fetched, used or not (2.8.2: `repositoryTTL`)."""
_SETTLING: Final = 300.0
"""Seconds that it may take about it. Asked sooner it would answer from what it has, which makes
that last no longer: a pull charged for nothing, and a runner's pull after all."""


class CacheMemory(Protocol):
    """What is remembered of pull-through mirrors and of manifests."""

    def manifest(self, digest: str) -> Manifest | None: ...
    def cached(self, mirror: str, repository: str) -> Mapping[str, float]: ...
    def written(self, mirror: str | None, image: str | None) -> tuple[Written, ...]: ...


def held(memory: CacheMemory, mirror: str, repository: str, now: float) -> frozenset[str]:
    """Return the digests of the manifests that a mirror holds of a repository at `now` (epoch)."""
    return frozenset(
        digest
        for digest, since in memory.cached(mirror, repository).items()
        if not _expired(since, now)
    )


def is_whole(memory: CacheMemory, written: Written, needed: Iterable[str], now: float) -> bool:
    """Whether a mirror holds all of an image that was warmed there, its blobs included.

    `needed` are the digests of its manifests. What was fetched after the image was done came again
    because it had expired, and its blobs may be lacking still.
    """
    cached = memory.cached(written.mirror, written.repository)
    return all(
        digest in cached and cached[digest] <= written.wall and not _expired(cached[digest], now)
        for digest in needed
    )


def standing(
    settings: Settings, known: Iterable[Known], memory: CacheMemory, now: float
) -> tuple[Known, ...]:
    """Return the last known states, less what pull-through mirrors have forgotten since."""
    through = [mirror.url for mirror in settings.mirrors if mirror.through]
    warmed = {(one.mirror, one.image): one for url in through for one in memory.written(url, None)}

    def as_of_now(one: Known) -> Known:
        written = warmed.get((one.mirror, one.image))
        if written is None or one.state != "fresh":
            return one
        cached = memory.cached(one.mirror, written.repository)
        index = memory.manifest(written.digest)
        children = index.children if index is not None else ()
        below = (child.descriptor.digest for child in children)
        needed = (written.digest, *(digest for digest in below if digest in cached))
        there = held(memory, one.mirror, written.repository, now)
        return one if there.issuperset(needed) else replace(one, state="missing")

    return tuple(map(as_of_now, known))


def _expired(since: float, now: float) -> bool:
    return now - since >= LIFETIME + _SETTLING
