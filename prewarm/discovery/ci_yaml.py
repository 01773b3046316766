"""Reads CI definitions as GitLab reads them: YAML to plain values, in bounded work.

GitLab reads with Ruby's Psych: YAML 1.1 with Ruby's idea of numbers (`1e3` is a text, `010` is 8),
the last of two equal keys wins, and `<<` overwrites the keys before it. Values are built from
events, without recursion; no tag is ever executed, and `!reference` is kept as a `Quotation`.
An alias is the very object of its anchor, so that aliases of aliases cost nothing here; who walks
the values has to take care of that.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from prewarm.core.yaml_limits import DIRECTIVES_MAX, crowded_directives

BYTES_MAX: Final = 4_000_000
"""Of one file; GitLab itself reads no more than 2 MB (`max_yaml_size_bytes`)."""
DEPTH_MAX: Final = 100
"""Collections inside each other, as in GitLab (`max_yaml_depth`)."""
_MERGED_MAX: Final = 1_000_000
"""Keys that `<<` may copy in one file."""
_NOTES_MAX: Final = 100
_NUMBER_MAX: Final = 40
"""Digits; a longer number is kept as a text."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NO_KEY: Final = object()

_DIVIDER: Final = re.compile(r"^---(?=\s)", re.MULTILINE)
_NULL: Final = re.compile(r"~|null|Null|NULL|")
_TRUE: Final = re.compile(r"yes|true|on", re.IGNORECASE)
_FALSE: Final = re.compile(r"no|false|off", re.IGNORECASE)
_DECIMAL: Final = re.compile(r"[-+]?(?:0|[1-9](?:[0-9]|,[0-9]|_[0-9])*)", re.ASCII)
_OCTAL: Final = re.compile(r"[-+]?0[_,]*[0-7_,]+", re.ASCII)
_HEX: Final = re.compile(r"[-+]?0x[0-9a-fA-F_,]+", re.ASCII)
_BINARY: Final = re.compile(r"[-+]?0b[01_,]+", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:[0-9][0-9_,]*)?\.[0-9]*(?:[eE][+-][0-9]+)?", re.ASCII)


class Unreadable(ValueError):  # noqa: N818 - the name says what the file is
    """The text is no YAML that GitLab would read, or more than prewarm is willing to."""

    def __init__(self, line: int, problem: str, cure: str) -> None:
        super().__init__(f"line {line}: {problem}; {cure}")
        self.line = line
        self.problem = problem
        self.cure = cure


@dataclass(frozen=True, slots=True)
class Quotation:
    """A `!reference [job, key, …]`: the value that stands at this path after `extends`."""

    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"!reference [{', '.join(self.path)}]"


@dataclass(frozen=True, slots=True)
class Note:
    """Something in the file that GitLab accepts and that its author hardly wants."""

    line: int
    problem: str
    cure: str


@dataclass(frozen=True, slots=True)
class File:
    """The documents of a file: mappings, lists, texts, numbers, booleans, None, `Quotation`s."""

    documents: tuple[Any, ...]
    notes: tuple[Note, ...]
    template: str = ""
    """What stands behind the header, where it is no YAML before its inputs are replaced; lines
    count as in the file."""


def read(data: bytes, *, most: int = BYTES_MAX) -> File:
    """Return what stands in the file, if it has at most so many bytes; raises Unreadable."""
    if len(data) > most:
        raise Unreadable(
            1, f"is larger than {most // 10**6} MB", "GitLab refuses more than 2 MB: split the file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, "is not UTF-8 text", "save the file as UTF-8") from None
    if line := crowded_directives(text):
        raise Unreadable(
            line, f"has more than {DIRECTIVES_MAX} lines that begin with %", "remove the directives"
        )
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"is not YAML: {error.problem or error.context or 'cannot be read'}"
        cure = "check indentation and quotes here and in the line before"
        last = text.rstrip().count("\n") + 1  # what is missing at the end is after it
        raise Unreadable(min(mark.line + 1, last) if mark else 1, problem, cure) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(line, "holds a control character", "take it out") from None
    return File(tuple(builder.documents), tuple(builder.notes))


def read_with_header(data: bytes) -> File:
    """Return `read` of a file; one that is no YAML yet gives its header and a template.

    GitLab replaces inputs in the text behind the header (`spec:`), and only then is it YAML.
    Raises Unreadable where there is no such header, or no input to replace.
    """
    try:
        return read(data)
    except Unreadable:
        if len(data) > BYTES_MAX:
            raise
        text = data.decode("utf-8-sig", "replace")
        marks = list(itertools.islice(_DIVIDER.finditer(text), 3))
        if marks and not text[: marks[0].start()].strip():
            del marks[0]
        if not marks:
            raise
        after = marks[1].start() if len(marks) > 1 else len(text)
        template = text[marks[0].end() : after]
        header = _header(text[: marks[0].start()])
        if header is None or "$[[" not in template:
            raise
        return File((header,), (), "\n" * text.count("\n", 0, marks[0].end()) + template)


def _header(text: str) -> Any:
    """Return the header that the text holds, None where it is none."""
    try:
        documents = read(text.encode("utf-8")).documents
    except Unreadable:
        return None
    return documents[0] if documents and is_header(documents[0]) else None


def is_header(document: Any) -> bool:
    """Whether the document declares inputs, for the one behind it."""
    return isinstance(document, dict) and "spec" in document


def scalar(text: str) -> str | int | float | bool | None:
    """Return what a plain (unquoted) scalar means to Psych."""
    first = text[:1]
    if first.isalpha() or not first or first == "~":
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text):
            return True
        return False if _FALSE.fullmatch(text) else text
    if first not in "+-.0123456789" or len(text) > _NUMBER_MAX:
        return text
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEX, 16), (_BINARY, 2)):
        if pattern.fullmatch(text):
            return _integer(text, base)
    if _FLOAT.fullmatch(text) and any(character.isdigit() for character in text):
        return float(re.sub(r"[,_]", "", text))
    return text


def text_of(value: Any) -> str | None:
    """Return the scalar as GitLab turns it into text; None for null, lists and mappings."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
    return None


def _integer(text: str, base: int) -> int | str:
    digits = re.sub(r"[,_]|0[xb]", "", text)
    return int(digits, base) if digits.strip("+-") else text


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    quotation: bool
    line: int
    key: Any = _NO_KEY
    merging: bool = False
    own: set[str] = field(default_factory=set)
    """The keys written in this mapping itself, not merged into it."""


class _Builder:
    """Builds values from YAML events."""

    def __init__(self) -> None:
        self.documents: list[Any] = []
        self.notes: list[Note] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, Any] = {}
        self._merged = 0

    def take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent:
            self._begin({}, event)
        elif kind is yaml.SequenceStartEvent:
            self._begin([], event)
        elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
            self._end()
        elif kind is yaml.AliasEvent:
            self._put(self._alias(event), event.start_mark.line + 1)
        elif kind is yaml.DocumentStartEvent:
            self._anchors.clear()

    def _scalar(self, event: Any) -> None:
        value: Any = event.value
        plain = event.implicit[0] and event.tag is None
        line = event.start_mark.line + 1
        top = self._open[-1] if self._open else None
        if top is not None and top.key is _NO_KEY and isinstance(top.value, dict):
            if event.anchor:
                self._anchors[event.anchor] = value
            self._key(top, value, line, merging=plain and value == "<<")
            return
        if plain:
            value = scalar(value)
        if event.anchor:
            self._anchors[event.anchor] = value
        self._put(value, line)

    def _key(self, top: _Open, key: str, line: int, *, merging: bool) -> None:
        if not merging and key in top.own and len(self.notes) < _NOTES_MAX:
            shown = key if len(key) <= 60 else key[:59] + "…"
            self.notes.append(
                Note(line, f"has the key {shown!r} twice", "keep one: GitLab takes the last")
            )
        top.key, top.merging = key, merging
        if not merging:
            top.own.add(key)

    def _begin(self, value: dict[str, Any] | list[Any], event: Any) -> None:
        line = event.start_mark.line + 1
        if len(self._open) >= DEPTH_MAX:
            raise Unreadable(line, f"is nested more than {DEPTH_MAX} deep", "GitLab refuses it too")
        if self._open and self._open[-1].key is _NO_KEY and isinstance(self._open[-1].value, dict):
            raise Unreadable(line, "has a list or a mapping for a key", "write a text as the key")
        if event.anchor:
            self._anchors[event.anchor] = _NO_KEY
        self._open.append(_Open(value, event.anchor, event.tag == "!reference", line))

    def _end(self) -> None:
        done = self._open.pop()
        value: Any = done.value
        if done.quotation:
            value = _quotation(done)
        if done.anchor:
            self._anchors[done.anchor] = value
        self._put(value, done.line)

    def _alias(self, event: Any) -> Any:
        line = event.start_mark.line + 1
        if event.anchor not in self._anchors:
            raise Unreadable(
                line, "is an alias (*) of an anchor (&) that no line before has", "write the value"
            )
        value = self._anchors[event.anchor]
        if value is _NO_KEY:
            raise Unreadable(line, "is an alias (*) of what it stands in", "write the value")
        return value

    def _put(self, value: Any, line: int) -> None:
        """Place a finished value where it belongs."""
        if not self._open:
            self.documents.append(value)
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is _NO_KEY:
            if (key := text_of(value)) is None:
                raise Unreadable(
                    line, "has a list or a mapping for a key", "write a text as the key"
                )
            self._key(top, key, line, merging=False)
        else:
            if not (top.merging and self._merge(top.value, value, line)):
                top.value[top.key] = value
            top.key = _NO_KEY

    def _merge(self, mapping: dict[str, Any], value: Any, line: int) -> bool:
        """Do what `<<` says and return whether the value can be merged (Psych's revive_hash)."""
        if isinstance(value, dict):
            self._charge(len(value), line)
            mapping.update(value)
            return True
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            for item in reversed(value):
                self._charge(len(item), line)
                mapping.update(item)
            return True
        return False

    def _charge(self, keys: int, line: int) -> None:
        self._merged += 1 + keys
        if self._merged > _MERGED_MAX:
            raise Unreadable(
                line, f"merges (<<) more than {_MERGED_MAX} keys", "use `extends` instead of <<"
            )


def _quotation(done: _Open) -> Quotation:
    parts = [text_of(item) for item in done.value] if isinstance(done.value, list) else []
    path = tuple(part for part in parts if part is not None)
    if not path or len(path) != len(done.value):
        raise Unreadable(
            done.line, "has a !reference that is no path", "write !reference [job, key]"
        )
    return Quotation(path)
