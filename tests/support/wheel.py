"""The wheel, and environments that hold it and nothing of this checkout."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = (ROOT / "requirements.lock").read_text()


def run(*command: str | Path) -> str:
    """Run a command outside the checkout and return its stdout; show all it said if it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def install_alone(folder: Path) -> Path:
    """Build the wheel and install it, without what it needs, in a new environment; return `bin`."""
    build = ("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps")
    run(sys.executable, *build, "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("prewarm-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    programs = folder / "venv/bin"
    pip(programs, "install", "--quiet", "--no-deps", wheel)
    return programs


def pip(programs: Path, *arguments: str | Path) -> str:
    """Run pip for the environment with this `bin`."""
    return run(sys.executable, "-m", "pip", f"--python={programs / 'python'}", *arguments)


def needed(programs: Path) -> Iterator[Distribution]:
    """Yield what prewarm in the environment needs at run time, as it is installed here."""
    (metadata,) = programs.parent.glob("lib/python3*/site-packages/prewarm-*.dist-info")
    return _closure(PathDistribution(metadata).requires)


def install_needed(programs: Path) -> None:
    """Install what prewarm in the environment needs, by the lock, from where pip finds it."""
    names = {canonicalize_name(each.name) for each in needed(programs)}
    pins = re.findall(r"^([\w.-]+)(==\S+ \\\n(?:    --hash=.*\n)+)", LOCK, re.MULTILINE)
    file = programs.parent / "requirements.lock"
    file.write_text("".join(name + pin for name, pin in pins if canonicalize_name(name) in names))
    pip(programs, "install", "--quiet", "--no-deps", "--require-hashes", "--requirement", file)
    pip(programs, "check")


def _closure(requirements: Sequence[str] | None) -> Iterator[Distribution]:
    """Yield the installed distributions that the requirements need, and those need in turn."""
    for line in requirements or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = distribution(requirement.name)
            yield found
            yield from _closure(found.requires)
