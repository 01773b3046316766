"""What the files for clients are made of: a mirror as a client sees it, texts, quotes."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from prewarm.core.errors import UsageError
from prewarm.core.net import is_loopback
from prewarm.core.reference import folder_of
from prewarm.core.settings import DOCKER_HUB, Mirror, Settings

_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class File:
    """A file for a client: where it goes below the output folder, and what it holds."""

    name: str
    """Relative, with `/`: `certs.d/docker.io/hosts.toml`."""
    text: str
    comment: str = ""
    """What it says for people where its format has no comments (JSON); else it is in the text."""


@dataclass(frozen=True, slots=True)
class ClientMirror:
    """A mirror as a client sees it."""

    settings: Mirror

    @property
    def url(self) -> str:
        return self.settings.client_url

    @property
    def host(self) -> str:
        """Host and port as written: `mirror.example.org:5000`."""
        return urlsplit(self.url).netloc

    @property
    def plain(self) -> bool:
        """Whether it is asked without TLS."""
        return urlsplit(self.url).scheme == "http"

    @property
    def local(self) -> bool:
        """Whether only clients on its own host reach it."""
        return is_loopback(urlsplit(self.url).hostname or "")

    @property
    def through(self) -> bool:
        """Whether it is a pull-through cache: of Docker Hub, and so of no other registry."""
        return self.settings.mode == "pull-through"

    @property
    def private(self) -> bool:
        """Whether clients must be given the CA of its certificate."""
        return self.settings.ca is not None and not self.plain

    def path_of(self, registry: str) -> str:
        """Return what stands before a repository of the registry there: nothing for the Hub's."""
        return "" if registry == DOCKER_HUB else f"/{folder_of(registry)}"


def client_mirrors(settings: Settings) -> tuple[ClientMirror, ...]:
    """Return the mirrors that clients ask, in the order of the file: those that prewarm fills.

    Raises UsageError where there is none: another site's mirror is for prewarm to read.
    """
    found = tuple(ClientMirror(mirror) for mirror in settings.mirrors if mirror.role == "target")
    if not found:
        raise UsageError(
            "no-mirror",
            "every mirror has role: source, so there is none for clients",
            "add the mirror of this site under mirrors:",
        )
    return found


def mirrors_of(registry: str, among: tuple[ClientMirror, ...]) -> tuple[ClientMirror, ...]:
    """Return the mirrors that can hold images of the registry."""
    return tuple(one for one in among if registry == DOCKER_HUB or not one.through)


def reachable(settings: Settings, kind: str, why: str) -> tuple[ClientMirror, ...]:
    """Return the mirrors that clients ask; UsageError where one is on loopback.

    `why` says for people what there asks in vain.
    """
    found = client_mirrors(settings)
    for one in found:
        if one.local:
            raise UsageError(
                "client-url",
                f"{kind}: the mirror {one.url} is on loopback, and {why}",
                "write client_url: beside its url, with the address under which runners reach it",
            )
    return found


def remarks(*paragraphs: str) -> str:
    """Return the paragraphs as comment lines that begin with `#`; empty ones are left out."""
    wrapped = (
        textwrap.wrap(_printable(text), _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    )
    return "".join(f"# {line}\n" for lines in wrapped for line in lines)


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)


def on_loopback(among: tuple[ClientMirror, ...], advice: str) -> str:
    """Return a remark where a mirror is on loopback, else nothing."""
    local = next((one.url for one in among if one.local), None)
    if local is None:
        return ""
    return f"{local} is on loopback: only clients on that very host reach it. {advice}"


def quoted(text: str) -> str:
    """Return the text as a string of JSON, TOML, YAML and CEL alike."""
    return json.dumps(text, ensure_ascii=False)


def listed(texts: tuple[str, ...]) -> str:
    """Return the texts as a list of JSON, TOML, YAML and CEL alike."""
    return f"[{', '.join(map(quoted, texts))}]"


def insecure(among: tuple[ClientMirror, ...]) -> tuple[str, ...]:
    """Return dockerd's insecure-registries for the mirrors without TLS.

    With http:// before them: the BuildKit inside dockerd asks by https without that. Both use plain
    HTTP on loopback by themselves.
    """
    return tuple(one.url for one in among if one.plain and not one.local)
