"""Looks up known vulnerabilities of what requirements.lock pins: `make audit`.

pip-audit runs in an environment of its own below .cache: its dependencies do not belong in our
lock. Where it cannot ask PyPI about a package it prints "No known vulnerabilities found" and exits
with 0 all the same, so its JSON is judged here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
_PROGRAM: Final = "pip-audit==2.10.1"
_ELSEWHERE: Final = (
    "on a machine that reaches pypi.org run: pipx run pip-audit -r requirements.lock"
)

NOTHING_KNOWN, VULNERABLE, NOT_AUDITED = 0, 1, 2


def verdict(report: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the exit code and the lines to print for a JSON report of pip-audit.

    A package that could not be looked up is never counted as free of vulnerabilities.
    """
    packages = report["dependencies"]
    found = [line for package in packages for line in _vulnerabilities(package)]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        some = ", ".join(skipped[:5]) + (", …" if len(skipped) > 5 else "")
        found.append(f"not audited: {len(skipped)} of {len(packages)} packages ({some})")
        found.append(_ELSEWHERE)
    if any("vulns" in package and package["vulns"] for package in packages):
        return VULNERABLE, tuple(found)
    if skipped or not packages:
        return NOT_AUDITED, tuple(found) or ("not audited: the report is empty", _ELSEWHERE)
    return NOTHING_KNOWN, (f"no known vulnerability in {len(packages)} packages",)


def _vulnerabilities(package: Mapping[str, Any]) -> Iterator[str]:
    for one in package.get("vulns", ()):
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        yield f"{package['name']} {package['version']}: {one['id']}; fixed in {fixed}"


def main() -> int:
    """Run pip-audit and print what it found; the exit code is that of `verdict`."""
    folder = ROOT / ".cache" / "audit"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", _PROGRAM]
    if (installed := subprocess.run(install, capture_output=True, text=True)).returncode:
        print(installed.stderr.strip(), f"not audited: cannot install {_PROGRAM}", sep="\n")
        print(_ELSEWHERE)
        return NOT_AUDITED
    audit = [str(folder / "bin" / "pip-audit"), "--progress-spinner=off", "--format=json"]
    audit += ["--no-deps", "--disable-pip", "--requirement", str(ROOT / "requirements.lock")]
    done = subprocess.run(audit, capture_output=True, text=True)
    try:
        code, lines = verdict(json.loads(done.stdout))
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
        code, lines = NOT_AUDITED, (last[:300], "not audited: pip-audit failed", _ELSEWHERE)
    print(*lines, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
