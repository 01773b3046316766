"""A machine with prewarm on it, before a sandbox: its configuration, its runs, what they asked."""

from __future__ import annotations

import hashlib
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from typing import Any

from tests.sandbox import Access, Sandbox
from tests.support.process import Finished, run_prewarm, run_skopeo, start_prewarm, write_config


@dataclass(frozen=True, slots=True)
class Sync:
    """A finished `prewarm sync --json` and what was asked while it ran."""

    report: Any
    gets: tuple[Access, ...]
    """Manifest GETs sent upstream."""
    blobs: tuple[str, ...]
    """Digests of the blobs that crossed the Hub's content network."""
    writes: tuple[tuple[Access, ...], ...]
    """What was written, for each tap."""

    @property
    def summary(self) -> dict[str, int]:
        return dict(self.report["summary"])

    @property
    def actions(self) -> list[tuple[str, str]]:
        """Familiar name and action of each image, in the order of the plan."""
        return [(familiar(one["image"]), one["action"]) for one in self.report["images"]]

    def named(self, action: str) -> list[str]:
        """Return the familiar names of the images that ended so."""
        return [name for name, did in self.actions if did == action]

    def image(self, name: str) -> Any:
        """Return the report's entry of an image, by its familiar name."""
        (found,) = [one for one in self.report["images"] if familiar(one["image"]) == name]
        return found

    def digests(self) -> list[str]:
        """Return what the manifest GETs asked for, in their order."""
        return [entry.reference for entry in self.gets]


class Host:
    """prewarm in `folder`, with a state of its own; each run is a real process."""

    def __init__(self, folder: Path, box: Sandbox) -> None:
        self.folder = folder
        self.box = box
        self.state = folder / "state" / "prewarm.db"
        self.config = folder / "images.yml"

    def configure(self, images: Sequence[Any], **keys: Any) -> None:
        """Write images.yml; keys replace those of the top level."""
        self.config = write_config(self.folder, self.box, images, **keys)

    def run(self, *args: str, env: dict[str, str] | None = None, timeout: float = 60) -> Finished:
        return run_prewarm(args, self.folder, config=self.config, env=env, timeout=timeout)

    def start(self, *args: str) -> Popen[str]:
        return start_prewarm(args, self.folder, config=self.config)

    def sync(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> Sync:
        """Run a sync to its end, which must be `code`; the logs are emptied before."""
        self.forget_requests()
        finished = self.run("sync", "--json", *args, env=env)
        assert finished.returncode == code, finished.stdout + finished.stderr
        return Sync(
            finished.json,
            tuple(self.box.hub.access.gets()),
            blobs_of(self.box),
            tuple(tuple(tap.access.writes()) for tap in self.box.taps),
        )

    def forget_requests(self) -> None:
        for site in (self.box.hub, self.box.hub.cdn, *self.box.taps):
            site.access.clear()

    def forget_state(self) -> None:
        """Delete the state, as a lost disk would."""
        for file in self.state.parent.glob("prewarm.db*"):
            file.unlink()

    def ledger(self) -> list[tuple[str, int, int]]:
        """Return repository, pulls and GETs of every row that the ledger charges."""
        with self.sql() as sql:
            rows = sql.execute("SELECT repository, pulls, gets FROM pulls ORDER BY reserved, id")
            return [(str(name), int(pulls), int(gets)) for name, pulls, gets in rows]

    def charged(self) -> int:
        return sum(pulls for _, pulls, _ in self.ledger())

    def let_time_pass(self, seconds: float) -> None:
        """Make what the ledger holds so much older."""
        with self.sql() as sql, sql:
            sql.execute(
                "UPDATE pulls SET settled = settled - :s, reserved = reserved - :s",
                {"s": seconds},
            )
            sql.execute("UPDATE filled SET at = at - :s", {"s": seconds})

    @contextmanager
    def sql(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.state, timeout=10)) as sql:
            yield sql

    def pulled(self, repository: str, selector: str, platform: str, mirror: int = 0) -> str:
        """Pull from a mirror as a client of that platform; return the digest that it got."""
        os, architecture = platform.split("/")[:2]
        target = self.folder / f"pulled-{time.monotonic_ns()}"
        address = self.box.mirrors[mirror].url.removeprefix("http://")
        finished = run_skopeo(
            [
                *("--override-os", os, "--override-arch", architecture),
                *("copy", "--src-tls-verify=false", "--preserve-digests"),
                f"docker://{address}/{repository}{selector}",
                f"dir:{target}",
            ],
            self.folder,
        )
        assert finished.returncode == 0, finished.stderr
        return digest_of((target / "manifest.json").read_bytes())

    def inspected(self, name: str) -> bytes:
        """Return the manifest that skopeo gets for a name, by the host's registries.conf."""
        finished = run_skopeo(["inspect", "--raw", f"docker://{name}"], self.folder)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.encode()


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def familiar(image: str) -> str:
    return image.removeprefix("docker.io/").removeprefix("library/")


def blobs_of(box: Sandbox) -> tuple[str, ...]:
    """Return the digests of the blobs that the content network was asked for."""
    return tuple("sha256:" + entry.path.split("/data")[0][-64:] for entry in box.hub.cdn.access)


def wait_until(happened: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"in {seconds} s there was no {what}"
        time.sleep(0.01)


def hear(supervisor: socket.socket, what: str) -> str:
    """Return the next message to systemd's socket that holds `what`."""
    while what not in (text := supervisor.recv(4096).decode()):
        pass
    return text


def epoch(text: str) -> float:
    """Return the seconds since the epoch of a time in a report."""
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system on the folder."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "prewarm-test", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
