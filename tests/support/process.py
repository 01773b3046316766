"""Starts prewarm and skopeo as real processes, away from the home and settings of whoever tests."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What stdout says; ValueError where it is not JSON."""
        return json.loads(self.stdout)


def private_env(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment whose home and XDG folders lie in `folder`, and nothing inherited."""
    home = folder / "home"
    (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        **(extra or {}),
    }


def start_prewarm(
    args: Sequence[str],
    folder: Path,
    *,
    config: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start `prewarm ARGS` in `folder`; the caller waits for it (`with` closes its pipes).

    `config` is a file or the text of one, which is written to `images.yml`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(config, str):
        written = folder / "images.yml"
        written.write_text(config)
        config = written
    options = [] if config is None else ["--config", str(config)]
    return subprocess.Popen(
        [sys.executable, "-m", "prewarm", *options, *args],
        cwd=folder,
        env=private_env(folder, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_prewarm(
    args: Sequence[str],
    folder: Path,
    *,
    config: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Finished:
    """Run `prewarm ARGS` in `folder` to its end; see start_prewarm."""
    with start_prewarm(args, folder, config=config, env=env) as process:
        return finish(process, timeout)


def run_on_terminal(
    args: Sequence[str],
    folder: Path,
    *,
    columns: int = 80,
    env: Mapping[str, str] | None = None,
    together: bool = False,
) -> Finished:
    """Run `prewarm ARGS` in `folder` with a terminal for its stdout, and for stderr if `together`;
    else that goes to a file."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", "prewarm", *args],
            cwd=folder,
            env=private_env(folder, {"TERM": "xterm", **(env or {})}),
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=its if together else errors,
        ) as process,
    ):
        os.close(its)
        drawn = b""
        with suppress(OSError):  # the other end was closed
            while piece := screen.read(65536):
                drawn += piece
        returncode = process.wait(60)
        errors.seek(0)
        return Finished(returncode, drawn.decode(), errors.read().decode())


def run_skopeo(
    args: Sequence[str],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Finished:
    """Run `skopeo ARGS` in `folder`, with a blob cache of its own, trusting any image."""
    with subprocess.Popen(
        ["skopeo", "--insecure-policy", *args],
        cwd=folder,
        env=private_env(folder, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        return finish(process, timeout)


def finish(process: subprocess.Popen[str], timeout: float) -> Finished:
    """Wait for a process with pipes to end; it is killed where it does not."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return Finished(process.returncode, stdout, stderr)


def write_config(folder: Path, box: Sandbox, images: Sequence[Any] = (), **overrides: Any) -> Path:
    """Write an `images.yml` for the sandbox with these pins and return it.

    Mirrors are addressed through their taps, so that their `access` shows every request. A keyword
    replaces the top-level key of its name; None leaves the key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "version": 1,
        "mirrors": [tap.url for tap in box.taps],
        "registries": {"docker.io": {"endpoint": box.hub.url}},
        "platforms": ["linux/amd64"],
        "images": list(images),
        "state": str(folder / "state" / "prewarm.db"),
        **overrides,
    }
    written = {key: value for key, value in document.items() if value is not None}
    file = folder / "images.yml"
    file.write_text(yaml.safe_dump(written, sort_keys=False))
    return file
