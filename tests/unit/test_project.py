"""The project's frame: packaging, the lock, start-up, set-up and the guide agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prewarm import __version__
from tests.support.docs import sentence
from tests.support.wheel import LOCK, ROOT, install_alone, needed, run

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "prewarm").rglob("*.py"))


def link_into(site_packages: Path, found: Distribution) -> None:
    """Make one installed distribution importable elsewhere, by links to its files."""
    for name in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
        link = site_packages / name
        if name != "__pycache__" and not link.is_symlink():
            link.symlink_to(Path(str(found.locate_file(name))))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with its declared run-time dependencies only; return that `bin`."""
    folder = tmp_path_factory.mktemp("wheel")
    programs = install_alone(folder)
    (site_packages,) = folder.glob("venv/lib/python3*/site-packages")
    for found in needed(programs):
        link_into(site_packages, found)
    return programs


def test_wheel_without_dev_packages_starts(installed: Path) -> None:
    assert __version__ in run(installed / "prewarm", "--version")
    assert "sync" in run(installed / "python", "-m", "prewarm", "--help")


def test_wheel_without_dev_packages_imports_every_module(installed: Path) -> None:
    names = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]
    run(installed / "python", "-W", "error", "-c", f"import {', '.join(names)}")


def test_wheel_holds_the_type_marker(installed: Path) -> None:
    where = run(installed / "python", "-c", "import prewarm; print(prewarm.__path__[0])").strip()
    assert not Path(where).is_relative_to(ROOT)
    assert (Path(where) / "py.typed").is_file()


def test_cli_import_loads_no_heavy_module() -> None:
    """Start-up is a feature: what only some commands need is imported inside them."""
    heavy = {"gitlab", "prometheus_client", "requests", "rich", "urllib3", "sqlite3", "psycopg"}
    loaded = run(sys.executable, "-c", "import prewarm.cli.main, sys; print(*sys.modules)").split()
    assert "prewarm.cli.main" in loaded
    assert heavy.isdisjoint(loaded)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_docstring_is_a_sentence(path: Path) -> None:
    told = sentence(path)
    assert re.match(r"\S+( \S+){2,}?[.?!]( |$)", told), told


def locked() -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes by the canonical name of each locked distribution."""
    pins = re.findall(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=.*\n)+)", LOCK, re.MULTILINE)
    return {
        canonicalize_name(name): (version, re.findall(r"sha256:[0-9a-f]{64}\b", hashes))
        for name, version, hashes in pins
    }


def test_lock_holds_every_declared_dependency_with_hashes() -> None:
    """Those of the extras and of the build too: check and dist need no other packages."""
    declared = [
        *PROJECT["project"]["dependencies"],
        *(line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra),
        *PROJECT["build-system"]["requires"],
    ]
    pins = locked()
    for requirement in map(Requirement, declared):
        version, hashes = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
        assert hashes, requirement


def test_lock_names_no_url_host_or_folder() -> None:
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("--hash=sha256:")]
    assert [line for line in lines if re.search(r"://| @ |^-|\.org|\.com|/", line)] == []


@pytest.mark.parametrize(
    ("args", "engines"),
    [
        ((), ""),
        (
            ("clients",),
            " mount docker.io containerd podman buildah curl prometheus chromium postgresql",
        ),
    ],
)
def test_setup_without_root_and_sudo_names_the_command(
    tmp_path: Path, args: tuple[str, ...], engines: str
) -> None:
    """One line with what is missing, why it was not installed, and what to type."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "prewarm").mkdir()
    for name in ("pyproject.toml", "requirements.lock", "prewarm/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "dirname", "env", "flock", "grep", "mkdir", "sha256sum", "sort"):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name, answer in {"id": "1000", "apt-get": "never run", "make": "", "skopeo": ""}.items():
        (tools / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tools / name).chmod(0o755)

    done = subprocess.run(
        [tmp_path / ".ci/setup", *args], env={"PATH": str(tools)}, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"setup: missing: docker-registry systemd{engines} python3 python3-venv; "
        "this is not root and there is no sudo; as root: apt-get install --yes "
        f"--no-install-recommends docker-registry systemd{engines} python3 python3-venv\n"
    )


def test_development_guide_names_every_make_target() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    guide = (ROOT / "docs/development.md").read_text()
    described = run("make", "-C", ROOT, "help")
    assert "check" in targets
    for target in targets:
        assert f"make {target} " in described
        assert f"`make {target}`" in guide


def test_architecture_names_modules_that_exist() -> None:
    """And each package stands in the floor plan, in the order of the contract."""
    page = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`(\w+(?:/\w+)+\.py)", page))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "prewarm" / name).is_file()] == []
    floors = re.findall(r"(?m)^(\w+)  ", page)
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    assert floors == [name for row in contract["layers"] for name in row.split(" | ")]
