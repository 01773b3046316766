"""The demo: prewarm at work on the top-level images.yml, in a sandbox on this machine.

Seven acts, each a real `prewarm` process. After each one stands what the stand-in for Docker Hub
counted, and what the act promised; a promise that is not kept makes the exit code 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import yaml

from prewarm.config.reader import load
from prewarm.core.errors import PrewarmError
from prewarm.core.platforms import ALL
from prewarm.core.settings import DOCKER_HUB, Allowance, Newest, Settings
from prewarm.planning.demand import Want, wants
from tests.sandbox import Image, Layer, Quota, Sandbox
from tests.support.process import run_prewarm, run_skopeo, start_prewarm

IMAGES_YML: Final = Path(__file__).parents[2] / "images.yml"
ACCOUNT: Final = "acme"
LATENCY: Final = 0.02
"""Seconds that the stand-in takes for each answer."""
TIGHT: Final = Allowance(pulls=40, window=6 * 3600, reserve=4)
"""A budget that is too small for all at once."""

_ALPINE: Final = (Layer("alpine", 400_000),)
_DEBIAN: Final = (Layer("debian", 1_400_000),)
_UBUNTU: Final = (Layer("ubuntu", 1_300_000),)
_BUILD: Final = (*_DEBIAN, Layer("scm", 1_100_000), Layer("build", 1_500_000))
_JDK: Final = (*_UBUNTU, Layer("jdk", 1_600_000))
_BASES: Final[Mapping[str, Sequence[Layer]]] = {
    "alpine": _ALPINE,
    "busybox": (),
    "docker": _ALPINE,
    "composer": _ALPINE,
    "registry": _ALPINE,
    "traefik": _ALPINE,
    "ubuntu": _UBUNTU,
    "amazoncorretto": (),
    "eclipse-temurin": _JDK,
    "maven": _JDK,
    "gradle": _JDK,
    **dict.fromkeys(("buildpack-deps", "golang", "python", "node", "ruby", "rust", "perl"), _BUILD),
}
"""What official images stand on: their layers are shared; all others stand on Debian."""


@dataclass
class Stage:
    """The sandbox with the official images in it, and what the play has come to."""

    box: Sandbox
    folder: Path
    source: str
    """The text of images.yml."""
    settings: Settings
    wanted: tuple[Want, ...]
    images: dict[str, Image]
    """What is upstream, by reference."""
    broken: int = 0
    """Promises that were not kept."""

    def config(self, budget: Allowance | None = None) -> Path:
        """Write images.yml for the sandbox, perhaps with another budget, and return the file."""
        registries = yaml.safe_load(self.source).get("registries") or {}
        hub = {**(registries.get(DOCKER_HUB) or {}), "endpoint": self.box.hub.url}
        if budget is not None:
            hub["budget"] = {"pulls": budget.pulls, "window": "6h", "reserve": budget.reserve}
        values = {
            "mirrors": [self.box.taps[0].url],
            "registries": {**registries, DOCKER_HUB: hub},
            "authfile": str(self.box.authfile(ACCOUNT)),
            "state": str(self.folder / "state" / "prewarm.db"),
        }
        file = self.folder / "images.yml"
        file.write_text(with_values(self.source, values))
        return file

    def promise(self, text: str, *, kept: bool) -> None:
        """Say what was promised, and whether it came so."""
        self.broken += not kept
        mark = click.style("✓", fg="green") if kept else click.style("✗ NOT KEPT:", fg="red")
        click.echo(f"   {mark} {text}")


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Return the YAML text with these top-level values instead of its own, on the same lines."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    spans = {key.value: (value.start_mark.index, value.end_mark.index) for key, value in root.value}
    missing = [key for key in values if key not in spans]
    for key in sorted(spans.keys() & values.keys(), key=spans.__getitem__, reverse=True):
        start, end = spans[key]
        kept_lines = "\n" * text.count("\n", start, end)
        text = f"{text[:start]}{json.dumps(values[key])}{kept_lines}{text[end:]}"
    return text + "".join(f"{key}: {json.dumps(values[key])}\n" for key in missing)


# --- the stage ---


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """Start the registries, and put every image that images.yml wants upstream."""
    settings = load(IMAGES_YML)
    for pin in settings.pins:
        if pin.reference.registry != DOCKER_HUB or pin.reference.digest or _is_pattern(pin.tags):
            where = f"{IMAGES_YML.name}:{pin.line}"
            raise SystemExit(
                f"demo: {where}: {pin.reference} is none of Docker Hub's, or has no literal tag, "
                "and the demo has only those; take it out for the demo"
            )
    with Sandbox(mirrors=1, latency=LATENCY, quota=Quota(200)) as box:
        box.hub.cdn.latency = LATENCY
        wanted = wants(settings, settings.pins, {})
        images: dict[str, Image] = {}
        for want in wanted:
            images[str(want.reference)] = publish(box, want, images)
        folder = box.path / "demo"
        folder.mkdir()
        yield Stage(box, folder, IMAGES_YML.read_text(), settings, wanted, images)


def _is_pattern(tags: object) -> bool:
    return isinstance(tags, Newest)


def publish(box: Sandbox, want: Want, before: Mapping[str, Image], revision: int = 1) -> Image:
    """Put an image upstream as its publisher would; `latest` is the tag pushed before it."""
    reference = want.reference
    repository, tag = reference.repository, reference.tag or "latest"
    name = repository.rpartition("/")[2]
    if tag == "latest" and before and f"{reference.name}:" in (last := list(before)[-1]):
        box.upstream.retag(repository, before[last].digest, tag)
        return before[last]
    own = f"{repository}:{tag}"
    base = _ALPINE if "alpine" in tag else _BASES.get(name, _DEBIAN)
    return box.push(
        repository,
        tag,
        name=own,
        platforms=platforms_upstream(want),
        layers=base,
        size=random.Random(own).randint(100_000, 700_000),
        attestations=True,
        revision=revision,
    )


def platforms_upstream(want: Want) -> list[str]:
    """Return what the image is built for: more than is wanted, as on Docker Hub."""
    asked = () if want.platforms == ALL else map(str, want.platforms)
    return list(dict.fromkeys(("linux/amd64", "linux/arm64", *asked)))


def pulls_of(stage: Stage, want: Want) -> int:
    """Return what the image costs: a pull for each manifest below its index."""
    image = stage.images[str(want.reference)]
    return len(image.children) if want.platforms == ALL else len(want.platforms)


# --- the play ---


@dataclass(frozen=True, slots=True)
class Act:
    """What one command did."""

    returncode: int
    pulls: int
    """As the stand-in counted, like the rest."""
    gets: int
    heads: int
    blobs: int
    writes: int
    """At the mirror."""
    status: Mapping[str, Any]
    """What `prewarm status --json` tells afterwards."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Of the last sync."""
        last: Mapping[str, Any] = self.status["last_sync"] or {}
        return last


def play(stage: Stage, *arguments: str, config: Path, lines: int | None = None) -> Act:
    """Run a command before the audience: its output, then what the stand-in counted.

    Of a longer output than `lines`, the middle is left out.
    """
    click.echo(f"   {click.style('$ prewarm ' + ' '.join(arguments), bold=True)}")
    hub, tap = stage.box.hub, stage.box.taps[0]
    for log in (hub.access, hub.cdn.access, tap.access):
        log.clear()
    left = hub.remaining(ACCOUNT) or 0
    returncode, output = _run(arguments, stage.folder, config)
    for line in _shown(output.splitlines(), lines):
        click.echo(click.style(line, dim=True))
    told = run_prewarm(["status", "--json"], stage.folder, config=config).json
    act = Act(
        returncode,
        left - (hub.remaining(ACCOUNT) or 0),
        len(hub.access.gets()),
        len(hub.access.heads()),
        sum(entry.method == "GET" for entry in hub.cdn.access),
        len(tap.access.writes()),
        told,
    )
    click.echo(f"   Docker Hub counted {_pulls(act.pulls)}: {act.gets} GETs, {act.heads} HEADs")
    if act.returncode:
        stage.promise(f"exit code 0, not {act.returncode}", kept=False)
    return act


def _pulls(number: int) -> str:
    return f"{number} {'pull' if number == 1 else 'pulls'}"


def _run(arguments: Sequence[str], folder: Path, config: Path) -> tuple[int, str]:
    """Run prewarm; on a terminal its newest line of progress is shown while it works."""
    watched = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns
    with (
        start_prewarm(arguments, folder, config=config) as process,
        ThreadPoolExecutor(1) as reader,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        output = reader.submit(process.stdout.read)
        errors = []
        for line in process.stderr:
            errors.append(line)
            if watched:
                click.secho(f"\r\033[K   … {line.rstrip()[: width - 6]}", nl=False, dim=True)
        if watched:
            click.echo("\r\033[K", nl=False)
        process.wait(60)
        text = output.result()
    return process.returncode, text if process.returncode == 0 else text + "".join(errors)


def _shown(lines: list[str], most: int | None) -> Iterator[str]:
    """Yield the lines as a terminal can show them, without the middle of too many."""
    if most is not None and len(lines) > most:
        tail = most // 2
        left_out = f"… {len(lines) - most} more …"
        lines = [*lines[: most - tail], left_out, *lines[-tail:]]
    width = max(40, shutil.get_terminal_size().columns - 1) if sys.stdout.isatty() else 10_000
    for line in lines:
        if "  " in line and len(line) > width - 3:  # of a table, whose columns stay in line
            yield f"   {line[: width - 4]}…"
        else:
            yield textwrap.fill(line, width, initial_indent="   ", subsequent_indent="       ")


def heading(number: int, title: str, line: str) -> None:
    click.echo("")
    click.secho(f"{number}  {title}", bold=True, fg="cyan")
    click.echo(f"   {line}")


def opening(stage: Stage) -> None:
    repositories = {want.reference.repository for want in stage.wanted}
    click.secho(
        "prewarm keeps the images that CI uses warm in a mirror near its runners.", bold=True
    )
    click.echo(
        f"\nimages.yml wants {len(stage.wanted)} tags of {len(repositories)} repositories of "
        "Docker Hub, some for two platforms.\n"
        "Nothing here leaves this machine: Docker Hub is a stand-in before a real registry, it\n"
        "counts pulls and limits them to 200 in six hours; the mirror is a real registry too."
    )


def look_first(stage: Stage) -> None:
    heading(1, "The plan", "What a sync would do, asked by HEAD, which Docker Hub does not count.")
    act = play(stage, "sync", "--dry-run", config=stage.config(), lines=9)
    kept = act.pulls == act.gets == act.writes == 0 and act.heads == len(stage.wanted)
    stage.promise(
        f"{len(stage.wanted)} images looked up, no pull spent, nothing written", kept=kept
    )


def fill_what_fits(stage: Stage, costs: Sequence[int]) -> int:
    """Sync with a budget that is too small; return the pulls that it took."""
    most = TIGHT.pulls - TIGHT.reserve
    fitting = 0
    for cost in costs:
        fitting += cost if fitting + cost <= most else 0
    heading(
        2,
        "A budget too small for all",
        f"{TIGHT.pulls} pulls in six hours, of which {TIGHT.reserve} stay for the CI jobs. "
        "First in the file, first served.",
    )
    act = play(stage, "sync", config=stage.config(TIGHT), lines=13)
    stage.promise(
        f"{act.pulls} pulls spent of the {most} allowed; prewarm charged {act.summary['pulls']}",
        kept=act.pulls == act.summary["pulls"] == fitting,
    )
    stage.promise(
        f"{act.summary['deferred']} images wait, and the report says until when",
        kept=(act.summary["deferred"] > 0) == (sum(costs) > most) and not act.summary["failed"],
    )
    return act.pulls


def fill_the_rest(stage: Stage, left: int) -> None:
    heading(3, "The budget of images.yml", "Room for all: only what is missing is fetched.")
    act = play(stage, "sync", config=stage.config(), lines=9)
    stage.promise(
        f"the other {left} pulls, and every image is warm",
        kept=act.pulls == act.summary["pulls"] == left
        and not act.summary["deferred"]
        and not act.summary["failed"],
    )
    warm = all(_on_mirror(stage, want) for want in stage.wanted)
    stage.promise(f"the mirror itself lists all {len(stage.wanted)} tags", kept=warm)


def _on_mirror(stage: Stage, want: Want) -> bool:
    reference = want.reference
    return reference.tag in stage.box.mirrors[0].tags(reference.mirror_repository)


def change_nothing(stage: Stage) -> None:
    heading(4, "The next night", "Nothing has changed upstream.")
    started = time.monotonic()
    act = play(stage, "sync", config=stage.config())
    stage.promise(
        f"no pull, nothing written, done in {time.monotonic() - started:.1f} s",
        kept=act.pulls == act.gets == act.writes == 0 and act.summary["fresh"] == len(stage.wanted),
    )


def move_a_tag(stage: Stage, want: Want) -> None:
    name = want.reference.familiar
    heading(5, "A tag moves", f"The publisher has built {name} anew on the same base.")
    stage.images[str(want.reference)] = publish(stage.box, want, {}, revision=2)
    act = play(stage, "sync", config=stage.config())
    pulls = pulls_of(stage, want)
    stage.promise(
        f"this one alone is fetched: {_pulls(act.pulls)}, {act.blobs} new blobs; "
        "its base is on the mirror already",
        kept=(act.pulls, act.gets, act.blobs) == (pulls, 1 + pulls, 2 * pulls)
        and act.summary["copied"] == 1,
    )


def tell(stage: Stage, total: int) -> None:
    heading(6, "The state of things", "From what prewarm remembers; no registry is asked.")
    act = play(stage, "status", config=stage.config())
    used, coverage = act.status["budgets"][DOCKER_HUB]["used"], act.status["coverage"]
    stage.promise(
        f"the ledger has {used} pulls, as many as were spent; coverage is {coverage:.0%}",
        kept=used == total and coverage == 1 and act.heads == 0,
    )


def pull_as_a_runner(stage: Stage, want: Want) -> None:
    reference = want.reference
    heading(7, "A runner pulls", "With the mirror as its registry mirror, as dockerd would.")
    hub, tap = stage.box.hub, stage.box.taps[0]
    hub.access.clear()
    host = tap.url.removeprefix("http://")
    os_name, architecture = platforms_upstream(want)[0].split("/")[:2]
    there = stage.folder / "pulled"
    source = f"docker://{host}/{reference.mirror_repository}:{reference.tag}"
    options = (f"--override-os={os_name}", f"--override-arch={architecture}")
    click.secho(f"   $ skopeo copy {source} dir:pulled", bold=True)
    started = time.monotonic()
    done = run_skopeo(
        [*options, "copy", "--src-tls-verify=false", source, f"dir:{there}"], stage.folder
    )
    took = time.monotonic() - started
    manifest = there / "manifest.json"
    found = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else "none"
    upstream = stage.images[str(reference)].child(f"{os_name}/{architecture}").digest
    click.echo(f"   Docker Hub was asked {len(hub.access)} times")
    stage.promise(
        f"{reference.familiar} for {os_name}/{architecture} in {took:.1f} s, "
        "byte for byte what upstream has",
        kept=done.returncode == 0 and f"sha256:{found}" == upstream and not hub.access,
    )


def perform(stage: Stage) -> int:
    """Play all acts and return the exit code."""
    moving = next(
        (want for want in stage.wanted if want.reference.repository == "library/golang"),
        stage.wanted[0],
    )
    # Two tags of one digest cost what one does.
    distinct: dict[tuple[str, str], Want] = {}
    for want in stage.wanted:
        image = stage.images[str(want.reference)]
        distinct.setdefault((want.reference.name, image.digest), want)
    costs = [pulls_of(stage, want) for want in distinct.values()]
    total = sum(costs)
    opening(stage)
    look_first(stage)
    spent = fill_what_fits(stage, costs)
    fill_the_rest(stage, total - spent)
    change_nothing(stage)
    move_a_tag(stage, moving)
    tell(stage, total + pulls_of(stage, moving))
    pull_as_a_runner(stage, moving)
    click.echo("")
    if stage.broken:
        click.secho(f"{stage.broken} promises were not kept, see ✗ above.", fg="red")
        return 1
    click.echo(
        f"All of it came as promised. It began with {IMAGES_YML.name}: change it, look again."
    )
    return 0


def main() -> int:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with staged() as stage:
            code = perform(stage)
    except PrewarmError as error:
        click.echo(f"demo: {error}", err=True)
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("\ndemo: interrupted; nothing is left behind", err=True)
        return 130
    took = time.monotonic() - started
    click.echo(f"{took:.0f} s; the registries are stopped and their folders removed.")
    return code


if __name__ == "__main__":
    sys.exit(main())
