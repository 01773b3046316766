"""Evaluates a CI definition from its files, without a GitLab.

In GitLab's order: read, replace inputs, merge local includes, `extends`, `!reference`; then
`ci_jobs` reads the result. What is missing does not stop it: includes from outside, targets of
`extends`, scripts. Where something missing may change what a job names, the image is unresolved.

Includes with `rules` may exclude each other. Each that defines a job of another again is evaluated
in a state of its own, without those others; the result is the union over the states.

A definition is hostile text: the work is bounded, whatever the files are.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from prewarm.core.errors import Problem, Severity, UsageError
from prewarm.discovery import ci_yaml
from prewarm.discovery.checkout import Checkout, Unavailable
from prewarm.discovery.ci_jobs import (
    Definition,
    Doubts,
    JobImage,
    Kind,
    TooMuchWork,
    Work,
    flat,
    is_job,
    read_definition,
)
from prewarm.discovery.ci_variables import TooLong, go_expand
from prewarm.discovery.ci_yaml import Quotation, text_of

_FILES_MAX: Final = 500
"""Includes in all; GitLab's default is 150."""
_NESTED_MAX: Final = 50
_BYTES_MAX: Final = 10_000_000
"""Of all files together."""
_EXTENDS_MAX: Final = 50
"""Levels of `extends`; GitLab allows 10."""
_REFERENCES_MAX: Final = 10
"""Levels of `!reference`, as in GitLab."""
_DEEPEST: Final = 200
"""Levels of values; files hold 100, inputs and references put some into others."""
_TEXT_MAX: Final = 100_000
"""Characters of a text with its inputs replaced."""
_PROBLEMS_MAX: Final = 200
_WORK_MAX: Final = 5_000_000
"""Steps for all states of a definition together; some seconds."""

_INPUT: Final = re.compile(r"\$\[\[\s*inputs\.([A-Za-z0-9_-]+)\s*((?:\|[^|\]$]*)*)\]\]")
_TRUNCATE: Final = re.compile(r"truncate\(\s*([0-9]{1,6})\s*,\s*([0-9]{1,6})\s*\)")
_ABSENT: Final = object()
_KINDS: Final[tuple[tuple[str, Kind], ...]] = (("image", "image"), ("services", "service"))
_BODY: Final = ("script", "run")
_TOP: Final = ("image", "services", "default", "variables", "workflow")
"""The keys at the top that do."""
_READ: Final = ("image", "services", "variables", "rules", "parallel", "inherit", "run", "stage")
"""The keys of a job that decide what it names."""

_OUTSIDE_JOBS: Final = re.compile(
    r"(?:.+-(?:sast|iast)|sast|dast|dast_.*|secret[_-]detection|dependency[_-]scanning"
    r"|gemnasium(?:-.*)?-dependency_scanning|container_scanning|code_quality|license_scanning"
    r"|cluster_image_scanning|coverage_fuzzing.*|apifuzzer_fuzz|load_performance"
    r"|browser_performance|accessibility|a11y|cyclonedx.*)"
)
"""Names of jobs that GitLab's own templates and components define."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the files of a definition say."""

    images: tuple[JobImage, ...] = ()
    jobs: tuple[str, ...] = ()
    """The names in history of all jobs that a runner can run."""
    bare: tuple[str, ...] = ()
    """Jobs that name no image: they use the runner's default, or a shell."""
    outside: tuple[str, ...] = ()
    """The includes that are not in the repository."""
    problems: tuple[Problem, ...] = ()

    @property
    def resolved(self) -> tuple[JobImage, ...]:
        return tuple(image for image in self.images if image.reference is not None)

    @property
    def unresolved(self) -> tuple[JobImage, ...]:
        return tuple(image for image in self.images if image.reference is None)


class Source(Protocol):
    """Where the files of the repository are read from; errors are `checkout.Unavailable`."""

    def read(self, path: str, most: int) -> bytes:
        """Return the file, at most one byte more than so many."""
        ...

    def match(self, pattern: str) -> Iterable[str]:
        """Return the files that a pattern with `*` means, in the order in which to include."""
        ...


def evaluate_file(path: Path, root: Path) -> Evaluation:
    """Return what the file says, whose local includes are counted from the root.

    Raises UsageError where the file itself cannot be read; everything else is a problem.
    """
    try:
        with path.open("rb") as file:
            data = file.read(ci_yaml.BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        cause = (getattr(error, "strerror", None) or "cannot be read").lower()
        cure = "name the CI file: prewarm scan --file .gitlab-ci.yml"
        raise UsageError("file", f"{path}: {cause}", cure) from None
    return evaluate(data, str(path), Checkout(root))


def evaluate(
    data: bytes,
    name: str,
    source: Source,
    predefined: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Evaluation:
    """Return what the root file says; `name` is its name in problems.

    `predefined` and `overrides` are those of `ci_jobs.read_definition`. Never raises.
    """
    loader = _Loader(source, name, {**(predefined or {}), **(overrides or {})})
    try:
        root = loader.root(data)
        if root is None:
            return Evaluation(problems=tuple(loader.problems))
        found = _union(loader, root, predefined or {}, overrides or {})
    except TooMuchWork:
        loader.problem(name, "needs more work than prewarm does for one definition", "split it")
        found = Definition()
    problems = tuple(dict.fromkeys((*loader.problems, *found.problems)))
    return Evaluation(found.images, found.jobs, found.bare, tuple(loader.outside), problems)


# Files and includes


@dataclass(slots=True)
class _Node:
    """A file as it was included, its inputs replaced."""

    content: dict[str, Any]
    optional: bool
    """Included under `rules`."""
    children: list[_Node] = field(default_factory=list)

    def optionals(self) -> Iterator[_Node]:
        """Yield the files below that are included under rules, first those further up."""
        for child in self.children:
            if child.optional:
                yield child
            yield from child.optionals()


class _Loader:
    """Reads the files of a definition and what they include."""

    def __init__(self, source: Source, name: str, known: Mapping[str, str]) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.outside: list[str] = []
        self.incomplete = False
        """Something that the definition includes was not read."""
        self.work = Work(_WORK_MAX)
        self._source = source
        self._known = known
        self._parsed: dict[str, ci_yaml.File | None] = {}
        self._files = 0
        self._bytes = 0
        self._stopped = False

    def root(self, data: bytes) -> _Node | None:
        """Return the tree of the root file; None where it is not readable, with a problem."""
        file = self._parse(self.name, data, severity="error")
        return None if file is None else self._node(file, self.name, {}, optional=False, above=())

    def problem(
        self, where: str, problem: str, cure: str, *, severity: Severity = "warning"
    ) -> None:
        found = Problem(severity, "definition", where, problem, cure)
        if len(self.problems) < _PROBLEMS_MAX and found not in self.problems:
            self.problems.append(found)

    def _parse(self, name: str, data: bytes, severity: Severity = "warning") -> ci_yaml.File | None:
        self._bytes += len(data)
        try:
            file = ci_yaml.read_with_header(data)
        except ci_yaml.Unreadable as error:
            where = f"{name}:{error.line}"
            self.problem(where, error.problem, error.cure, severity=severity)
            return None
        for note in file.notes:
            self.problem(f"{name}:{note.line}", note.problem, note.cure)
        return file

    def _node(
        self,
        file: ci_yaml.File,
        name: str,
        given: Mapping[str, Any],
        *,
        optional: bool,
        above: tuple[str, ...],
    ) -> _Node | None:
        content = self._content(file, name, given)
        if not isinstance(content, dict):
            if content is not None:
                self.problem(name, "is no mapping of jobs", "see the docs of GitLab's CI YAML")
            return None
        node = _Node({k: v for k, v in content.items() if k != "include"}, optional)
        includes = content.get("include")
        for item in flat(includes if isinstance(includes, list) else [includes], _FILES_MAX):
            node.children += self._include(item, name, above)
        return node

    def _content(self, file: ci_yaml.File, name: str, given: Mapping[str, Any]) -> Any:
        """Return the document with the jobs, its inputs replaced where a header declares them."""
        documents = file.documents
        if not documents:
            return None
        header = documents[0]
        if not ((len(documents) > 1 or file.template) and ci_yaml.is_header(header)):
            self.work.spend(len(header) if isinstance(header, dict) else 1)
            return header
        spec = header["spec"]
        declared = spec.get("inputs") if isinstance(spec, dict) else None
        inputs, missing = _inputs(declared, given)
        for one in missing:
            self.problem(
                name, f"needs the input {_short(one)}, which has no default", "give it a value"
            )
        for problem, cure in _refused(declared, given, inputs):
            self.problem(name, f"{problem}: GitLab refuses it", cure)
        interpolation = _Interpolation(inputs, self.work)
        if not file.template:
            return interpolation.value(documents[1])
        return self._templated(interpolation.template(file.template), name)

    def _templated(self, text: str, name: str) -> Any:
        """Return what the text means whose inputs were replaced before it was YAML."""
        if self._bytes > _BYTES_MAX:
            self._stop(name)
            return None
        parsed = self._parse(name, text.encode("utf-8", "replace"))
        if parsed is None:
            self.incomplete = True
            return None
        return parsed.documents[0] if parsed.documents else None

    def _include(self, item: Any, by: str, above: tuple[str, ...]) -> Iterator[_Node]:
        """Yield the files that one entry of `include:` means."""
        entry = {"local": item} if isinstance(item, str) else item
        if not isinstance(entry, dict) or _never(entry.get("rules")):
            return
        local = entry.get("local")
        if not isinstance(local, str) or re.match(r"https?://", local):
            self._from_outside(entry, by)
            return
        given = entry.get("inputs")
        optional = bool(entry.get("rules"))
        for path in self._paths(local, by):
            if self._files >= _FILES_MAX or self._bytes > _BYTES_MAX:
                self._stop(by)
                return
            if path in above or len(above) >= _NESTED_MAX:
                self._missed(by, f"includes {path!r} in a circle", "take one of the includes out")
                continue
            self._files += 1
            file = self._file(path, by)
            if file is not None:
                inputs = given if isinstance(given, dict) else {}
                node = self._node(file, path, inputs, optional=optional, above=(*above, path))
                if node is not None:
                    yield node

    def _paths(self, local: str, by: str) -> Iterable[str]:
        try:
            path = go_expand(local, self._known.get).lstrip("/")
        except TooLong:
            path = "$"
        if "$" in path:
            self._missed(by, f"includes {_short(local)}", "only a server knows its variables")
            return ()
        if "*" not in path:
            return ("/".join(part for part in path.split("/") if part not in ("", ".")),)
        try:
            paths = tuple(self._source.match(path))
        except Unavailable as error:
            self._missed(by, f"include: local: {_short(local)} {error.problem}", error.cure)
            return ()
        if not paths:
            self._missed(by, f"includes {_short(local)}, which matches no file", "correct the path")
        return paths

    def _file(self, path: str, by: str) -> ci_yaml.File | None:
        """Return the included file, read once however often it is included."""
        if path not in self._parsed:
            self._parsed[path] = None
            try:
                data = self._source.read(path, ci_yaml.BYTES_MAX)
            except Unavailable as error:
                self._missed(by, f"include: local: {_short(path)} {error.problem}", error.cure)
            else:
                self._parsed[path] = self._parse(path, data)
        if self._parsed[path] is None:
            self.incomplete = True
        return self._parsed[path]

    def _from_outside(self, entry: Mapping[str, Any], by: str) -> None:
        for kind in ("project", "remote", "template", "component", "local", "artifact"):
            if (what := text_of(entry.get(kind))) is not None:
                break
        else:
            return
        self.outside.append(f"{kind}: {what}")
        self._missed(
            by,
            f"includes {kind} {_short(what)}, which is not in this repository",
            "let GitLab evaluate it: prewarm scan --project PATH",
        )

    def _missed(self, by: str, problem: str, cure: str) -> None:
        self.incomplete = True
        self.problem(by, problem, cure)

    def _stop(self, by: str) -> None:
        if not self._stopped:
            self._stopped = True
            size = _BYTES_MAX // 10**6
            self._missed(
                by, f"includes more than {_FILES_MAX} files or {size} MB", "GitLab allows 150 files"
            )


def _never(rules: Any) -> bool:
    """Whether an include's rules let it in on no pipeline."""
    found = [rule for rule in flat(rules, _FILES_MAX) if isinstance(rule, dict)]
    return bool(found) and all(rule.get("when") == "never" for rule in found)


# Inputs


def _inputs(declared: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the inputs' values, and the names of those that have none."""
    values: dict[str, Any] = {}
    missing: list[str] = []
    for name, spec in declared.items() if isinstance(declared, dict) else ():
        if name in given:
            values[name] = given[name]
        elif isinstance(spec, dict) and "default" in spec:
            values[name] = spec["default"]
        else:
            missing.append(name)
    return values, missing


def _refused(
    declared: Any, given: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield problem and cure for inputs with which GitLab includes nothing."""
    known = declared if isinstance(declared, dict) else {}
    for name in given:
        if name not in known:
            shown = ", ".join(_short(one) for one in itertools.islice(known, 10)) or "none"
            yield f"has no input {_short(name)}", f"give those that it declares ({shown})"
    for name, value in inputs.items():
        spec = known[name]
        options = spec.get("options") if isinstance(spec, dict) else None
        text = text_of(value)
        # Lists and mappings are not compared: their aliases can make that endless.
        if isinstance(options, list) and text not in {None, *map(text_of, options[:_FILES_MAX])}:
            yield f"has the input {_short(name)} as {_short(text or '')}", "give one of its options"


class _Interpolation:
    """Replaces `$[[ inputs.x ]]` in keys and values; what is unknown keeps its spelling."""

    def __init__(self, inputs: Mapping[str, Any], work: Work) -> None:
        self._inputs = inputs
        self._work = work
        self._done: dict[int, tuple[Any, Any]] = {}
        """Old (kept, so that its id stays its own) and new value: an alias costs nothing."""

    def value(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            self._work.spend(1)
            return self._text(value) if "$[[" in value else value
        if not isinstance(value, dict | list) or depth > _DEEPEST:
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        self._work.spend(1 + len(value))
        new: Any
        if isinstance(value, dict):
            new = {self._key(k): self.value(v, depth + 1) for k, v in value.items()}
        else:
            new = [self.value(item, depth + 1) for item in value]
        self._done[id(value)] = (value, new)
        return new

    def template(self, text: str) -> str:
        """Return a text that is to be YAML, as GitLab makes it: a text as it is, the rest as JSON.

        What is unknown keeps its spelling.
        """
        parts: list[str] = []
        length = end = 0
        for match in _INPUT.finditer(text):
            value = self._written(match)
            parts += (text[end : match.start()], value)
            length += len(parts[-1]) + len(parts[-2])
            self._work.spend(10 + len(value) // 100)
            if length > ci_yaml.BYTES_MAX:
                break
            end = match.end()
        return "".join((*parts, text[end:]))

    def _written(self, match: re.Match[str]) -> str:
        value = self._inputs.get(match[1], _ABSENT)
        text: str | None
        if match[2].strip():
            text = self._filtered(match[1], match[2])
        elif isinstance(value, str):
            text = value
        else:
            text = _json(value, self._work)
        return match[0] if text is None else text

    def _key(self, key: str) -> str:
        return (text_of(self._text(key)) or key) if "$[[" in key else key

    def _text(self, text: str) -> Any:
        if (whole := _INPUT.fullmatch(text)) and not whole[2].strip():
            return self._inputs.get(whole[1], text)
        parts: list[str] = []
        length = end = 0
        for match in _INPUT.finditer(text):
            value = self._filtered(match[1], match[2])
            parts += (text[end : match.start()], match[0] if value is None else value)
            length += len(parts[-1]) + len(parts[-2])
            if length > _TEXT_MAX:
                return text
            end = match.end()
        self._work.spend(length // 100)
        return "".join((*parts, text[end:]))

    def _filtered(self, name: str, filters: str) -> str | None:
        """Return the input as text after the functions behind it (`| truncate(0,8)`)."""
        value = text_of(self._inputs.get(name))
        for written in filters.split("|")[1:]:
            if value is not None and (cut := _TRUNCATE.fullmatch(written.strip())):
                value = value[int(cut[1]) : int(cut[1]) + int(cut[2])]
            elif written.strip() not in ("expand_vars", "posix_escape"):
                return None
        return value


def _json(value: Any, work: Work) -> str | None:
    """Return an input as JSON; None for one that has no such form or grows too long by aliases."""
    length = 0
    parts: list[str] = []
    try:
        for part in json.JSONEncoder(ensure_ascii=False, check_circular=False).iterencode(value):
            work.spend(1)
            length += len(part)
            if length > _TEXT_MAX:
                return None
            parts.append(part)
    except (TypeError, ValueError, RecursionError):
        return None
    return "".join(parts)


# States and their union


def _union(
    loader: _Loader, root: _Node, predefined: Mapping[str, str], overrides: Mapping[str, str]
) -> Definition:
    """Return what all states of the includes name together."""
    found: list[Definition] = []
    work = loader.work
    everything = _composed(root, (), work).keys()
    for without in _states(root, work):
        content = _composed(root, without, work)
        merged, doubts = _Resolution(content, everything, loader).resolved()
        found.append(
            read_definition(
                merged, predefined, overrides, doubts=doubts, where=loader.name, work=work
            )
        )
    return found[0] if len(found) == 1 else _joined(found)


def _states(root: _Node, work: Work) -> list[Collection[int]]:
    """Return for each state the files (by identity) that are not included in it."""
    optionals = list(root.optionals())
    if not optionals:
        return [()]
    keys = [_definitions(_composed(node, (), work)) for node in optionals]
    families = [{id(node), *map(id, node.optionals())} for node in optionals]
    states: dict[frozenset[int], None] = {}
    for n, node in enumerate(optionals):
        against = frozenset(
            id(other)
            for m, other in enumerate(optionals)
            if n != m
            and id(other) not in families[n]
            and id(node) not in families[m]
            and _differ(keys[n], keys[m], work)
        )
        states[against] = None
    always = _definitions(_composed(root, {id(node) for node in optionals}, work))
    left_out = frozenset().union(*states)
    for node, own in zip(optionals, keys, strict=True):
        if id(node) not in left_out and _differ(own, always, work):
            states[frozenset({id(node)})] = None
    return list(states)


def _definitions(content: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return what a file defines that can exclude another's: jobs, variables, defaults."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in content.items():
        if key in ("variables", "default", "workflow") and isinstance(value, dict):
            found |= {(key, name): one for name, one in value.items()}
        elif isinstance(value, dict) or key in ("image", "services"):
            found[(key,)] = value
    return found


def _differ(
    one: Mapping[tuple[str, ...], Any], other: Mapping[tuple[str, ...], Any], work: Work
) -> bool:
    """Whether both define something, and not by the same text (nothing deeper is compared)."""
    work.spend(min(len(one), len(other)))
    for key in one.keys() & other.keys():
        text = text_of(one[key])
        if one[key] is not other[key] and (text is None or text != text_of(other[key])):
            return True
    return False


def _composed(node: _Node, without: Collection[int], work: Work) -> dict[str, Any]:
    """Return the file merged over its includes: later ones beat earlier ones, it beats all."""
    result: dict[str, Any] = {}
    for child in node.children:
        if id(child) not in without:
            _merge_into(result, _composed(child, without, work), work)
    _merge_into(result, node.content, work)
    return result


def _merge_into(target: dict[str, Any], over: Mapping[str, Any], work: Work) -> None:
    """Merge mappings deeply into a target that nobody else holds; lists are replaced."""
    work.spend(1 + len(over))
    for key, value in over.items():
        old = target.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            target[key] = _merged(old, value, work)
        else:
            target[key] = value


def _merged(under: Any, over: Any, work: Work, depth: int = 0) -> Any:
    """Return two values merged deeply, neither of them changed."""
    if not isinstance(under, dict) or not isinstance(over, dict) or depth > _DEEPEST:
        return over
    work.spend(1 + len(under) + len(over))
    result = dict(under)
    for key, value in over.items():
        result[key] = _merged(under[key], value, work, depth + 1) if key in under else value
    return result


def _joined(found: Iterable[Definition]) -> Definition:
    """Return the union; what the states see differently is not certain."""
    images: dict[tuple[str, Kind, str, str | None], JobImage] = {}
    users: dict[tuple[str, Kind], list[set[str]]] = {}
    for one in found:
        texts: dict[tuple[str, Kind], set[str]] = {}
        for image in one.images:
            texts.setdefault((image.job, image.kind), set()).add(image.text)
            key = (image.job, image.kind, image.text, image.platform)
            if (known := images.get(key)) is not None:
                names = tuple(dict.fromkeys((*known.names, *image.names)))
                # A state that decides what another leaves open is the better witness.
                first = min(known, image, key=lambda one: (one.reference is None, one.guessed))
                image = replace(first, names=names, certain=known.certain and image.certain)
            images[key] = image
        for job, seen in texts.items():
            users.setdefault(job, []).append(seen)
    differing = {job for job, sets in users.items() if any(one != sets[0] for one in sets)}
    return Definition(
        tuple(
            replace(image, certain=image.certain and (image.job, image.kind) not in differing)
            for image in images.values()
        ),
        tuple(dict.fromkeys(job for one in found for job in one.jobs)),
        tuple(dict.fromkeys(job for one in found for job in one.bare)),
        tuple(dict.fromkeys(problem for one in found for problem in one.problems)),
    )


# extends and !reference


class _Resolution:
    """Applies `extends` and `!reference` to one state of the definition."""

    def __init__(
        self, content: Mapping[str, Any], everything: Collection[str], loader: _Loader
    ) -> None:
        self._content = content
        self._everything = everything
        """The names that all states together define."""
        self._partial: set[str] = set()
        """Jobs that extend what only other states define: no pipeline has them so."""
        self._loader = loader
        self._work = loader.work
        self._extended: dict[str, dict[str, Any]] = {}
        self._under_way: list[str] = []
        self._quoting: list[tuple[str, ...]] = []
        self._answers: dict[int, tuple[Any, Any]] = {}
        self._decisions: dict[tuple[str, str], bool | None] = {}

    def resolved(self) -> tuple[dict[str, Any], Doubts]:
        """Return the merged definition, as far as it decides about images, and what is in doubt."""
        merged: dict[str, Any] = {}
        doubts: dict[tuple[str, Kind], str] = {}
        for name, value in self._content.items():
            if name in _TOP:
                merged[name] = self._answer(value)
            elif name.startswith("."):
                merged[name] = value  # for the names of its variables only
            elif is_job(name, value) and is_job(name, job := self._extend(name)):
                if name in self._partial:
                    continue
                merged[name] = {key: self._answer(job[key]) for key in _READ if key in job}
                if self._loader.incomplete:
                    doubts |= self._doubts(name, job)
        return merged, doubts

    def _extend(self, name: str) -> dict[str, Any]:
        """Return the job merged over those that it extends."""
        if name in self._extended:
            return self._extended[name]
        own: dict[str, Any] = self._content[name]
        result: dict[str, Any] = {}
        self._under_way.append(name)
        for parent in _parents(own):
            if parent not in self._content and parent in self._everything:
                self._partial.add(name)
            elif not isinstance(self._content.get(parent), dict):
                self._say(name, f"extends {_short(parent)}, which is not defined")
            elif parent in self._under_way:
                self._say(name, f"extends {_short(parent)}, which extends it: a circle")
            elif len(self._under_way) >= _EXTENDS_MAX:
                self._say(name, f"extends {_short(parent)} over more levels than GitLab allows")
            else:
                _merge_into(result, self._extend(parent), self._work)
                if parent in self._partial:
                    self._partial.add(name)
        self._under_way.pop()
        _merge_into(result, own, self._work)
        self._extended[name] = result
        return result

    def _doubts(self, name: str, job: Mapping[str, Any]) -> dict[tuple[str, Kind], str]:
        """Return where something that was not read may have another image for this job.

        A job whose script comes from outside, or whose name is one of GitLab's own, is completed
        by a job of the same name there; then only keys written in the job itself are sure to win.
        """
        doubts: dict[tuple[str, Kind], str] = {}
        own = self._content[name]
        scripted = any(job.get(key) is not None for key in _BODY)
        completed = not scripted or (
            self._loader.outside
            and all(own.get(key) is None for key in _BODY)
            and _OUTSIDE_JOBS.fullmatch(name)
        )
        for key, kind in _KINDS:
            if own.get(key) is not None:
                continue
            decided = self._decided(name, key)
            if completed or decided is False:
                doubts[name, kind] = "may come from an include that is not in this repository"
            elif all(own.get(key) is None for key in _BODY):
                doubts[name, kind] = ""
        return doubts

    def _decided(self, name: str, key: str) -> bool | None:
        """Whether the key's value is known: False if a missing template may have it, None if none.

        Later templates beat earlier ones.
        """
        if (name, key) not in self._decisions:
            self._decisions[name, key] = False  # for whoever asks again from below: a circle
            self._decisions[name, key] = self._decide(name, key)
        return self._decisions[name, key]

    def _decide(self, name: str, key: str) -> bool | None:
        own = self._content.get(name)
        if not isinstance(own, dict):
            return False
        if own.get(key) is not None:
            return True
        answers = (self._decided(parent, key) for parent in reversed(_parents(own)))
        return next((answer for answer in answers if answer is not None), None)

    def _answer(self, value: Any, depth: int = 0) -> Any:
        """Return the value with its `!reference`s replaced; one that leads nowhere stays."""
        if isinstance(value, Quotation):
            return self._quoted(value, depth)
        if not isinstance(value, dict | list) or depth > _DEEPEST:
            return value
        if id(value) in self._answers:
            return self._answers[id(value)][1]
        self._work.spend(1 + len(value))
        new: Any
        if isinstance(value, dict):
            new = {key: self._answer(item, depth + 1) for key, item in value.items()}
        else:
            new = [self._answer(item, depth + 1) for item in value]
        self._answers[id(value)] = (value, new)
        return new

    def _quoted(self, quotation: Quotation, depth: int) -> Any:
        if quotation.path in self._quoting or len(self._quoting) >= _REFERENCES_MAX:
            self._say(quotation.path[0], f"is quoted in a circle, or too deep: {quotation}")
            return quotation
        self._work.spend(1)
        self._quoting.append(quotation.path)
        name, *keys = quotation.path
        value = self._content.get(name, _ABSENT)
        if isinstance(value, dict):
            value = self._extend(name)
        for key in keys:
            if isinstance(value, Quotation):
                value = self._quoted(value, depth + 1)
            value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
        value = quotation if value is _ABSENT else self._answer(value, depth + 1)
        self._quoting.pop()
        return value

    def _say(self, job: str, problem: str) -> None:
        cure = "correct the name, or include the file that defines it"
        self._loader.problem(self._loader.name, f"job {_short(job)} {problem}", cure)


def _parents(job: Mapping[str, Any]) -> list[str]:
    extends = job.get("extends")
    if isinstance(extends, str):
        return [extends]
    return [one for one in flat(extends, _FILES_MAX) if isinstance(one, str)]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
