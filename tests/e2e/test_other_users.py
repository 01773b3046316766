"""Files of others, and what other users of the machine prepare: prewarm touches neither."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prewarm.state.tenant import canonical
from tests.e2e.host import Host
from tests.sandbox import Sandbox
from tests.support.process import run_prewarm
from tests.support.stranger import UID, needs_root, stranger


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /tmp is: everybody may write there, and nobody removes what is another's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


def test_sync_with_the_state_in_a_home_folder_leaves_its_folders_alone(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    box.push("library/app", "1", single=True)
    home = tmp_path / "alice"
    for name in ("private", "skopeo", "certs-0"):
        (home / name).mkdir(parents=True)
        (home / name / "diary").write_text("mine")
    host.configure(["app:1"], state=str(home / "prewarm.db"))
    assert host.sync().summary["copied"] == 1
    for name in ("private", "skopeo", "certs-0"):
        assert [(file.name, file.read_text()) for file in (home / name).iterdir()] == [
            ("diary", "mine")
        ]
    assert sorted(path.name for path in home.iterdir() if path.is_dir()) == [
        "certs-0",
        "private",
        "skopeo",
    ]


@needs_root
def test_report_and_metrics_follow_no_link_of_another_user(
    host: Host, box: Sandbox, tmp_path: Path, shared: Path
) -> None:
    box.push("library/app", "1", single=True)
    secret = tmp_path / "auth.json"
    secret.write_text('{"auths": {}}')
    secret.chmod(0o600)
    for name in ("prewarm.prom", "report.html"):
        (shared / name).symlink_to(secret)
        os.lchown(shared / name, UID, UID)
    host.configure(["app:1"], metrics=str(shared / "prewarm.prom"))
    host.sync()
    finished = host.run("report", "--html", str(shared / "report.html"))
    assert finished.returncode == 0, finished.stderr
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ('{"auths": {}}', 0o600)
    assert "prewarm_pulls_total" in (shared / "prewarm.prom").read_text()
    assert "</html>" in (shared / "report.html").read_text()


def test_report_to_stdout_by_its_path(host: Host) -> None:
    host.configure(["app:1"])
    finished = host.run("report", "--html", "/dev/stdout")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.rstrip().endswith("</html>")


@needs_root
@pytest.mark.parametrize("args", [["sync"], ["check"], ["status"], ["run"]])
def test_found_configuration_of_another_user_runs_nothing(
    shared: Path, tmp_path: Path, args: list[str]
) -> None:
    (shared / "images.yml").write_text(
        "version: 1\nmirrors: [http://127.0.0.1:9]\n"
        f"notify: {{command: [/usr/bin/touch, {tmp_path}/done]}}\n"
    )
    os.chown(shared / "images.yml", UID, UID)
    finished = run_prewarm(args, shared)
    assert finished.returncode == 2
    assert f"{shared}/images.yml, found in the current folder, is not used" in finished.stderr
    assert f"prewarm --config {shared}/images.yml" in finished.stderr
    assert not (tmp_path / "done").exists()


def test_errors_of_a_found_configuration_say_its_path(tmp_path: Path) -> None:
    (tmp_path / "images.yml").write_text("version: 1\n")
    for args in (["sync"], ["check"]):
        finished = run_prewarm(args, tmp_path)
        assert finished.returncode == 2
        assert f"{tmp_path}/images.yml: found, " in finished.stderr


@needs_root
def test_doctor_warns_of_a_configuration_that_another_user_can_change(host: Host) -> None:
    host.configure(["app:1"])
    host.config.chmod(0o666)
    finished = host.run("doctor")
    assert f"{host.config}: every user may write to it" in " ".join(finished.stdout.split())


@pytest.mark.parametrize("args", [["explain"], ["sync"], ["check"], ["report", "--html=x"]])
def test_argument_is_never_shown_raw(host: Host, args: list[str]) -> None:
    host.configure(["app:1"])
    for argument in ("a\u009b31m\u202e\u2028b", "--a\u009b31m\u202e\u2028b"):
        finished = host.run(*args, argument)
        assert finished.returncode == 2
        for line in finished.stderr.split("\n"):
            assert line.isprintable(), line


@needs_root
def test_lock_that_another_user_holds_fails_a_sync_and_doctor(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    name = hashlib.sha256(canonical(box.taps[0].url).encode()).hexdigest()
    code = "held = socket.socket(socket.AF_UNIX); held.bind(chr(0) + sys.argv[1]); held.listen()\n"
    with stranger(f"{code}print('bound', flush=True)\ntime.sleep(60)", f"prewarm:{name}"):
        for args in (["sync"], ["verify", "--repair"]):
            finished = host.run(*args)
            assert finished.returncode == 1
            assert "is held by nobody (uid 65534, process " in finished.stderr
        finished = host.run("doctor")
        assert finished.returncode == 1
        assert "is held by nobody" in " ".join(finished.stdout.split())
    assert host.sync().summary["copied"] == 1
