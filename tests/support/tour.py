"""The tour: every command once, for real, on a small site in the sandbox; the docs quote it.

`record` plays it and writes what each command printed to tests/recordings, one file for a scene,
colours included. The pages and the README's picture are made from these files (tests.support.docs),
and a test plays the tour again and compares all but what differs from run to run (`shape`).
"""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import yaml

from prewarm.core.usage import DAY
from tests.sandbox import Image, Layer, Quota, Sandbox
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.sandbox.images import digest_of
from tests.support.process import run_on_terminal, run_prewarm, start_prewarm

RECORDINGS: Final = Path(__file__).parents[1] / "recordings"
GITLAB: Final = "gitlab.example.org"
BUDGET: Final = {"pulls": 8, "window": "6h", "reserve": 1}
"""So small that not all fits: what waits is shown, too."""
PINS: Final = (
    "golang:1.22",
    {"image": "python", "tags": ["3.12", "3.13"]},
    {"image": "alpine", "tags": {"match": "3.*", "newest": 2}},
)
_AMD, _ARM = "linux/amd64", "linux/arm64"
_KB: Final = 1000
_DEBIAN: Final = (Layer("debian", 1400 * _KB),)
_BUILD: Final = (*_DEBIAN, Layer("scm", 1100 * _KB))
_UPSTREAM: Final[Mapping[str, tuple[tuple[Layer, ...], int]]] = {
    "golang:1.22": (_BUILD, 3900 * _KB),
    "python:3.12": (_BUILD, 810 * _KB),
    "python:3.13": (_BUILD, 820 * _KB),
    "alpine:3.18": ((), 330 * _KB),
    "alpine:3.19": ((), 340 * _KB),
    "alpine:3.20": ((), 340 * _KB),
    "node:22": (_BUILD, 1900 * _KB),
    "redis:7": (_DEBIAN, 400 * _KB),
    "mariadb:11": (_DEBIAN, 2300 * _KB),
    "php:8.3-cli": (_BUILD, 1200 * _KB),
    "busybox:1.36": ((), 210 * _KB),
}
"""What is on Docker Hub: base layers and the size of the image's own."""
_CI: Final = {
    "mediawiki/core": (
        "lint: {image: 'node:22', script: [npm test]}\n"
        "phpunit: {image: 'php:8.3-cli', services: ['mariadb:11'], script: [composer test]}\n",
        {"lint": 14, "phpunit": 6},
    ),
    "repos/releng/blubber": (
        "build: {image: 'golang:1.22', script: [make]}\n"
        "test: {image: 'golang:1.22', services: ['redis:7'], script: [make test]}\n",
        {"build": 9, "test": 9},
    ),
    "repos/releng/scap": (
        "variables: {PY: '3.12'}\n"
        "test: {image: 'python:$PY', script: [tox]}\n"
        "pages: {image: 'quay.io/acme/mkdocs:9', script: [mkdocs]}\n"
        "deploy: {image: 'php:$PHP', script: [./deploy]}\n",
        {"test": 11, "pages": 2, "deploy": 1},
    ),
}
"""The projects of the site: their definition, and how often each job ran on each of two days."""
_WRONG: Final = """\
version: 1
mirors:
  - http://127.0.0.1:5000
registries:
  docker.io:
    budget: {pulls: 200, window: 6 h}
images:
  - golang:1.22
  - image: python
    tags: ["3.12", "3.12"]
"""
_CI_FILE: Final = """\
default: {image: "python:3.12"}
variables: {NODE: "22"}
test: {script: [tox]}
assets: {image: "node:$NODE", script: [npm ci]}
publish: {image: "$PUBLISHER", script: [./publish]}
"""


@dataclass
class Tour:
    """A host with prewarm on it, before Docker Hub, GitLab and a mirror; and what it printed."""

    box: Sandbox
    folder: Path
    env: Mapping[str, str]
    upstream: Mapping[str, Image]
    """What is on Docker Hub, by its familiar name."""
    scenes: dict[str, str] = field(default_factory=dict)
    """What was typed and printed in each scene, as `written` has made it."""
    keys: dict[str, set[str]] = field(default_factory=dict)
    """The keys of what each command printed as JSON, as `keys_of` has them."""

    def configure(self, **keys: Any) -> None:
        """Write images.yml; keys replace those of the top level."""
        document = {
            "version": 1,
            "mirrors": [self.box.mirrors[0].url],
            "registries": {"docker.io": {"budget": BUDGET}},
            "platforms": [_AMD],
            "images": list(PINS),
            "gitlab": {
                "url": f"https://{GITLAB}",
                "token_file": str(self.folder / "gitlab-token"),
                "groups": ["mediawiki", "repos"],
            },
            "authfile": str(self.folder / "auth.json"),
            "state": str(self.folder / "state" / "prewarm.db"),
            **keys,
        }
        (self.folder / "images.yml").write_text(yaml.safe_dump(document, sort_keys=False))

    def show(self, scene: str, *args: str, code: int = 0) -> None:
        """Run a command on a terminal, and add what it printed to the scene.

        Progress, which goes to stderr, is left out; but where nothing else is said it is shown.
        """
        done = run_on_terminal(args, self.folder, env={**self.env, "TERM": "xterm-256color"})
        assert done.returncode == code, (args, done)
        self.add(scene, args, done.stdout or done.stderr)

    def ask(self, *args: str, code: int = 0) -> None:
        """Run a command with --json and note the keys of what it tells."""
        done = run_prewarm([*args, "--json"], self.folder, env=self.env)
        assert done.returncode == code, (args, done)
        self.keys.setdefault(args[0], set()).update(keys_of(done.json))

    def add(self, scene: str, args: tuple[str, ...], printed: str) -> None:
        typed = " ".join(("prewarm", *args))
        self.scenes[scene] = f"{self.scenes.get(scene, '')}$ {typed}\n{self.written(printed)}"

    def written(self, printed: str) -> str:
        """Return the text with the places that it would name on a real host."""
        text = printed.replace("\r\n", "\n")
        text = text.replace(f"{self.folder}/state", "/var/lib/prewarm")
        text = text.replace(str(self.folder), "/etc/prewarm")
        port = self.box.mirrors[0].url.rpartition(":")[2]
        # 5000 has one digit less: what stood below the end of a cell stays below it.
        text = re.sub(rf"(?<!mirror     http://127\.0\.0\.1):{port}(?=  )", ":5000 ", text)
        return text.replace(f":{port}", ":5000")

    def let_time_pass(self, seconds: float) -> None:
        """Make what the ledger holds so much older."""
        with closing(sqlite3.connect(self.folder / "state" / "prewarm.db")) as sql, sql:
            sql.execute(
                "UPDATE pulls SET settled = settled - :s, reserved = reserved - :s", {"s": seconds}
            )


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """Yield every path to a value: `images[].mirrors.<mirror>.state`, `summary.pulls`."""
    match value:
        case dict():
            name = {"budgets": "<registry>", "mirrors": "<mirror>"}.get(path.rpartition(".")[2])
            for key, inner in value.items():
                yield from keys_of(inner, ".".join(filter(None, (path, name or key))))
        case [_, *_]:
            for inner in value:
                yield from keys_of(inner, f"{path}[]")
        case []:
            yield f"{path}[]"
        case _:
            yield path


@contextmanager
def site(folder: Path) -> Iterator[Tour]:
    """Start all that the tour needs, and put upstream and into CI what it is about."""
    folder.mkdir(parents=True, exist_ok=True)
    with Sandbox(mirrors=1, quota=Quota(200)) as box, Gitlab() as gitlab:
        upstream = {}
        for name, (layers, size) in _UPSTREAM.items():
            repository, _, tag = name.partition(":")
            upstream[name] = box.push(
                f"library/{repository}",
                tag,
                name=name,
                platforms=[_AMD, _ARM],
                layers=layers,
                size=size,
                attestations=True,
            )
        now = time.time()
        projects = {path: gitlab.add_project(path, text) for path, (text, _) in _CI.items()}
        for age in (1, 0):
            for path, (_, jobs) in _CI.items():
                for name, number in jobs.items():
                    for _ in range(number):
                        gitlab.add_job(projects[path], name, started=now - age * DAY - 60)
        token = folder / "gitlab-token"
        token.touch(0o600)
        token.write_text(TOKEN)
        shutil.copy(box.authfile(), folder / "auth.json")
        names = box.under_real_names({GITLAB: gitlab})
        yield Tour(box, folder, names.env(), upstream)


def play(tour: Tour) -> Mapping[str, str]:
    """Play all scenes, each from where the one before ended, and return them by name."""
    for scene in _SCENES:
        scene(tour)
    return tour.scenes


def _begin(tour: Tour) -> None:
    tour.show("version", "--version")
    tour.show("init", "init")
    (tour.folder / "images.yml").write_text(_WRONG)
    tour.show("check", "check", code=2)
    tour.configure()
    tour.show("check", "check")
    tour.show("doctor", "doctor")
    (tour.folder / ".gitlab-ci.yml").write_text(_CI_FILE)
    tour.show("scan-file", "scan", "--file", ".gitlab-ci.yml")


def _fill(tour: Tour) -> None:
    tour.show("scan", "scan")
    tour.show("dry-run", "sync", "--dry-run")
    tour.show("sync", "-q", "sync")
    tour.show("status", "status")
    tour.show("explain", "explain", "php:8.3-cli", code=1)
    tour.show("report", "report", "--html", "report.html")
    tour.ask("scan")
    tour.ask("status")
    tour.ask("explain", "php:8.3-cli", code=1)
    tour.show("simulate", "simulate", "--budget", "2", "--budget", "4", "--budget", "7")


def _next_night(tour: Tour) -> None:
    tour.let_time_pass(6 * 3600 + 60)
    tour.show("next", "-q", "sync")
    tour.show("unchanged", "-q", "sync")
    tour.show("client-config", "client-config", "dockerd")


def _mend(tour: Tour) -> None:
    tour.show("verify", "verify")
    layer = digest_of(tour.upstream["redis:7"].child(_AMD).blobs[-1])
    tour.box.mirrors[0].storage.blob_file(layer).unlink()
    tour.show("verify-repair", "verify", code=1)
    tour.let_time_pass(6 * 3600 + 60)
    tour.show("verify-repair", "-q", "verify", "--repair")


def _fail(tour: Tour) -> None:
    """One image that is not there, and one mirror that is down; the rest is done."""
    down = "http://127.0.0.1:9"
    tour.configure(mirrors=[tour.box.mirrors[0].url, down], images=["golang:1.22", "golnag:1.22"])
    tour.show("failed", "-q", "sync", "--no-scan", code=1)
    tour.ask("sync", "--no-scan", code=1)
    tour.scenes["failed"] = tour.scenes["failed"].replace(down, "http://127.0.0.1:5001")
    tour.scenes["failed"] = tour.scenes["failed"].replace(" 127.0.0.1:9 ", " 127.0.0.1:5001 ")
    tour.configure()


def _prune(tour: Tour) -> None:
    tour.show("named", "-q", "sync", "busybox:1.36")
    mirror = {"url": tour.box.mirrors[0].url, "max_size": "14MiB"}
    tour.configure(mirrors=[mirror])
    tour.show("prune", "prune", "--dry-run")
    tour.configure()


def _daemon(tour: Tour) -> None:
    tour.configure(schedule=["19:00", "01:05"], timezone="UTC")
    args = ("run", "--listen", "127.0.0.1:0")
    told = ""
    with start_prewarm(args, tour.folder, env=tour.env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            told += line
            if line.startswith("next sync"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 143, told
    told = re.sub(r"(?m)port \d+$", "port 9464", told)
    tour.add("run", ("run", "--listen", "127.0.0.1:9464"), told)


_SCENES: Final[tuple[Callable[[Tour], None], ...]] = (
    _begin,
    _fill,
    _next_night,
    _mend,
    _fail,
    _prune,
    _daemon,
)

_VARIES: Final = (
    (r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", "DATE"),
    (r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d\d [A-Z][a-z]{2} \d\d:\d\d UTC", "TIME"),
    (r"sha256:[0-9a-f]+", "DIGEST"),
    (r"\d+\.\d s\b", "SECONDS"),
    (r"\d+(\.\d+)? [KMG]iB", "SIZE"),
    (r"\d+\.\d%|after \d+ windows? \(\d+\.\d days\)", "FORECAST"),
    (r"(?m)[\u2588-\u258f]+ *\u2502?$", "BAR"),
    (r"(?m)^prewarm \d+\.\d+\.\d+$", "prewarm VERSION"),
    (r"/\S*/skopeo is version \d+\.\d+", "skopeo is VERSION"),
    (r" {2,}", "  "),
)


def shape(scene: str) -> str:
    """Return the text without what differs from run to run: times, and what is made from them."""
    text = click.unstyle(scene)
    for pattern, word in _VARIES:
        text = re.sub(pattern, word, text)
    return text


def recordings() -> dict[str, str]:
    """Return the scenes that were recorded, by name."""
    return {file.stem: file.read_text() for file in sorted(RECORDINGS.glob("*.txt"))}


def record(scenes: Mapping[str, str]) -> None:
    """Write the scenes to tests/recordings, if they differ from those there in more than times."""
    before = {name: shape(text) for name, text in recordings().items()}
    if before == {name: shape(text) for name, text in scenes.items()}:
        return
    RECORDINGS.mkdir(exist_ok=True)
    for file in RECORDINGS.glob("*.txt"):
        file.unlink()
    for name, text in scenes.items():
        (RECORDINGS / f"{name}.txt").write_text(text)
