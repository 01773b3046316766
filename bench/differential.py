"""prewarm and npm's gitlab-ci-local on the same definitions: do they name the same images?

`python -m bench.differential` installs the pinned version with npm below `.cache/`, runs its
`--preview` on the definitions of the unit tests, and on a corpus of real ones where there is one,
and prints how often both agree and the reason of each difference; exit 1 where one has no reason.

A preview is a merged definition, with includes, `extends`, `!reference` and `default:` done and
variables and matrix as they were. So what is compared is that merging, by two programs that share
no code; the variables of both results are expanded by prewarm. How many previews name the same
without that is told too.

It runs offline, which both can: proxies lead nowhere and git may use no transport.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click

from prewarm.core.usage import base_name
from prewarm.discovery import ci_yaml
from prewarm.discovery.ci_evaluate import Evaluation, evaluate_file
from prewarm.discovery.ci_jobs import flat, is_job, read_definition
from tests.unit.discovery import test_ci_evaluate, test_ci_jobs, test_corpus

VERSION: Final = "4.73.0"
"""The newest that runs on Node 20: 4.74 and later call Set.prototype.union, of Node 22."""
CACHE: Final = Path(__file__).parents[1] / ".cache" / f"gitlab-ci-local-{VERSION}"
_ROOT: Final = ".gitlab-ci.yml"
_AT_ONCE: Final = 2
_DEADLINE: Final = 120

Verdict = Literal["agree", "differ", "no answer"]
Names = frozenset[tuple[str, str, str]]
"""Job, kind and text of each image."""

_STOPS: Final = (
    (r"could not be fetched|ECONNREFUSED|transport '\w+' not allowed|git ls-remote|git archive",
     "an include from outside the repository: it must be downloaded; prewarm goes on without it "
     "and leaves open what it could change"),
    (r"is unspecified, used by .* extends",
     "extends a job that no file defines: refused, by GitLab too; prewarm goes on"),
    (r"!reference .* is undefined",
     "`!reference` to nothing: refused, by GitLab too; prewarm leaves that name open"),
    (r"[Ll]ocal include file cannot be found",
     "a local include that is missing: refused, by GitLab too; prewarm goes on"),
    (r"configuration is invalid",
     "an input of the wrong type, or none: refused, by GitLab too; prewarm goes on"),
    (r"must have script|Didn't understand include|needs: .* could not be found"
     r"|must be a regex|contains a job which has invalid",
     "checks of other keys (`script`, `needs`, `rules`, `include`), which name no image"),
    (r"TypeError|YAMLException|AssertionError",
     "an exception, on a null or on what GitLab refuses as well; prewarm reports a problem"),
)  # fmt: skip
"""What gitlab-ci-local says when it stops, and why prewarm does not."""
_RULES: Final = (
    "`include:rules`: judged for this checkout, as for one pipeline; prewarm names the union"
)
_EXPLAINED: Final = {
    "default before the top": "`image:` in `default:` and at the top too: an error in GitLab",
    "numbers as GitLab reads them": "numbers: YAML 1.2 there; GitLab's Psych reads 1.1 (010 is 8)",
    "description alone has no value": "a variable with a description alone becomes `undefined`",
    "services as text": "`services:` that is no list: an error in GitLab",
    "inputs: functions": "`truncate` behind an input is ignored",
}
"""Differences on the tests' own definitions, by the name of the case."""


@dataclass(frozen=True, slots=True)
class Case:
    """A definition: its files, or the folder of a repository, and the root file in it."""

    name: str
    files: Mapping[str, str] | Path
    root: str = _ROOT


@dataclass(frozen=True, slots=True)
class Compared:
    """What both made of one definition."""

    name: str
    verdict: Verdict
    reason: str = ""
    """Why they differ, or why there is no answer; empty: nobody knows."""
    printed: bool = False
    """The preview alone, with nothing expanded, names the same."""
    ours: Names = frozenset()
    """What only prewarm names."""
    theirs: Names = frozenset()

    @property
    def explained(self) -> bool:
        return self.verdict == "agree" or self.reason != ""


class UnavailableError(Exception):
    """gitlab-ci-local cannot be had here; the text says why."""


# --- the definitions ---


def own_cases() -> list[Case]:
    """Return the definitions of the unit tests, completed to what gitlab-ci-local accepts."""
    single = {name: {_ROOT: text} for name, (text, _) in test_ci_jobs.CASES.items()}
    several = {name: files for name, (files, _) in test_ci_evaluate.CASES.items()}
    return [Case(name, _completed(files)) for name, files in (single | several).items()]


def _completed(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files below a new root that gives each job a script; the tests leave it out.

    Their `if: a` is no expression either: it becomes `if: $a`.
    """
    inner = {
        name: re.sub(r"(\bif: )([a-z])(?=[,}])", r"\1$\2", textwrap.dedent(text))
        for name, text in files.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), inner)
        found = evaluate_file(Path(folder, _ROOT), Path(folder))
    jobs = sorted({base_name(name) for name in found.jobs})
    inner["case.yml"] = inner.pop(_ROOT)
    lines = [f"{json.dumps(job)}: {{script: [x]}}\n" for job in jobs]
    return {**inner, _ROOT: "".join(["include: case.yml\n", *lines])}


def corpus_cases() -> list[Case]:
    """Return the repositories of the corpus, none where there is none."""
    return [
        Case(name, folder, str(file.relative_to(folder)))
        for name, file, folder in test_corpus.repositories()
    ]


def _write(folder: Path, files: Mapping[str, str] | Path) -> None:
    if isinstance(files, Path):
        shutil.copytree(files, folder, dirs_exist_ok=True)
        return
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- gitlab-ci-local ---


def installed() -> Path:
    """Return its program, installed if it is not yet; raises UnavailableError."""
    for needed in ("node", "npm", "git"):
        if shutil.which(needed) is None:
            raise UnavailableError(f"{needed} is not on PATH")
    program = CACHE / "node_modules/gitlab-ci-local/dist/index.js"
    if program.is_file():
        return program
    CACHE.mkdir(parents=True, exist_ok=True)
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")
    command = ("npm", "install", f"--prefix={CACHE}", *options, f"gitlab-ci-local@{VERSION}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        raise UnavailableError("npm install took more than five minutes") from None
    if done.returncode != 0 or not program.is_file():
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UnavailableError(f"npm install failed: {last[0]}")
    return program


def _preview(program: Path, repository: Path, root: str) -> tuple[str | None, str]:
    """Return the preview, None where there is none, and what was said."""
    nowhere = "http://127.0.0.1:9"
    env = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(repository.parent),
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(repository.parent),
    }
    who = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
    for git in (
        ("init", "-q", "-b", "main"),
        ("remote", "add", "origin", "git@gitlab.example.org:team/app.git"),
        ("add", "-A", "-f"),
        (*who, "commit", "-q", "-m", "all"),
    ):
        subprocess.run(("git", *git), cwd=repository, env=env, check=True, capture_output=True)
    # Its own schema refuses more than GitLab does, and its output to a pipe is cut.
    options = ("--no-color", "--json-schema-validation=false", "--evaluate-rule-changes=false")
    command = ("node", str(program), "--preview", *options, "--cwd=.", f"--file={root}")
    written = repository.parent / "preview.yml"
    with written.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=repository,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=_DEADLINE,
            check=False,
        )
    text = written.read_text(errors="replace")
    said = done.stderr.decode(errors="replace")
    # Warnings stand before the YAML.
    start = text.find("---\n")
    if done.returncode != 0 or start < 0:
        return None, said + text
    return text[start:], said


# --- comparison ---


def compare(program: Path, case: Case) -> Compared:
    """Return what both name in one definition."""
    with tempfile.TemporaryDirectory(prefix="prewarm-bench-") as folder:
        repository = Path(folder, "repository")
        repository.mkdir()
        _write(repository, case.files)
        found = evaluate_file(repository / case.root, repository)
        chosen = any(_include_rules(path) for path in repository.rglob("*.y*ml"))
        try:
            preview, said = _preview(program, repository, case.root)
        except subprocess.TimeoutExpired:
            return Compared(case.name, "no answer", f"more than {_DEADLINE} seconds")
    if preview is None:
        return Compared(case.name, "no answer", _why_stopped(said))
    return judged(case, found, preview, _RULES if chosen else "")


def judged(case: Case, found: Evaluation, preview: str, reason: str) -> Compared:
    """Return the verdict on a preview; `reason` is that of a difference, where one is known."""
    (content, *_) = ci_yaml.read(preview.encode()).documents
    if not isinstance(content, dict):
        return Compared(case.name, "no answer", "a preview that is no mapping")
    ours = frozenset((image.job, image.kind, image.text) for image in found.images)
    read = read_definition(content).images
    theirs = frozenset((image.job, image.kind, image.text) for image in read)
    if ours == theirs:
        return Compared(case.name, "agree", printed=ours == frozenset(_printed(content)))
    why = _EXPLAINED.get(case.name, reason)
    return Compared(case.name, "differ", why, ours=ours - theirs, theirs=theirs - ours)


def _printed(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the names of a preview as they stand."""
    for job, keys in content.items():
        if is_job(job, keys):
            for kind, values in (("image", [keys.get("image")]), ("service", keys.get("services"))):
                for value in flat(values, 100):
                    name = value.get("name") if isinstance(value, dict) else value
                    if isinstance(name, str):
                        yield job, kind, name


def _include_rules(file: Path) -> bool:
    """Whether a file includes another under rules."""
    try:
        documents = ci_yaml.read(file.read_bytes()).documents
    except (ci_yaml.Unreadable, OSError):
        return False
    includes = (one.get("include") for one in documents if isinstance(one, dict))
    entries = (entry for one in includes for entry in flat([one], 500))
    return any(isinstance(entry, dict) and "rules" in entry for entry in entries)


def _why_stopped(said: str) -> str:
    return next((why for pattern, why in _STOPS if re.search(pattern, said)), "")


# --- the table ---


def run(program: Path, cases: Iterable[Case]) -> list[Compared]:
    """Compare all, several at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda case: compare(program, case), cases))


def table(results: Mapping[str, list[Compared]]) -> str:
    """Return agreement by set of definitions, then every reason with its number, as Markdown."""
    lines = [
        "| definitions | agree | of these as printed | differ | no answer |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, compared in results.items():
        counts = Counter(one.verdict for one in compared)
        printed = sum(one.printed for one in compared)
        cells = (counts["agree"], printed, counts["differ"], counts["no answer"])
        lines.append(f"| {len(compared)} {name} | {' | '.join(map(str, cells))} |")
    everything = [one for compared in results.values() for one in compared]
    reasons = Counter((one.verdict, one.reason) for one in everything if one.verdict != "agree")
    lines += ["", "| | number | reason |", "| --- | ---: | --- |"]
    for (verdict, reason), number in sorted(reasons.items(), key=lambda one: (one[0][0], -one[1])):
        lines.append(f"| {verdict} | {number} | {reason or 'UNEXPLAINED'} |")
    return "\n".join(lines)


def measure() -> tuple[str, bool]:
    """Return what `make bench` prints, and whether every difference has its reason."""
    try:
        program = installed()
    except UnavailableError as reason:
        return f"no comparison with gitlab-ci-local: {reason}", True
    results = {"of the unit tests": run(program, own_cases())}
    if cases := corpus_cases():
        results["real ones (corpus)"] = run(program, cases)
    open_ = [one for compared in results.values() for one in compared if not one.explained]
    lines = [
        f"{one.name}: {one.verdict}; only prewarm: {sorted(one.ours)[:5]}; "
        f"only gitlab-ci-local: {sorted(one.theirs)[:5]}"
        for one in open_
    ]
    head = f"prewarm and gitlab-ci-local {VERSION} (`--preview`), offline:\n"
    return "\n".join([head, table(results), *lines]), not open_


@click.command()
def main() -> None:
    """Compare prewarm with gitlab-ci-local; about two minutes."""
    text, explained = measure()
    click.echo(text)
    sys.exit(0 if explained else 1)


if __name__ == "__main__":
    main()
