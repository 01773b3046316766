"""What a GitLab holds of CI: projects, jobs and their traces; few by hand, or a million on the fly.

A load that `Load` makes knows the true uses of images, spelled out by hand here: what checks the
product must not share its way of reading names.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

UseKind = Literal["image", "service", "proxy"]
DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Lint:
    """What CI lint answers for a definition."""

    merged_yaml: str | None
    valid: bool = True
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Project:
    """A project; what the token's user may see of it is `member` and `visibility`."""

    id: int
    path: str
    """With its namespace: `team/tools/app`."""
    lint: Lint | None = None
    """Of its own file; None where it has none."""
    default_branch: str | None = "main"
    """None: the repository is empty."""
    sha: str = ""
    """Of the default branch's head."""
    ci_config_path: str | None = None
    jobs_enabled: bool = True
    auto_devops: bool = False
    archived: bool = False
    member: bool = True
    visibility: Literal["private", "internal", "public"] = "private"
    registry_host: str = "registry.gitlab.test"
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.path.rpartition("/")[0]


@dataclass(slots=True, eq=False)
class Runner:
    """A runner, with one manager."""

    id: int
    shared: bool = False
    architecture: str = "amd64"
    platform: str = "linux"
    tags: tuple[str, ...] = ()
    online: bool = True
    stale: bool = False
    """Silent for so long that GitLab calls it so."""
    contacted: float | None = None
    """When its manager came last; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as history shows it; times are seconds since the epoch."""

    id: int
    project: int
    name: str
    status: str = "success"
    created: float = 0.0
    started: float | None = 1.0
    """None: it never ran."""
    runner: int | None = 1
    failure_reason: str | None = None
    pipeline: int = 1
    ref: str = "main"
    sha: str = "0" * 40
    source: str = "push"
    tags: tuple[str, ...] = ()
    uses: tuple[tuple[str, UseKind], ...] = ()
    """What it used, fully qualified; `proxy` is what it took through the dependency proxy."""
    trace: bytes | Callable[[], bytes] = b""

    def read_trace(self) -> bytes:
        return self.trace if isinstance(self.trace, bytes) else self.trace()


class Jobs(Protocol):
    """Jobs by project and by runner, newest first, with ids below a limit."""

    last: int
    """The highest id."""

    def of_project(self, project: int, below: int) -> Iterator[Job]: ...
    def of_runner(self, runner: int, below: int) -> Iterator[Job]: ...
    def get(self, number: int) -> Job | None: ...


class Recorded:
    """Jobs that a test wrote down one by one, with rising ids."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self._jobs: dict[int, Job] = {}
        self._projects: dict[int, list[int]] = {}
        self._runners: dict[int, list[int]] = {}

    def add(self, job: Job) -> None:
        assert job.id > self.last, "ids rise"
        self.last = job.id
        self._jobs[job.id] = job
        self._projects.setdefault(job.project, []).append(job.id)
        if job.runner is not None:
            self._runners.setdefault(job.runner, []).append(job.id)

    def change(self, job: Job) -> None:
        """Put another state of a job in its place."""
        self._jobs[job.id] = job

    def remove(self, number: int) -> None:
        """Forget a job, as GitLab does with old pipelines."""
        job = self._jobs.pop(number)
        self._projects[job.project].remove(number)
        if job.runner is not None:
            self._runners[job.runner].remove(number)

    def all(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def of_project(self, project: int, below: int) -> Iterator[Job]:
        return self._descend(self._projects.get(project, []), below)

    def of_runner(self, runner: int, below: int) -> Iterator[Job]:
        return self._descend(self._runners.get(runner, []), below)

    def get(self, number: int) -> Job | None:
        return self._jobs.get(number)

    def _descend(self, ids: list[int], below: int) -> Iterator[Job]:
        for number in reversed(ids[: bisect_left(ids, below)]):
            yield self._jobs[number]


# --- a load made on the fly ---

DEPLOY_IMAGE: Final = "hashicorp/terraform:1.9"
"""What the group's variable holds: only traces show it."""
PINNED: Final = "alpine@sha256:" + hashlib.sha256(b"pinned").hexdigest()
_BASES: Final = ("alpine:3.20", "debian:bookworm-slim", "ubuntu:24.04", "quay.io/team/base:7")
_QUALIFIED: Final = {
    "alpine:3.20": "docker.io/library/alpine:3.20",
    "debian:bookworm-slim": "docker.io/library/debian:bookworm-slim",
    "ubuntu:24.04": "docker.io/library/ubuntu:24.04",
    "quay.io/team/base:7": "quay.io/team/base:7",
}


@dataclass(frozen=True, slots=True)
class Template:
    """A job of a definition: its name in history and what it uses."""

    name: str
    uses: tuple[tuple[str, UseKind], ...]


def definition(number: int, unresolved: bool) -> tuple[str, tuple[Template, ...]]:
    """Return the merged YAML of a project and its jobs: every kind of name once.

    Projects differ in their base image and in the version of node. `unresolved` adds a job whose
    image is a variable that no definition holds, in front.
    """
    base, node = _BASES[_rank(number, len(_BASES))], 18 + 2 * _rank(number // 3, 4)
    image: tuple[str, UseKind] = (_QUALIFIED[base], "image")
    text = f"""\
stages: [build, test, deploy]
variables:
  TAG: "3.12"
  PYTHON: python:$TAG
default:
  image: {base}
.hidden:
  image: never-used:1
build:
  stage: build
  image: node:{node}
  script: [make]
unit:
  script: [make test]
lint:
  image:
    name: $PYTHON-slim
    entrypoint: [""]
  script: [make lint]
compat:
  image: golang:$GO
  script: [make compat]
  parallel:
    matrix:
    - GO: ["1.21", "1.22"]
integration:
  services:
  - postgres:16
  - name: redis:7
    alias: cache
  script: [make integration]
proxied:
  image: "${{CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX}}/busybox:1.36"
  script: [make]
pinned:
  image: {PINNED}
  script: [make]
child:
  trigger:
    include: child.yml
"""
    templates: tuple[Template, ...] = (
        Template("build", ((f"docker.io/library/node:{node}", "image"),)),
        Template("unit", (image,)),
        Template("lint", (("docker.io/library/python:3.12-slim", "image"),)),
        Template("compat: [1.21]", (("docker.io/library/golang:1.21", "image"),)),
        Template("compat: [1.22]", (("docker.io/library/golang:1.22", "image"),)),
        Template(
            "integration",
            (
                image,
                ("docker.io/library/postgres:16", "service"),
                ("docker.io/library/redis:7", "service"),
            ),
        ),
        Template("proxied", (("docker.io/library/busybox:1.36", "proxy"),)),
        Template("pinned", ((f"docker.io/library/{PINNED}", "image"),)),
    )
    if unresolved:
        text += "deploy:\n  stage: deploy\n  image: $DEPLOY_IMAGE\n  script: [make deploy]\n"
        templates = (Template("deploy", ((f"docker.io/{DEPLOY_IMAGE}", "image"),)), *templates)
    return text, templates


def _rank(number: int, count: int) -> int:
    """Spread numbers over ranks so that each rank has twice as many as the next."""
    bits = hashlib.sha256(str(number).encode()).digest()[0]
    rank = 0
    while bits & 1 and rank < count - 1:
        rank, bits = rank + 1, bits >> 1
    return rank


class Load:
    """`jobs` jobs in turn over the active projects, ids 1 to `jobs`; nothing of them is kept.

    Of every 50 jobs of a project one never started, one failed by its script and one on a pull.
    """

    def __init__(
        self, projects: Sequence[Project], jobs: int, unresolved: int, now: float, days: float,
        runners: Sequence[int],
    ) -> None:  # fmt: skip
        self.last = jobs
        self._projects = projects
        self._index = {project.id: index for index, project in enumerate(projects)}
        self._now, self._span = now, days * DAY
        self._runners = runners
        self._templates: list[tuple[Template, ...]] = []
        for index, project in enumerate(projects):
            text, templates = definition(project.id, index < unresolved)
            project.lint = Lint(text)
            self._templates.append(templates)

    def get(self, number: int) -> Job | None:
        if not 1 <= number <= self.last:
            return None
        turn, index = divmod(number - 1, len(self._projects))
        project, templates = self._projects[index], self._templates[index]
        template = templates[turn % len(templates)]
        created = self._now - self._span * (self.last - number + 1) / self.last
        fate = (turn * 7 + index * 11) % 50
        status, reason = {
            0: ("skipped", None),
            1: ("failed", "script_failure"),
            2: ("failed", "image_pull_failure"),
        }.get(fate, ("success", None))
        return Job(
            number,
            project.id,
            template.name,
            status,
            created,
            None if status == "skipped" else created + 2,
            None if status == "skipped" else self._runners[turn % len(self._runners)],
            reason,
            pipeline=turn // len(templates) * len(self._projects) + index + 1,
            sha=project.sha,
            uses=template.uses,
            trace=lambda: trace_text(template.uses, failed=reason == "image_pull_failure"),
        )

    def of_project(self, project: int, below: int) -> Iterator[Job]:
        index = self._index.get(project)
        if index is None:
            return
        step = len(self._projects)
        top = min(below - 1, self.last)
        # The highest id of this project that is not above the limit.
        first = top - (top - 1 - index) % step
        for number in range(first, 0, -step):
            yield self._job(number)

    def of_runner(self, runner: int, below: int) -> Iterator[Job]:
        for number in range(min(below - 1, self.last), 0, -1):
            turn = (number - 1) // len(self._projects)
            if self._runners[turn % len(self._runners)] == runner:
                job = self._job(number)
                if job.runner is not None:
                    yield job

    def all(self) -> Iterator[Job]:
        return (self._job(number) for number in range(1, self.last + 1))

    def _job(self, number: int) -> Job:
        job = self.get(number)
        assert job is not None
        return job


def true_uses(jobs: Iterator[Job]) -> Counter[tuple[str, UseKind]]:
    """Return in how many jobs that ran each image was used as what."""
    found: Counter[tuple[str, UseKind]] = Counter()
    for job in jobs:
        if job.started is not None:
            found.update(set(job.uses))
    return found


def trace_text(
    uses: Sequence[tuple[str, UseKind]], *, failed: bool = False, size: int = 0
) -> bytes:
    """Return the trace of a job on a docker executor of gitlab-runner 17, at least `size` long."""
    images = [text.removeprefix("docker.io/").removeprefix("library/") for text, _ in uses]
    lines = [
        "\x1b[0KRunning with gitlab-runner 17.5.0 (c4f1a7d2)\x1b[0;m",
        "\x1b[0K  on fleet-1 t1_AbCdEf, system ID: s_0123456789ab\x1b[0;m",
        "section_start:1700000000:prepare_executor\r\x1b[0K\x1b[0K\x1b[36;1m"
        'Preparing the "docker" executor\x1b[0;m\x1b[0;m',
    ]
    if images:
        lines.append(f"\x1b[0KUsing Docker executor with image {images[0]} ...\x1b[0;m")
    for image in [*images[1:], *images[:1]]:
        if image != images[0]:
            lines.append(f"\x1b[0KStarting service {image}...\x1b[0;m")
        lines.append(f"\x1b[0KPulling docker image {image} ...\x1b[0;m")
        if failed:
            error = "toomanyrequests: You have reached your pull rate limit. (manager.go:237:1s)"
            lines += [
                f'\x1b[0;33mWARNING: Failed to pull image with policy "always": {error}\x1b[0;m',
                "section_end:1700000009:prepare_executor\r\x1b[0K\x1b[31;1mERROR: Job failed: "
                f'failed to pull image "{image}" with specified policies [always]: {error}\x1b[0;m',
            ]
            return ("\n".join(lines) + "\n").encode()
        content = hashlib.sha256(image.encode()).hexdigest()
        lines.append(f"\x1b[0KUsing docker image sha256:{content} for {image} ...\x1b[0;m")
    lines += [
        "section_end:1700000009:prepare_executor\r\x1b[0Ksection_start:1700000009:prepare_script\r"
        "\x1b[0K\x1b[0K\x1b[36;1mPreparing environment\x1b[0;m\x1b[0;m",
        "Running on runner-t1abcdef-project-1-concurrent-0 via fleet-1...",
        "section_end:1700000010:prepare_script\r\x1b[0Ksection_start:1700000010:step_script\r\x1b[0K"
        '\x1b[0K\x1b[36;1mExecuting "step_script" stage of the job script\x1b[0;m\x1b[0;m',
        "\x1b[32;1m$ make\x1b[0;m",
        "Pulling docker image printed-by-a-script:1 ...",
    ]
    text = "\n".join(lines).encode() + b"\n"
    filler = b"cc -O2 -c file.c\n"
    return text + filler * (max(0, size - len(text)) // len(filler))


def moved(project: Project) -> None:
    """Give the default branch of a project another head."""
    project.sha = hashlib.sha1(project.sha.encode() + b"+").hexdigest()


def as_running(job: Job) -> Job:
    """Return the job as it was before its end."""
    return replace(job, status="running")
