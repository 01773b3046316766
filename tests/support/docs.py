"""Writes what of the docs comes from the code: `python -m tests.support.docs`, or `make docs`.

docs/configuration.md comes from the keys in prewarm/config/schema.py, docs/commands.md from the
command line itself, docs/modules.md from what the modules say of themselves, the README's picture
and every block after `<!-- recorded: SCENE -->` from what the commands printed in the tour; a test
compares all with what is on disk. `--record` plays the tour anew, which takes a quarter of a
minute.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from prewarm.cli.main import cli
from prewarm.config.schema import FILE, Either, Key, Keys, Many, Named, every_key
from tests.support import tour
from tests.support.picture import DARK, LIGHT, picture

DOCS: Final = Path(__file__).parents[2] / "docs"
_WRITTEN: Final = "<!-- Written by `python -m tests.support.docs`; change {source} instead. -->\n\n"
_CONFIGURATION: Final = """\
# images.yml, key by key

`prewarm init` writes a commented file to start from, `prewarm check` names everything that is wrong
with it, each with its line and its cure. It is read from `--config`, else `$PREWARM_CONFIG`, else
`./images.yml`, else `/etc/prewarm/images.yml`. The JSON Schema for editors is
[images.schema.json](../prewarm/images.schema.json).

- Durations are `90s`, `15m`, `6h`, `14d` or `2w`; sizes `10GiB` (binary) or `500MB` (decimal).
- Scalars keep their spelling: `tags: [3.10]` is the tag 3.10.
- Short names are docker.io's: `golang` is `docker.io/library/golang:latest`.
- Secrets are never in this file; a URL with a password is refused.
- Paths may begin with `~/`; a relative one is below the folder of the file.
- A `./images.yml` that another user could have written is refused (`config-owner`): he, or a group
  or everybody, may write to the file or its folder, or owns one. `--config` takes it all the same,
  and `prewarm doctor` warns. A group that bears your name and has no other member is fine.
"""
_SEE: Final = {
    "mirrors": "[Pull-through mirrors](concepts.md#pull-through-mirrors), "
    "[sources](upstreams.md#several-sites), [pruning](prune.md), "
    "[moving a mirror](operations.md#moving-the-mirror)",
    "images": "[which come first](concepts.md#the-most-wanted-first)",
    "registries": "[How the budget works](concepts.md#how-the-budget-works), [logins and other "
    "registries](upstreams.md)",
    "platforms": "[Platforms](concepts.md#platforms)",
    "gitlab": "[What CI uses](ci.md), [what a token needs](ci.md#what-a-token-needs)",
    "schedule": "[The daemon](concepts.md#the-daemon)",
    "authfile": "[What it holds](upstreams.md)",
    "state": "[Shared state](shared-state.md), [when it is "
    "lost](operations.md#the-state-is-lost-or-damaged)",
    "metrics": "[Metrics](metrics.md)",
    "notify": "[Notices](metrics.md#notices)",
}
"""Where more is told of a key."""
_COMMANDS: Final = """\
# Commands

Results go to stdout, progress and log to stderr; a progress bar is shown only on a terminal, and
`NO_COLOR` is honoured. `--json` prints [what scripts may rely on](json.md).

The examples are real output, all of one small site: a GitLab with three projects, one mirror, and a
budget of 8 pulls of which 1 stays in reserve, so that not all fits. `-q` leaves out the progress.

| exit | meaning |
| --- | --- |
| 0 | all done; what waits for the budget is no failure (`explain`: the image is warm) |
| 1 | something needs you, the rest was done (`explain`: not warm; `--strict`: any problem) |
| 2 | wrong usage or configuration, or a state that cannot be used: nothing was done |
| 3 | a bug of prewarm: please report it with the traceback |
| 75 | another sync holds the state or one of the mirrors |
| 130, 143, 129 | interrupted, terminated, hung up: what was finished is recorded |
"""


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [_WRITTEN.format(source="prewarm/config/schema.py"), _CONFIGURATION]
    parts += ["\n" + "\n".join(_section(key)) + "\n" for key in FILE.keys]
    return "".join(parts)


def _section(key: Key) -> Iterator[str]:
    yield f"## {key.name}"
    yield ""
    yield _sentence(key)
    yield ""
    yield "\n".join(("```yaml", *_sample(key), "```"))
    inner = list(every_key(key.kind, key.name))
    if inner:
        yield ""
        yield "| key | meaning | example | default |"
        yield "| --- | --- | --- | --- |"
    for path, one in inner:
        example = f"`{one.example}`" if one.example else ""
        default = "*required*" if one.required else _cell(one.default) or "none"
        yield f"| `{path}` | {_cell(one.meaning)} | {example} | {default} |"
    if key.name in _SEE:
        yield ""
        yield f"More: {_SEE[key.name]}."


def _sample(key: Key, indent: str = "") -> Iterator[str]:
    """Yield the key with its example, or with all keys below it and theirs, as YAML."""
    if key.example:
        yield f"{indent}{key.name}: {key.example}"
        return
    yield f"{indent}{key.name}:"
    kind, deeper = key.kind, indent + "  "
    if isinstance(kind, Named):
        yield f"{deeper}{kind.example}:"
        kind, deeper = kind.item, deeper + "  "
    if isinstance(kind, Many):
        assert isinstance(kind.item, Either)
        assert kind.item.keys is not None
        lines = [line for one in kind.item.keys.keys for line in _sample(one, deeper + "  ")]
        yield lines[0].replace(f"{deeper}  ", f"{deeper}- ", 1)
        yield from lines[1:]
        return
    assert isinstance(kind, Keys)
    for one in kind.keys:
        yield from _sample(one, deeper)


def _sentence(key: Key) -> str:
    told = _cell(key.meaning)
    if key.required:
        return told + " Required."
    if not isinstance(key.kind, Keys):
        told += f" Default: {'none' if key.default in ('', '[]') else key.default}."
    return told


def _cell(text: str) -> str:
    """Return the text as Markdown shows it literally, in a table too."""
    return re.sub(r"([|*<])", r"\\\1", text)


_SEE_COMMAND: Final = {
    "sync": "[what the plan says](concepts.md#what-the-plan-says)",
    "run": "[the daemon](concepts.md#the-daemon), [metrics](metrics.md)",
    "scan": "[what CI uses](ci.md)",
    "status": "[coverage](concepts.md#coverage)",
    "simulate": "[the forecast](forecast.md)",
    "prune": "[pruning](prune.md)",
    "explain": "[explain](explain.md)",
    "check": "[images.yml](configuration.md)",
    "doctor": "[doctor](doctor.md)",
    "client-config": "[clients](clients.md)",
    "report": "[report](report.md)",
}
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "sync": ("dry-run", "sync", "unchanged"),
    "run": ("run",),
    "scan": ("scan", "scan-file"),
    "status": ("status",),
    "report": ("report",),
    "simulate": ("simulate",),
    "verify": ("verify-repair",),
    "prune": ("prune",),
    "explain": ("explain",),
    "check": ("check",),
    "doctor": ("doctor",),
    "init": ("init",),
    "client-config": ("client-config",),
}
"""The scenes of the tour that show each command at work."""


def commands() -> str:
    """Return docs/commands.md."""
    scenes = tour.recordings()
    parts = [_WRITTEN.format(source="prewarm/cli/main.py"), _COMMANDS, "\n## Global options\n\n"]
    parts.append("Before the command or after it: `prewarm --config FILE sync -v`.\n\n")
    parts.append(_options(cli))
    for name, command in cli.commands.items():
        usage = " ".join(["prewarm", name, *_arguments(command)])
        parts.append(f"\n## {name}\n\n`{usage}`\n\n")
        parts.append(inspect.cleandoc(command.help or "") + "\n")
        if options := _options(command):
            parts.append("\n" + options)
        if name in _SEE_COMMAND:
            parts.append(f"\nMore: {_SEE_COMMAND[name]}.\n")
        parts += [f"\n{_console(scenes[scene])}" for scene in EXAMPLES.get(name, ())]
    return "".join(parts)


def _arguments(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield parameter.metavar or str(parameter.name).upper()
    if _options(command):
        yield "[OPTIONS]"


def _options(command: click.Command) -> str:
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    if not options:
        return ""
    rows = [f"| `{_spelling(one)}` | {_cell(one.help or '')} |\n" for one in options]
    return "| option | what it does |\n| --- | --- |\n" + "".join(rows)


def _spelling(option: click.Option) -> str:
    names = ", ".join((*option.opts, *option.secondary_opts))
    if option.is_flag or option.count:
        return names
    choices = getattr(option.type, "choices", None)
    value = option.metavar or ("\\|".join(choices) if choices else option.type.name.upper())
    return f"{names} {value}"


def _console(scene: str) -> str:
    return f"```console\n{click.unstyle(scene)}```\n"


_RECORDED: Final = re.compile(r"(<!-- recorded: ([a-z-]+) -->\n)```console\n.*?```\n", re.DOTALL)


def with_recordings(text: str) -> str:
    """Return the page with every block after `<!-- recorded: SCENE -->` as it was recorded."""
    scenes = tour.recordings()
    return _RECORDED.sub(lambda found: found[1] + _console(scenes[found[2]]), text)


_MODULES: Final = """\
# The modules

One line for each, by package, from the top of the [floor plan](architecture.md) down: a package
imports only those below it.
"""


PACKAGES: Final = (
    *("cli", "daemon", "sync", "discovery", "reports", "clients"),
    *("config", "planning", "registry", "state", "core"),
)


def sentence(module: Path) -> str:
    """Return the first paragraph of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split())


def modules() -> str:
    """Return docs/modules.md."""
    root = DOCS.parent / "prewarm"
    parts = [_WRITTEN.format(source="the modules' docstrings"), _MODULES]
    for package in PACKAGES:
        parts.append(f"\n## {package}\n\n{sentence(root / package / '__init__.py')}\n\n")
        parts.append("| module | |\n| --- | --- |\n")
        for path in sorted((root / package).rglob("[!_]*.py")):
            name = path.relative_to(root / package).with_suffix("").as_posix()
            parts.append(f"| `{name}` | {_cell(sentence(path))} |\n")
    return "".join(parts)


def _session() -> str:
    scenes = tour.recordings()
    return "\n".join(scenes[name] for name in ("sync", "explain"))


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "configuration.md": configuration,
    "commands.md": commands,
    "modules.md": modules,
    "terminal-dark.svg": lambda: picture(_session(), DARK),
    "terminal-light.svg": lambda: picture(_session(), LIGHT),
}
"""What is made from the code and the recordings alone."""
TEXTS: Final = (DOCS.parent / "README.md", *sorted(DOCS.glob("**/*.md")))


def main() -> None:
    if "--record" in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder, tour.site(Path(folder)) as stage:
            tour.record(tour.play(stage))
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
    for path in TEXTS:
        path.write_text(with_recordings(path.read_text()))


if __name__ == "__main__":
    main()
