"""Proves that a client of this host asks a mirror: it gets an image that only that mirror has.

The probe is written where prewarm writes (`url`), under a tag that nobody can guess, and pulled by
its real name, so that it can only have come by the client's own settings. A client without them
asks the registry itself for it, which has none.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from prewarm.clients.engines import Engine
from prewarm.clients.files import ClientMirror
from prewarm.clients.probe_image import Probe, make_probe
from prewarm.core.errors import RegistryError
from prewarm.core.platforms import normalise
from prewarm.core.reference import PROBE_REPOSITORY, Reference
from prewarm.registry.client import Registry

_LOGINLESS: Final = frozenset({"dockerd"})
"""Clients that never send a mirror a login."""

Served = Literal["all", "content", "nothing"]
"""What the mirror served: tag and content; the content, where the client asks the registry what a
tag is (`client-config containerd --ask-upstream`); or nothing."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of a client's pull of the probe."""

    kind: str
    client: str
    """The client for people."""
    registry: str
    mirror: str
    """Its `client_url`."""
    served: Served
    words: str = ""
    """What the client said where it got nothing."""
    left: bool = False
    """The probe is still on the mirror, which deletes nothing."""


def prove(
    engine: Engine,
    registry: str,
    mirror: ClientMirror,
    written: Registry,
    environ: Mapping[str, str],
) -> Proof:
    """Let the client get a probe of the registry from the mirror, and remove all traces of it.

    `written` is the mirror as prewarm writes it. RegistryError where the probe cannot be written,
    or is not to be had at the mirror's `client_url`.
    """
    kind, token = engine.kind, secrets.token_hex(16)
    probe = make_probe(token, normalise("linux", platform.machine()))
    reference = Reference(registry, PROBE_REPOSITORY, tag=token)
    with _planted(written, reference, probe) as planted:
        _want_readable(mirror, reference, environ, loginless=kind in _LOGINLESS)
        served, words = _pulled(engine, reference, probe)
    return Proof(
        kind, engine.ways.name, registry, mirror.url, served, words, left=not planted.removed
    )


@dataclass
class _Planted:
    removed: bool = False


@contextmanager
def _planted(mirror: Registry, reference: Reference, probe: Probe) -> Iterator[_Planted]:
    """Put the probe on the mirror, and delete it at the end where that can be."""
    repository = reference.mirror_repository
    planted = _Planted()
    for blob in (probe.config, probe.layer):
        mirror.put_blob(repository, blob)
    try:
        mirror.put_manifest(repository, reference.selector, probe.manifest)
        yield planted
    finally:
        try:
            mirror.delete_manifest(repository, probe.manifest.digest)
        except RegistryError as error:
            planted.removed = error.status == 404
        else:
            planted.removed = True


def _want_readable(
    mirror: ClientMirror, reference: Reference, environ: Mapping[str, str], *, loginless: bool
) -> None:
    """Raise what would keep every client from the probe at the address where clients ask.

    A login is not asked of clients that may have their own.
    """
    with Registry(
        mirror.url, mirror.url, role="mirror", ca=mirror.settings.ca, environ=environ
    ) as read:
        try:
            read.head(reference.mirror_repository, reference.selector)
        except RegistryError as error:
            if error.status not in {401, 403} or loginless:
                raise


def _pulled(engine: Engine, reference: Reference, probe: Probe) -> tuple[Served, str]:
    tagged = str(reference)
    by_tag = engine.pull(tagged)
    engine.remove(tagged)
    if by_tag.ok:
        return "all", ""
    if engine.kind == "containerd":
        exact = f"{reference.name}@{probe.manifest.digest}"
        by_digest = engine.pull(exact)
        engine.remove(exact)
        if by_digest.ok:
            return "content", ""
    return "nothing", by_tag.words
