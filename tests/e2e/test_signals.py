"""A run that is ended, cleanly or not, keeps what it finished and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.e2e.host import Host, digest_of, wait_until
from tests.sandbox import Fault, Image, Sandbox
from tests.support.process import start_prewarm

AMD, ARM = "linux/amd64", "linux/arm64"
PINS = [f"app{n}:1" for n in range(5)]
STUCK = 2
"""The image whose layer does not come."""


class Running:
    """A sync of which two images are finished and the third waits for its layer."""

    def __init__(self, host: Host, process: Popen[str], images: list[Image], tmp: Path) -> None:
        self.host, self.process, self.images, self.temporary = host, process, images, tmp

    def skopeos(self) -> list[int]:
        """Return the skopeo processes that copy this run's images, also orphaned ones."""
        ours = str(self.host.folder).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    variables = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if words[0].endswith(b"skopeo") and ours in variables:
                    found.append(int(entry.name))
        return found

    def end(self, number: signal.Signals) -> tuple[str, str, float]:
        """Send the signal; return what was said and after how many seconds it was over."""
        sent = time.monotonic()
        self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=20)
        return stdout, stderr, time.monotonic() - sent


@contextmanager
def running(host: Host, *args: str, **keys: Any) -> Iterator[Running]:
    """Yield it while it waits; `args` are those of prewarm, `keys` of images.yml."""
    box = host.box
    images = [box.push(f"library/app{n}", "1", platforms=[AMD, ARM]) for n in range(len(PINS))]
    host.configure(PINS, limits={"parallel": 1}, **keys)
    layer = digest_of(images[STUCK].child(AMD).blobs[1])
    box.hub.cdn.faults.add(Fault("GET", f"*{layer[7:]}*", hang=60, count=None))
    temporary = host.folder / "tmp"
    temporary.mkdir()
    with start_prewarm(
        args or ("sync", "--json"),
        host.folder,
        config=host.config,
        env={"TMPDIR": str(temporary)},
    ) as process:
        try:
            wait_until(
                lambda: any(layer[7:] in entry.path for entry in list(box.hub.cdn.access)),
                "request for the slow layer",
            )
            run = Running(host, process, images, temporary)
            assert run.skopeos()
            assert list(host.state.parent.glob(".prewarm-run-*"))
            yield run
        finally:
            process.kill()


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def assert_resumes(run: Running) -> None:
    """The next run copies only the rest and repeats no GET."""
    box = run.host.box
    before = [entry.reference for entry in box.hub.access.gets()]
    assert box.mirrors[0].catalog()[:2] == ["library/app0", "library/app1"]
    box.hub.cdn.faults.clear()
    done = run.host.sync()
    assert done.named("fresh") == PINS[:2]
    assert sorted([*done.named("copy"), *done.named("tag")]) == PINS[2:]
    paid = [*before, *done.digests()]
    wanted = [digest for i in run.images for digest in (i.digest, i.child(AMD).digest)]
    assert sorted(paid) == sorted(wanted)
    assert run.host.charged() == len(PINS)
    assert run.host.sync().named("fresh") == PINS


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_sync_signalled_ends_cleanly_and_resumes(
    host: Host, number: signal.Signals, code: int
) -> None:
    with running(host) as run:
        stdout, stderr, seconds = run.end(number)
        assert run.process.returncode == code
        assert seconds < 8
        assert run.skopeos() == []
        assert list(run.temporary.iterdir()) == []
        assert not list(host.state.parent.glob(".prewarm-run-*"))
        assert "Traceback" not in stderr
        assert '"interrupted"' in stdout
        told = host.run("status", "--json").json
        assert told["last_sync"]["exit"] == code
        assert_resumes(run)


def test_run_signalled_in_the_middle_of_a_line_of_the_log_ends_cleanly(host: Host) -> None:
    host.configure([], schedule="every 6h")
    for _ in range(4):
        with host.start("run") as process:
            assert process.stderr is not None
            while not process.stderr.readline().startswith("next sync"):
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        assert (process.returncode, rest.count("\n")) == (143, 1), rest


def test_sync_that_loses_its_terminal_twice_still_ends_cleanly(host: Host) -> None:
    with running(host) as run:
        # The kernel tells it, and so does the shell.
        run.process.send_signal(signal.SIGHUP)
        assert run.process.stderr is not None
        while "ending" not in run.process.stderr.readline():
            assert run.process.poll() is None
        stdout, stderr, _ = run.end(signal.SIGHUP)
        assert run.process.returncode == 129
        assert "Traceback" not in stderr
        assert '"interrupted"' in stdout
        assert run.skopeos() == []


def test_sync_under_nohup_outlives_its_terminal(host: Host) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(host) as run:
            run.process.send_signal(signal.SIGHUP)
            _, stderr, _ = run.end(signal.SIGTERM)
            assert run.process.returncode == 143
            assert stderr.count("ending") == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sync_signalled_records_what_was_finished(host: Host) -> None:
    with running(host) as run:
        run.end(signal.SIGTERM)
    told = host.run("status", "--json").json
    assert told["images"]["fresh"] == 2
    assert told["last_sync"]["copied"] == 2
    assert told["last_sync"]["deferred"] == 3
    # The broken upload is not what the next run finds on the mirror.
    assert host.box.mirrors[0].tags(f"library/app{STUCK}") == []


def test_sync_killed_leaves_a_usable_state_and_no_skopeo(host: Host) -> None:
    with running(host) as run:
        run.end(signal.SIGKILL)
        assert run.process.returncode == -signal.SIGKILL
        # Its source, the gate, died with us.
        wait_until(lambda: not run.skopeos(), "end of skopeo", seconds=15)
        assert host.run("status").returncode == 0
        assert_resumes(run)


def test_run_terminated_in_a_sync_ends_soon_and_the_next_goes_on(host: Host) -> None:
    with running(host, "run") as run:
        _, stderr, seconds = run.end(signal.SIGTERM)
        assert run.process.returncode == 143
        assert seconds < 8
        assert run.skopeos() == []
        assert "Traceback" not in stderr
        told = host.run("status", "--json").json
        assert told["last_sync"]["exit"] == 143
        assert told["last_sync"]["copied"] == 2
        assert_resumes(run)


def test_run_killed_in_a_sync_goes_on_at_once_within_the_budget(host: Host) -> None:
    budget = {"pulls": 4, "window": "6h", "reserve": 0}
    registries = {"docker.io": {"endpoint": host.box.hub.url, "budget": budget}}
    mirror = host.box.mirrors[0]
    with running(host, "run", registries=registries) as run:
        host.box.hub.cdn.faults.clear()
        run.end(signal.SIGKILL)
        before = host.charged()
        with host.config.open("a") as config:
            config.write("schedule: 19:00\n")  # not what wakes it
        with start_prewarm(["run"], host.folder, config=host.config) as again:
            try:
                wait_until(lambda: bool(mirror.tags("library/app3")), "the fourth image")
                assert again.stderr is not None
                while "1 deferred" not in (line := again.stderr.readline()):
                    assert line
                again.send_signal(signal.SIGTERM)
                again.communicate(timeout=20)
                assert again.returncode == 143
            finally:
                again.kill()
    assert before == 3
    assert host.charged() == 4
    asked = [entry.reference for entry in host.box.hub.access.gets()]
    assert len(asked) == len(set(asked)) == 8


def test_run_told_to_reload_in_a_sync_goes_on_with_it(host: Host) -> None:
    with running(host, "run") as run:
        run.process.send_signal(signal.SIGHUP)
        assert run.skopeos()
        _, stderr, _ = run.end(signal.SIGTERM)
        assert run.process.returncode == 143
        assert stderr.count("ending") == 1


@pytest.mark.parametrize("command", ["sync", "run"])
def test_sync_ended_while_a_registry_swallows_all_requests_ends_soon(
    box: Sandbox, tmp_path: Path, command: str
) -> None:
    """Each request would be waited for half a minute, and tried again."""
    host = Host(tmp_path, box)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        budget = {"pulls": 9, "window": "6h"}
        registries = {"docker.io": {"endpoint": endpoint, "budget": budget}}
        host.configure(["app:1", "app:2"], registries=registries, schedule="every 6h")
        with host.start(command) as process:
            try:
                asked, _ = silent.accept()
                with asked:
                    asked.recv(1)
                    process.send_signal(signal.SIGTERM)
                    stdout, stderr = process.communicate(timeout=20)
            finally:
                process.kill()
    assert process.returncode == 143, (stdout, stderr)
    assert "Traceback" not in stderr
    with host.sql() as state:
        assert state.execute("SELECT exit_code FROM runs").fetchall() == [(143,)]
        assert state.execute("SELECT COUNT(*) FROM pulls").fetchone() == (0,)
