"""What a run keeps beside the state, next to files of others."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from prewarm.core.errors import UsageError
from prewarm.sync.workspace import private_folder
from tests.support.stranger import UID, needs_root


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_by_a_killed_run(parent: Path) -> Path:
    """Return the folder of a run that was killed: its mark is there, and nobody holds it."""
    with private_folder(parent) as path:
        content = {file.name: file.read_bytes() for file in path.iterdir()}
    path.mkdir(mode=0o700)
    for name, text in content.items():
        (path / name).write_bytes(text)
    (path / "certs-0").mkdir()
    return path


def test_private_folder_is_for_this_user_and_for_the_run(tmp_path: Path) -> None:
    with private_folder(tmp_path / "state") as path:
        assert path.parent == tmp_path / "state"
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "file").touch()
    assert names(tmp_path / "state") == []


def test_private_folder_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    left = left_by_a_killed_run(tmp_path)
    with private_folder(tmp_path) as path:
        assert names(tmp_path) == [path.name]
    assert not left.exists()


def test_private_folder_leaves_files_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "diary").touch()
    (tmp_path / ".prewarm-run-mine").mkdir()
    empty = tmp_path / ".prewarm-run-empty"
    empty.mkdir()
    (empty / "made-by-prewarm").touch()
    elsewhere = left_by_a_killed_run(tmp_path).rename(tmp_path / "elsewhere")
    (tmp_path / ".prewarm-run-link").symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    with private_folder(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_private_folder_leaves_what_a_living_process_uses(tmp_path: Path) -> None:
    left = left_by_a_killed_run(tmp_path)
    with (left / "made-by-prewarm").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with private_folder(tmp_path) as one, private_folder(tmp_path) as two:
            assert names(tmp_path) == sorted([left.name, one.name, two.name])


@needs_root
def test_private_folder_leaves_what_another_user_made(tmp_path: Path) -> None:
    left = left_by_a_killed_run(tmp_path)
    os.chown(left, UID, UID)
    with private_folder(tmp_path):
        pass
    assert left.exists()


def test_private_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with (
        pytest.raises(UsageError, match="no private folder can be made"),
        private_folder(tmp_path / "state"),
    ):
        pass
