"""The state's place and owner, and the locks."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prewarm.core.budget import Moment
from prewarm.core.errors import AlreadyRunningError, PrewarmError, UsageError
from prewarm.state.location import (
    Lock,
    MirrorLock,
    Shared,
    StateLock,
    check_owner,
    exclusive,
    folder_of,
    locks_for,
    place_of,
    prepare,
)
from prewarm.state.tenant import canonical
from tests.support.stranger import needs_root, stranger

HOME = Path("/home/me")

SYSTEM = Path("/etc/prewarm/images.yml")
NOW = Moment(1_700_000_000.0, "boot", 5.0)

ME = os.geteuid()
OTHER = ME + 4242


@pytest.mark.parametrize(
    ("written", "config", "environ", "path"),
    [
        pytest.param("/srv/p.db", SYSTEM, {"STATE_DIRECTORY": "/s"}, "/srv/p.db", id="written"),
        pytest.param(None, SYSTEM, {"STATE_DIRECTORY": "/s:/t"}, "/s/prewarm.db", id="systemd"),
        pytest.param(None, SYSTEM, {}, "/var/lib/prewarm/prewarm.db", id="system"),
        pytest.param(
            None, SYSTEM, {"XDG_STATE_HOME": "/x"}, "/var/lib/prewarm/prewarm.db", id="system, XDG"
        ),
        pytest.param(
            None, Path("/x/images.yml"), {"XDG_STATE_HOME": "/x"}, "/x/prewarm/prewarm.db", id="XDG"
        ),
        pytest.param(None, None, {}, "/home/me/.local/state/prewarm/prewarm.db", id="home"),
        pytest.param(
            None,
            None,
            {"XDG_STATE_HOME": "relative"},
            "/home/me/.local/state/prewarm/prewarm.db",
            id="relative XDG is ignored",
        ),
    ],
)
def test_state_path_rules_give_path(
    written: str | None, config: Path | None, environ: dict[str, str], path: str
) -> None:
    assert place_of(written, config, environ, HOME) == Path(path)


def test_state_path_without_a_home_is_needed_by_the_last_rule_alone() -> None:
    assert place_of("/srv/p.db", None, {}, None) == Path("/srv/p.db")
    assert place_of(None, None, {"STATE_DIRECTORY": "/s"}, None) == Path("/s/prewarm.db")
    assert place_of(None, SYSTEM, {}, None) == Path("/var/lib/prewarm/prewarm.db")
    assert place_of(None, None, {"XDG_STATE_HOME": "/x"}, None) == Path("/x/prewarm/prewarm.db")
    with pytest.raises(UsageError, match=r"no home folder; write state: "):
        place_of(None, None, {}, None)


def test_place_of_a_server_has_a_folder_of_this_host_by_the_rules() -> None:
    url = "postgresql://prewarm@db/prewarm"
    found = place_of(url, SYSTEM, {}, HOME)
    assert found == Shared(url, Path("/var/lib/prewarm"))
    assert str(found) == url


def test_folder_of_a_server_is_another_for_each_set_of_mirrors(tmp_path: Path) -> None:
    shared = Shared("postgresql://prewarm@db/prewarm", tmp_path)
    one = folder_of(shared, ["http://a:5000", "http://b:5000/"])
    assert one == folder_of(shared, ["http://b:5000", "http://A:5000"])
    assert one != folder_of(shared, ["http://a:5000"])
    assert one.parent == tmp_path
    assert folder_of(tmp_path / "prewarm.db", ["http://a:5000"]) == tmp_path


def test_prepare_missing_folder_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "prewarm.db"
    prepare(path, ME)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_prepare_existing_state_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    path.write_bytes(b"kept")
    prepare(path, ME)
    assert path.read_bytes() == b"kept"


def test_prepare_unwritable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        prepare(tmp_path / "file" / "prewarm.db", ME)


def test_check_owner_other_user_gives_the_command(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    path.touch()
    with pytest.raises(UsageError, match="belongs to") as caught:
        check_owner(path, OTHER, ["prewarm", "--config", "a b.yml", "sync"])
    assert pwd.getpwuid(ME).pw_name in caught.value.text
    assert caught.value.cure.startswith("run: sudo ")
    assert caught.value.cure.endswith("prewarm --config 'a b.yml' sync")


@pytest.mark.skipif(ME != 0, reason="only root can give a file away")
@pytest.mark.parametrize(("owner", "sudo"), [(65534, "sudo -u nobody prewarm …"), (987654, "#987")])
def test_check_owner_root_on_anothers_state_is_refused(
    tmp_path: Path, owner: int, sudo: str
) -> None:
    path = tmp_path / "prewarm.db"
    path.touch()
    os.chown(path, owner, -1)
    with pytest.raises(UsageError) as caught:
        check_owner(path, 0)
    assert sudo in caught.value.cure


@pytest.mark.skipif(ME != 0, reason="only root can give a folder away")
def test_prepare_root_in_anothers_folder_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "prewarm"
    folder.mkdir()
    os.chown(folder, 65534, -1)
    with pytest.raises(UsageError, match="belongs to nobody"):
        prepare(folder / "prewarm.db", 0)
    assert list(folder.iterdir()) == []


@contextmanager
def nobody() -> Iterator[Path]:
    """Be the user nobody, in a folder of root's that everybody may look at."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.setegid(65534)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)
            os.setegid(0)


@pytest.mark.skipif(ME != 0, reason="only root can become another user")
@pytest.mark.parametrize("path", ["state/prewarm.db", "state/deep/er/prewarm.db"])
def test_check_owner_state_in_a_shut_folder_gives_the_command(path: str) -> None:
    with nobody() as folder:
        os.seteuid(0)
        (folder / "state").mkdir(mode=0o700)
        os.chown(folder / "state", 1, 1)
        os.seteuid(65534)
        for asked in (check_owner, prepare):
            with pytest.raises(UsageError, match="belongs to daemon") as caught:
                asked(folder / path, 65534, ["prewarm", "status"])
            assert caught.value.code == "state-owner"
            assert caught.value.cure == "run: sudo -u daemon prewarm status"
            assert str(folder / path) in caught.value.text


@pytest.mark.skipif(ME != 0, reason="only root can become another user")
def test_check_owner_own_folder_that_is_shut_says_so() -> None:
    with nobody() as folder:
        os.seteuid(0)
        (folder / "state").mkdir(mode=0)
        os.chown(folder / "state", 65534, 65534)
        os.seteuid(65534)
        with pytest.raises(UsageError, match="Permission denied"):
            check_owner(folder / "state" / "prewarm.db", 65534)


def test_check_owner_missing_state_in_anothers_folder_is_a_users_own_affair(
    tmp_path: Path,
) -> None:
    check_owner(tmp_path / "prewarm.db", OTHER)


# Locks


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/"),
        ("https://Mirror.example.org", "HTTPS://mirror.example.org:443"),
        ("http://mirror.example.org:80", "http://mirror.example.org"),
        ("http://localhost:5000", "http://127.0.0.1:5000"),
        ("http://LocalHost.:5000", "http://[::1]:5000"),
        ("http://localhost", "http://127.0.0.1:80/"),
    ],
)
def test_canonical_spellings_of_one_mirror_are_one(url: str, same: str) -> None:
    assert canonical(url) == canonical(same)


def test_canonical_other_mirrors_differ() -> None:
    here = ["http://localhost:5000", "http://127.0.0.1:5001", "https://localhost:5000"]
    urls = ["http://m", "https://m", "http://m:5000", "http://m/a", "http://n", *here]
    assert len({canonical(url) for url in urls}) == len(urls)


def refusal(locks: Iterable[Lock], wait: float = 0.0) -> AlreadyRunningError:
    """What a second process would be told."""
    with pytest.raises(AlreadyRunningError) as caught, exclusive(locks, NOW, wait):
        pytest.fail("held twice")
    return caught.value


def test_exclusive_held_state_names_the_holder(tmp_path: Path) -> None:
    state = tmp_path / "prewarm.db"
    with exclusive([StateLock(state)], NOW):
        refused = refusal([StateLock(state)])
    assert refused.exit_code == 75
    assert f"process {os.getpid()} since 2023-11-14T22:13:20Z" in refused.text
    assert str(state) in refused.text


def test_exclusive_held_mirror_names_the_holder(tmp_path: Path) -> None:
    url = f"http://localhost:5000{tmp_path}"
    with exclusive(locks_for(tmp_path / "a.db", [url]), NOW):
        refused = refusal(locks_for(tmp_path / "b.db", [f"{url}/"]))
    assert f"mirror {url}/ is held by another prewarm, process {os.getpid()}" in refused.text


def test_exclusive_different_mirrors_and_states_run_together(tmp_path: Path) -> None:
    first = locks_for(tmp_path / "a.db", [f"http://a{tmp_path}"])
    second = locks_for(tmp_path / "b.db", [f"http://b{tmp_path}"])
    with exclusive(first, NOW), exclusive(second, NOW):
        assert not StateLock(tmp_path / "a.db").try_acquire(0)
        assert not StateLock(tmp_path / "b.db").try_acquire(0)


def test_exclusive_refused_frees_what_it_had(tmp_path: Path) -> None:
    url = f"http://m{tmp_path}"
    with exclusive([MirrorLock(url)], NOW):
        refusal(locks_for(tmp_path / "s", [url]))
        with exclusive([StateLock(tmp_path / "s")], NOW):
            pass


def test_exclusive_one_mirror_named_twice_is_one_lock(tmp_path: Path) -> None:
    url = f"http://m{tmp_path}"
    with exclusive(locks_for(None, [url, f"{url}/"]), NOW):
        assert not MirrorLock(url).try_acquire(0)


def test_exclusive_body_that_fails_frees(tmp_path: Path) -> None:
    locks = locks_for(tmp_path / "s", [f"http://m{tmp_path}"])
    with pytest.raises(ZeroDivisionError), exclusive(locks, NOW):
        raise ZeroDivisionError
    with exclusive(locks, NOW):
        pass


def test_exclusive_wait_takes_over_when_the_holder_ends(tmp_path: Path) -> None:
    first = StateLock(tmp_path / "s")
    assert first.try_acquire(0)
    freeing = threading.Timer(0.1, first.release)
    freeing.start()
    with exclusive([StateLock(tmp_path / "s")], NOW, wait=20):
        freeing.join()
        assert not first.try_acquire(0)


def test_exclusive_wait_that_is_too_short_is_refused(tmp_path: Path) -> None:
    first = StateLock(tmp_path / "s")
    assert first.try_acquire(0)
    refusal([StateLock(tmp_path / "s")], wait=0.05)
    first.release()


def test_holder_unreadable_lock_file_is_still_an_answer(tmp_path: Path) -> None:
    (tmp_path / "s.lock").write_bytes(b"\xff no pid")
    assert "another prewarm" in StateLock(tmp_path / "s").holder()


def test_try_acquire_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "s.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="cannot be written"):
        StateLock(tmp_path / "s").try_acquire(0)
    assert (tmp_path / "precious").read_text() == "kept"


HOLD = """
import sys, time
from pathlib import Path
from prewarm.core.budget import Moment
from prewarm.state.location import exclusive, locks_for
with exclusive(locks_for(Path(sys.argv[1]), [sys.argv[2]]), Moment(0.0, "b", 0.0)):
    print("held", flush=True)
    time.sleep(60)
"""


def test_exclusive_killed_holder_frees_both(tmp_path: Path) -> None:
    state, url = tmp_path / "s", f"http://m{tmp_path}"
    command = [sys.executable, "-c", HOLD, str(state), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            for lock in locks_for(state, [url]):
                assert not lock.try_acquire(0)
                assert f"process {holder.pid}" in lock.holder()
        finally:
            holder.kill()
            holder.wait()
    with exclusive(locks_for(state, [url]), NOW):
        pass


@pytest.mark.skipif(ME != 0, reason="only root can give a file away")
@pytest.mark.parametrize("where", ["file", "folder"])
def test_state_by_a_link_of_another_user_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "prewarm.db").touch()
    if where == "file":
        link, path = (tmp_path / "prewarm.db",) * 2
        link.symlink_to("own/prewarm.db")
    else:
        link, path = tmp_path / "link", tmp_path / "link" / "prewarm.db"
        link.symlink_to("own")
    prepare(path, 0)
    os.lchown(link, 65534, 65534)
    with pytest.raises(UsageError, match=f"{link}.* of nobody|a symbolic link of nobody") as caught:
        prepare(path, 0)
    assert caught.value.code == "state-owner"


@pytest.mark.skipif(ME != 0, reason="only root can give a file away")
@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_prepare_refuses_what_another_user_put_beside_the_state(
    tmp_path: Path, suffix: str
) -> None:
    planted = tmp_path / f"prewarm.db{suffix}"
    planted.touch()
    prepare(tmp_path / "prewarm.db", 0)
    os.chown(planted, 65534, 65534)
    with pytest.raises(UsageError, match=f"{planted}: belongs to nobody") as caught:
        prepare(tmp_path / "prewarm.db", 0)
    assert caught.value.code == "state-owner"


@pytest.mark.skipif(ME != 0, reason="only root can give a file away")
def test_lock_file_of_another_user_is_refused(tmp_path: Path) -> None:
    planted = tmp_path / "prewarm.db.lock"
    planted.touch(0o666)
    os.chown(planted, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to nobody") as caught:
        StateLock(tmp_path / "prewarm.db").try_acquire(0.0)
    assert caught.value.code == "state-owner"


SQUAT = """
held = socket.socket(socket.AF_UNIX)
held.bind(chr(0) + sys.argv[1])
if sys.argv[2] == "listening":
    held.listen()
print("bound", flush=True)
time.sleep(60)
"""


@needs_root
@pytest.mark.parametrize(
    ("how", "holder"), [("listening", r"nobody \(uid 65534, process "), ("silent", "not prewarm")]
)
def test_mirror_lock_that_another_user_holds_is_an_error(
    tmp_path: Path, how: str, holder: str
) -> None:
    url = f"http://m{tmp_path}"
    lock = MirrorLock(url)
    assert lock.intruder() is None
    with (
        stranger(SQUAT, lock._address[1:], how),
        pytest.raises(PrewarmError, match=holder) as caught,
        exclusive(locks_for(None, [url]), NOW),
    ):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("lock-owner", 1)
    with exclusive([lock], NOW):
        assert MirrorLock(url).intruder() is None
