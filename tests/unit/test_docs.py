"""The docs tell what the code does: commands, options, keys, codes, examples and links."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml

from prewarm.cli.main import cli
from prewarm.config.reader import load
from prewarm.config.schema import every_key
from prewarm.registry.errors import role_code
from tests.support.docs import DOCS, EXAMPLES, PAGES, TEXTS, with_recordings
from tests.support.tour import PINS, recordings

ROOT = DOCS.parent
README = ROOT / "README.md"
SECURITY = ROOT / "SECURITY.md"
MODULES = sorted((ROOT / "prewarm").rglob("*.py"))
CODE = re.compile(r"[a-z]+(-[a-z]+)*")
CODE_ARGUMENTS = {
    "PrewarmError": 0,
    "UsageError": 0,
    "AlreadyRunningError": 0,
    "RegistryError": 0,
    "GitlabRefusal": 0,
    "UnreachableError": 0,
    "Failure": 0,
    "Refusal": 0,
    "_error": 0,
    "role_code": 1,
    "Problem": 1,
    "Skip": 2,
    "Tag": 2,
    "Copy": 3,
    "Defer": 3,
}
"""Where the code stands in a call of each name."""


def codes_in(source: str) -> set[str]:
    """Return the codes that a module can report: in calls, in `code`, in tables and returns."""
    found: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name), args=args):
                place = CODE_ARGUMENTS.get(name)
                if place is not None and place < len(args):
                    found.update(texts(args[place]))
            case ast.Assign(targets=[ast.Name("code")], value=value):
                found.update(texts(value))
            case ast.AnnAssign(target=ast.Name("code"), value=ast.Constant() as value):
                found.update(texts(value))
            case ast.Return(value=ast.Tuple(elts=elements)):
                found.update(told(elements))
    for statement in tree.body:
        if isinstance(statement, ast.AnnAssign | ast.Assign) and statement.value is not None:
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Tuple):
                    found.update(told(node.elts))
    return found


def texts(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(str(text)) if CODE.fullmatch(text):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body)
            yield from texts(orelse)
        case _:
            pass


def told(elements: list[ast.expr]) -> Iterator[str]:
    """Yield what stands right before a text for people."""
    for element, after in pairwise(elements):
        match after:
            case ast.JoinedStr() | ast.Call():
                yield from texts(element)
            case ast.Constant(str(text)) if " " in text:
                yield from texts(element)
            case _:
                pass


def documented() -> set[str]:
    page = (DOCS / "codes.md").read_text()
    return set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))


def used() -> dict[str, set[str]]:
    """Return the codes of the code, and the modules where each stands."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for code in codes_in(module.read_text()):
            found.setdefault(code, set()).add(module.name)
    return found


def test_codes_in_finds_every_way_a_code_is_written() -> None:
    source = """
LIMITS = (("x", "table", "a cause", "a cure"),)
class Fresh:
    code: str = "default"
def f(self, ok):
    code = "one" if ok else "other"
    raise UsageError("usage-error", "text", "cure")
    self._error("own", access, "text", "cure")
    Defer(want, seen, None, "later", f"{ok}")
    return "returned", f"text {ok}"
"""
    assert codes_in(source) == {
        "table",
        "default",
        "one",
        "other",
        "usage-error",
        "own",
        "later",
        "returned",
    }


def test_codes_page_has_every_code_of_the_code() -> None:
    known = documented()
    missing = {
        code: places
        for code, places in used().items()
        if not {code, code.removeprefix("mirror-"), role_code("mirror", code)} & known
    }
    assert missing == {}, "describe them in docs/codes.md"


def test_codes_page_has_no_code_that_is_not_used() -> None:
    codes = used().keys()
    possible = codes | {role_code("mirror", code) for code in codes}
    assert documented() - possible == set()


@pytest.mark.parametrize(("name", "page"), PAGES.items(), ids=PAGES)
def test_generated_page_equals_what_the_code_says(name: str, page: Callable[[], str]) -> None:
    assert (DOCS / name).read_text() == page(), "python -m tests.support.docs"


@cache
def printed() -> tuple[str, ...]:
    """Return every text in the code; what is filled in at run time is cut out of it."""
    return tuple(
        node.value
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def quoted() -> list[str]:
    """Return the messages that docs/troubleshooting.md explains: the first cells of its tables."""
    page = (DOCS / "troubleshooting.md").read_text().partition("Every message")[2]
    return re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)


@pytest.mark.parametrize("message", quoted())
def test_troubleshooting_quotes_what_the_program_prints(message: str) -> None:
    """Between `…`, and around `; `, stand words of the code."""
    pieces = [piece.strip(" :,") for piece in re.split(r"…|; ", message)]
    wording = printed()
    assert [p for p in pieces if p and not any(p in text for text in wording)] == []


def test_troubleshooting_has_every_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    assert documented() - set(re.findall(r"`([a-z-]+)`", page)) == set()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_quoted_output_is_what_was_recorded(path: Path) -> None:
    text = path.read_text()
    assert text == with_recordings(text), "make docs"


PREWARM = re.compile(r"\$ (sudo (-u \S+ )?)?prewarm ")


def output_of_prewarm(block: str) -> Iterator[str]:
    """Yield the lines of a console block that prewarm printed, not those of other programs."""
    ours = typing = False
    for line in block.splitlines():
        if line.startswith("$ "):
            ours = PREWARM.match(line) is not None
        elif ours and not typing:
            yield line
        typing = line.endswith(("\\", "|"))


def test_output_of_prewarm_is_told_from_what_is_typed_and_from_other_programs() -> None:
    block = "$ kubectl -n prewarm get |\n  cat\nnone\n$ sudo -u prewarm prewarm x \\\n  y\nit\n"
    assert list(output_of_prewarm(block)) == ["it"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_output_in_the_docs_was_printed(path: Path) -> None:
    """But for numbers: a page may begin with another file than the tour."""

    def numberless(line: str) -> str:
        return re.sub(r"\d+", "N", click.unstyle(line))

    seen = {numberless(line) for text in recordings().values() for line in text.splitlines()}
    for block in re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL):
        assert [line for line in output_of_prewarm(block) if numberless(line) not in seen] == []


def test_day_two_tells_what_to_do_about_each_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DOCS / "prewarm.rules.yml").read_text())
    page = (DOCS / "operations.md").read_text()
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []


def test_every_command_has_an_example() -> None:
    assert EXAMPLES.keys() == cli.commands.keys()
    assert {scene for scenes in EXAMPLES.values() for scene in scenes} <= recordings().keys()


def test_commands_page_has_every_command_and_option() -> None:
    page = (DOCS / "commands.md").read_text()
    head, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    described = {section.partition("\n")[0]: section for section in sections}
    assert head.count("| ") > 0
    for name, command in {"Global options": cli, **cli.commands}.items():
        for parameter in command.params:
            told = isinstance(parameter, click.Option) and not parameter.hidden
            for spelling in parameter.opts if told else ():
                assert f"`{spelling}" in described[name] or f", {spelling}" in described[name]


def test_every_command_has_help() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), (name, parameter.name)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_name_only_commands_that_exist(path: Path) -> None:
    """A command to type begins a code span or a line of a console block."""
    typed = re.findall(
        r"(?:^\$ |`)prewarm (?:-\S+ )*([a-z][a-z-]*)", path.read_text(), re.MULTILINE
    )
    assert set(typed) <= cli.commands.keys()


def anchors(path: Path) -> set[str]:
    """Return the names by which GitHub and GitLab link to the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_link_only_to_what_is_there(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in ("".join(one) for one in links):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_security_page_names_only_tests_that_exist() -> None:
    named = re.findall(r"`([a-z0-9/]+/test_\w+\.py)(?:::(\w+))?`", SECURITY.read_text())
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}" in (ROOT / "tests" / file).read_text(), (file, test)


def test_map_of_the_docs_has_every_page() -> None:
    page = (DOCS / "README.md").read_text()
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in page} == set()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_name_only_codes_that_exist_where_one_is_explained(path: Path) -> None:
    explained = re.findall(r"^\*\*`([a-z-]+)`", path.read_text(), re.MULTILINE)
    known = documented()
    assert set(explained) <= known | {role_code("mirror", code) for code in known}


def test_every_key_is_explained_with_an_example() -> None:
    for path, key in every_key():
        assert key.meaning, path
        below = list(every_key(key.kind))
        assert key.example or below, path


def test_examples_of_the_reference_are_one_valid_file(tmp_path: Path) -> None:
    page = (DOCS / "configuration.md").read_text()
    file = tmp_path / "images.yml"
    file.write_text("".join(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)))
    assert load(file).problems == ()


def test_readme_example_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    file = tmp_path / "images.yml"
    file.write_text(example)
    settings = load(file)
    assert settings.problems == ()
    assert settings.gitlab is not None
    assert yaml.safe_load(example)["images"] == list(PINS), "the picture shows this file"


def test_readme_lists_every_command() -> None:
    text = README.read_text()
    for name in cli.commands:
        assert re.search(rf"prewarm {name}\b", text), name


def test_readme_tells_what_the_forecast_measured() -> None:
    page = (DOCS / "forecast.md").read_text()
    row = re.search(r"^\| 100 \| (\S+)% \| (\S+)% \| \S+ \| (\S+)% ", page, re.MULTILINE)
    assert row is not None
    for share in row.groups():
        assert f" {float(share):.0f} %" in README.read_text()
