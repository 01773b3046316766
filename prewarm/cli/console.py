"""The console: tables and sentences on stdout, progress on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from prewarm.core.reference import parse
from prewarm.core.text import counted, duration_words, escaped_json, printable, size_words, when
from prewarm.planning.outcome import Outcome, Progress
from prewarm.planning.plan import Defer, action
from prewarm.reports.report import Report, explained, platforms_of, sentence, to_json

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from prewarm.cli.doctor import Checkup
    from prewarm.core.errors import Problem
    from prewarm.discovery.scan import Progress as ScanProgress
    from prewarm.discovery.scan_result import Scan
    from prewarm.planning.retention import PruneReport
    from prewarm.planning.simulate import Simulation
    from prewarm.reports.status import Status
    from prewarm.sync.explain import Explanation
    from prewarm.sync.verify import Verification

log = logging.getLogger("prewarm")

_COLOURS: Final = {
    "copy": "green",
    "tag": "green",
    "fresh": "bright_black",
    "defer": "yellow",
    "skip": "bright_black",
    "fail": "red",
}

_BAR: Final = 60
"""Columns of a bar that stands for all."""
_EIGHTHS: Final = ("", *map(chr, range(0x258F, 0x2588, -1)))
"""Blocks of one to seven eighths."""


def show_json(document: Any) -> None:
    click.echo(escaped_json(json.dumps(document, indent=2, ensure_ascii=False)))


def show_report(report: Report, *, as_json: bool, verbose: bool) -> None:
    """Print a report: JSON, or a table, the problems with their cures, and one sentence."""
    if as_json:
        show_json(to_json(report))
        return
    rows = [
        _row(outcome, why if verbose else outcome.step.reason)
        for outcome, why in explained(report)
        if verbose or action(outcome.step) != "fresh"
    ]
    if rows:
        _table(("image", "action", "pulls", "size", "platforms", "why"), rows)
    if report.prune is not None:
        _show_prune(report.prune)
    _show_problems(report.problems)
    _say(sentence(report))


def show_pruned(report: PruneReport, *, as_json: bool) -> None:
    """Print a prune: JSON, or what goes and why, the problems, and how the space comes back."""
    from prewarm.planning.retention import document

    told = document(report)
    if as_json:
        show_json(told)
        return
    _show_problems(report.problems)
    _show_prune(told)


def _show_prune(told: Mapping[str, Any]) -> None:
    from prewarm.planning.retention import sentence as pruned

    for mirror in told["mirrors"]:
        rows = [
            (
                printable(
                    parse(row["image"]).familiar
                    if row["image"]
                    else f"{row['repository']}@{row['digest'][:19]}"
                ),
                size_words(row["bytes"]),
                (row["last_used"] or "")[:10],
                printable(row["reason"]),
            )
            for row in mirror["removed"]
        ]
        if rows:
            _table((f"goes from {mirror['url']}", "frees", "last wanted", "why"), rows)
        for one in mirror["stays"]:
            _say(printable(f"{one['image']} stays: {one['reason']}"))
        if mirror["bytes_before"] is not None:
            sizes = [size_words(mirror[key]) for key in ("bytes_before", "bytes_after")]
            _say(f"{mirror['url']}: {sizes[0]} before, {sizes[1]} after")
    _say(pruned(told))
    if told["garbage_collection"]:
        _say(told["garbage_collection"])


def _show_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        colour = "red" if problem.severity == "error" else "yellow"
        _say(f"{click.style(problem.severity, fg=colour)}: {printable(str(problem))}")


def _row(outcome: Outcome, why: str) -> tuple[str, ...]:
    step = outcome.step
    word = action(step)
    pulls = "?" if outcome.pulls is None else str(outcome.pulls or "")
    if isinstance(step, Defer) and step.until is not None:
        why = f"until {when(step.until)}: {why}"
    return (
        step.want.reference.familiar,
        click.style(word, fg=_COLOURS[word]),
        pulls,
        size_words(outcome.moved) if outcome.moved else "",
        " ".join(platforms_of(outcome)),
        printable(why),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, each as wide as its widest cell; the last one as long as it is."""
    widths = [
        max(len(click.unstyle(row[column])) for row in (*rows, head)) for column in range(len(head))
    ]
    for row in (tuple(click.style(name, bold=True) for name in head), *rows):
        padded = [
            cell + " " * (width - len(click.unstyle(cell)))
            for cell, width in zip(row, widths, strict=True)
        ]
        _say("  ".join(padded).rstrip())


def _say(text: str) -> None:
    """Print a line; in colour only on a terminal that has some, and never with NO_COLOR set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    click.echo(text, color=False if plain else None)


def show_status(status: Status, *, as_json: bool) -> None:
    """Print the status for people, or as JSON."""
    told = status.document
    if as_json:
        show_json(told)
        return
    for name, budget in told["budgets"].items():
        _say(f"{name} ({budget['account']}): {budget_words(budget)}")
    images = told["images"]
    share = "" if told["coverage"] is None else f", coverage {told['coverage']:.0%}"
    if share and status.earlier is not None:
        days, before = status.earlier
        share += f" ({counted(days, 'day')} ago {before:.0%})"
    _say(
        f"{counted(images['tracked'], 'image')}: {images['fresh']} fresh, {images['stale']} stale, "
        f"{images['missing']} missing{share}"
    )
    for mirror in told["mirrors"]:
        share = "" if mirror["coverage"] is None else f", coverage {mirror['coverage']:.0%}"
        _say(f"{mirror['url']}: {mirror['state']}{share}, {size_words(mirror['bytes'])} written")
    last = told["last_sync"]
    if last is None:
        _say("no sync yet")
    else:
        _say(
            f"last sync {last['finished']}, exit {last['exit']}: {last['copied']} copied, "
            f"{last['tagged']} tagged, {last['fresh']} fresh, {last['deferred']} deferred, "
            f"{last['skipped']} skipped, {last['failed']} failed, {counted(last['pulls'], 'pull')}"
        )
        for problem in last["problems"]:
            line = f"{problem['where']}: {problem['problem']}; {problem['cure']}"
            _say(printable(f"{problem['severity']}: {line}"))
    _say(f"read {told['config']} and {told['state']}")


def budget_words(budget: dict[str, Any]) -> str:
    """Return one budget of a report for people."""
    if budget["pulls"] is None:
        words = f"{budget['used']} pulls in the window, {budget['source']}"
    else:
        window = duration_words(budget["window_seconds"])
        words = (
            f"{budget['used']} of {budget['pulls']} pulls used in {window}, "
            f"{budget['reserve']} reserved, {budget['remaining']} left ({budget['source']})"
        )
    if budget["next_free"] is not None:
        words += f", next free {budget['next_free']}"
    return words


def show_simulation(
    found: Simulation, present: int | None, *, scanned: bool, as_json: bool
) -> None:
    """Print what budgets would have served, the `present` one marked; a curve on a terminal."""
    from prewarm.planning.simulate import document

    if not found.reached:
        cure = "run prewarm scan" if scanned else "write gitlab: in images.yml, run prewarm scan"
        (log.info if as_json else _say)(f"no recorded use of a listed registry; {cure}")
    if as_json:
        show_json(document(found))
    elif found.reached:
        _show_reached(found, present)


def _show_reached(found: Simulation, present: int | None) -> None:
    window = duration_words(found.window_seconds)
    rows = [
        (
            f"{one.pulls}{' (now)' if one.pulls == present else ''}",
            f"{one.coverage:.1%}",
            f"{one.best:.1%}",
            _until_full(one.windows_to_full, found),
        )
        for one in found.reached
    ]
    _table((f"pulls per {window}", "coverage", "best", "all warm"), rows)
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _curve(
            [(row[0], one.coverage, one.best) for row, one in zip(rows, found.reached, strict=True)]
        )
    learned = f", with {counted(found.learned_days, 'day')} before them known"
    _say(
        f"replayed {counted(found.uses, 'use')} of {counted(found.images, 'image')} in "
        f"{counted(found.replayed_days, 'day')}{learned if found.learned_days else ''}; "
        "the mirror was empty at first"
    )


def _until_full(windows: int | None, found: Simulation) -> str:
    if windows is None:
        return f"not in {counted(found.replayed_days, 'day')}"
    return f"after {counted(windows, 'window')} ({windows * found.window_seconds / 86400:.1f} days)"


def _curve(points: Sequence[tuple[str, float, float]]) -> None:
    """Print a bar for each budget as long as its coverage, and a mark at the best possible."""
    label = max(len(name) for name, *_ in points)
    told = "\N{BOX DRAWINGS LIGHT VERTICAL} is the best possible"
    _say(f"{'':{label}} 0 %{told:^{_BAR - 8}}100 %")
    for name, coverage, best in points:
        eighths = round(coverage * _BAR * 8)
        bar = "\N{FULL BLOCK}" * (eighths // 8) + _EIGHTHS[eighths % 8]
        mark = min(_BAR - 1, int(best * _BAR))
        line = bar.ljust(_BAR)
        if line[mark] == " ":
            line = f"{line[:mark]}\N{BOX DRAWINGS LIGHT VERTICAL}{line[mark + 1 :]}"
        _say(f"{name:>{label}} {click.style(line.rstrip(), fg='green')}")


def show_verification(found: Verification, *, as_json: bool) -> None:
    """Print what verify found, and what repairing it did."""
    if as_json:
        show_json(found.document())
        return
    for one in found.broken:
        _say(printable(f"{one.image} on {one.mirror}: {one.text}"))
    for problem in found.problems:
        _say(printable(f"{problem.severity}: {problem}"))
    if found.repair is not None:
        show_report(found.repair, as_json=False, verbose=True)
    elif found.broken:
        _say(f"broken: {len(found.broken)} of {found.checked} tags; prewarm verify --repair")
    else:
        down = found.unchecked - found.through
        rest = f", {down} could not be checked" if down else ""
        if found.through:
            rest += f", {found.through} on pull-through mirrors are not asked: that may cost a pull"
        _say(f"{found.checked} tags are whole{rest}")


def show_checkup(checkup: Checkup, *, as_json: bool) -> None:
    """Print what doctor found: a line for each check, the cure below what is not well."""
    if as_json:
        show_json(checkup.document())
        return
    colours = {"ok": "green", "warning": "yellow", "failed": "red"}
    for check in checkup.checks:
        state = click.style(f"{check.state:7}", fg=colours[check.state])
        _say(f"{state}  {check.name:15}  {printable(check.text)}")
        if check.cure:
            _say(f"{'':9}{printable(check.cure)}")
    warnings, failed = checkup.count("warning"), checkup.count("failed")
    _say(f"{len(checkup.checks)} checks: {failed} failed, {counted(warnings, 'warning')}")


def show_explanation(found: Explanation, *, as_json: bool, verbose: bool) -> None:
    """Print all that is known of one image; `verbose` adds digests and why it has its rank."""
    if as_json:
        show_json(found.document)
        return
    from prewarm.reports.explanation import lines

    for line in lines(found.document, verbose=verbose):
        _say(printable(line))


def show_scan(scan: Scan, *, as_json: bool) -> None:
    """Print what a scan found: images, names that are open and why, problems, one sentence."""
    from prewarm.discovery.scan_result import document
    from prewarm.discovery.scan_result import sentence as told

    if as_json:
        show_json(document(scan))
        return
    if scan.images:
        rows = [
            (
                printable(parse(one.reference).familiar),
                str(one.jobs),
                str(one.projects),
                when(one.last_used) if one.last_used is not None else "",
                ", ".join(one.sources) + _through(one.via),
            )
            for one in scan.images
        ]
        head = ("image", "jobs", "projects", "last use", "source")
        # Nobody ran the jobs of a file.
        alone = all(one.last_used is None for one in scan.images)
        kept = (0, 1, 4) if alone else range(len(head))
        first, *others = ([row[column] for column in kept] for row in (head, *rows))
        _table(first, others)
    if scan.unresolved:
        _say("")
        open_ = [
            tuple(map(printable, (one.text or "?", one.project, one.job, one.why)))
            for one in scan.unresolved
        ]
        _table(("unresolved", "project", "job", "why"), open_)
    if scan.images or scan.unresolved:
        _say("")
    _show_problems(scan.problems)
    _say(told(scan))


def _through(via: str | None) -> str:
    """Return that a job asks GitLab for its image, in the words of people."""
    return f" (through the {via.replace('-', ' ')})" if via else ""


@contextmanager
def scanning(*, quiet: bool) -> Iterator[ScanProgress]:
    """Show on stderr how far a scan is: a bar on a terminal, else a line for each phase."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _ScanLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    with Display(
        TextColumn("{task.description:>11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield _ScanBar(bar)


class _ScanLines:
    """Progress of a scan where nobody watches a terminal."""

    def phase(self, name: str, total: int | None) -> None:
        """Log what begins."""
        if total != 0:
            of = {None: "", 1: " of 1 project"}.get(total, f" of {total} projects")
            log.info("reading %s%s", name, of)

    def step(self) -> None:
        """Say nothing."""


class _ScanBar:
    """Progress of a scan on a terminal: one bar, which starts anew with each phase."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("", total=None)

    def phase(self, name: str, total: int | None) -> None:
        """Begin anew; without a total the bar only shows that something happens."""
        self._bar.reset(self._task, total=total, description=name)

    def step(self) -> None:
        """One more project."""
        self._bar.advance(self._task)


class _Lines:
    """Progress where nobody watches a terminal: one line on the log for each step that ended."""

    def begin(self, images: int) -> None:
        """Say how much there is to do."""
        log.info("%s to carry", counted(images, "image"))

    def expect(self, amount: int) -> None:
        """Say nothing."""

    def moved(self, amount: int) -> None:
        """Say nothing."""

    def done(self, outcome: Outcome) -> None:
        """Log the step."""
        log.info("%s", printable(_line(outcome)))


def _line(outcome: Outcome) -> str:
    step = outcome.step
    spent = f", {counted(outcome.pulls, 'pull')}" if outcome.pulls else ""
    moved = f", {size_words(outcome.moved)} in {outcome.seconds:.1f} s" if outcome.moved else ""
    return f"{action(step)} {step.want.reference}{spent}{moved}: {step.reason}"


class _Bars:
    """Progress on a terminal: images done, bytes moved, and when it should end."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._images = 0
        self._bytes = 0
        self._image_task: TaskID = bar.add_task("images", total=0, done="")
        self._byte_task: TaskID = bar.add_task("bytes", total=0, done="")

    def begin(self, images: int) -> None:
        """So many more images are to be carried."""
        with self._lock:
            self._images += images
        self._bar.update(self._image_task, total=self._images)

    def expect(self, amount: int) -> None:
        """So many more bytes may be moved."""
        with self._lock:
            self._bytes += amount
        self._bar.update(self._byte_task, total=self._bytes)

    def moved(self, amount: int) -> None:
        """So many bytes have been moved."""
        self._bar.advance(self._byte_task, amount)
        self._count()

    def done(self, outcome: Outcome) -> None:
        """One more image, named above the bars."""
        self._bar.console.print(printable(_line(outcome)), markup=False, highlight=False)
        self._bar.advance(self._image_task)
        self._count()

    def _count(self) -> None:
        images, moved = (int(task.completed) for task in self._bar.tasks)
        self._bar.update(self._image_task, done=f"{images} of {self._images}")
        self._bar.update(
            self._byte_task, done=f"{size_words(moved)} of at most {size_words(self._bytes)}"
        )


@contextmanager
def watching(*, quiet: bool) -> Iterator[Progress]:
    """Show progress on stderr: bars on a terminal, lines on the log elsewhere."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    with Display(
        TextColumn("{task.description:>6}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield _Bars(bar)
