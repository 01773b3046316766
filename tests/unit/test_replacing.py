"""Files that are replaced as a whole."""

from __future__ import annotations

import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from prewarm.replacing import replace_file


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
