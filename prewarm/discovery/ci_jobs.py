"""The images and services that the jobs of a CI definition name.

The input is a merged definition: what GitLab's lint returns as `merged_yaml`, or what `ci_evaluate`
makes of the files. What GitLab does after that is done here: `default:` and `inherit:`, the
deprecated keys at the top, `parallel:`, `rules:variables`, and the variables in names. `rules` are
not judged: a job that runs on some pipelines only is wanted like any other, and where its rules
choose the image, each of the choices is given.

The definition is hostile text: the work is bounded, and nothing of it is believed to be well
formed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from prewarm.core.errors import Problem
from prewarm.core.platforms import parse_platform
from prewarm.core.reference import DOCKER_HUB, InvalidReference, Reference, parse, parse_repository
from prewarm.discovery.ci_variables import (
    LONGEST,
    PER_RUN,
    Scope,
    TooLong,
    Variable,
    names_in,
    slug,
    unknown,
    without_unknown,
)
from prewarm.discovery.ci_yaml import Quotation, text_of

Kind = Literal["image", "service"]
Doubts = Mapping[tuple[str, Kind], str]
"""Why what a job names is not what GitLab will see, by job and kind: it is then unresolved.

An empty text is a mere possibility: it stays resolved, and is not certain.
"""

RESERVED: Final = frozenset(
    {
        "after_script",
        "before_script",
        "cache",
        "default",
        "image",
        "include",
        "services",
        "spec",
        "stages",
        "variables",
        "workflow",
    }
)
"""Keys at the top that are no jobs (GitLab: entry/root.rb)."""

PARALLEL_MAX: Final = 200
"""Jobs that `parallel:` may make of one, as in GitLab."""
_SERVICES_MAX: Final = 200
_WORK_MAX: Final = 3_000_000
"""Steps of about a microsecond for one definition; a large real one takes 100,000."""
_REACH_MAX: Final = 500
"""Variables that one name may depend on."""
_SHOWN_MAX: Final = 500

_PROXIED: Final = re.compile(r"[^/]+/(?:[^/]+/)*dependency_proxy/containers/(.+)")
_VIRTUAL: Final = re.compile(r"[^/]+/(?:[^/]+/)*virtual_registries/container/[^/]+/.+")
_PROXY_VARIABLE: Final = re.compile(
    r"\$\{?CI_DEPENDENCY_PROXY_(?:DIRECT_)?GROUP_IMAGE_PREFIX\}?/", re.ASCII
)
_MACHINE: Final = re.compile(
    r"(?:macos|osx|windows|freebsd|openbsd|netbsd|dragonfly|xcode|saas-)[^/]*", re.IGNORECASE
)
"""Images of virtual machines, by the custom executors that read them from `image:`. None of Docker
Hub's official images, which alone have no `/`, begins so."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Controls, bidi marks and line separators, which a terminal may obey."""
_ALWAYS: Final = {"CI_TEMPLATE_REGISTRY_HOST": Variable("registry.gitlab.com")}
"""Predefined variables that are the same on every GitLab."""
_ELSEWHERE: Final = re.compile(r"(?!CI_|GITLAB_).*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JobImage:
    """An image that a job names, as its own or as a service.

    Either `reference` or `unresolved` is set. A job has several where its variables take several
    values; all of them are named.
    """

    job: str
    """The job's name in the definition."""
    kind: Kind
    text: str
    """The name as the runner asks for it, with everything known filled in; what is unknown keeps
    its spelling (`$CI_REGISTRY/team/app:1`)."""
    reference: Reference | None
    """The image; behind GitLab's dependency proxy, what the proxy asks Docker Hub for."""
    unresolved: str | None
    """Why there is no image that could be pulled."""
    platform: str | None = None
    """What `docker: platform` asks for, normalised."""
    via: str | None = None
    """`dependency-proxy` or `virtual-registry`: the job asks GitLab, not the registry."""
    wanted: bool = False
    """Whether a mirror serves this job by holding the reference."""
    certain: bool = True
    """Whether the definition alone decides it: no alternatives, and nothing was taken for empty."""
    names: tuple[str, ...] = ()
    """The names in history of the jobs that use it: `test`, `test: [3.12, arm]`, `test 1/3`."""
    guessed: str = ""
    """The name before variables that this job leaves undefined were taken for empty
    (`fam:1-b${HOST}`); empty where none was."""

    @property
    def guess(self) -> str:
        """What was guessed, for people."""
        shown = ", ".join(f"${name}" for name in unknown(self.guessed))
        return f"holds variables that other jobs set and this one does not ({shown})"


@dataclass(frozen=True, slots=True)
class Definition:
    """What the jobs of a definition name."""

    images: tuple[JobImage, ...] = ()
    jobs: tuple[str, ...] = ()
    """The names in history of all jobs that a runner can run."""
    bare: tuple[str, ...] = ()
    """Jobs that name no image: they use the runner's default, or a shell."""
    problems: tuple[Problem, ...] = ()


def read_definition(
    merged: Mapping[str, Any],
    predefined: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    dependency_proxy: Literal["report", "map"] = "report",
    doubts: Doubts | None = None,
    where: str = ".gitlab-ci.yml",
    work: Work | None = None,
) -> Definition:
    """Return what the jobs of a merged definition name.

    `predefined` are variables that the definition may overwrite (`ci_variables.of_project`),
    `overrides` those that beat it: of the instance, the group and the project. Values of
    `overrides` become part of names, so masked ones must not be among them. `where` names the
    definition in problems; `work` is shared by definitions that belong together.
    """
    return _Reading(
        merged,
        {n: Variable(v) for n, v in (predefined or {}).items() if not PER_RUN.fullmatch(n)},
        {n: Variable(v) for n, v in (overrides or {}).items()},
        dependency_proxy,
        doubts or {},
        where,
        work or Work(),
    ).definition()


def is_job(name: str, value: Any) -> bool:
    """Whether a key at the top is a job that a runner runs: not hidden, reserved or a trigger."""
    return (
        isinstance(value, dict)
        and not name.startswith(".")
        and name not in RESERVED
        and value.get("trigger") is None
    )


def flat(value: Any, most: int) -> Iterator[Any]:
    """Yield the items of a list and of the lists in it, at most so many (and so many lists)."""
    todo: list[Iterator[Any]] = [iter(value)] if isinstance(value, list) else []
    lists = items = 0
    while todo and lists < most and items < most:
        for item in todo[-1]:
            if isinstance(item, list):
                lists += 1
                todo.append(iter(item))
                break
            items += 1
            yield item
            if items >= most:
                break
        else:
            todo.pop()


def variables_of(value: Any) -> dict[str, Variable]:
    """Return what a `variables:` mapping defines, in its short and long forms.

    A variable with a description alone has no value: a person gives it one.
    """
    found: dict[str, Variable] = {}
    for name, written in value.items() if isinstance(value, dict) else ():
        raw = False
        if isinstance(written, dict):
            if "value" not in written:
                continue
            raw = written.get("expand") is False
            written = written["value"]
        text = "" if written is None else text_of(written)
        if text is not None:
            found[name] = Variable(text, raw)
    return found


class TooMuchWork(Exception):  # noqa: N818 - the name says what happened
    """The definition needs more steps than we spend on one."""


class Work:
    """The steps that may still be spent on a definition, so that none can hang us."""

    def __init__(self, steps: int = _WORK_MAX) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Take the steps; raises TooMuchWork where none are left."""
        self._left -= steps
        if self._left < 0:
            raise TooMuchWork


@dataclass(frozen=True, slots=True)
class _Cell:
    """One of the jobs that `parallel:` makes."""

    name: str
    variables: Mapping[str, Variable] = field(default_factory=dict)
    """Of the matrix."""
    predefined: Mapping[str, Variable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A name as it stands in the definition."""

    kind: Kind
    text: str
    platform: str = ""
    passes: int = 1
    """How often the docker executor expands it."""
    quoted: bool = False
    """It is a `!reference` that leads to nothing that was read."""


@dataclass(slots=True)
class _Job:
    """A job with all that decides about its variables."""

    name: str
    cells: tuple[_Cell, ...]
    rules: tuple[Mapping[str, Variable], ...]
    """The variables of each of its rules: alternatives."""
    workflow: tuple[Mapping[str, Variable], ...]
    own: Mapping[str, Variable]
    globals: Mapping[str, Variable]
    predefined: Mapping[str, Variable]

    def layers(self) -> Iterator[Mapping[str, Variable]]:
        yield from self.rules
        for cell in self.cells:
            yield cell.variables
            yield cell.predefined
        yield self.own
        yield from self.workflow
        yield self.globals
        yield self.predefined


class _Reading:
    """Reads one definition."""

    def __init__(
        self,
        merged: Mapping[str, Any],
        predefined: Mapping[str, Variable],
        overrides: Mapping[str, Variable],
        dependency_proxy: str,
        doubts: Doubts,
        where: str,
        work: Work,
    ) -> None:
        self._merged = merged
        self._predefined = {**_ALWAYS, **predefined}
        self._overrides = overrides
        self._map = dependency_proxy == "map"
        self._doubts = doubts
        self._where = where
        self._problems: list[Problem] = []
        self._work = work.spend
        self._variables_of: dict[int, Mapping[str, Variable]] = {}
        self._rules_of: dict[int, tuple[Mapping[str, Variable], ...]] = {}
        self._own_registry = _repository(predefined.get("CI_REGISTRY_IMAGE"))
        self._globals = variables_of(merged.get("variables"))
        workflow = merged.get("workflow")
        rules = workflow.get("rules") if isinstance(workflow, dict) else None
        self._workflow = _alternatives(rules)
        self._elsewhere = _names_set(merged)

    def definition(self) -> Definition:
        images: list[JobImage] = []
        jobs: list[str] = []
        bare: list[str] = []
        for name, value in self._merged.items():
            if not is_job(name, value):
                continue
            try:
                if not (cells := self._cells(name, value.get("parallel"))):
                    continue
                job = self._job(name, value, cells)
                jobs += (cell.name for cell in job.cells)
                asked = self._asked(name, value)
                if not any(one.kind == "image" for one in asked):
                    bare.append(name)
                for one in dict.fromkeys(asked):
                    images += self._images(job, one)
            except TooMuchWork:
                self._problem(
                    name, "needs more work than prewarm does for one definition", "split it"
                )
                break
        return Definition(tuple(images), tuple(jobs), tuple(bare), tuple(self._problems))

    def _job(self, name: str, value: Mapping[str, Any], cells: tuple[_Cell, ...]) -> _Job:
        self._work(20 + len(cells) * (20 + 4 * len(cells[0].variables)))
        workflow, global_ = self._workflow, self._globals
        if (inherited := _inherited(value, "variables")) is not None:
            self._work(len(global_) + sum(map(len, workflow)))
            workflow = _restricted(workflow, inherited)
            global_ = {n: variable for n, variable in global_.items() if n in inherited}
        stage = text_of(value.get("stage")) or "test"
        return _Job(
            name=name,
            cells=cells,
            rules=self._rules(value.get("rules")),
            workflow=workflow,
            own=self._variables(value.get("variables")),
            globals=global_,
            predefined={**self._predefined, "CI_JOB_STAGE": Variable(stage)},
        )

    def _cells(self, name: str, parallel: Any) -> tuple[_Cell, ...]:
        """Return the jobs that `parallel:` makes of this one; none where GitLab refuses them."""
        if isinstance(parallel, dict):
            rows = list(itertools.islice(_rows(parallel.get("matrix")), PARALLEL_MAX + 1))
        elif isinstance(parallel, int) and not isinstance(parallel, bool) and parallel > 1:
            rows = [{}] * min(parallel, PARALLEL_MAX + 1)
        else:
            rows = []
        if len(rows) > PARALLEL_MAX:
            problem = f"is to run more than {PARALLEL_MAX} times in parallel: GitLab refuses it"
            self._problem(name, problem, "split the job, or shorten its matrix")
            return ()
        cells = []
        for index, row in enumerate(rows, 1):
            full = f"{name}: [{', '.join(row.values())}]" if row else f"{name} {index}/{len(rows)}"
            counted = {"CI_NODE_INDEX": str(index), "CI_NODE_TOTAL": str(len(rows))}
            cells.append(_Cell(full, _plain(row), _plain(counted | _called(full))))
        return tuple(cells) or (_Cell(name, {}, _plain(_called(name))),)

    def _asked(self, name: str, job: Mapping[str, Any]) -> list[_Asked]:
        """Return the names that the job gives or inherits, as written."""
        asked: list[_Asked] = []
        image = self._key(job, "image")
        if image is not None:
            asked += self._named(name, "image", image)
        services = self._key(job, "services")
        if services is not None and not isinstance(services, list):
            self._problem(name, "has `services` that are no list")
        for item in flat(services, _SERVICES_MAX):
            asked += self._named(name, "service", item)
        for step in flat(job.get("run"), _SERVICES_MAX):
            asked += _function(step)
        return asked

    def _named(self, name: str, kind: Kind, value: Any) -> list[_Asked]:
        platform = ""
        if isinstance(value, dict):
            docker = value.get("docker")
            if isinstance(docker, dict):
                platform = text_of(docker.get("platform")) or ""
            value = value.get("name")
        if isinstance(value, Quotation):
            return [_Asked(kind, str(value), quoted=True)]
        if not isinstance(value, str) or not value:
            self._problem(
                name, f"has {'an image' if kind == 'image' else 'a service'} without name"
            )
            return []
        return [_Asked(kind, value, platform, passes=2 if kind == "image" else 1)]

    def _key(self, job: Mapping[str, Any], key: str) -> Any:
        """Return the job's value of `image` or `services`: its own, else what it inherits."""
        own = job.get(key)
        inherited = _inherited(job, "default")
        if own is not None or (inherited is not None and key not in inherited):
            return own
        default = self._merged.get("default")
        value = default.get(key) if isinstance(default, dict) else None
        return self._merged.get(key) if value is None else value

    def _images(self, job: _Job, asked: _Asked) -> list[JobImage]:
        """Return what the name becomes in each of the job's alternatives, equal ones joined."""
        names, length = self._reach(job, asked)
        found: dict[JobImage, list[str]] = {}
        for cells in _grouped(job.cells, names):
            cell = cells[0]
            for rule, flow in itertools.product(
                _restricted(job.rules, names), _restricted(job.workflow, names)
            ):
                self._work(40 + 5 * len(names) + length)
                layers = (
                    self._overrides,
                    rule,
                    cell.variables,
                    job.own,
                    flow,
                    job.globals,
                    cell.predefined,
                    job.predefined,
                )
                image = self._resolve(job.name, asked, Scope(layers))
                found.setdefault(image, []).extend(one.name for one in cells)
        times: dict[str, int] = {}
        for users in found.values():
            for user in dict.fromkeys(users):
                times[user] = times.get(user, 0) + 1
        return [
            replace(
                image,
                names=tuple(dict.fromkeys(users)),
                certain=image.certain and all(times[user] == 1 for user in users),
            )
            for image, users in found.items()
        ]

    def _reach(self, job: _Job, asked: _Asked) -> tuple[frozenset[str], int]:
        """Return the names of all variables that can have a say in the name.

        And the characters that there may be to expand: of it and of their longest values.
        """
        layers = (*job.layers(), self._overrides)
        reached: set[str] = set()
        length = _length(asked.text)
        self._work(length)
        todo = set(names_in(asked.text) | names_in(asked.platform))
        while todo and len(reached) < _REACH_MAX:
            name = todo.pop()
            reached.add(name)
            self._work(10 + len(layers) // 5)
            longest = 0
            for layer in layers:
                if (variable := layer.get(name)) is not None:
                    todo |= names_in(variable.value) - reached
                    longest = max(longest, _length(variable.value))
            self._work(longest)
            length += longest
        return frozenset(reached), length

    def _resolve(self, job: str, asked: _Asked, scope: Scope) -> JobImage:
        """Return what the name is with these variables."""
        if asked.quoted:
            why = "quotes what no file here defines"
            return JobImage(job, asked.kind, _shown(asked.text), None, why, certain=False)
        try:
            text = scope.expand(asked.text, asked.passes)
        except TooLong:
            text = _shown(asked.text)
            why = f"grows beyond {LONGEST} characters"
            return JobImage(job, asked.kind, text, None, why, certain=False)
        image = JobImage(job, asked.kind, _shown(text), None, None, _platform(asked, scope))
        left = unknown(text)
        if left and self._may_be_empty(text, left):
            image = replace(image, guessed=image.text, certain=False)
            text, left = without_unknown(text), ()
            image = replace(image, text=_shown(text))
        if (doubt := self._doubts.get((job, asked.kind))) is not None:
            if doubt:
                return replace(image, unresolved=doubt, certain=False)
            image = replace(image, certain=False)
        if not text:
            return replace(image, text=_shown(asked.text), unresolved="is empty")
        if "$" in text:
            if _PROXY_VARIABLE.match(text) and len(left) == 1:
                why = f"is behind GitLab's dependency proxy, which only a server knows (${left[0]})"
                return replace(image, unresolved=why, via="dependency-proxy")
            via = "dependency-proxy" if _PROXY_VARIABLE.match(text) else None
            return replace(image, unresolved=_why_open(text, left, scope), via=via)
        return self._named_image(image, text)

    def _may_be_empty(self, text: str, left: Sequence[str]) -> bool:
        """Whether what is left are variables that other jobs set and this one leaves empty.

        The runner then puts nothing there. It is believed only inside of a name: a registry or a
        repository is never guessed.
        """
        if text.startswith("$") or not all(name in self._elsewhere for name in left):
            return False
        try:
            parse(without_unknown(text))
        except InvalidReference:
            return False
        return True

    def _named_image(self, image: JobImage, text: str) -> JobImage:
        """Return the image with the reference that a text without variables names."""
        if _MACHINE.fullmatch(text):
            return replace(image, unresolved="names a virtual machine's image, not a container's")
        proxied = _PROXIED.fullmatch(text)
        try:
            reference = parse(f"{DOCKER_HUB}/{proxied[1]}" if proxied else text)
        except InvalidReference as error:
            return replace(image, text=_shown(error.text), unresolved=error.problem)
        if proxied:
            return replace(image, reference=reference, via="dependency-proxy", wanted=self._map)
        if _VIRTUAL.fullmatch(text):
            return replace(image, reference=reference, via="virtual-registry")
        own = self._own_registry
        if own and (reference.name == own or reference.name.startswith(f"{own}/")):
            return replace(image, unresolved="is of the project's own registry: its CI builds it")
        return replace(image, reference=reference, wanted=True)

    def _problem(
        self, job: str, problem: str, cure: str = "see the documentation of GitLab's CI YAML"
    ) -> None:
        name = _shown(job)
        self._problems.append(
            Problem("warning", "definition", self._where, f"job {name!r} {problem}", cure)
        )

    def _variables(self, value: Any) -> Mapping[str, Variable]:
        """Return `variables_of`; aliases make one mapping the variables of many jobs."""
        if id(value) not in self._variables_of:
            self._variables_of[id(value)] = variables_of(value)
        return self._variables_of[id(value)]

    def _rules(self, value: Any) -> tuple[Mapping[str, Variable], ...]:
        if id(value) not in self._rules_of:
            self._rules_of[id(value)] = _alternatives(value)
        return self._rules_of[id(value)]


def _length(text: str) -> int:
    """Return the characters that expansion reads of a text: none of one that is too long."""
    return len(text) if len(text) <= LONGEST else 0


def _plain(values: Mapping[str, str]) -> dict[str, Variable]:
    return {name: Variable(value) for name, value in values.items()}


def _called(name: str) -> dict[str, str]:
    """Return the predefined variables that follow from a job's name."""
    return {"CI_JOB_NAME": name, "CI_JOB_NAME_SLUG": slug(name)}


def _rows(matrix: Any) -> Iterator[dict[str, str]]:
    """Yield the variables of each job of `parallel:matrix`, in GitLab's order."""
    for entry in flat(matrix, PARALLEL_MAX):
        if not isinstance(entry, dict) or not entry:
            continue
        values = [
            [text for item in flat([value], PARALLEL_MAX) if (text := text_of(item)) is not None]
            for value in entry.values()
        ]
        if all(values):
            for row in _product(values):
                yield dict(zip(entry, row, strict=True))


def _product(values: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yield the first combinations; itertools.product alone would be the same, only lazily."""
    return itertools.islice(itertools.product(*values), PARALLEL_MAX + 1)


def _alternatives(rules: Any) -> tuple[Mapping[str, Variable], ...]:
    """Return the variables that each rule sets under which the job runs; one at least."""
    found = [
        variables_of(rule.get("variables"))
        for rule in flat(rules, 10 * PARALLEL_MAX)
        if isinstance(rule, dict) and rule.get("when") != "never"
    ]
    return _dedupe(found) or ({},)


def _dedupe(
    layers: Iterable[Mapping[str, Variable]],
) -> tuple[Mapping[str, Variable], ...]:
    return tuple({frozenset(layer.items()): layer for layer in layers}.values())


def _restricted(
    layers: Iterable[Mapping[str, Variable]], names: frozenset[str]
) -> tuple[Mapping[str, Variable], ...]:
    """Return the layers that differ in what matters to these names."""
    return _dedupe(
        {name: variable for name, variable in layer.items() if name in names} for layer in layers
    )


def _grouped(cells: Iterable[_Cell], names: frozenset[str]) -> Iterable[list[_Cell]]:
    """Return the cells in groups that do not differ in these names."""
    groups: dict[tuple[tuple[str, Variable], ...], list[_Cell]] = {}
    for cell in cells:
        values = itertools.chain(cell.variables.items(), cell.predefined.items())
        key = tuple((name, variable) for name, variable in values if name in names)
        groups.setdefault(key, []).append(cell)
    return groups.values()


def _inherited(job: Mapping[str, Any], what: str) -> frozenset[str] | None:
    """Return which keys of `default:`, or which global variables, `inherit:` lets through.

    None: all of them.
    """
    inherit = job.get("inherit")
    allowed = inherit.get(what) if isinstance(inherit, dict) else None
    if isinstance(allowed, list):
        return frozenset(item for item in allowed if isinstance(item, str))
    return frozenset() if allowed is False else None


def _names_set(merged: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the variables that some job, rule or matrix of the definition sets.

    One of these that is undefined in a job is empty there, where others may come from outside.
    """
    found: set[str] = set()
    seen: set[int] = set()

    def take(block: Any) -> None:
        if isinstance(block, dict) and id(block) not in seen:
            seen.add(id(block))
            found.update(block)

    def new(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and id(value) not in seen:
            seen.add(id(value))
            yield from flat(value, 10 * PARALLEL_MAX)

    take(merged.get("variables"))
    for value in merged.values():
        if not isinstance(value, dict):
            continue
        take(value.get("variables"))
        parallel = value.get("parallel")
        for row in new(parallel.get("matrix")) if isinstance(parallel, dict) else ():
            take(row)
        for rule in new(value.get("rules")):
            take(rule.get("variables") if isinstance(rule, dict) else None)
    return frozenset(name for name in found if _ELSEWHERE.fullmatch(name))


def _function(step: Any) -> Iterator[_Asked]:
    """Yield the image of a step that is a function from an OCI registry (`run:`)."""
    if not isinstance(step, dict):
        return
    for key in ("step", "func"):
        oci = step.get(key)
        oci = oci.get("oci") if isinstance(oci, dict) else None
        if not isinstance(oci, dict):
            continue
        registry, repository, tag = (
            text_of(oci.get(part)) or "" for part in ("registry", "repository", "tag")
        )
        if registry and repository:
            yield _Asked("image", f"{registry}/{repository}" + (f":{tag}" if tag else ""))


def _repository(variable: Variable | None) -> str | None:
    try:
        return parse_repository(variable.value).name if variable else None
    except InvalidReference:
        return None


def _platform(asked: _Asked, scope: Scope) -> str | None:
    if not asked.platform:
        return None
    try:
        return str(parse_platform(scope.expand(asked.platform)))
    except ValueError:
        return None


def _why_open(text: str, left: Sequence[str], scope: Scope) -> str:
    """Return why the name cannot be known from the definition."""
    shown = ", ".join(f"${name}" for name in left)
    if any(PER_RUN.fullmatch(name) for name in left):
        why = f"differs from run to run ({shown}): the pipeline builds it"
    elif "CI_REGISTRY_IMAGE" in left:
        why = f"is of the project's own registry ({shown}): its CI builds it"
    elif "$[[" in text:
        why = "holds an input that has no value ($[[ … ]])"
    elif not left:
        why = "holds a $ that names no variable"
    elif any(scope.defined(name) for name in left):
        why = f"holds variables that lead back to themselves or grow without end ({shown})"
    else:
        why = f"holds variables that the definition does not set ({shown})"
    return _shown(why)


def _shown(text: str) -> str:
    """Return the text fit for people: one line, not endless, without a URL's password."""
    if "@" in text:
        text = re.sub(r"(://[^/@\s:]*:)[^/@\s]*@", r"\1***@", text)  # linear: one `:` is the end
    text = _CONTROL.sub("\ufffd", text)
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"
