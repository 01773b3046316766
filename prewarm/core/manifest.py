"""Manifests and indexes: what they say and which parts of them are wanted.

OCI image-spec 1.1 (manifest.md, image-index.md) and Docker's schema 2 are read alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from prewarm.core.platforms import ALL, Platform, Wanted, normalise, parse_platform, well_formed

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"

INDEXES: Final = frozenset({DOCKER_LIST, OCI_INDEX})
MANIFEST_LIMIT: Final = 4 * 2**20
"""Bytes of a manifest: the limit of registry:2 and of skopeo."""
ACCEPT: Final = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)
"""All four media types: registry:2 answers others with a conversion that has another digest."""

UPSTREAM_DIGEST: Final = "io.prewarm.upstream.digest"
"""Annotation of a reduced index: the digest of the index upstream that it was made from."""
UPSTREAM_PLATFORMS: Final = "io.prewarm.platforms"
"""Annotation of a reduced index: the platforms that were looked for, whether found or not."""


def digest_of(content: bytes) -> str:
    """Return the sha256 digest of the bytes, as registries write it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def is_of(digest: str, content: bytes) -> bool:
    """Whether the bytes are those of a valid digest."""
    algorithm, _, value = digest.partition(":")
    return hashlib.new(algorithm, content).hexdigest() == value


_SIZE_MAX: Final = 2**63 - 1
"""Go's int64 and SQLite's INTEGER; other programs cannot read a larger size."""
_DOCKER_FOREIGN: Final = frozenset(
    f"application/vnd.docker.image.rootfs.foreign.diff.tar{end}" for end in ("", ".gzip")
)
_FOREIGN: Final = _DOCKER_FOREIGN | {
    f"application/vnd.oci.image.layer.nondistributable.v1.tar{end}"
    for end in ("", "+gzip", "+zstd")
}
"""Types of layers that may live elsewhere than in registries: those of Windows."""
_SKOPEO_KNOWS: Final = _DOCKER_FOREIGN | {
    f"application/vnd.docker.image.rootfs.diff.tar{end}" for end in ("", ".gzip")
}
"""Types of layers that skopeo 1.9.3 knows in a manifest of schema 2 (measured)."""
LAYERS_MAX: Final = 255
"""Layers of an image: twice of what docker runs (127)."""
_PLATFORMS_MAX: Final = 10_000
"""Characters of a list of platforms: more than any index of images has."""
_FIELDS: Final = {
    name.casefold(): name
    for name in (
        *("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size"),
        *("urls", "platform", "os", "architecture", "variant", "annotations", "data", "subject"),
    )
}
"""Names of fields, as they must be spelled. Go's JSON reader, and so skopeo and every registry,
takes any spelling by case, of two it takes the last and of two objects both together."""


class ManifestError(ValueError):
    """The bytes are not a manifest that can be mirrored; the text says why."""


class _AmbiguousError(ValueError):
    """JSON that two programs may read in two ways; the text says why."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a HEAD tells of a manifest, or a manifest of a blob."""

    media_type: str
    digest: str
    size: int

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES


@dataclass(frozen=True, slots=True)
class Child:
    """An entry of an index."""

    descriptor: Descriptor
    platform: Platform | None
    """None where the index does not say, or says unknown (an attestation) or what is no name."""
    entry: dict[str, Any]
    """The entry as it stands in the index, to be kept in a reduced one."""


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index: its bytes are its identity, all else is read from them.

    Reading raises ManifestError where the bytes are not what the media type says.
    """

    media_type: str
    content: bytes

    @cached_property
    def digest(self) -> str:
        return digest_of(self.content)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.content))

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES

    @cached_property
    def document(self) -> dict[str, Any]:
        try:
            document = json.loads(
                self.content, parse_constant=_refuse, object_pairs_hook=_each_once
            )
            if isinstance(document, dict):
                _spelled(document)
        except _AmbiguousError as error:
            raise ManifestError(f"manifest {self.digest} is ambiguous: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"manifest {self.digest} is not JSON") from error
        if not isinstance(document, dict) or document.get("schemaVersion") != 2:
            raise ManifestError(f"manifest {self.digest} is not of schema version 2")
        if document.get("mediaType") not in (None, "", self.media_type):
            raise ManifestError(f"manifest {self.digest} is of another type than it was sent as")
        if document.keys() & ({"config", "layers"} if self.is_index else {"manifests"}):
            raise ManifestError(f"manifest {self.digest} is ambiguous: it is an index and an image")
        return document

    @cached_property
    def annotations(self) -> dict[str, str]:
        found = self.document.get("annotations")
        if not isinstance(found, dict):
            return {}
        return {str(key): value for key, value in found.items() if isinstance(value, str)}

    @cached_property
    def children(self) -> tuple[Child, ...]:
        """The entries of an index, in its order; none for a single manifest."""
        if not self.is_index:
            return ()
        entries = self.document.get("manifests")
        if not isinstance(entries, list):
            raise ManifestError(f"index {self.digest} has no list of manifests")
        return tuple(_child(entry, self.digest) for entry in entries)

    @cached_property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers of a single manifest; none for an index.

        Foreign layers that name `urls` (Windows base layers) are left out: no registry holds them.
        Every other layer must be there, whatever `urls` it has.
        """
        if self.is_index:
            return ()
        own = [
            layer for layer in self.layers if not (_type_of(layer) in _FOREIGN and _has_urls(layer))
        ]
        blobs = tuple(
            _descriptor(blob, self.digest) for blob in (self.document.get("config"), *own)
        )
        if sum(blob.size for blob in blobs) > _SIZE_MAX:
            raise ManifestError(f"manifest {self.digest} has more than {_SIZE_MAX} bytes of blobs")
        return blobs

    @property
    def layers(self) -> list[Any]:
        """The entries of a single manifest's layers, as they stand there."""
        layers = self.document.get("layers")
        if not isinstance(layers, list):
            raise ManifestError(f"manifest {self.digest} has no list of layers")
        return layers

    @property
    def has_urls(self) -> bool:
        """Whether a layer of a single manifest names `urls`."""
        return not self.is_index and any(map(_has_urls, self.layers))

    @property
    def is_readable(self) -> bool:
        """Whether nothing in it raises ManifestError."""
        try:
            _ = self.document, self.children, self.blobs
        except ManifestError:
            return False
        return True

    @property
    def blob_bytes(self) -> int:
        """Size of config and layers, each blob once."""
        return sum({blob.digest: blob.size for blob in self.blobs}.values())


def _refuse(constant: str) -> None:
    """Raise ValueError for NaN and the infinities, which Python reads and JSON has not."""
    raise ValueError(f"{constant} is not JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, or raise _AmbiguousError where it names a key twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _AmbiguousError("a key is there twice")
    return found


def _spelled(document: dict[str, Any]) -> None:
    """Raise _AmbiguousError where a field of a manifest is spelled in another case."""
    below = [document.get("config"), document.get("subject")]
    for name in ("layers", "manifests"):
        entries = document.get(name)
        below += entries if isinstance(entries, list) else []
    below += [entry.get("platform") for entry in below if isinstance(entry, dict)]
    for part in (document, *below):
        for key in part if isinstance(part, dict) else ():
            field = _FIELDS.get(key.casefold(), key)
            if field != key:
                raise _AmbiguousError(f"the field {field} is spelled in another way")


def _type_of(entry: object) -> str:
    """Return the media type of an entry; empty where it names none."""
    media_type = entry.get("mediaType") if isinstance(entry, dict) else None
    return media_type if isinstance(media_type, str) else ""


def _has_urls(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("urls") not in (None, [])


def refuse_unsafe(manifest: Manifest) -> None:
    """Raise ManifestError for a single manifest that harms whoever copies it.

    skopeo 1.9.3 GETs a config from its `urls`, on any host, before it asks the registry, and takes
    quadratic time for the layers: 1,000 of them 18 s, 2,000 more than five minutes (measured).
    """
    if manifest.is_index:
        return
    if _has_urls(manifest.document.get("config")):
        raise ManifestError(f"manifest {manifest.digest} has a config with urls")
    if len(manifest.layers) > LAYERS_MAX:
        count = len(manifest.layers)
        raise ManifestError(f"manifest {manifest.digest} has {count} layers, above {LAYERS_MAX}")


def stand_in(manifest: Manifest) -> Manifest:
    """Return the manifest with which skopeo copies all blobs of one: itself, where that does.

    skopeo 1.9.3 copies no layer that has `urls`, and of schema 2 it reads no manifest with a layer
    of a type that it does not know (measured; BuildKit makes `…rootfs.diff.tar.zstd`). Its stand-in
    is an OCI manifest of the same blobs. The manifest itself must then be put in its place.
    """
    config, *own = manifest.blobs
    read = manifest.media_type == OCI_MANIFEST or all(
        _type_of(layer) in _SKOPEO_KNOWS for layer in manifest.layers
    )
    if read and not manifest.has_urls:
        return manifest
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _entry("application/vnd.oci.image.config.v1+json", config),
        "layers": [_entry("application/vnd.oci.image.layer.v1.tar", blob) for blob in own],
        "annotations": {"io.prewarm.stands-for": manifest.digest},
    }
    return Manifest(OCI_MANIFEST, json.dumps(document).encode())


def _entry(media_type: str, blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _descriptor(entry: object, where: str) -> Descriptor:
    match entry:
        case {"digest": str(digest), "size": int(size)} if (
            0 <= size <= _SIZE_MAX and not isinstance(size, bool) and valid_digest(digest)
        ):
            return Descriptor(_type_of(entry), digest, size)
        case _:
            raise ManifestError(f"manifest {where} has an entry without a valid digest and size")


def valid_digest(text: str) -> bool:
    """Whether the text is a sha256 or sha512 digest, the two that OCI registers."""
    algorithm, _, value = text.partition(":")
    length = {"sha256": 64, "sha512": 128}.get(algorithm)
    return len(value) == length and all(letter in "0123456789abcdef" for letter in value)


def _child(entry: object, where: str) -> Child:
    descriptor = _descriptor(entry, where)
    assert isinstance(entry, dict)
    platform = None
    match entry.get("platform"):
        case {"os": str(os), "architecture": str(architecture), **more}:
            variant = more.get("variant") or ""
            named = isinstance(variant, str) and well_formed(os, architecture, variant or "-")
            if named and "unknown" not in (os, architecture):
                platform = normalise(os, architecture, str(variant))
        case _:
            pass
    return Child(descriptor, platform, entry)


def wanted_children(index: Manifest, wanted: Wanted) -> tuple[Child, ...]:
    """Return the entries that the wanted platforms need, in the index's order, each digest once.

    With `all` every entry, attestations too. Else, for each wanted platform, the first entry of
    exactly it, as clients choose; for Windows every entry of it, since hosts choose by os.version.
    A wanted platform that the index lacks adds nothing.
    """
    chosen: dict[str, Child] = {}
    served: set[Platform] = set()
    for child in index.children:
        if wanted == ALL:
            chosen.setdefault(child.descriptor.digest, child)
        elif child.platform in wanted and child.platform is not None:
            if child.platform in served and child.platform.os != "windows":
                continue
            served.add(child.platform)
            chosen.setdefault(child.descriptor.digest, child)
    return tuple(chosen.values())


def index_for(index: Manifest, wanted: Wanted) -> Manifest:
    """Return the index to put on a mirror: the original where every entry is wanted, else reduced.

    A reduced index keeps the media type, the wanted entries as they stand and the annotations, and
    carries upstream's digest, so that freshness can be read from the mirror alone. The same input
    gives the same bytes.
    """
    kept = wanted_children(index, wanted)
    if wanted == ALL or len({child.descriptor.digest for child in index.children}) == len(kept):
        return index
    digests = {child.descriptor.digest for child in kept}
    # Not only the entries of `kept`: two platforms may share a digest, and both must be found.
    entries = [
        child.entry
        for child in index.children
        if child.descriptor.digest in digests and child.platform in wanted
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": index.media_type,
        "manifests": entries,
        "annotations": {
            **index.annotations,
            UPSTREAM_DIGEST: index.digest,
            UPSTREAM_PLATFORMS: ",".join(str(platform) for platform in sorted(wanted)),
        },
    }
    try:
        content = json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"index {index.digest} has entries that cannot be kept") from error
    return Manifest(index.media_type, content)


def upstream_digest(manifest: Manifest) -> str:
    """Return the digest upstream that a manifest on a mirror stands for: its own unless reduced."""
    noted = manifest.annotations.get(UPSTREAM_DIGEST, "") if manifest.is_index else ""
    return noted if valid_digest(noted) else manifest.digest


def claims(mirrored: Manifest, upstream: Descriptor) -> bool:
    """Whether a reduced index on a mirror names upstream's index: a hint, which anyone may write.

    Never where upstream has no index: nothing can have been reduced from that.
    """
    reduced = mirrored.is_index and mirrored.digest != upstream.digest
    return reduced and upstream.is_index and upstream_digest(mirrored) == upstream.digest


def is_made_from(reduced: Manifest, original: Manifest) -> bool:
    """Whether a reduced index is, byte for byte, what `index_for` makes of upstream's index.

    It is made again for the platforms that it names, which may be more than are wanted now.
    """
    named = reduced.annotations.get(UPSTREAM_PLATFORMS, "")
    if len(named) > _PLATFORMS_MAX:
        return False
    try:
        platforms = tuple(map(parse_platform, named.split(",")))
        return index_for(original, platforms).content == reduced.content
    except ValueError:
        return False


def covers(mirrored: Manifest, wanted: Wanted) -> bool:
    """Whether what a mirror holds under a tag was made for at least the wanted platforms.

    A single manifest and an original index hold all there is. A reduced index holds what it lists
    and whatever was looked for and not found.
    """
    if not mirrored.is_index or UPSTREAM_DIGEST not in mirrored.annotations:
        return True
    if wanted == ALL:
        return False
    looked_for = set(mirrored.annotations.get(UPSTREAM_PLATFORMS, "").split(","))
    return all(str(platform) in looked_for for platform in wanted)


def required_of(content: Manifest | None, descriptor: Descriptor) -> tuple[str, ...]:
    """Return the single manifests that the content stands on: its entries, or itself.

    ManifestError where one is named by another digest than sha256: skopeo and registry:2 store
    manifests by that alone, so it would be fetched in each run and never be complete.
    """
    if not descriptor.digest.startswith("sha256:"):
        raise ManifestError(f"manifest {descriptor.digest} is not named by sha256")
    if content is None:
        return () if descriptor.is_index else (descriptor.digest,)
    if not content.is_index:
        return (content.digest,)
    children = wanted_children(content, ALL)
    for child in children:
        if child.descriptor.is_index:
            raise ManifestError(f"index {content.digest} holds another index")
        if not child.descriptor.digest.startswith("sha256:"):
            raise ManifestError(
                f"index {content.digest} names a child by another digest than sha256"
            )
    return tuple(child.descriptor.digest for child in children)
