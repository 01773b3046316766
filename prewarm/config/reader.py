"""Reads `images.yml` into `Settings`; every problem at once, each with its line and its cure.

The file is composed from YAML events by hand, for four reasons: a scalar keeps its spelling
(`tags: [3.10]` is the tag 3.10), every value knows its line, duplicate keys are seen, and neither
nesting nor aliases can be used to exhaust the machine. What the keys accept is in `schema`.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from prewarm.config import schema
from prewarm.config.schema import Either, Key, Keys, Kind, Many, Named, Text
from prewarm.core.errors import ConfigError, Problem, UsageError
from prewarm.core.home_dir import home_folder
from prewarm.core.ownership import changed_by_others, is_ours, user_name
from prewarm.core.reference import DOCKER_HUB, Reference
from prewarm.core.settings import (
    DOCKER_HUB_ENDPOINT,
    Allowance,
    Gitlab,
    Limits,
    Mirror,
    Newest,
    Notify,
    Pin,
    Runners,
    Settings,
    Upstream,
)
from prewarm.core.text import Refused
from prewarm.core.yaml_limits import crowded_directives

SYSTEM_CONFIG: Final = Path("/etc/prewarm/images.yml")

_BYTES_MAX: Final = 10_000_000
_DEPTH_MAX: Final = 50
_SCALAR_MAX: Final = 4096
_ALIASED_MAX: Final = 100_000
"""Values that aliases may add to those that stand in the file (an alias bomb adds billions)."""
_PROBLEMS_MAX: Final = 1000

_KEEP: Final = Mirror("", "").keep

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE: Final = "tag:yaml.org,2002:"
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SECRET_KEY: Final = re.compile(r"token|passw|secret|credential|login|api_?key", re.IGNORECASE)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_.:-]{1,60}")


def find_config(
    option: str | None, environ: Mapping[str, str], cwd: Path, *, system: Path = SYSTEM_CONFIG
) -> Path:
    """Return the configuration file to read: the first that is named or there (CONTRACT, 1).

    A file named by `--config` or `$PREWARM_CONFIG` is returned whether it exists or not: `load`
    then says so. Raises UsageError where none is named and none of the usual ones exists, and where
    another user could have written the one of the current folder: it may name commands to run and
    hosts that are sent secrets.
    """
    if named := option or environ.get("PREWARM_CONFIG"):
        return cwd / named
    found = cwd / "images.yml"
    if _exists(found):
        _refuse_foreign(found)
        return found
    if _exists(system):
        return system
    raise UsageError(
        "config",
        f"no configuration: neither ./images.yml nor {system} exists",
        "write one with `prewarm init`, or name one with --config",
    )


def load(path: Path, *, home: Path | None = None) -> Settings:
    """Return the settings that the file and its includes hold.

    `home` is what `~` stands for, the user's own folder by default. Raises UsageError where the
    file cannot be read, ConfigError with all its problems where it is wrong. What is wrong in an
    included file is no reason to stop: it is in `Settings.problems`.
    """
    data = _read_main(path)
    path = path.absolute()
    reader = _Reader(path.name, path.parent, home or home_folder(os.environ))
    root = reader.document(data, schema.FILE)
    checks = _Checks(reader, root)
    checks.run()
    if reader.problems:
        raise ConfigError(reader.sorted())
    settings = _settings(root, path)
    pins = [*checks.pins]
    problems: list[Problem] = []
    for included in _included(root, reader, path, problems):
        pins += included.pins
        problems += included.reader.sorted()
    return replace(settings, pins=tuple(pins), problems=tuple(problems))


def example() -> str:
    """Return the commented sample that `prewarm init` writes."""
    return schema.example()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _refuse_foreign(path: Path) -> None:
    try:
        cause = changed_by_others(path)
    except OSError:
        return  # reading it will fail as well
    if cause is not None:
        raise UsageError(
            "config-owner",
            f"{path}, found in the current folder, is not used: {cause}",
            f"if you trust it, run prewarm --config {shlex.quote(str(path))}; otherwise change to "
            "another folder, or correct owner and mode",
        )


def _read_main(path: Path) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        cure = "write one with `prewarm init`, or name another with --config"
        raise UsageError("config", f"{path}: no such file", cure) from None
    except IsADirectoryError:
        raise UsageError(
            "config", f"{path}: is a folder, not a file", f"name the file: {path}/images.yml"
        ) from None
    except OSError as error:
        cause = (error.strerror or "cannot be read").lower()
        cure = "let the user who runs prewarm read it"
        raise UsageError("config", f"{path}: {cause}", cure) from None


def _read(path: Path) -> bytes:
    """Return the bytes of the file, at most one more than is allowed."""
    with path.open("rb") as file:
        return file.read(_BYTES_MAX + 1)


# YAML: events to values with lines


class _Unreadable(Exception):  # noqa: N818 - a text, not a bug
    """The text is not YAML, or YAML that is refused as a whole."""

    def __init__(self, line: int, problem: str, cure: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem
        self.cure = cure


@dataclass(frozen=True, slots=True)
class _Scalar:
    line: int
    text: str
    plain: bool

    @property
    def empty(self) -> bool:
        """Whether nothing is written, or null."""
        return self.plain and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class _Collection:
    line: int
    mapping: bool
    children: list[_Node]
    """The items of a list; keys and values of a mapping in turn."""


_Node = _Scalar | _Collection


def _text(data: bytes) -> str:
    if len(data) > _BYTES_MAX:
        raise _Unreadable(
            1, f"is larger than {_BYTES_MAX // 10**6} MB", "spread it over files that include names"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Unreadable(line, "is not UTF-8 text", "save the file as UTF-8") from None
    if match := _CONTROL.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise _Unreadable(line, "holds a control character", "take it out")
    return text


def _compose(text: str) -> tuple[_Node, int]:
    """Return the one document of the text, and how many values stand in it."""
    if line := crowded_directives(text):
        raise _Unreadable(line, "has too many lines that begin with %", "remove the directives")
    composer = _Composer()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            composer.take(event)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(text, error) from None
    except (yaml.YAMLError, ValueError):
        raise _Unreadable(1, "is not YAML", "see `prewarm init -` for an example") from None
    if composer.root is None or (isinstance(composer.root, _Scalar) and composer.root.empty):
        raise _Unreadable(1, "is empty", "see `prewarm init -` for an example")
    return composer.root, composer.count


def _syntax_error(text: str, error: yaml.MarkedYAMLError) -> _Unreadable:
    """Return what libyaml says, which never quotes the text, with the cure of common slips."""
    mark = error.problem_mark or error.context_mark
    lines = text.rstrip().splitlines() or [""]
    line = min(mark.line + 1 if mark else 1, len(lines))  # what is missing at the end is after it
    problem = error.problem or "cannot be read"
    written = lines[line - 1]
    if re.match(r" *\t", written):
        return _Unreadable(line, "is indented with a tab, which YAML refuses", "use blanks")
    cure = "check indentation and quotes here and in the line before"
    if "cannot start any token" in problem:
        cure = "put a text that begins with a character such as @ ` % * & in quotes"
    elif "mapping values" in problem:
        cure = 'put a text that holds ": " in quotes, and check the indentation'
    return _Unreadable(line, f"is not YAML: {problem}", cure)


class _Composer:
    """Builds the values of one document from events, without recursion."""

    def __init__(self) -> None:
        self.root: _Node | None = None
        self.count = 0
        self._documents = 0
        self._anchors: dict[str, _Node | None] = {}
        self._open: list[tuple[_Collection, str | None]] = []

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        match event:
            case yaml.ScalarEvent():
                tagged = _refuse_tag(event.tag, line)
                plain = not event.style and not tagged
                self._complete(_Scalar(line, event.value, plain), event.anchor)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._begin(event, line)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._complete(*self._open.pop())
            case yaml.AliasEvent():
                self._complete(self._alias(event.anchor, line), None)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _Unreadable(
                        line, "begins a second document", "keep one: take out the line ---"
                    )

    def _begin(self, event: Any, line: int) -> None:
        _refuse_tag(event.tag, line)
        if len(self._open) >= _DEPTH_MAX:
            raise _Unreadable(
                line, f"is nested more than {_DEPTH_MAX} deep", "no key needs more than eight"
            )
        if event.anchor:
            self._anchors[event.anchor] = None
        mapping = isinstance(event, yaml.MappingStartEvent)
        self._open.append((_Collection(line, mapping, []), event.anchor))

    def _complete(self, node: _Node, anchor: str | None) -> None:
        self.count += 1
        if anchor:
            self._anchors[anchor] = node
        if self._open:
            self._open[-1][0].children.append(node)
        else:
            self.root = node

    def _alias(self, anchor: str | None, line: int) -> _Node:
        if anchor is None or anchor not in self._anchors:
            raise _Unreadable(
                line, "is an alias (*) of an anchor (&) that no line before has", "write the value"
            )
        node = self._anchors[anchor]
        if node is None:
            raise _Unreadable(line, "is an alias (*) of what it stands in", "write the value")
        return replace(node, line=line)


def _refuse_tag(tag: str | None, line: int) -> bool:
    """Return whether a value has a tag, which must be one of YAML's own."""
    if tag is None or tag == "!":
        return tag is not None
    if tag.removeprefix(_CORE) not in {"str", "int", "float", "bool", "null", "seq", "map"}:
        raise _Unreadable(line, "has a YAML tag (!) that prewarm does not know", "take it out")
    return True


# Values with lines to values that are checked


@dataclass(frozen=True, slots=True)
class _Found:
    """A value that was read: what the key's kind makes of it, and where it stands.

    A mapping is a `dict[str, _Found]`, a list a `list[_Found]`.
    """

    value: Any
    line: int
    path: str


class _Reader:
    """Reads one file by its declared keys and collects what is wrong."""

    def __init__(self, name: str, folder: Path, home: Path | None) -> None:
        self.name = name
        """The file's short name, for people: relative to the folder of `images.yml`."""
        self.folder = folder
        """What relative paths are relative to: the folder of `images.yml`."""
        self.home = home
        self.problems: list[Problem] = []
        self._lines: list[int] = []
        self._left = 0

    def problem(self, line: int, path: str, problem: str, cure: str) -> None:
        text = f"{path}: {problem}" if path else problem
        if len(self.problems) == _PROBLEMS_MAX:
            text, cure = f"has more than {_PROBLEMS_MAX} problems", "cure these first"
        if len(self.problems) <= _PROBLEMS_MAX:
            self.problems.append(Problem("error", "config", f"{self.name}:{line}", text, cure))
            self._lines.append(line)

    def sorted(self) -> tuple[Problem, ...]:
        """Return the problems in the order of their lines."""
        order = sorted(range(len(self.problems)), key=self._lines.__getitem__)
        return tuple(self.problems[index] for index in order)

    def document(self, data: bytes, kind: Keys) -> _Found:
        """Return what the file holds; what is wrong with it is left out, and in `problems`."""
        try:
            node, count = _compose(_text(data))
            self._left = count + _ALIASED_MAX
            found = self.read(node, kind, "", 1)
        except _Unreadable as error:
            text = f"the file {error.problem}" if error.line == 1 else error.problem
            self.problem(error.line, "", text, error.cure)
            found = None
        return found or _Found({}, 1, "")

    def read(self, node: _Node, kind: Kind, path: str, line: int) -> _Found | None:
        """Return the value, or None where nothing of it can be used."""
        if not isinstance(kind, Either):  # which reads the same value again, by its form
            self._visit(node)
        match kind:
            case Text() if isinstance(node, _Scalar):
                return self._scalar(node, kind, path, line)
            case Keys() if isinstance(node, _Collection) and node.mapping:
                return self._keys(node, kind, path, line)
            case Named() if isinstance(node, _Collection) and node.mapping:
                return self._named(node, kind, path, line)
            case Many() if isinstance(node, _Collection) and not node.mapping:
                return self._many(node, kind, path, line)
            case Either() if isinstance(node, _Scalar) and kind.offer:
                return self._word(node, kind, kind.offer, path, line)
            case Either() if form := _form(node, kind):
                return self.read(node, form, path, line)
        self.problem(line, path, f"must be {_says(kind)}, not {_form_of(node)}", _form_cure(kind))
        return None

    def _word(
        self, node: _Scalar, kind: Either, offer: Callable[[str], str], path: str, line: int
    ) -> _Found | None:
        """Read a word where one is rarely meant: what is offered is a form that holds it."""
        self._visit(node)
        with suppress(ValueError):
            if kind.text is not None:
                return _Found(kind.text.parse(node.text), line, path)
        says = f"must be {kind.says}, not {schema.shown(node.text)}"
        problem, text = ("has no value", "") if node.empty else (says, node.text)
        self.problem(line, path, problem, f"write {path.rpartition('.')[2]}: {offer(text)}")
        return None

    def _visit(self, node: _Node) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Unreadable(node.line, "repeats too much by aliases (*)", "write less of them")

    def resolve(self, path: Path) -> Path:
        """Return the path from the folder of `images.yml`, or from the home folder after `~/`.

        Refused where there is no home folder.
        """
        if path.parts[:1] != ("~",):
            return self.folder / path
        if self.home is None:
            raise Refused("begins with ~/, and this user has no home folder", "write it in full")
        return self.home.joinpath(*path.parts[1:])

    def _scalar(self, node: _Scalar, kind: Text, path: str, line: int) -> _Found | None:
        if node.empty and not (kind.null and node.text.isalpha()):
            self.problem(line, path, "has no value", kind.cure or f"write {kind.says}")
            return None
        if len(node.text) > _SCALAR_MAX:
            self.problem(line, path, f"is longer than {_SCALAR_MAX} characters", "shorten it")
            return None
        try:
            value = kind.parse(node.text)
            found = self.resolve(value) if isinstance(value, Path) else value
        except Refused as error:
            self.problem(line, path, error.problem, error.cure)
            return None
        except ValueError:
            ending = "" if kind.secret else f", not {schema.shown(node.text)}"
            self.problem(line, path, f"must be {kind.says}{ending}", kind.cure)
            return None
        return _Found(found, line, path)

    def _many(self, node: _Collection, kind: Many, path: str, line: int) -> _Found | None:
        if len(node.children) < kind.least:
            self.problem(line, path, "is an empty list", "write at least one entry, or no list")
            return None
        items = (
            self.read(item, kind.item, f"{path}[{index}]", item.line)
            for index, item in enumerate(node.children)
        )
        return _Found([item for item in items if item is not None], line, path)

    def _keys(self, node: _Collection, kind: Keys, path: str, line: int) -> _Found:
        written: dict[str, _Found | None] = {}
        for name, label, value in self._entries(node, path):
            key = kind.find(name)
            if key is None:
                self._unknown(name, kind, path, label.line)
            elif not (_is_empty(value) and isinstance(key.kind, Many | Keys | Named)):
                written[name] = self.read(value, key.kind, _join(path, name), label.line)
        for key in kind.keys:
            if key.required and key.name not in written:
                self.problem(line, _join(path, key.name), "is missing", f"write {_sample(key)}")
        values = {name: found for name, found in written.items() if found is not None}
        if kind.check:
            plain = {name: found and found.value for name, found in written.items()}
            for name, problem, cure in kind.check(plain):
                at = values[name].line if name else line
                self.problem(at, _join(path, name), problem, cure)
        return _Found(values, line, path)

    def _named(self, node: _Collection, kind: Named, path: str, line: int) -> _Found:
        values: dict[str, _Found] = {}
        for written, label, value in self._entries(node, path):
            name = self.read(label, kind.name, path, label.line)
            if name is None:
                continue
            if name.value in values:
                first = values[name.value].line
                text = f"{written!r} is {name.value} again (line {first})"
                self.problem(label.line, path, text, "keep one of them")
                continue
            inner = f"{path}.{name.value}"
            empty = _Found({}, label.line, inner)
            found = None if _is_empty(value) else self.read(value, kind.item, inner, label.line)
            values[name.value] = found or empty
        return _Found(values, line, path)

    def _entries(self, node: _Collection, path: str) -> Iterator[tuple[str, _Scalar, _Node]]:
        """Yield name, key and value of each entry of a mapping that is no duplicate."""
        lines: dict[str, int] = {}
        for label, value in zip(node.children[::2], node.children[1::2], strict=True):
            self._visit(label)
            if not isinstance(label, _Scalar):
                self.problem(label.line, path, "has a key that is no text", "write a name before :")
            elif label.text == "<<" and label.plain:
                text = "merge keys (<<) are not supported"
                self.problem(label.line, path, text, "write the keys, or alias the whole value")
            elif label.text in lines:
                first = lines[label.text]
                text = f"is written twice, first in line {first}"
                self.problem(label.line, _join(path, label.text), text, "keep one of them")
            else:
                lines[label.text] = label.line
                yield label.text, label, value

    def _unknown(self, name: str, kind: Keys, path: str, line: int) -> None:
        if len(self.problems) > _PROBLEMS_MAX:
            return
        names = [key.name for key in kind.keys]
        secret = _SECRET_KEY.search(name) is not None
        close = difflib.get_close_matches(name.lower(), names, 1, 0.85 if secret else 0.6)
        if close:
            problem, cure = "unknown key", f"did you mean {close[0]}?"
        elif secret:
            problem = "secrets are never in this file"
            cure = (
                "take it out; a file with GitLab's token is named by gitlab.token_file, "
                "one with the registries' logins by authfile"
            )
        elif kind is schema.INCLUDED and schema.FILE.find(name):
            problem, cure = "is not read in an included file", "write it into images.yml"
        else:
            problem, cure = "unknown key", f"the keys here are {', '.join(names)}"
        self.problem(line, _join(path, name), problem, cure)


def _form(node: _Node, kind: Either) -> Kind | None:
    """Return the form of the kind that fits the node."""
    if isinstance(node, _Scalar):
        return kind.text
    return kind.keys if node.mapping else kind.many


def _says(kind: Kind) -> str:
    match kind:
        case Text() | Either():
            return kind.says
        case Many():
            return "a list"
        case Keys() | Named():
            return "a mapping"


def _form_cure(kind: Kind) -> str:
    match kind:
        case Text():
            return kind.cure
        case Many():
            return "write each entry on a line of its own after `- `"
        case Keys():
            return f"write keys below it: {', '.join(key.name for key in kind.keys)}"
        case Named():
            return f"write names below it, such as {kind.example}:"
        case Either():
            return f"write {kind.says}"


def _form_of(node: _Node) -> str:
    if isinstance(node, _Collection):
        return "a mapping" if node.mapping else "a list"
    return "nothing" if node.empty else "a text"


def _is_empty(node: _Node) -> bool:
    return isinstance(node, _Scalar) and node.empty


def _sample(key: Key) -> str:
    if key.example:
        return f"{key.name}: {key.example}"
    return f"{key.name}: [http://127.0.0.1:5000]"  # mirrors is the one such key that is required


def _join(path: str, name: str) -> str:
    if name and not _PLAIN_KEY.fullmatch(name):
        name = schema.shown(name)
    return f"{path}.{name}" if path and name else path or name


# Rules of the whole file


class _Checks:
    """What must hold between keys that lie apart; also makes the pins."""

    def __init__(self, reader: _Reader, root: _Found) -> None:
        self.reader = reader
        self.root: dict[str, _Found] = root.value
        self.pins: list[Pin] = []

    def run(self) -> None:
        self._mirrors()
        names = self.root["registries"].value if "registries" in self.root else {DOCKER_HUB: None}
        listed = "registries" in self.root
        self.pins = _pins(self.root, self.reader, frozenset(names), listed=listed)

    def _mirrors(self) -> None:
        if "mirrors" not in self.root:
            return
        mirrors = self.root["mirrors"]
        seen: dict[str, int] = {}
        targets = 0
        for item in mirrors.value:
            keys = item.value if isinstance(item.value, dict) else {"url": item}
            targets += _value(keys, "role", "target") == "target"
            self._keep(keys)
            self._mode(keys)
            if "url" in keys:
                host = _host(keys["url"].value)
                if host in seen:
                    text = f"is the mirror of line {seen[host]} again"
                    self.reader.problem(item.line, keys["url"].path, text, "keep one of them")
                seen.setdefault(host, item.line)
        if mirrors.value and not targets:
            self.reader.problem(
                mirrors.line,
                mirrors.path,
                "all are sources, and none is there to be kept warm",
                "add a mirror with role: target",
            )

    def _mode(self, keys: Mapping[str, _Found]) -> None:
        if (_value(keys, "mode", ""), _value(keys, "role", "")) == ("pull-through", "source"):
            self.reader.problem(
                keys["role"].line,
                keys["role"].path,
                "is source, but to read a pull-through mirror may cost a pull",
                "take the mirror out, or write role: target",
            )

    def _keep(self, keys: Mapping[str, _Found]) -> None:
        history = _history(self.root)
        if "keep" in keys and keys["keep"].value < history:
            days = -(-history // 86400)
            self.reader.problem(
                keys["keep"].line,
                keys["keep"].path,
                "is shorter than gitlab.history, so that tags still in use would go",
                f"write keep: {days}d or more",
            )


def _history(root: Mapping[str, _Found]) -> int:
    gitlab = root["gitlab"].value if "gitlab" in root else {}
    return int(_value(gitlab, "history", Gitlab("").history))


def _host(url: str) -> str:
    """Return host and port of a mirror, by which it is known."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _pins(
    root: Mapping[str, _Found], reader: _Reader, registries: frozenset[str], *, listed: bool
) -> list[Pin]:
    """Return the pins of a file, without those whose registry is not listed: a problem each."""
    pins = []
    for item in root["images"].value if "images" in root else []:
        pin = _pin(item, reader.name)
        if pin is None:
            continue
        registry = pin.reference.registry
        if registry in registries:
            pins.append(pin)
            continue
        cure = f"add {registry}: {{}} under registries"
        if not listed:
            cure = f"add registries: with {DOCKER_HUB}: {{}} and {registry}: {{}} below it"
        text = f"{registry} is not listed under registries"
        reader.problem(item.line, item.path, text, cure)
    return pins


def _pin(item: _Found, file: str) -> Pin | None:
    """Return the pin of an entry; None where its image could not be read."""
    keys = item.value if isinstance(item.value, dict) else {"image": item}
    if "image" not in keys:
        return None
    reference: Reference = keys["image"].value
    tags = _tags(keys.get("tags"))
    if tags is None and reference.tag is None and reference.digest is None:
        reference = reference.with_tag("latest")
    return Pin(reference, tags, _wanted(keys), file, item.line)


def _tags(found: _Found | None) -> tuple[str, ...] | Newest | None:
    if found is None:
        return None
    if isinstance(found.value, dict):
        return Newest(**_plain(found.value))
    return tuple(dict.fromkeys(item.value for item in found.value))


# Settings


def _settings(root: _Found, path: Path) -> Settings:
    """Return the settings of a file without problems, but for its pins and includes."""
    keys: dict[str, _Found] = root.value
    values: dict[str, Any] = {
        name: keys[name].value
        for name in ("recheck", "timezone", "authfile", "host", "metrics")
        if name in keys
    }
    if "registries" in keys:
        registries = keys["registries"].value
        values["registries"] = tuple(_upstream(name, registries[name].value) for name in registries)
    if "schedule" in keys:
        when = keys["schedule"].value
        values["schedule"] = (when,) if isinstance(when, str) else _texts(keys["schedule"])
    if "state" in keys:
        values["state"] = str(keys["state"].value)
    if "skip" in keys:
        values["skip"] = _texts(keys["skip"])
    return Settings(
        path=path,
        mirrors=tuple(_mirror(item, _history(keys)) for item in keys["mirrors"].value),
        platforms=_wanted(keys),
        gitlab=_gitlab(keys["gitlab"].value) if "gitlab" in keys else None,
        limits=Limits(**_plain(_value(keys, "limits", {}))),
        notify=Notify(**_plain(keys["notify"].value)) if "notify" in keys else None,
        **values,
    )


def _mirror(item: _Found, history: int) -> Mirror:
    if isinstance(item.value, str):
        return Mirror(item.value, item.value, keep=max(_KEEP, history))
    values = _plain(item.value)
    return Mirror(**{"client_url": values["url"], "keep": max(_KEEP, history), **values})


def _upstream(name: str, keys: Mapping[str, _Found]) -> Upstream:
    endpoint = DOCKER_HUB_ENDPOINT if name == DOCKER_HUB else f"https://{name}"
    values: dict[str, Any] = {"endpoint": endpoint}
    values |= {key: keys[key].value for key in ("endpoint", "ca", "realm") if key in keys}
    if "budget" in keys:
        budget = keys["budget"].value
        values["budget"] = "none" if budget == "none" else Allowance(**_plain(budget))
    return Upstream(name, platforms=_wanted(keys), **values)


def _gitlab(keys: Mapping[str, _Found]) -> Gitlab:
    values = _plain({name: keys[name] for name in keys if name != "runners"})
    values["runner_logs"] = tuple(str(log) for log in values.get("runner_logs", ()))
    runners = Runners(**_plain(_value(keys, "runners", {})))
    return Gitlab(runners=runners, **values)


def _plain(keys: Mapping[str, _Found]) -> dict[str, Any]:
    """Return values by name, lists of values as tuples: what a dataclass of the settings takes."""
    return {
        name: _texts(found) if isinstance(found.value, list) else found.value
        for name, found in keys.items()
    }


def _texts(found: _Found) -> tuple[Any, ...]:
    return tuple(item.value for item in found.value)


def _wanted(keys: Mapping[str, _Found]) -> Any:
    """Return the platforms, each once, `all`, or None where not written."""
    if "platforms" not in keys:
        return None
    value = keys["platforms"].value
    return value if isinstance(value, str) else tuple(dict.fromkeys(_texts(keys["platforms"])))


def _value(keys: Mapping[str, _Found], name: str, default: Any) -> Any:
    return keys[name].value if name in keys else default


# Included files


@dataclass(frozen=True, slots=True)
class _Included:
    reader: _Reader
    pins: list[Pin]


def _included(
    root: _Found, main: _Reader, path: Path, problems: list[Problem]
) -> Iterator[_Included]:
    """Yield what each included file holds; a file that cannot be opened is a problem."""
    listed = "registries" in root.value
    names = root.value["registries"].value if listed else {DOCKER_HUB: None}
    done = {_identity(path)}
    for pattern in root.value["include"].value if "include" in root.value else []:
        where = f"{main.name}:{pattern.line}"
        try:
            files = _matching(pattern.value, main)
        except Refused as error:
            text = f"{pattern.path}: {error.problem}"
            problems.append(Problem("error", "config", where, text, error.cure))
            continue
        if not files and not glob.has_magic(pattern.value):
            text = f"{pattern.path}: {schema.shown(pattern.value)} is not there"
            problems.append(
                Problem("error", "config", where, text, "write the file, or take it out")
            )
        if not files and (cause := _unreadable_folder(pattern.value, main)) is not None:
            text = f"{pattern.path}: the folder of {schema.shown(pattern.value)}: {cause}"
            cure = "let the user who runs prewarm read it, or take the line out"
            problems.append(Problem("error", "config", where, text, cure))
        for file in files:
            if _identity(file) in done:
                continue
            done.add(_identity(file))
            reader = _Reader(_short_name(file, main.folder), main.folder, main.home)
            yield _read_included(file, reader, path, frozenset(names), listed=listed)


def _read_included(
    file: Path, reader: _Reader, main: Path, registries: frozenset[str], *, listed: bool
) -> _Included:
    try:
        if not file.is_file():
            reader.problem(1, "", "is not a file", "name files only under include")
            return _Included(reader, [])
        owner = file.stat().st_uid
        if not is_ours(owner) and owner != main.stat().st_uid:
            text = f"belongs to {user_name(owner)}, who is not the owner of {main}"
            reader.problem(1, "", text, f"check it, then run: chown root {file}")
            return _Included(reader, [])
        data = _read(file)
    except OSError as error:
        cause = (error.strerror or "an error").lower()
        reader.problem(1, "", f"cannot be read: {cause}", "let the user who runs prewarm read it")
        return _Included(reader, [])
    root = reader.document(data, schema.INCLUDED)
    return _Included(reader, _pins(root.value, reader, registries, listed=listed))


def _identity(file: Path) -> Path:
    """Return the file that a name leads to, so that one file is read once."""
    try:
        return file.resolve()
    except (OSError, RuntimeError):  # a loop of links, which reading it reports
        return file


def _matching(pattern: str, main: _Reader) -> list[Path]:
    """Return the files that an entry of `include` names, in the order of their names."""
    if pattern.startswith("~/"):
        full = glob.escape(str(main.resolve(Path("~")))) + pattern[1:]
    elif pattern.startswith("/"):
        full = pattern
    else:
        full = f"{glob.escape(str(main.folder))}/{pattern}"
    return [Path(name) for name in sorted(glob.glob(full, recursive=True))]  # noqa: PTH207 - absolute patterns


def _unreadable_folder(pattern: str, main: _Reader) -> str | None:
    """Return why the folder that a pattern looks in cannot be read; None where it is not there.

    glob finds no files then, and tells no reason: the pins in them would be gone without a word.
    """
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
    if len(fixed) == len(parts):
        return None
    folder = main.resolve(Path(*fixed))
    try:
        with os.scandir(folder):
            return None
    except FileNotFoundError:
        return "leads nowhere" if folder.is_symlink() else None
    except OSError as error:
        return (error.strerror or "an error").lower()


def _short_name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
