"""What can go wrong around a sync, one case each: `measure` injects it and returns what is seen.

Each case is a real run: a stand-in for Docker Hub before a real registry, a real registry as the
mirror, real skopeo. A second sync without the fault follows.
"""

# ruff: noqa: E501 - a case is a line

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.host import Host, wait_until
from tests.sandbox import Fault, Sandbox
from tests.sandbox.authority import Authority
from tests.sandbox.faults import disk_full
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.sandbox.hub import PULL_LIMIT
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response
from tests.support.process import Finished, private_env

AMD, ARM = "linux/amd64", "linux/arm64"
_BUSY: Final = 60.0
"""Seconds that a server which hangs waits: longer than any time limit of the test."""


@dataclass
class Stage:
    """The machine of one case. What an injection changes here is undone before the second sync."""

    box: Sandbox
    folder: Path
    stack: ExitStack
    images: int
    keys: dict[str, Any] = field(default_factory=dict)
    """Of images.yml."""
    env: dict[str, str] = field(default_factory=dict)
    shell: str = ""
    """Commands in a mount namespace of its own, before the sync."""
    watched: list[Fault] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """What to call the addresses in messages."""
    kill: tuple[signal.Signals, Fault] | None = None
    """The signal to send once a request has met that fault."""

    @property
    def pins(self) -> list[str]:
        return [f"app{number}:1" for number in range(self.images)]

    def at(self, site: Site, *faults: Fault) -> None:
        """Let a stand-in have these faults."""
        self.watched += [site.faults.add(fault) for fault in faults]
        self.stack.callback(site.faults.clear)

    def hub(self, endpoint: str, **keys: Any) -> None:
        """Have Docker Hub at another address."""
        self.keys["registries"] = {"docker.io": {"endpoint": endpoint, **keys}}


Inject = Callable[[Stage], None]


@dataclass(frozen=True)
class Case:
    """A fault, in words for the docs."""

    place: str
    words: str
    inject: Inject
    images: int = 3


@dataclass(frozen=True)
class Seen:
    """What a case showed, as the cells of the table."""

    exit: str
    codes: str
    message: str
    copied: str
    pulls: str
    gets: str
    met: str
    """How many requests met the fault."""
    after: str
    """What the next sync did, without the fault."""


def measure(case: Case) -> Seen:
    """Run a sync with the fault, and one without."""
    with ExitStack() as outer:
        folder = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="prewarm-fault-")))
        box = outer.enter_context(Sandbox())
        for number in range(case.images):
            box.push(f"library/app{number}", "1", platforms=[AMD, ARM])
        host = Host(folder, box)
        with ExitStack() as stack:
            stage = Stage(box, folder, stack, case.images)
            stage.names = {box.hub.url: "hub", box.taps[0].url: "mirror", box.hub.cdn.url: "cdn"}
            case.inject(stage)
            first = _sync(host, stage)
            first_gets = len(box.hub.access.gets())
            charged = _charged(host)
            kept = stage.keys
        calm = Stage(box, folder, ExitStack(), case.images)
        calm.keys = {"gitlab": kept["gitlab"]} if "gitlab" in kept else {}
        second = _sync(host, calm)
        return Seen(
            str(first.returncode) if first.returncode >= 0 else "killed",
            _codes(first),
            _message(first, stage.names),
            f"{_summary(first, 'copied')} of {case.images}" if first.stdout else "?",
            charged,
            str(first_gets),
            str(sum(fault.seen for fault in stage.watched)) if stage.watched else "",
            f"exit {second.returncode}: {_summary(second, 'copied')} copied, "
            f"{_summary(second, 'fresh')} fresh, {_summary(second, 'pulls')} pulls",
        )


def _sync(host: Host, stage: Stage) -> Finished:
    host.forget_requests()
    limits = {"parallel": 1, "checks": 1}
    keys = {"limits": limits, **stage.keys}
    host.configure(stage.pins if "gitlab" not in keys else stage.pins[:-1], **keys)
    command = [sys.executable, "-m", "tests.faults.scaled"]
    command += ["--config", str(host.config), "sync", "--json"]
    if stage.shell:
        inner = stage.shell + ' && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", inner, "sh", *command]
    with subprocess.Popen(
        command,
        cwd=host.folder,
        env=private_env(host.folder, {"PYTHONPATH": _ROOT, **stage.env}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if stage.kill is not None:
                number, fault = stage.kill
                wait_until(lambda: fault.seen > 0, "request that hangs")
                process.send_signal(number)
                stage.box.hub.cdn.faults.clear()
            stdout, stderr = process.communicate(timeout=120)
        except BaseException:
            process.kill()
            raise
    assert "Traceback" not in stderr, stderr
    return Finished(process.returncode, stdout, stderr)


_ROOT: Final = str(Path(__file__).parents[2])


def _charged(host: Host) -> str:
    """Return what the ledger holds; what is in flight counts."""
    try:
        return str(host.charged())
    except sqlite3.Error:
        return "0"


def _report(finished: Finished) -> Mapping[str, Any]:
    return finished.json if finished.stdout.startswith("{") else {}


def _summary(finished: Finished, key: str) -> str:
    return str(_report(finished).get("summary", {}).get(key, "?"))


def _codes(finished: Finished) -> str:
    """Return the codes of the problems, and of the images that were not copied without one."""
    report = _report(finished)
    codes = [one["code"] for one in report.get("problems", ())]
    codes += [
        one["code"]
        for one in report.get("images", ())
        if one["action"] in ("defer", "fail", "skip") and one["code"] not in codes
    ]
    return ", ".join(f"`{code}`" for code in dict.fromkeys(codes))


def _message(finished: Finished, names: Mapping[str, str]) -> str:
    """Return the first problem as it is printed, without what changes from run to run."""
    report = _report(finished)
    words = [one["problem"] for one in report.get("problems", ())]
    words += [one["reason"] for one in report.get("images", ()) if one["action"] == "defer"]
    if not words and not report and finished.returncode >= 0:
        words = [line for line in finished.stderr.splitlines() if line][-1:]
    text = words[0] if words else ""
    for url, name in names.items():
        text = text.replace(url, name).replace(url.partition("://")[2], name)
    text = re.sub(r"127\.0\.0\.[0-9]+:[0-9]+", "host", text)
    text = re.sub(r"sha256:[0-9a-f]{6,}", "sha256:…", text)
    text = re.sub(r"/tmp/[^\s:;,]*/", "/…/", text)
    text = re.sub(r"[0-9.]+ [KMGT]iB are free at [^\s,]+", "… are free at …", text)
    text = re.sub(r"(?<=within )[0-9.]+(?= s)|(?<=port )[0-9]+", "…", text).partition("; rank ")[0]
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:220]


# --- faults ---


def everywhere(**keys: Any) -> Fault:
    """Return a fault that never ends."""
    return Fault(**{"count": None, **keys})


def hub(*faults: Callable[[], Fault]) -> Inject:
    return lambda stage: stage.at(stage.box.hub, *(make() for make in faults))


def cdn(*faults: Callable[[], Fault]) -> Inject:
    return lambda stage: stage.at(stage.box.hub.cdn, *(make() for make in faults))


def mirror(*faults: Callable[[], Fault]) -> Inject:
    return lambda stage: stage.at(stage.box.taps[0], *(make() for make in faults))


def gitlab(*faults: Callable[[], Fault]) -> Inject:
    def inject(stage: Stage) -> None:
        site = _gitlab(stage)
        stage.at(site, *(make() for make in faults))

    return inject


def _gitlab(stage: Stage) -> Gitlab:
    """Have a GitLab whose only job uses the last image; the others are pins."""
    site = Gitlab()
    # It stays for the second sync.
    stage.box._stack.callback(site.close)
    last = stage.images - 1
    project = site.add_project("team/app", f"build:\n  image: app{last}:1\n  script: [make]\n")
    site.add_job(project, "build")
    token = stage.folder / "token"
    token.write_text(TOKEN)
    stage.keys["gitlab"] = {"url": site.url, "token_file": str(token)}
    stage.names[site.url] = "gitlab"
    return site


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def hub_refuses(stage: Stage) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    stage.names[url] = "hub"
    stage.hub(url)


def hub_of_unknown_ca(stage: Stage) -> None:
    authority = Authority(stage.folder / "ca")
    context = authority.server_context(["127.0.0.1"])
    server = stage.stack.enter_context(Server(stage.box.hub, tls=context))
    stage.names[server.url] = "hub"
    stage.hub(server.url)


def hub_without_tls(stage: Stage) -> None:
    url = stage.box.hub.url.replace("http:", "https:")
    stage.names[url] = "hub"
    stage.hub(url)


class _Proxy(Site):
    """A proxy that answers every request, CONNECT too, with one status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self._status = status

    def respond(self, request: Request) -> Response:
        return Response(self._status, {"Content-Type": "text/plain"}, b"no")


def behind_a_proxy(status: int) -> Inject:
    def inject(stage: Stage) -> None:
        server = stage.stack.enter_context(Server(_Proxy(status)))
        stage.names[server.url] = "proxy"
        stage.hub("https://registry-1.docker.io")
        stage.env["HTTPS_PROXY"] = server.url

    return inject


def mirror_refuses(stage: Stage) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    stage.names[url] = "mirror"
    stage.keys["mirrors"] = [url]


def mirror_of(**options: Any) -> Inject:
    def inject(stage: Stage) -> None:
        registry = stage.box.registry("other", **options)
        stage.names[registry.url] = "mirror"
        stage.keys["mirrors"] = [registry.url]

    return inject


def mirror_without_space(stage: Stage) -> None:
    stage.keys["mirrors"] = [
        {"url": stage.box.taps[0].url, "storage": str(stage.folder), "min_free": "900000GiB"}
    ]


def stopped(number: signal.Signals) -> Inject:
    def inject(stage: Stage) -> None:
        fault = everywhere(method="GET", hang=_BUSY)
        stage.box.hub.cdn.faults.add(fault)
        stage.kill = number, fault

    return inject


def skopeo(script: str) -> Inject:
    """Have another skopeo, a shell script; `real` is the true one."""

    def inject(stage: Stage) -> None:
        folder = stage.folder / "bin"
        folder.mkdir()
        program = folder / "skopeo"
        program.write_text(f"#!/bin/sh\nreal={shutil.which('skopeo')}\n{script}\n")
        program.chmod(0o755)
        stage.env["PATH"] = f"{folder}:{os.environ['PATH']}"

    return inject


def no_skopeo(stage: Stage) -> None:
    (stage.folder / "empty").mkdir()
    stage.env["PATH"] = str(stage.folder / "empty")


def damaged_state(stage: Stage) -> None:
    state = stage.folder / "state" / "prewarm.db"
    state.parent.mkdir()
    state.write_bytes(b"not a database" * 1000)
    stage.stack.callback(state.unlink)


def read_only_state(stage: Stage) -> None:
    folder = stage.folder / "state"
    folder.mkdir()
    stage.shell = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"


def postgresql_down(stage: Stage) -> None:
    stage.keys["state"] = f"postgresql://prewarm@127.0.0.1:{closed_port()}/prewarm"


_MANIFESTS: Final = "/v2/*/manifests/*"
_INDEXES: Final = "/v2/*/manifests/sha256:*"
_LIMIT: Final = ('{"errors":[{"code":"TOOMANYREQUESTS","message":"' + PULL_LIMIT + '"}]}').encode()


def _head(**keys: Any) -> Callable[[], Fault]:
    return lambda: everywhere(method="HEAD", path=_MANIFESTS, **keys)


def _get(**keys: Any) -> Callable[[], Fault]:
    return lambda: everywhere(method="GET", path=_MANIFESTS, **keys)


def _any(**keys: Any) -> Callable[[], Fault]:
    return lambda: everywhere(**keys)


def _blob(**keys: Any) -> Callable[[], Fault]:
    return lambda: everywhere(method="GET", **keys)


HUB, CDN, MIRROR, GITLAB = "Docker Hub", "Docker Hub's CDN (blobs)", "Mirror", "GitLab"
TOKENS, HERE = "Docker Hub's token server", "This host"

CASES: Final[Sequence[Case]] = (
    Case(HUB, "connection refused", hub_refuses),
    Case(HUB, "connection reset at every HEAD", hub(_head(reset=True))),
    Case(HUB, "no answer to a HEAD (timeout)", hub(_head(hang=_BUSY)), images=1),
    Case(HUB, "certificate of an unknown CA", hub_of_unknown_ca),
    Case(HUB, "plain HTTP behind an https:// URL", hub_without_tls),
    Case(HUB, "proxy answers 407 to CONNECT", behind_a_proxy(407)),
    Case(HUB, "proxy answers 502 to CONNECT", behind_a_proxy(502)),
    Case(HUB, "401 to every HEAD", hub(_head(status=401))),
    Case(HUB, "403 to every HEAD", hub(_head(status=403))),
    Case(HUB, "404 to every HEAD", hub(_head(status=404))),
    Case(HUB, "429 to every HEAD (abuse limit)", hub(_head(status=429, body=b"slow down"))),
    Case(HUB, "429 to the 3rd GET and later (pull limit)", hub(_get(nth=3, status=429, body=_LIMIT))),
    Case(HUB, "500 to every HEAD", hub(_head(status=500))),
    Case(HUB, "503 to the first two HEADs", hub(lambda: Fault("HEAD", _MANIFESTS, count=2, status=503))),
    Case(HUB, "502 to every GET of a manifest", hub(_get(status=502))),
    Case(HUB, "502 to the first GET of a manifest", hub(lambda: Fault("GET", _MANIFESTS, status=502))),
    Case(HUB, "connection reset at the first GET", hub(lambda: Fault("GET", _MANIFESTS, reset=True))),
    Case(HUB, "no answer to the first GET", hub(lambda: Fault("GET", _MANIFESTS, hang=_BUSY))),
    Case(HUB, "a manifest that is not its digest", hub(lambda: Fault("GET", _INDEXES, status=200, body=b"{}"))),
    Case(HUB, "manifest cut off after 20 bytes", hub(lambda: Fault("GET", _MANIFESTS, cut=20))),
    Case(TOKENS, "500 to every request", hub(_any(path="/token*", status=500))),
    Case(TOKENS, "connection reset, every request", hub(_any(path="/token*", reset=True))),
    Case(TOKENS, "200 without a token", hub(_any(path="/token*", status=200, body=b"{}"))),
    Case(CDN, "404 to every blob", cdn(_blob(status=404))),
    Case(CDN, "500 to every blob", cdn(_blob(status=500))),
    Case(CDN, "503 to the first blob", cdn(lambda: Fault("GET", status=503))),
    Case(CDN, "first blob cut off after 100 bytes", cdn(lambda: Fault("GET", cut=100))),
    Case(CDN, "every blob cut off after 100 bytes", cdn(_blob(cut=100)), images=1),
    Case(CDN, "first blob too short (7 bytes)", cdn(lambda: Fault("GET", status=200, body=b"corrupt"))),
    Case(CDN, "every blob too short (7 bytes)", cdn(_blob(status=200, body=b"corrupt"))),
    Case(CDN, "no answer to any blob", cdn(_blob(hang=_BUSY)), images=1),
    Case(MIRROR, "connection refused", mirror_refuses),
    Case(MIRROR, "connection reset, every request", mirror(_any(reset=True))),
    Case(MIRROR, "500 to every HEAD", mirror(_head(status=500))),
    Case(MIRROR, "no answer about one image", mirror(_any(path="/v2/library/app0/*", hang=_BUSY))),
    Case(MIRROR, "disk full", mirror(disk_full)),
    Case(MIRROR, "less space free than `min_free`", mirror_without_space),
    Case(MIRROR, "read-only (maintenance)", mirror_of(readonly=True)),
    Case(MIRROR, "login required", mirror_of(users={"pusher": "opensesame"})),
    Case(MIRROR, "500 to all uploads of one repository", mirror(lambda: everywhere(method="P*", path="/v2/library/app0/*", status=500))),
    Case(MIRROR, "500 to the first upload of a blob", mirror(lambda: Fault("PATCH", "/v2/library/*", status=500))),
    Case(MIRROR, "connection reset at the first PUT of a manifest", mirror(lambda: Fault("PUT", _MANIFESTS, reset=True))),
    Case(MIRROR, "HTML instead of a manifest", mirror(_get(status=200, body=b"<html>login</html>"))),
    Case(GITLAB, "401 to every request", gitlab(_any(status=401))),
    Case(GITLAB, "403 to every request", gitlab(_any(status=403))),
    Case(GITLAB, "404 to every request", gitlab(_any(status=404))),
    Case(GITLAB, "500 to every request", gitlab(_any(status=500))),
    Case(GITLAB, "not JSON", gitlab(_any(status=200, body=b"<html>"))),
    Case(GITLAB, "no answer (timeout)", gitlab(_any(hang=_BUSY))),
    Case(HERE, "skopeo is not installed", no_skopeo),
    Case(HERE, "skopeo is killed at every copy (out of memory)", skopeo('case "$*" in *--version*) exec $real "$@";; esac\nkill -9 $$')),
    Case(HERE, "SIGTERM while a blob is copied", stopped(signal.SIGTERM)),
    Case(HERE, "SIGKILL while a blob is copied", stopped(signal.SIGKILL)),
    Case(HERE, "state file damaged", damaged_state),
    Case(HERE, "state on a read-only file system", read_only_state),
    Case(HERE, "PostgreSQL of the state is down", postgresql_down),
)  # fmt: skip
