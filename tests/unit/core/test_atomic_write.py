"""Files that are replaced as a whole."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prewarm.core.atomic_write import replace_file
from tests.support.stranger import UID, needs_root


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_replace_file_without_a_mode_is_as_the_umask_says(
    tmp_path: Path, umask: int, mode: int
) -> None:
    file = tmp_path / "report.html"
    before = os.umask(umask)
    try:
        replace_file(file, b"new")
    finally:
        os.umask(before)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"new", mode)


def test_replace_file_keeps_a_link_and_whoever_reads_has_the_old_text(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    file, link = tmp_path / "www/index.html", tmp_path / "report.html"
    file.write_text("old")
    link.symlink_to("www/index.html")
    with link.open("rb") as reader:
        replace_file(link, b"new")
        assert reader.read() == b"old"
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "index.html",
        "report.html",
        "www",
    ]


def test_replace_file_that_cannot_be_written_whole_leaves_the_old_one_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # as a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_file(file, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_replace_file_writes_to_what_is_no_file_and_leaves_it_there(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    replace_file(fifo, b"new")
    reader.join(10)
    assert (read, fifo.is_fifo()) == ([b"new"], True)


def test_replace_file_with_a_long_name_or_a_loop_of_links(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    replace_file(loop, b"new")
    assert loop.read_bytes() == b"new"


# Other users of the machine


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder as /tmp is: everybody may write there, and nobody removes what is another's."""
    with tempfile.TemporaryDirectory() as name:  # nobody may enter tmp_path
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


def link_of_nobody(link: Path, target: Path) -> None:
    link.symlink_to(target)
    os.lchown(link, UID, UID)


@needs_root
def test_replace_file_replaces_a_link_of_another_user(tmp_path: Path, shared: Path) -> None:
    secret = tmp_path / "auth.json"
    secret.write_text("secret")
    secret.chmod(0o600)
    link_of_nobody(shared / "report.html", secret)
    replace_file(shared / "report.html", b"new", 0o644)
    assert (secret.read_text(), stat.S_IMODE(secret.stat().st_mode)) == ("secret", 0o600)
    assert not (shared / "report.html").is_symlink()
    assert (shared / "report.html").read_bytes() == b"new"


@needs_root
def test_replace_file_follows_no_folder_that_is_a_link_of_another_user(
    tmp_path: Path, shared: Path
) -> None:
    (tmp_path / "report.html").write_text("old")
    link_of_nobody(shared / "www", tmp_path)
    with pytest.raises(PermissionError, match=f"symbolic link {shared}/www of nobody is not fo"):
        replace_file(shared / "www" / "report.html", b"new")
    assert (tmp_path / "report.html").read_text() == "old"
    # Nor in the middle of a path that an own link leads to.
    (tmp_path / "own").symlink_to(shared / "www" / ".." / "www" / "report.html")
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "own", b"new")
    assert (tmp_path / "report.html").read_text() == "old"


@needs_root
def test_replace_file_writes_into_no_pipe_of_another_user(shared: Path) -> None:
    os.mkfifo(shared / "fifo")
    os.chown(shared / "fifo", UID, UID)
    with pytest.raises(PermissionError, match="belongs to nobody"):
        replace_file(shared / "fifo", b"new")


@needs_root
def test_replace_file_breaks_a_hard_link(tmp_path: Path, shared: Path) -> None:
    secret = shared / "secret"
    secret.write_text("secret")
    (shared / "report.html").hardlink_to(secret)
    replace_file(shared / "report.html", b"new")
    assert (secret.read_text(), (shared / "report.html").read_text()) == ("secret", "new")


def test_replace_file_keeps_the_mode_of_an_own_file(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    file.chmod(0o600)
    replace_file(file, b"new")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("new", 0o600)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_replace_file_writes_to_an_own_descriptor(tmp_path: Path, path: str, to: str) -> None:
    code = f"from prewarm.core.atomic_write import *; replace_file(Path({path!r}), b'new')"
    out = tmp_path / "out"
    with out.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE if to == "pipe" else file,
            check=True,
        )
    assert (done.stdout if to == "pipe" else out.read_bytes()) == b"new"
