"""The cases of the clients: an image, what goes wrong meanwhile, and what must come of it.

`measure` lets a client get the image of a case and counts what its registry was asked. Each image
has its own repository, and its index names the other architecture first: who takes the first entry
gets the wrong one.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.clients.programs import PROGRAMS, PullError
from tests.clients.stage import Setting, Stage
from tests.sandbox import Fault, Hub, Image, build_image, push

_ARM, _AMD = "linux/arm64", "linux/amd64"
NATIVE: Final = _ARM if platform.machine() == "aarch64" else _AMD
_FOREIGN: Final = _AMD if NATIVE == _ARM else _ARM

_NO_PLATFORM: Final = "no match(ing manifest)? for|no image found in (manifest list|image index)"
_EVERY: Final = frozenset(PROGRAMS)
_DOCKER: Final = frozenset({"dockerd", "BuildKit"})
_CONTAINERD: Final = frozenset({"ctr", "containerd (CRI)"})
_CONTAINERS: Final = frozenset({"podman", "buildah"})


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    told: str
    """What the docs call it."""
    repository: str
    registry: Literal["docker.io", "quay.io"] = "docker.io"
    platforms: tuple[str, ...] = (_FOREIGN, NATIVE)
    wanted: Literal["tag", "digest", ""] = "tag"
    """How images.yml names the image, if it does."""
    wanted_for: tuple[str, ...] = ()
    """The platforms that images.yml names with it."""
    asked: Literal["tag", "digest", "child"] = "tag"
    """What the client names: the tag, the digest of upstream's index, or that of its own child."""
    setting: Setting = "loopback"
    fault: Literal["", "hub-down", "mirror-down", "mirror-401", "mirror-500", "blob-404"] = ""
    clients: Collection[str] = _EVERY
    """Who can do it at all."""
    free: Collection[str] = _EVERY
    """Who sends the registry no manifest GET."""
    fails: Collection[str] = ()
    """Who does not get the image,"""
    why: str = ""
    """and what it says then, as a regular expression."""

    @property
    def image(self) -> Image:
        """What upstream has."""
        return build_image(f"{self.registry}/{self.repository}", platforms=self.platforms)

    @property
    def pin(self) -> str:
        """The image as images.yml names it; empty where it does not."""
        return self._named(self.wanted) if self.wanted else ""

    @property
    def entry(self) -> dict[str, Any]:
        """The image's entry in images.yml."""
        platforms = {"platforms": list(self.wanted_for)} if self.wanted_for else {}
        return {"image": self.pin, **platforms}

    @property
    def target(self) -> str:
        """The image as the client names it."""
        return self._named(self.asked)

    @property
    def layers(self) -> tuple[str, ...]:
        """The diff_ids of its layers for this architecture."""
        config = json.loads(self.image.child(NATIVE).blobs[0])
        return tuple(config["rootfs"]["diff_ids"])

    def _named(self, how: str) -> str:
        place = f"{self.registry}/{self.repository}"
        if how == "tag":
            return f"{place}:1"
        named = self.image if how == "digest" else self.image.child(NATIVE)
        return f"{place}@{named.digest}"


CASES: Final[Mapping[str, Case]] = {
    "warm": Case("tag, warm", "library/warm"),
    "http": Case("tag, warm; the mirror by plain HTTP", "library/http", setting="http"),
    "tls": Case("tag, warm; the mirror by TLS with a private CA", "library/tls", setting="tls"),
    "hub-down": Case("tag, warm; Docker Hub is down", "library/hub-down", fault="hub-down"),
    "pinned": Case("digest of the index, warm", "library/pinned", wanted="digest", asked="digest"),
    "child": Case("digest of the platform, warm", "library/child", asked="child"),
    "reduced": Case(
        "digest of the index, of which only a tag is warm",
        "library/reduced",
        asked="digest",
        free=(),
    ),
    "quay": Case(
        "tag at quay.io, warm",
        "acme/tool",
        registry="quay.io",
        free=_EVERY - _DOCKER,
    ),
    "namesake": Case("tag, warm; quay.io has an image of the same name", "acme/tool"),
    "ask-upstream": Case(
        "tag at quay.io, warm; printed with `--ask-upstream`",
        "acme/asked",
        registry="quay.io",
        setting="ask-upstream",
        clients=_CONTAINERD,
    ),
    "cold": Case("not on the mirror", "library/cold", wanted="", free=()),
    "mirror-down": Case(
        "warm; the mirror refuses connections", "library/mirror-down", fault="mirror-down", free=()
    ),
    "mirror-401": Case(
        "warm; the mirror wants a login", "library/mirror-401", fault="mirror-401", free=()
    ),
    "mirror-500": Case(
        "warm; the mirror answers 500", "library/mirror-500", fault="mirror-500", free=()
    ),
    "blob-404": Case(
        "warm; the mirror lost the layers",
        "library/blob-404",
        fault="blob-404",
        free=_EVERY - {"dockerd"},
        fails=_CONTAINERS,
        why="404",
    ),
    "misplanned": Case(
        "the mirror has it for another architecture alone",
        "library/misplanned",
        wanted_for=(_FOREIGN,),
        free=_EVERY - {"dockerd"},
        fails=_EVERY - {"dockerd"},
        why=_NO_PLATFORM,
    ),
    "foreign": Case(
        "not for this architecture, so never on the mirror",
        "library/foreign",
        platforms=(_FOREIGN,),
        free=(),
        fails=_EVERY,
        why=_NO_PLATFORM,
    ),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case."""

    layers: tuple[str, ...] | None
    """The diff_ids that the client got; None where it failed."""
    error: str
    """What the client said where it failed."""
    gets: int
    """Manifest GETs that the image's registry saw, without those that only asked for a token."""
    heads: int

    @property
    def cell(self) -> str:
        """What the table says: `0`, `2 GET + 1 HEAD`, `fails, 0`."""
        counted = [f"{n} {what}" for n, what in ((self.gets, "GET"), (self.heads, "HEAD")) if n]
        return "fails, " * (self.layers is None) + (" + ".join(counted) or "0")


def fill(stage: Stage) -> dict[str, str]:
    """Put the images of all cases upstream and sync; return what sync did with each pin."""
    for case in CASES.values():
        push(_hub(stage, case).registry, case.repository, case.image, "1")
    return stage.sync([case.entry for case in CASES.values() if case.pin], NATIVE)


def measure(stage: Stage, client: str, case: Case) -> Outcome:
    """Let the client get the image, once per stage: what it has then it need not ask for."""
    machine = stage.machine(client, case.setting)
    hub = _hub(stage, case)
    hub.access.clear()
    layers: tuple[str, ...] | None = None
    said = ""
    with _disturbed(stage, case):
        try:
            layers = PROGRAMS[client].pull(machine, case.target)
        except PullError as error:
            said = str(error)
    gets, heads = (
        [one for one in found if one.status != 401]
        for found in (hub.access.gets(case.repository), hub.access.heads(case.repository))
    )
    return Outcome(layers, said, len(gets), len(heads))


@contextmanager
def _disturbed(stage: Stage, case: Case) -> Iterator[None]:
    match case.fault:
        case "hub-down":
            stage.hub.faults.add(Fault(reset=True, count=None))
        case "mirror-down":
            stage.shut_door()
        case "mirror-401":
            login = {"WWW-Authenticate": 'Basic realm="mirror"'}
            stage.tap.faults.add(Fault(status=401, headers=login, count=None))
        case "mirror-500":
            stage.tap.faults.add(Fault(status=500, count=None))
        case "blob-404":
            stage.tap.faults.add(Fault(path="*/blobs/*", status=404, count=None))
        case "":
            pass
    try:
        yield
    finally:
        stage.hub.faults.clear()
        stage.tap.faults.clear()
        if case.fault == "mirror-down":
            stage.open_door()


def _hub(stage: Stage, case: Case) -> Hub:
    return stage.hub if case.registry == "docker.io" else stage.quay
