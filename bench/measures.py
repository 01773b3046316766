"""The measurements: prewarm and skopeo at the same work, each with a fresh mirror and state.

Everything is on loopback, the stand-in for Docker Hub adds the latency. Fair to the peer: one
platform for both, a blob cache of its own, and its copies go straight to digests that it was told.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from tests.sandbox import Image, Layer, Registry, Sandbox
from tests.support.process import Finished, run_prewarm, run_skopeo, write_config

IMAGES: Final = 100
PARALLEL: Final = 8
LATENCY: Final = 0.05
LARGE_LAYERS: Final = 4
LARGE_LAYER: Final = 120_000_000
ROUNDS: Final = 3
PLATFORM: Final = "linux/amd64"
_SKOPEO: Final = ("--override-os=linux", "--override-arch=amd64")


@dataclass(frozen=True, slots=True)
class Took:
    """What one way of doing the work took."""

    seconds: float
    gets: int = 0
    """Manifest GETs: what Docker Hub may count."""
    requests: int = 0
    """All requests to the Hub, its token server included; the CDN's are not."""


@dataclass(frozen=True, slots=True)
class Hundred:
    """A hundred images, by prewarm, by `skopeo sync` and by `skopeo copy` of known digests."""

    first: Took
    second: Took
    peer_first: Took
    peer_second: Took
    direct: Took


@dataclass(frozen=True, slots=True)
class Large:
    """One large image: seconds of each round."""

    prewarm: Sequence[float]
    direct: Sequence[float]


def _timed(box: Sandbox, work: Callable[[], Sequence[Finished]]) -> Took:
    """Do the work and count what the Hub was asked; RuntimeError where it fails."""
    box.hub.access.clear()
    started = time.perf_counter()
    ended = work()
    seconds = time.perf_counter() - started
    for one in ended:
        if one.returncode != 0:
            raise RuntimeError(f"exit {one.returncode}: {one.stdout[-2000:]}{one.stderr[-2000:]}")
    return Took(seconds, len(box.hub.access.gets()), len(box.hub.access))


def _publish(box: Sandbox) -> dict[str, Image]:
    """Put images of two platforms upstream; every ten of them share a base of half a megabyte."""
    return {
        f"bench/app-{number:03}": box.push(
            f"bench/app-{number:03}",
            "1",
            platforms=[PLATFORM, "linux/arm64"],
            layers=[Layer(f"base {number // 10}", 500_000)],
            size=50_000,
        )
        for number in range(IMAGES)
    }


def hundred() -> Hundred:
    """Measure a hundred images at 50 ms, copied 8 at a time where the tool can."""
    with Sandbox(mirrors=3, latency=LATENCY) as box:
        box.hub.cdn.latency = LATENCY
        images = _publish(box)
        ours, peers, directs = box.mirrors
        prewarm = _Prewarm(box, ours, [f"{name}:1" for name in images])
        first, second = _timed(box, prewarm.sync), _timed(box, prewarm.sync)
        peer = _SkopeoSync(box, peers, list(images))
        peer_first, peer_second = _timed(box, peer.sync), _timed(box, peer.sync)
        direct = _timed(box, lambda: _copy_directly(box, directs, images))
        _check(images, ours, peers, directs)
    return Hundred(first, second, peer_first, peer_second, direct)


def _check(images: dict[str, Image], ours: Registry, peers: Registry, directs: Registry) -> None:
    """Make sure that all three mirrors hold every image: a failed copy is a fast one."""
    for name, image in images.items():
        child = image.child(PLATFORM).digest
        assert ours.manifest(name, "1") is not None, name
        assert ours.manifest(name, child) is not None, name
        found = peers.manifest(name.rpartition("/")[2], "1")
        assert found is not None, name
        assert found[2] == child, name
        assert directs.manifest(name, child) is not None, name


class _Prewarm:
    """prewarm with a state of its own."""

    def __init__(self, box: Sandbox, mirror: Registry, images: Sequence[str]) -> None:
        self.folder = box.path / f"prewarm-{mirror.port}"
        limits = {"parallel": PARALLEL}
        self.config = write_config(self.folder, box, images, mirrors=[mirror.url], limits=limits)

    def sync(self) -> list[Finished]:
        return [run_prewarm(["--quiet", "sync"], self.folder, config=self.config, timeout=600)]


class _SkopeoSync:
    """`skopeo sync` of the same list, from a YAML file."""

    def __init__(self, box: Sandbox, mirror: Registry, repositories: Sequence[str]) -> None:
        self.folder = box.path / "skopeo-sync"
        self.folder.mkdir()
        self.target = mirror.url.removeprefix("http://")
        source = {"tls-verify": False, "images": {name: ["1"] for name in repositories}}
        document = {box.hub.url.removeprefix("http://"): source}
        self.file = self.folder / "sync.yml"
        self.file.write_text(yaml.safe_dump(document))

    def sync(self) -> list[Finished]:
        ways = ("--src", "yaml", "--dest", "docker", "--dest-tls-verify=false")
        command = (*_SKOPEO, "sync", *ways, str(self.file), self.target)
        return [run_skopeo(command, self.folder, timeout=600)]


def _copy_directly(box: Sandbox, mirror: Registry, images: dict[str, Image]) -> list[Finished]:
    """Let skopeo copy the platform's manifest of each image, several at a time."""
    folder = box.path / f"direct-{mirror.port}"
    folder.mkdir()
    hub, target = (url.removeprefix("http://") for url in (box.hub.url, mirror.url))

    def copy(name: str) -> Finished:
        digest = images[name].child(PLATFORM).digest
        command = (
            "copy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            f"docker://{hub}/{name}@{digest}",
            f"docker://{target}/{name}@{digest}",
        )
        return run_skopeo(command, folder, timeout=600)

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(copy, images))


def large() -> Large:
    """Measure one image of 480 MB through the gate and by skopeo directly, in turns."""
    ours: list[float] = []
    directs: list[float] = []
    with Sandbox(mirrors=0, latency=LATENCY) as box:
        layers = [Layer(f"large {number}", LARGE_LAYER) for number in range(LARGE_LAYERS)]
        image = box.push("bench/large", "1", layers=layers)
        for number in range(ROUNDS):
            with box.registry(f"ours-{number}") as mirror:
                ours.append(_timed(box, _Prewarm(box, mirror, ["bench/large:1"]).sync).seconds)
                assert mirror.manifest("bench/large", "1") is not None
            with box.registry(f"direct-{number}") as mirror:
                directs.append(_direct_seconds(box, mirror, image))
            for name in (f"ours-{number}", f"direct-{number}"):
                shutil.rmtree(box.path / name)
    return Large(ours, directs)


def _direct_seconds(box: Sandbox, mirror: Registry, image: Image) -> float:
    return _timed(box, lambda: _copy_directly(box, mirror, {"bench/large": image})).seconds


def start_up(rounds: int = 15) -> float:
    """Return the median of the seconds that `prewarm --help` takes."""
    program = Path(sys.executable).with_name("prewarm")
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
