"""The command line: reads clock, environment and arguments, opens connections, returns exit codes.

The one place where a failure becomes text and an exit code. Heavy imports are inside the commands:
`prewarm --help` loads click alone.
"""

from __future__ import annotations

import gc
import io
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from prewarm import __version__
from prewarm.cli import stdio
from prewarm.core.errors import (
    AlreadyRunningError,
    ConfigError,
    PrewarmError,
    UsageError,
    shortened,
)
from prewarm.core.home_dir import home_folder
from prewarm.core.text import printable_lines

if TYPE_CHECKING:
    from prewarm.core.records import Known
    from prewarm.core.settings import Pin, Settings
    from prewarm.daemon.health import Health
    from prewarm.daemon.sd_notify import Watchdog
    from prewarm.discovery.scan_result import Scan
    from prewarm.reports.report import Report
    from prewarm.state.ledger import Ledger
    from prewarm.state.location import StatePlace
    from prewarm.sync.connections import Edges
    from prewarm.sync.run import Follow, Scanner
    from prewarm.sync.session import Session

log = logging.getLogger("prewarm")

_LINE_MAX: Final = 4000
"""Characters of a line in the log."""
GARBAGE: Final = (500_000, 100)
"""How seldom Python looks for garbage: a large site makes some hundred thousand values that all
live on, and looking among them again and again takes a third of the time of a plan."""

_GRACE: Final = 5.0
"""Seconds in which what is under way may end by itself after a signal."""
_BUG: Final = 3
_ISSUES: Final = "please report it with the lines above"


@dataclass
class Global:
    """The global options."""

    config: str | None
    verbose: bool
    quiet: bool
    log_format: str

    def log_as_asked(self) -> None:
        """Let the log be what the options say."""
        _log_to_stderr(verbose=self.verbose, quiet=self.quiet, as_json=self.log_format == "json")

    def settings(self) -> Settings:
        """Read the configuration that the options, the environment or the folder name."""
        return _load(self.config)


def _load(named: str | None) -> Settings:
    """Read the configuration that is named, or the one that is found.

    Of the latter, where it has errors, the path is printed: the user may not know of it.
    """
    from prewarm.config.reader import find_config, load

    path = find_config(named, os.environ, Path.cwd())
    try:
        return load(path)
    except ConfigError:
        if not named and not os.environ.get("PREWARM_CONFIG"):
            _tell(f"prewarm: {path}: found, as no --config names another; it has errors:")
        raise


_global = click.make_pass_decorator(Global)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    metavar="PATH",
    help="The configuration (default: $PREWARM_CONFIG, ./images.yml, /etc/prewarm/images.yml).",
)
@click.option("-v", "--verbose", is_flag=True, help="Log each request, and tell more.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only, show no progress.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The form of the log on stderr.",
)
@click.version_option(__version__, prog_name="prewarm", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    context: click.Context, config: str | None, verbose: bool, quiet: bool, log_format: str
) -> None:
    """Keep the container images that CI uses warm in local mirrors, within the pull budget."""
    context.obj = Global(config, verbose, quiet, log_format)
    context.obj.log_as_asked()


class _Command(click.Command):
    """A command that takes the global options after its name, too: `prewarm sync -v`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in cli.params:
            if not isinstance(option, click.Option) or option.name not in {*_GLOBAL, "version"}:
                continue
            again = copy(option)
            again.hidden = True
            if option.name in _GLOBAL:
                again.expose_value, again.callback = False, _asked_again
            self.params.append(again)


_COMPLETION: Final = "_PREWARM_COMPLETE"
"""By this variable a shell asks click for its script, and at each Tab for words."""
_GLOBAL: Final = frozenset(field.name for field in fields(Global))
cli.command_class = _Command


def _asked_again(context: click.Context, option: click.Parameter, value: Any) -> None:
    assert option.name is not None
    if context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE:
        options = context.find_object(Global)
        assert options is not None
        setattr(options, option.name, value)
        options.log_as_asked()


def _duration(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    from prewarm.core.text import Refused, parse_duration

    if value is None:
        return None
    try:
        return float(parse_duration(value))
    except Refused as error:
        raise click.BadParameter(f"{error.problem}; {error.cure}") from error
    except ValueError as error:
        raise click.BadParameter("not a duration; write one such as 90s or 2h") from error


@cli.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--dry-run", is_flag=True, help="Show the plan; spend no pull, write no mirror.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--no-scan", is_flag=True, help="Do not ask GitLab: pins and remembered demand only.")
@click.option("--use-reserve", is_flag=True, help="Let the IMAGEs spend the reserve, too.")
@click.option("--prune", is_flag=True, help="Then prune, as `prewarm prune` without --force does.")
@click.option("--wait", is_flag=True, help="Wait up to 30m for a running sync to end.")
@click.option(
    "--wait-for", metavar="DURATION", callback=_duration, help="Wait so long, such as 90s or 2h."
)
@click.option("--strict", is_flag=True, help="Exit 1 for warnings, too.")
@_global
def sync(
    options: Global,
    images: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    no_scan: bool,
    use_reserve: bool,
    prune: bool,
    wait: bool,
    wait_for: float | None,
    strict: bool,
) -> int:
    """Make the mirrors hold what is wanted: look, plan, copy, record, report.

    With IMAGE, only these; one that no pin names is pinned for this run.
    """
    from prewarm.cli.console import show_report
    from prewarm.sync.resolve import named_pins

    if use_reserve and not images:
        raise UsageError(
            "usage", "--use-reserve opens the reserve for named images", "name the images"
        )
    if prune and images:
        raise UsageError("usage", "--prune follows a sync of all images", "name no images")
    settings = options.settings()
    asked = named_pins(settings, images)
    scanner = None if no_scan else _scanner(options, settings)
    follow = _pruning if prune else None
    if dry_run:
        report = _dry_run(settings, asked, scanner, use_reserve=use_reserve, follow=follow)
    else:
        waiting = wait_for if wait_for is not None else (1800.0 if wait else 0.0)
        report = _sync(
            options, settings, asked, scanner, waiting, use_reserve=use_reserve, follow=follow
        )
    show_report(report, as_json=as_json, verbose=options.verbose)
    return _exit_code(report, strict=strict)


def _exit_code(report: Report, *, strict: bool) -> int:
    return 1 if strict and report.problems else report.exit_code


def _pruning(session: Session, report: Report) -> Report:
    from prewarm.sync.prune import prune_after

    return prune_after(session, report)


def _dry_run(
    settings: Settings,
    asked: Sequence[Pin],
    scanner: Scanner | None,
    *,
    use_reserve: bool,
    follow: Follow | None = None,
) -> Report:
    from prewarm.sync.run import dry_run

    with _looking(settings, use_reserve=use_reserve) as session:
        return dry_run(session, asked, scanner, follow)


def _sync(
    options: Global,
    settings: Settings,
    asked: Sequence[Pin],
    scanner: Scanner | None,
    waiting: float,
    *,
    use_reserve: bool,
    follow: Follow | None = None,
) -> Report:
    from prewarm.cli.console import watching
    from prewarm.daemon.after_sync import Watch, told
    from prewarm.state import clock
    from prewarm.sync.run import Doing, sync

    with _locked(settings, _targets(settings), waiting) as ledger:

        def synced() -> Report:
            with (
                _copying(settings, ledger, use_reserve=use_reserve) as (session, tools),
                watching(quiet=options.quiet) as progress,
            ):
                doing = Doing(tools, progress)
                return sync(session, asked, doing, scanner, follow)

        watch = Watch(settings, ledger, _place(settings), clock.now, os.environ, _stopping)
        return told(watch, synced, whole=not asked)


@cli.command()
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="Serve /metrics and /healthz there, on loopback, such as 127.0.0.1:9464.",
)
@_global
def run(options: Global, listen: str | None) -> int:
    """Keep the mirrors warm around the clock: a sync at each time of `schedule:`.

    It also wakes when the budget frees pulls, and tries again after a failure. SIGTERM ends it;
    SIGHUP reads images.yml again, and keeps the old one where the new one is invalid.
    """
    from prewarm.config.reader import find_config, load
    from prewarm.daemon.health import Health
    from prewarm.daemon.loop import SLICE, Daemon, last_run
    from prewarm.daemon.sd_notify import (
        NotifySocket,
        Watchdog,
        reloading,
        take_address,
        watchdog_interval,
    )
    from prewarm.state import clock
    from prewarm.state.database import UnreachableError

    config = find_config(options.config, os.environ, Path.cwd())
    settings = load(config)
    address = _listening(listen)
    try:
        with _reading(settings) as ledger:
            # One by one: each has its report with it.
            runs = (run for number in range(100) for run in ledger.runs(1, skip=number))
            started, unfinished = last_run(runs)
    except UnreachableError as error:
        log.warning("%s", error)
        started, unfinished = None, True
    notify = NotifySocket(take_address(os.environ))

    health = Health()

    def synced(current: Settings) -> Report:
        with health.watching():
            report = _sync(options, current, (), _scanner(options, current), 0.0, use_reserve=False)
            health.told(report)
            return report

    with (
        _signals() as (wait, reload_asked),
        Watchdog(notify, watchdog_interval(os.environ, os.getpid())) as watchdog,
    ):
        _stopping.looked = watchdog.beat
        daemon = Daemon(
            settings,
            synced,
            lambda: load(config),  # not the next that would be found, were it gone
            clock.now,
            wait,
            _stopping.is_set,
            reload_asked,
            tell=lambda text: notify.send(f"STATUS={' '.join(text.split())}"),
            alive=watchdog.allow,
            reloading=lambda begins: notify.send(*(reloading() if begins else ("READY=1",))),
        )
        watchdog.allow(SLICE)  # /healthz may be asked before the loop goes
        with _served(address, lambda: daemon.settings, health, watchdog):
            notify.send("READY=1")
            daemon.serve(started, unfinished=unfinished)
        notify.send("STOPPING=1")
    return 0


def _listening(listen: str | None) -> tuple[str, int] | None:
    if listen is None:
        return None
    from prewarm.daemon.metrics_server import address_of

    return address_of(listen)


@contextmanager
def _served(
    address: tuple[str, int] | None,
    current: Callable[[], Settings],
    health: Health,
    watchdog: Watchdog,
) -> Iterator[None]:
    """Serve /metrics and /healthz, where that is asked."""
    if address is None:
        yield
        return
    from prewarm.daemon.metrics_server import Scrape
    from prewarm.daemon.prometheus import text_of
    from prewarm.reports.metrics import samples_of
    from prewarm.state import clock

    def metrics() -> bytes:
        settings = current()
        with _reading(settings) as ledger:
            place = _place(settings)
            return text_of(samples_of(settings, ledger, clock.now(), place, health.broken_off))

    with Scrape(address, metrics, lambda: health.ill(goes_on=watchdog.content)) as scrape:
        log.info("serving /metrics and /healthz at %s, port %d", address[0], scrape.port)
        yield


@contextmanager
def _signals() -> Iterator[tuple[Callable[[float], None], Callable[[], bool]]]:
    """Let SIGHUP ask for a reload; yields a wait that any signal ends, and whether one is asked."""
    import select
    import socket

    asked: list[int] = []
    reader, writer = socket.socketpair()

    def wait(seconds: float) -> None:
        if select.select([reader], [], [], seconds)[0]:
            reader.recv(4096)
        time.tzset()  # the machine's zone may have been set anew

    def reload_asked() -> bool:
        was = bool(asked)
        asked.clear()
        return was

    with reader, writer:
        writer.setblocking(False)
        before = signal.signal(signal.SIGHUP, lambda number, _: asked.append(number))
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield wait, reload_asked
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGHUP, before)


@cli.command()
@click.option("--project", metavar="PATH", help="Read this project alone: group/project.")
@click.option("--file", metavar="FILE", help="Read one CI file on disk; no GitLab, no images.yml.")
@click.option(
    "--root", metavar="DIR", help="Where its local includes start (default: the git checkout)."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_global
def scan(
    options: Global, project: str | None, file: str | None, root: str | None, as_json: bool
) -> int:
    """Tell which images CI uses, how often, and which names could not be resolved, and why."""
    from prewarm.cli.console import show_scan

    if file is not None and project is not None:
        raise UsageError("usage", "--file and --project exclude each other", "leave one out")
    if root is not None and file is None:
        raise UsageError("usage", "--root is where the includes of a --file start", "name the file")
    found = _scan_file(Path(file), root) if file is not None else _scan(options, project)
    show_scan(found, as_json=as_json)
    return found.exit_code


def _scan_file(file: Path, root: str | None) -> Scan:
    from prewarm.core.text import printable
    from prewarm.discovery.checkout import find_root
    from prewarm.discovery.ci_evaluate import evaluate_file
    from prewarm.discovery.scan_result import of_file, without_image
    from prewarm.state import clock

    if root is not None and not Path(root).is_dir():
        raise UsageError("usage", f"--root {root}: no such folder", "name the repository's root")
    evaluation = evaluate_file(file, Path(root) if root is not None else find_root(file))
    if evaluation.bare:
        log.info("%s", printable(without_image(evaluation.bare)))
    return of_file(evaluation, str(file), clock.now().wall)


def _scan(options: Global, project: str | None) -> Scan:
    settings = options.settings()
    scanner = _scanner(options, settings, project, alone=True)
    if scanner is None:
        raise UsageError(
            "no-gitlab",
            f"{settings.path} names no GitLab to scan",
            "write gitlab: with its url, or read one file with prewarm scan --file .gitlab-ci.yml",
        )
    with _locked(settings, (), 0.0) as ledger, ledger.scanning() as alone:
        _need_state(ledger)
        if not alone:
            raise AlreadyRunningError(
                "already-running", "another host scans for this demand", "run again later"
            )
        return scanner(ledger)


def _scanner(
    options: Global, settings: Settings, only: str | None = None, *, alone: bool = False
) -> Scanner | None:
    """Return what asks the GitLab of the settings, if they name one.

    Where no scan alone is asked for, the copies of a sync wait for it: then it has less time.
    """
    gitlab = settings.gitlab
    if gitlab is None:
        return None

    def scanner(ledger: Ledger) -> Scan:
        from prewarm.cli.console import scanning
        from prewarm.discovery.gitlab_client import ALONE, IN_A_SYNC, find_token
        from prewarm.discovery.scan import scan as discover
        from prewarm.state import clock

        bounds = ALONE if alone else IN_A_SYNC.within(settings.limits.run_time / 4)
        with scanning(quiet=options.quiet) as progress:
            return discover(
                gitlab,
                find_token(gitlab, os.environ),
                ledger,
                clock.now,
                stop=_stopping,
                progress=progress,
                mirrors=settings.mirrors,
                environ=os.environ,
                only=only,
                bounds=bounds,
            )

    return scanner


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_global
def status(options: Global, as_json: bool) -> int:
    """Tell budgets, what is warm, and the last run; from the state alone, without a network."""
    from prewarm.cli.console import show_status
    from prewarm.reports.status import status_of
    from prewarm.state import clock

    settings = options.settings()
    with _reading(settings) as ledger:
        found = status_of(settings, ledger, clock.now(), _place(settings))
    show_status(found, as_json=as_json)
    return 0


@cli.command("report")
@click.option(
    "--html",
    "file",
    metavar="FILE",
    required=True,
    help="Write the page there, in the place of an older one; `-` is stdout.",
)
@_global
def report_command(options: Global, file: str) -> int:
    """Write one self-contained page on how it goes; from the state alone, without a network.

    Coverage over time, pulls against the budget, the most used images with their states, what
    waits and until when, problems with their cures, the last syncs.
    """
    from prewarm.core.atomic_write import replace_file
    from prewarm.reports.html.page import page
    from prewarm.reports.overview import overview_of
    from prewarm.state import clock

    settings = options.settings()
    with _reading(settings) as ledger:
        text = page(overview_of(settings, ledger, clock.now(), _place(settings)))
    if file == "-":
        click.echo(text, nl=False)
        return 0
    try:
        replace_file(Path(file), text.encode())
    except OSError as error:
        raise UsageError("write", f"{file}: {error.strerror}", "name another file") from error
    return 0


@cli.command("simulate")
@click.option(
    "--budget",
    "budgets",
    metavar="N",
    type=click.IntRange(min=0),
    multiple=True,
    help="Pulls to spend in each window; several times for several (default: a useful choice).",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_global
def simulate_command(options: Global, budgets: tuple[int, ...], as_json: bool) -> int:
    """Tell which share of CI's uses each budget would have served; from the state alone.

    The demand that scans recorded is replayed on a mirror that is empty at first.
    """
    from prewarm.cli.console import show_simulation
    from prewarm.planning.simulate import simulate, useful_budgets
    from prewarm.reports.recorded_demand import present_window, record_of
    from prewarm.state import clock

    settings = options.settings()
    with _reading(settings) as ledger:
        images = record_of(settings, ledger, clock.now())
        window = present_window(settings, ledger)
    compared = sorted(set(budgets)) or useful_budgets(window.capacity)
    history = settings.gitlab.history if settings.gitlab else 0
    share = settings.limits.pulls_per_project
    found = simulate(images, compared, window.seconds, history, share)
    show_simulation(found, window.capacity, scanned=settings.gitlab is not None, as_json=as_json)
    return 0


@cli.command()
@click.option("--repair", is_flag=True, help="Copy what is missing, within the budget.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_global
def verify(options: Global, repair: bool, as_json: bool) -> int:
    """Check that every tag that prewarm wrote is whole on every mirror, blobs included."""
    from prewarm.cli.console import show_verification, watching
    from prewarm.sync.run import Doing
    from prewarm.sync.verify import mend, verify

    settings = options.settings()
    if not repair:
        with _looking(settings) as session:
            found = verify(session)
    else:
        with (
            _writing(settings, 0.0) as (session, tools),
            watching(quiet=options.quiet) as progress,
        ):
            _need_state(session.ledger)
            found = mend(session, verify(session), Doing(tools, progress))
    show_verification(found, as_json=as_json)
    return found.exit_code


@cli.command()
@click.option("--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@click.option("--force", is_flag=True, help="Go on although the scan is old, or much would go.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_global
def prune(options: Global, dry_run: bool, force: bool, as_json: bool) -> int:
    """Remove from push mirrors what prewarm wrote and nobody wants any more; never a pin.

    To `keep` and `max_size` of each mirror, the least wanted first. Refuses without --force where
    the last complete scan is older than 3 days, the scope has changed since, or more than 30 % of
    the bytes would go.
    """
    from prewarm.cli.console import show_pruned
    from prewarm.sync.prune import prune as pruned

    settings = options.settings()
    if dry_run:
        with _looking(settings) as session:
            report = pruned(session, dry_run=True, force=force)
    else:
        with _writing(settings, 0.0) as (session, _):
            _need_state(session.ledger)
            report = pruned(session, dry_run=False, force=force)
    show_pruned(report, as_json=as_json)
    return report.exit_code


@cli.command()
@click.argument("image")
@click.option("--offline", is_flag=True, help="Ask no registry: tell from the state alone.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_global
def explain(options: Global, image: str, offline: bool, as_json: bool) -> int:
    """Tell everything about one IMAGE: who wants it, where it is, what comes next. HEADs only."""
    from prewarm.cli.console import show_explanation
    from prewarm.sync.explain import asked
    from prewarm.sync.explain import explain as explained

    settings = options.settings()
    reference = asked(image, settings)
    with _looking(settings, waits=True) as session:
        found = explained(session, reference, offline=offline)
    show_explanation(found, as_json=as_json, verbose=options.verbose)
    return 0 if found.warm else 1


@cli.command()
@click.argument("file", required=False, metavar="[FILE]")
@_global
def check(options: Global, file: str | None) -> int:
    """Validate images.yml: every problem at once, each with its line and cure."""
    from prewarm.core.text import counted, printable

    try:
        settings = _load(file or options.config)
    except ConfigError as error:
        click.echo("\n".join(printable(problem.line) for problem in error.problems))
        return error.exit_code
    for problem in settings.problems:
        click.echo(printable(problem.line))
    if settings.problems:
        return UsageError.exit_code
    click.echo(f"{file or settings.path}: good, {counted(len(settings.pins), 'pin')}")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option(
    "--client",
    "clients",
    multiple=True,
    type=click.Choice(["dockerd", "containerd", "podman"]),
    help="Have this client of this host prove that it asks the mirrors; repeatable.",
)
@_global
def doctor(options: Global, as_json: bool, clients: tuple[str, ...]) -> int:
    """Check all that a sync needs, and tell the cure of what is wrong. No pull is spent."""
    from prewarm.cli.console import show_checkup
    from prewarm.cli.doctor import Place, examine
    from prewarm.state import clock

    place = Place(
        options.settings(),
        os.environ,
        home_folder(os.environ),
        os.geteuid(),
        _typed(),
        clock.now,
        tuple(dict.fromkeys(clients)),
        _stopping,
    )
    checkup = examine(place)
    show_checkup(checkup, as_json=as_json)
    return checkup.exit_code


@cli.command()
@click.argument("path", required=False, default="images.yml", metavar="[PATH|-]")
def init(path: str) -> int:
    """Write a commented images.yml to start from; never overwrites. `-` is stdout."""
    from prewarm.config.reader import example

    if path == "-":
        click.echo(example(), nl=False)
        return 0
    try:
        with Path(path).open("x") as file:
            file.write(example())
    except FileExistsError:
        raise UsageError("exists", f"{path} exists", "name another path, or move it away") from None
    except OSError as error:
        raise UsageError("write", f"{path}: {error.strerror}", "name another path") from error
    click.echo(f"wrote {path}; next: edit it, then prewarm sync --dry-run", err=True)
    return 0


_CLIENTS: Final = (
    "dockerd",
    "docker-machine",
    "containerd",
    "buildkitd",
    "podman",
    "kaniko",
    "gitlab-runner",
    "kubernetes",
    "registry",
)


@cli.command("client-config")
@click.argument("kind", metavar="KIND", type=click.Choice(_CLIENTS))
@click.option("--output", metavar="DIR", help="Write files there (default: print them).")
@click.option(
    "--ask-upstream",
    is_flag=True,
    help="containerd: ask the registry what a tag is, by HEAD; needs `platforms: all`.",
)
@_global
def client_config(options: Global, kind: str, output: str | None, ask_upstream: bool) -> int:
    """Print what clients need so that they ask the mirror first, with the reasons as comments.

    KIND is dockerd, docker-machine, containerd, buildkitd, podman (also buildah, CRI-O, skopeo),
    kaniko, gitlab-runner, kubernetes or registry (the mirror itself). Nothing is overwritten.
    """
    from prewarm.clients.config_files import client_config as made
    from prewarm.clients.output import show, write

    settings = options.settings()
    known: tuple[Known, ...] = ()
    if kind == "kubernetes":
        with _reading(settings) as ledger:
            known = ledger.states()
    files = made(kind, settings, known, ask_upstream=ask_upstream)
    for comment in filter(None, (file.comment for file in files)):
        log.info("%s", comment)
    if output is None:
        click.echo(show(files), nl=False)
        return 0
    for path in write(files, Path(output)):
        log.info("wrote %s", path)
    return 0


# -- sessions ---------------------------------------------------------------------------------


def _place(settings: Settings) -> StatePlace:
    from prewarm.state.location import place_of

    return place_of(settings.state, settings.path, os.environ, home_folder(os.environ))


def _typed() -> list[str]:
    """The command as it was typed, for a person to type again as another user."""
    started = sys.argv[0]
    program = [sys.executable, "-m", "prewarm"] if started.endswith("__main__.py") else [started]
    return [*program, *sys.argv[1:]]


@contextmanager
def _reading(settings: Settings, *, noting: bool = False) -> Iterator[Ledger]:
    """Open the state to look at it; an empty one where there is none yet.

    Where that is `noting` what it sees, it gets a copy to note that in.
    """
    from prewarm.state.ledger import Ledger
    from prewarm.state.location import Shared, check_owner, site_here

    place = _place(settings)
    if isinstance(place, Shared):
        from prewarm.state.shared import look, read

        opened = (look if noting else read)(place.url, site_here(settings), os.environ)
    else:
        check_owner(place, os.geteuid(), _typed())
        opened = Ledger.open(place, read_only=True) if place.exists() else Ledger.memory()
    with opened as ledger:
        yield ledger


@contextmanager
def _looking(
    settings: Settings, *, use_reserve: bool = False, waits: bool = False
) -> Iterator[Session]:
    """Open what is needed to look and to plan, without a lock; where a person `waits`, briefly."""
    from prewarm.state import clock
    from prewarm.sync.connections import AT_A_TERMINAL, open_edges
    from prewarm.sync.session import Session

    patience = AT_A_TERMINAL if waits else None
    with (
        _reading(settings, noting=True) as ledger,
        open_edges(settings, os.environ, patience) as edges,
        _cut_off(edges),
    ):
        yield Session(settings, edges, ledger, clock.now, use_reserve, _stopping, _ended)


@contextmanager
def _locked(settings: Settings, targets: Sequence[str], waiting: float) -> Iterator[Ledger]:
    """Open the state to write to it, with its lock and those of the mirrors `targets`.

    A shared state has none of its own: there the server keeps two syncs of a mirror apart, too.
    """
    from prewarm.state import clock
    from prewarm.state.ledger import Ledger
    from prewarm.state.location import (
        Shared,
        exclusive,
        folder_of,
        locks_for,
        prepare,
        prepare_folder,
        site_here,
    )

    place = _place(settings)
    if not isinstance(place, Shared):
        prepare(place, os.geteuid(), _typed())
        with (
            exclusive(locks_for(place, targets), clock.now(), waiting),
            Ledger.open(place) as ledger,
        ):
            yield ledger
        return
    from prewarm.state.shared import SharedLedger

    if targets:
        prepare_folder(folder_of(place, targets), os.geteuid(), _typed())
    with SharedLedger.connect(place.url, site_here(settings), os.environ) as shared:
        locks = (*locks_for(None, targets), *shared.mirror_locks(targets))
        with exclusive(locks, clock.now(), waiting):
            yield shared


def _need_state(ledger: Ledger) -> None:
    """Raise PrewarmError where the server of a shared state cannot be reached."""
    if ledger.lost is not None:
        raise PrewarmError(ledger.lost.code, ledger.lost.text, ledger.lost.cure)


@contextmanager
def _writing(
    settings: Settings, waiting: float, *, use_reserve: bool = False
) -> Iterator[tuple[Session, Any]]:
    """Open what is needed to copy, with the locks of the state and of every target mirror."""
    with (
        _locked(settings, _targets(settings), waiting) as ledger,
        _copying(settings, ledger, use_reserve=use_reserve) as found,
    ):
        yield found


def _targets(settings: Settings) -> list[str]:
    return [mirror.url for mirror in settings.mirrors if mirror.role == "target"]


@contextmanager
def _copying(
    settings: Settings, ledger: Ledger, *, use_reserve: bool
) -> Iterator[tuple[Session, Any]]:
    """Open the registries and skopeo."""
    from prewarm.state import clock
    from prewarm.state.location import folder_of
    from prewarm.sync.connections import open_edges, open_tools
    from prewarm.sync.session import Session

    folder = folder_of(_place(settings), _targets(settings))
    with (
        open_edges(settings, os.environ) as edges,
        _cut_off(edges),
        open_tools(folder, os.environ, home_folder(os.environ)) as tools,
    ):
        yield Session(settings, edges, ledger, clock.now, use_reserve, _stopping, _ended), tools


@contextmanager
def _cut_off(edges: Edges) -> Iterator[None]:
    """Cut the connections that are still waited for some seconds after a signal."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if _signalled:
                if not over.wait(_GRACE):
                    edges.cut()
                return

    thread = threading.Thread(target=watch, name="cut-off", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# -- signals, log, errors ---------------------------------------------------------------------


class _Stop(threading.Event):
    """Set when the run is to end."""

    looked: Callable[[], None] = staticmethod(lambda: None)
    """Told of each look: every loop that works looks here, so whoever looks is alive."""

    def is_set(self) -> bool:
        self.looked()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        self.looked()
        return super().wait(timeout)


_stopping = _Stop()
_signalled: list[int] = []


def _ended() -> int | None:
    """The exit code where a signal has come."""
    return 128 + _signalled[0] if _signalled else None


def _stop(number: int, _: object) -> None:
    """End cleanly at the first signal, at once at the second.

    A terminal that is lost tells it twice, by the kernel and by the shell.
    """
    _stopping.set()
    _signalled.append(number)
    if len(_signalled) > 1:
        if number == signal.SIGHUP:
            return
        raise KeyboardInterrupt
    log.warning("ending: what is finished is recorded, what is not stays resumable")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _cut_lines(record: logging.LogRecord) -> bool:
    """Cut each line of a message: names and answers in it are as long as anybody likes."""
    text = record.getMessage()
    if len(text) > _LINE_MAX:
        text = "\n".join(shortened(line, _LINE_MAX) for line in text.split("\n"))
    record.msg, record.args = text, None
    return True


class _TextFormatter(logging.Formatter):
    """For people: no character of a message or a traceback can fool a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _log_to_stderr(*, verbose: bool, quiet: bool, as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter("%(message)s"))
    handler.addFilter(_cut_lines)
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def main() -> NoReturn:
    """Run the command line and exit with its code (CONTRACT, 1)."""
    output = stdio.settle()
    gc.set_threshold(*GARBAGE)
    _log_to_stderr(verbose=False, quiet=False, as_json=_wants_json_log(sys.argv[1:]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # by nohup
        signal.signal(number, _stop)
    code = _guarded(
        lambda: cli.main(standalone_mode=False, prog_name="prewarm", complete_var=_COMPLETION)
    )
    sys.exit(_told(output, code))


def _wants_json_log(words: Sequence[str]) -> bool:
    """Whether the log is to be JSON: looked for in the bare words, as click may refuse them."""
    pairs = itertools.pairwise([*words, ""])
    return any(" ".join(pair) == "--log-format json" for pair in pairs) or (
        "--log-format=json" in words
    )


def _told(output: stdio.Output, code: int) -> int:
    """Return the exit code, now that all is printed: what was done is done, read or not.

    A reader that has gone had enough; a full disk is the operator's to cure.
    """
    sys.stdout.flush()
    failure = output.failure
    if failure is not None and not isinstance(failure, BrokenPipeError):
        _tell(
            f"prewarm: stdout cannot be written: {failure.strerror}; "
            "cure that; what a sync did is done, and told by prewarm status"
        )
        code = code or 1
    return code


def _guarded(command: Callable[[], object]) -> int:
    """Run a command; every failure becomes one line on stderr and an exit code."""
    try:
        code = command()
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        _tell_usage(error)
        code = UsageError.exit_code
    except ConfigError as error:
        for problem in error.problems:
            _tell(problem.line)
        code = error.exit_code
    except PrewarmError as error:
        _tell(f"prewarm: {error.text}; {error.cure}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except (Exception, SystemExit) as error:  # click makes the latter of any EPIPE
        if _COMPLETION in os.environ and isinstance(error, SystemExit):  # and so ends these
            return UsageError.exit_code if error.code else 0
        log.exception("this is a bug of prewarm %s; %s", __version__, _ISSUES)
        code = _BUG
    if _signalled:
        return 128 + _signalled[0]
    return code if isinstance(code, int) else 0


def _tell_usage(error: click.ClickException) -> None:
    """Write what click refuses: with the usage for people, as one line to a log of JSON."""
    if not any(isinstance(handler.formatter, _JsonFormatter) for handler in log.handlers):
        shown = io.StringIO()
        error.show(shown)
        click.echo(printable_lines(shown.getvalue()), nl=False, err=True)
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "prewarm"
    _tell(f"prewarm: {error.format_message().rstrip('.')}; see {command} --help")


def _tell(text: str) -> None:
    """Write an error for people; control characters cannot fool a terminal."""
    log.error("%s", re.sub(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text))
