"""Retention: which of the tags that prewarm wrote leave a mirror, and why.

registry:2 deletes by digest alone, and takes every tag of that digest with it (measured on 2.8.2).
So what is decided about is a digest in a repository, with all tags that are on it, whoever pushed
them; and it goes only where nothing that stays needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prewarm.core.errors import Failure, Problem, problem_json
from prewarm.core.text import counted, duration_words, iso, size_words

DAY: Final = 86400
SCAN_AGE: Final = 3 * DAY
"""Seconds after which a complete scan no longer tells what CI uses (CONTRACT, 1)."""
SHARE: Final = 0.30
"""The share of a mirror's bytes above which a person must say that it may go (CONTRACT, 1)."""
GRACE: Final = DAY
"""Seconds that a manifest stays after its tag has moved: a running job may pull it by digest."""
GARBAGE: Final = (
    "The registry's garbage collection gives the space back: prewarm-registry-gc.timer of "
    "`prewarm client-config registry` on Sundays at noon, or at once "
    "systemctl start prewarm-registry-gc.service. Elsewhere, with the registry stopped: "
    "docker-registry garbage-collect CONFIG, never with --delete-untagged, which deletes the "
    "platforms of every multi-platform image."
)

Key = tuple[str, str]
"""A repository of the mirror and a digest, or a tag, in it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest that lies on a mirror."""

    size: int
    """Its own bytes."""
    children: tuple[str, ...] = ()
    """Digests of an index's entries."""
    blobs: Mapping[str, int] = field(default_factory=dict)
    """Bytes of config and layers, by digest."""


@dataclass(frozen=True, slots=True)
class Stock:
    """What lies on one mirror, in the repositories that prewarm pushed to."""

    tags: Mapping[Key, str]
    """The digest of each tag, whoever pushed it."""
    pushed: Mapping[Key, float]
    """The manifests there that prewarm pushed, each with the time since when it may have no tag."""
    stored: Mapping[str, Stored]
    """By digest: those that the tags and the pushed manifests stand on."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Repositories that could not be read to the end, and why: nothing of them goes."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that prewarm wrote to the mirror."""

    image: str
    """Fully qualified."""
    repository: str
    tag: str | None
    """None for one that is named by its digest alone."""
    digest: str
    """Of what was written."""
    last: float
    """When CI last used it or a sync last wanted it, in epoch seconds."""
    used: float | None = None
    """When CI last used it, where that is remembered."""
    wanted: str | None = None
    """Why it is wanted now, None where nobody wants it."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A digest that leaves a repository, with its tags and what only it needs."""

    repository: str
    digests: tuple[str, ...]
    """In the order in which they are deleted: the index before its children."""
    images: tuple[Image, ...]
    """None of them: a manifest that lost its tag, or never got one."""
    bytes: int
    """What nobody else on the mirror needs."""
    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    """An image that nobody wants and that stays all the same."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prune:
    """What leaves a mirror, in this order, and what stays."""

    bytes_before: int
    removals: tuple[Removal, ...]
    kept: tuple[Image, ...]
    stays: tuple[Stay, ...]
    """Of those kept, the ones whose time is over."""
    gone: tuple[str, ...]
    """Images that nobody wants and that others have deleted or overwritten: to be forgotten."""
    failure: Failure | None = None
    """The mirror is larger than it may be, and what is left may not go."""

    @property
    def freed(self) -> int:
        return sum(removal.bytes for removal in self.removals)

    @property
    def bytes_after(self) -> int:
        return self.bytes_before - self.freed


class _Holds:
    """Counts what holds each manifest and each blob; bytes are counted once for the mirror."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self._manifests: Counter[Key] = Counter()
        self._blobs: Counter[str] = Counter()
        self.bytes = 0

    def add(self, root: Key) -> None:
        for key in self._below(root):
            self._manifests[key] += 1
            if self._manifests[key] == 1:
                for digest, size in self._sizes(key[1]):
                    self._blobs[digest] += 1
                    self.bytes += size if self._blobs[digest] == 1 else 0

    def drop(self, root: Key) -> tuple[str, ...]:
        """Take a root away; return the digests that nobody holds now, the root before others."""
        freed = []
        for key in self._below(root):
            self._manifests[key] -= 1
            if not self._manifests[key]:
                freed.append(key[1])
                for digest, size in self._sizes(key[1]):
                    self._blobs[digest] -= 1
                    self.bytes -= 0 if self._blobs[digest] else size
        return tuple(freed)

    def held(self, key: Key) -> int:
        return self._manifests[key]

    def _below(self, root: Key) -> Iterator[Key]:
        """Yield the manifest and all that it stands on, each once."""
        repository, digest = root
        found = {digest: None}
        waiting = [digest]
        while waiting:
            one = self._stored.get(waiting.pop())
            new = [child for child in (one.children if one else ()) if child not in found]
            found |= dict.fromkeys(new)
            waiting += new
        return ((repository, one) for one in found)

    def _sizes(self, digest: str) -> Iterator[tuple[str, int]]:
        stored = self._stored.get(digest)
        if stored is not None:
            yield digest, stored.size
            yield from stored.blobs.items()


@dataclass(slots=True)
class _Group:
    """The images of one digest in a repository; without any, a manifest that no tag needs."""

    key: Key
    images: tuple[Image, ...]
    last: float
    children: int
    """An index goes before what it holds."""
    reason: str = ""


def decide(
    stock: Stock,
    images: Iterable[Image],
    needed: Collection[Key],
    *,
    max_size: int | None,
    keep: float,
    now: float,
) -> Prune:
    """Decide what leaves a mirror; `needed` are manifests that syncs go on with, tagged or not.

    What is wanted now never goes, nor what CI used within `keep` seconds, nor what somebody else
    tagged. The rest goes once nobody has wanted it for `keep`; and before that, what was last
    wanted longest ago first, where the mirror holds more than `max_size` bytes.
    """
    present, gone = _present(stock, images)
    tagged = _by_digest(present)
    others = _of_others(stock, present)
    holds = _Holds(stock.stored)
    for key in (*tagged, *others, *needed):
        holds.add(key)
    left = [key for key in stock.pushed if not holds.held(key)]
    for key in left:
        holds.add(key)
    before = holds.bytes

    stays: list[Stay] = []
    due: list[_Group] = []
    spare: list[_Group] = []
    for key, found in tagged.items():
        group = _group(stock, key, found)
        why = _why_it_stays(stock, group, others, keep, now)
        if why is not None:
            stays += _over(group, why, keep, now)
        elif now - group.last > keep:
            days = int((now - group.last) // DAY)
            group.reason = f"not wanted for {days}d, more than keep: {duration_words(keep)}"
            due.append(group)
        else:
            spare.append(group)
    old = [
        _Group(key, (), stock.pushed[key], _children(stock, key), "no tag needs it any more")
        for key in left
        if key[0] not in stock.unread and now - stock.pushed[key] > GRACE
    ]
    removals, waiting = _remove(holds, [*_ordered(old), *_ordered(due)], None)
    for group in waiting:
        stays += _over(group, "an index that stays, or is on its way, needs it", keep, now)
    if max_size is not None:
        for group in spare:
            group.reason = f"not wanted, and the mirror is above max_size {size_words(max_size)}"
        removals += _remove(holds, sorted(spare, key=_oldest), max_size)[0]
    gone_images = {image.image for removal in removals for image in removal.images}
    kept = tuple(image for image in present if image.image not in gone_images)
    failure = None
    if max_size is not None and holds.bytes > max_size:
        failure = _too_small(stock, kept, needed, holds.bytes, max_size)
    return Prune(before, tuple(removals), kept, tuple(stays), gone, failure)


def _present(stock: Stock, images: Iterable[Image]) -> tuple[tuple[Image, ...], tuple[str, ...]]:
    """Return the images that lie there as they were written, and the unwanted ones that do not."""
    present, gone = [], []
    for image in images:
        if image.tag is None:
            there = (image.repository, image.digest) in stock.pushed
        else:
            there = stock.tags.get((image.repository, image.tag)) == image.digest
        if there:
            present.append(image)
        elif image.wanted is None and image.repository not in stock.unread:
            gone.append(image.image)
    return tuple(present), tuple(gone)


def _of_others(stock: Stock, present: Iterable[Image]) -> dict[Key, str]:
    """Return the digests that somebody else tagged, each with such a tag."""
    claimed = {(image.repository, image.tag) for image in present}
    return {(key[0], digest): key[1] for key, digest in stock.tags.items() if key not in claimed}


def _by_digest(images: Iterable[Image]) -> dict[Key, tuple[Image, ...]]:
    found: dict[Key, tuple[Image, ...]] = {}
    for image in images:
        key = (image.repository, image.digest)
        found[key] = (*found.get(key, ()), image)
    return found


def _group(stock: Stock, key: Key, images: tuple[Image, ...]) -> _Group:
    return _Group(key, images, max(image.last for image in images), _children(stock, key))


def _children(stock: Stock, key: Key) -> int:
    stored = stock.stored.get(key[1])
    return len(stored.children) if stored else 0


def _why_it_stays(
    stock: Stock, group: _Group, others: Mapping[Key, str], keep: float, now: float
) -> str | None:
    """Return why a digest stays whatever its age, None where it may go."""
    repository, _ = group.key
    if repository in stock.unread:
        return f"{repository} could not be read: {stock.unread[repository]}"
    if group.key in others:
        return f"tag {others[group.key]}, which prewarm did not write, has the same digest"
    for image in group.images:
        if image.wanted:
            return f"{image.image}, which is wanted, has the same digest"
        if image.used is not None and now - image.used <= keep:
            return f"{image.image}, which CI used within keep, has the same digest"
    return None


def _over(group: _Group, why: str, keep: float, now: float) -> Iterator[Stay]:
    """Yield the images of a digest whose own time is over, and that stay with it."""
    for image in group.images:
        if image.wanted is None and now - image.last > keep:
            yield Stay(image.image, why)


def _ordered(groups: Iterable[_Group]) -> list[_Group]:
    return sorted(groups, key=lambda group: (not group.children, *_oldest(group)))


def _oldest(group: _Group) -> tuple[float, Key]:
    return group.last, group.key


def _remove(
    holds: _Holds, groups: Sequence[_Group], fits: int | None
) -> tuple[list[Removal], list[_Group]]:
    """Take groups away in order, until what is held fits; return what went, and what could not.

    What another of them stands on waits until that has gone.
    """
    removals: list[Removal] = []
    waiting = list(groups)
    while True:
        blocked = []
        for group in waiting:
            if holds.held(group.key) > 1 or (fits is not None and holds.bytes <= fits):
                blocked.append(group)
                continue
            before = holds.bytes
            digests = holds.drop(group.key)
            size = before - holds.bytes
            removals.append(Removal(group.key[0], digests, group.images, size, group.reason))
        if len(blocked) == len(waiting):
            return removals, blocked
        waiting = blocked


def _too_small(
    stock: Stock, kept: Iterable[Image], needed: Iterable[Key], size: int, max_size: int
) -> Failure:
    wanted = _Holds(stock.stored)
    for image in kept:
        if image.wanted:
            wanted.add((image.repository, image.digest))
    for key in needed:
        wanted.add(key)
    return Failure(
        "mirror-too-small",
        f"{size_words(size)} have to stay, {size_words(wanted.bytes)} of them for what is wanted "
        f"now, and max_size is {size_words(max_size)}",
        "raise max_size of the mirror, or shorten gitlab.history and keep, or unpin images",
    )


# Guards


def demand_refusal(
    *,
    files: Sequence[Problem],
    asks_gitlab: bool,
    scanned: float | None,
    same_scope: bool,
    now: float,
) -> tuple[Failure, bool] | None:
    """Return why nobody can know what is wanted, and whether --force may go on all the same.

    `files` are problems of included files, which hide pins. `scanned` is when the last complete
    scan ended (epoch seconds), `same_scope` whether it read what the next one would.
    """
    if files:
        text = f"{counted(len(files), 'included file')} cannot be read, and may hold pins"
        return Failure("pins-unknown", text, "correct what prewarm check names"), False
    if not asks_gitlab:
        if scanned is None:
            return None
        text = "images.yml names no GitLab any more, and what CI used would go"
        return Failure("scan-scope", text, "write gitlab: again, or use --force"), True
    if scanned is None:
        return Failure("scan-old", "no scan was complete yet", "run prewarm scan"), True
    if not same_scope:
        text = "the last complete scan read another part of GitLab than gitlab: names now"
        return Failure("scan-scope", text, "run prewarm scan, or use --force"), True
    if not 0 <= now - scanned <= SCAN_AGE:
        text = f"the last complete scan, of {iso(scanned)}, is more than 3 days away"
        return Failure("scan-old", text, "run prewarm scan, or use --force"), True
    return None


def size_refusal(prune: Prune) -> Failure | None:
    """Return the refusal to remove much at once, as after a slip in the configuration."""
    if prune.freed <= SHARE * prune.bytes_before:
        return None
    return Failure(
        "prune-share",
        f"{size_words(prune.freed)} of {size_words(prune.bytes_before)} would go, more than "
        f"{SHARE:.0%}",
        "look at prewarm prune --dry-run, then use --force",
    )


# What came of it


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did with one mirror, or would do."""

    url: str
    prune: Prune | None
    """None where the mirror could not be read."""
    removed: tuple[Removal, ...] = ()
    refused: Failure | None = None


@dataclass(frozen=True, slots=True)
class PruneReport:
    """A prune, told."""

    dry_run: bool
    mirrors: tuple[Pruned, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 where the operator must act: a refusal, a mirror that failed or is too small."""
        return int(any(problem.severity == "error" for problem in self.problems))


def document(report: PruneReport) -> dict[str, Any]:
    """Return the document of `prune --json`; sizes in bytes, times in UTC."""
    removed = [removal for one in report.mirrors for removal in one.removed]
    return {
        "version": 1,
        "dry_run": report.dry_run,
        "mirrors": [_mirror(one) for one in report.mirrors],
        "garbage_collection": GARBAGE if removed else None,
        "problems": [problem_json(problem) for problem in report.problems],
        "summary": {
            "removed": sum(len(removal.images) for removal in removed),
            "digests": sum(len(removal.digests) for removal in removed),
            "kept": sum(len(one.prune.kept) for one in report.mirrors if one.prune),
            "bytes": sum(removal.bytes for removal in removed),
        },
    }


def _mirror(one: Pruned) -> dict[str, Any]:
    prune = one.prune
    freed = sum(removal.bytes for removal in one.removed)
    refused = None
    if one.refused is not None:
        refused = {"code": one.refused.code, "text": one.refused.text, "cure": one.refused.cure}
    return {
        "url": one.url,
        "bytes_before": prune.bytes_before if prune else None,
        "bytes_after": prune.bytes_before - freed if prune else None,
        "removed": [row for removal in one.removed for row in rows(removal)],
        "stays": [{"image": s.image, "reason": s.reason} for s in prune.stays] if prune else [],
        "kept": len(prune.kept) if prune else None,
        "refused": refused,
    }


def rows(removal: Removal) -> Iterator[dict[str, Any]]:
    """Yield one entry for each image; the bytes stand with the first of one digest."""
    told = {"repository": removal.repository, "digest": removal.digests[0]}
    if not removal.images:
        size = {"bytes": removal.bytes, "last_used": None, "reason": removal.reason}
        yield {"image": None, **told, **size}
    for number, image in enumerate(removal.images):
        size = {"bytes": 0 if number else removal.bytes, "last_used": iso(image.last)}
        yield {"image": image.image, **told, **size, "reason": removal.reason}


def sentence(told: Mapping[str, Any]) -> str:
    """Return a prune, by its document, in one line for people."""
    sums, is_dry = told["summary"], told["dry_run"]
    return (
        f"{'would remove' if is_dry else 'removed'} {counted(sums['removed'], 'image')} "
        f"({counted(sums['digests'], 'manifest')}, {size_words(sums['bytes'])}), "
        f"{counted(sums['kept'], 'image')} kept"
        + ("; nothing was removed (dry run)" if is_dry else "")
    )
