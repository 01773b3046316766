"""Reads the head of a job's trace for the images that the runner itself names.

The lines are those of gitlab-runner (executors/docker, executors/kubernetes, common/buildlogger),
from the first releases to today's. A trace is hostile text: a script prints what it likes. What
counts as said by the runner:

- A trace whose first line is stamped (FF_TIMESTAMPS) is believed where the stamp names stream 00,
  the executor's; scripts write to 01, services to 0f and up, and none of them can write a stamp.
- Any other trace is believed only until its first script could have printed something. That is the
  section `prepare_executor`; runners that have no such section, or a text that lost its marks, are
  believed from the start up to `Running on …`. Between there and the first `get_sources` only a
  failed pull and a pod's events count: Kubernetes pulls there. A section that opens again later is
  a forgery. So is a mark within a line, unless it is glued to the end of another section; and a
  line with a time before it is the log of a service that did not start.

What build tools print is read from the rest, and marked as of lower trust. Of a line only the
image's name is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from prewarm.core.reference import InvalidReference, Reference, parse

Kind = Literal["image", "service", "helper", "tool"]
Trust = Literal["runner", "tool"]

RUNNER_IMAGES: Final = 64
"""How many images of the runner's own lines are kept; a job has a handful."""
TOOL_IMAGES: Final = 32
"""How many images of build tools' lines are kept."""
_HEAD_MAX: Final = 8 << 20
_LINES_MAX: Final = 200_000
_LINE_MAX: Final = 4096
"""Characters of a line that are looked at; the longest reference is a tenth of that."""


@dataclass(frozen=True, slots=True)
class TraceImage:
    """An image that a trace names."""

    text: str
    """As printed: expanded, but without the `docker.io` and `latest` that nobody wrote."""
    kind: Kind
    digest: str | None = None
    """Of the content that was used, as `sha256:…`; None where the trace does not tell."""
    failed: bool = False
    """A pull of it failed and nothing says that the job got it all the same."""
    trust: Trust = "runner"


@dataclass(frozen=True, slots=True)
class Trace:
    """What the head of a trace says, in the order in which it is said."""

    images: tuple[TraceImage, ...] = ()
    default_image: bool = False
    """The job names no image: the one used is the runner's own default (runners since 18.2)."""
    pull_failed: bool = False
    """The runner could not pull an image that the job needed."""
    rate_limited: bool = False
    """A registry refused the runner a pull for its limit, even if the job went on."""
    executor: str | None = None
    """As the runner names it: `docker`, `docker+machine`, `kubernetes`, `shell`, …"""


def read(head: bytes | str) -> Trace:
    """Return what the beginning of a trace says; never fails, and its work is linear."""
    text = head[:_HEAD_MAX]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    found = _Reader()
    stamped = _is_stamped(text)
    zone = _Zone()
    for stream, line in _lines(_without_mail_encoding(text)):
        if stream not in (_EXECUTOR, None):
            if stream == _SCRIPT:
                found.tool_line(_COLOUR.sub("", line).strip())
            continue
        if not stamped and (stream is not None or _TIME.match(line)):
            continue
        for piece, belief in zone.pieces(line):
            if stamped:
                belief = _Belief.NOTHING if stream is None else _Belief.ALL
            if belief is not _Belief.NOTHING:
                found.runner_line(piece, belief)
            elif stream is None:
                found.tool_line(piece)
    return found.trace()


# --- lines ---

_EXECUTOR: Final = "00"
_SCRIPT: Final = "01"
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ([0-9a-f]{2})([OE])([ +])")
_TIME = re.compile(r"\s{0,8}\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
# The escape itself is often lost where a trace was copied from a page or a mail.
_COLOUR = re.compile(r"(?:\x1b|=1B)\[[0-9;]{0,16}[A-Za-z]|\[(?:0K|0;m|[0-9]{1,2};[0-9]{1,2}m)")


def _is_stamped(text: str) -> bool:
    """Whether the runner stamps its lines; only the first line tells, the others may be forged."""
    return _STAMP.match(text.lstrip("\r\n")) is not None


def _without_mail_encoding(text: str) -> str:
    """Undo quoted-printable's soft breaks where the text came by mail, with its escapes as =1B."""
    return text.replace("=\n", "") if "=1B[0K" in text[:_LINE_MAX] else text


def _lines(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield each line with its stream, None without a stamp; `+` lines joined to their own."""
    open_lines: dict[str, str] = {}
    for raw in _split(text):
        stamp = _STAMP.match(raw)
        if stamp is None:
            for stream, line in open_lines.items():
                yield stream[:2], line
            open_lines.clear()
            yield None, raw
            continue
        stream, line = stamp[1] + stamp[2], raw[stamp.end() :]
        if stamp[3] == "+":
            begun = open_lines.get(stream, "")
            open_lines[stream] = begun + line[: max(0, _LINE_MAX - len(begun))]
            continue
        if stream in open_lines:
            yield stream[:2], open_lines[stream]
        open_lines[stream] = line
        # Another stream's line ends no line of this one, but a person reads on: so do we.
        for other in [name for name in open_lines if name != stream and name[:2] == stream[:2]]:
            yield other[:2], open_lines.pop(other)
    for stream, line in open_lines.items():
        yield stream[:2], line


def _split(text: str) -> Iterator[str]:
    """Yield the lines, each cut to what is looked at, without a copy of the whole."""
    start = 0
    for _ in range(_LINES_MAX):
        if start >= len(text):
            return
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start : min(end, start + _LINE_MAX)]
        start = end + 1


# --- where the runner is believed ---


class _Belief(IntEnum):
    """How much of what stands here is the runner's own."""

    NOTHING = 0
    PULLS = 1
    """A failed pull and the events of a pod."""
    ALL = 2


_MARK = re.compile(r"section_(start|end):\d{1,20}:([A-Za-z0-9_.-]{1,128})(?:\[[^\]\r]{0,512}\])?")
_BEFORE_SCRIPTS: Final = frozenset({"resolve_secrets", "prepare_executor", "prepare_script"})
_ENVIRONMENT = re.compile(r"Preparing environment")
# The first words of what is printed once a shell runs, by any runner since 0.1.
_SHELL = re.compile(
    r"Running on |Getting source from |Fetching changes|Cloning repository|Skipping Git repository"
    r"|Executing \"|Checking out |Initialized empty Git|Reinitialized existing Git|\$ "
)
# Where a page lost the line breaks: what a line of the runner begins with after another's end. The
# whole must begin as the runner's, for a service's log may hold anything after its time.
_JOINED = re.compile(r"Running with gitlab-|Using (?:Docker|Kubernetes) executor with image ")
_JOINT = re.compile(
    r"(?:(?<=\.\.\.)|(?<=\)))(?=Using [Dd]ocker |Using Kubernetes |Pulling docker image "
    r"|Starting service |Preparing the |Running on )"
)


class _Zone:
    """Follows an unstamped trace; belief only ever sinks."""

    def __init__(self) -> None:
        self._belief = _Belief.ALL
        self._opened = False
        """The section `prepare_executor` has begun; no runner begins it twice."""

    def pieces(self, line: str) -> Iterator[tuple[str, _Belief]]:
        """Yield what stands between the section marks of a line, and whether to believe it.

        What follows a mark that the runner cannot have put there is not believed.
        """
        line = _COLOUR.sub("", line)
        joined = _JOINED.match(line) is not None
        genuine, glued, start = True, True, 0
        for mark in _MARK.finditer(line):
            text = line[start : mark.start()]
            yield from self._texts(text, genuine)
            genuine = genuine and (joined or (glued and not text.strip()))
            glued = mark[1] == "end"
            self._pass(mark[1], mark[2])
            start = mark.end()
        yield from self._texts(line[start:], genuine)

    def _texts(self, text: str, genuine: bool) -> Iterator[tuple[str, _Belief]]:
        text = text.strip()
        joined = self._belief and _JOINED.match(text)
        for piece in _JOINT.split(text) if joined else (text,):
            if self._belief and _SHELL.match(piece):
                self._belief = _Belief.NOTHING
            elif self._belief and _ENVIRONMENT.match(piece):
                self._belief = _Belief.PULLS
            if piece:
                yield piece, self._belief if genuine else _Belief.NOTHING

    def _pass(self, way: str, section: str) -> None:
        if section not in _BEFORE_SCRIPTS or self._again(way, section):
            limit = _Belief.NOTHING
        elif section == "prepare_script":
            limit = _Belief.PULLS if way == "start" else _Belief.NOTHING
        elif section == "prepare_executor" and way == "end":
            limit = _Belief.PULLS
        else:
            return
        self._belief = min(self._belief, limit)

    def _again(self, way: str, section: str) -> bool:
        """Whether the mark begins a section that has begun before."""
        if way != "start" or section != "prepare_executor":
            return False
        again, self._opened = self._opened, True
        return again


# --- what the lines say ---

_EXECUTORS: Final = (
    re.compile(r'Preparing the "([a-z0-9+_-]{1,40})" executor'),
    re.compile(r"Using (Docker|Docker-SSH|Kubernetes|Shell|SSH|Custom|VirtualBox|Parallels)\b"),
)
_DURATION: Final = r"(?: \d\d:\d\d)?"
_MAIN = re.compile(
    rf"Using (?:Docker|Docker-SSH|Kubernetes) executor with image (\S+) \.\.\.{_DURATION}"
)
_SERVICE = re.compile(r"Starting service (\S+?) ?\.\.\.")
_HELPER = re.compile(r"Using helper image: {1,2}(\S+)(?: {1,2}\(overridden, .{0,2048}\))?")
_PULLING = re.compile(r"Pulling docker image (\S+) (?:for platform \S+ )?\.\.\.")
_POLICY = re.compile(r"Using effective pull policy of \[[^\]]{0,200}\] for container (\S+)")
_USED = re.compile(r"Using docker image sha256:[0-9a-f]+ for (\S+?)(?: with digest (\S+))? \.\.\.")
_USED_9 = re.compile(r"Using docker image (\S+) ID=sha256:[0-9a-f]+ for (\S+) (\w+)\.\.\.")
_DEFAULT = re.compile(r"(?:INFO: )?Using default image\b")
_FAILURE = re.compile(r"(?:WARNING|ERROR): ")
_FAILED_PULL = re.compile(
    r"failed to pull image|image pull failed|pulling image|toomanyrequests|pull access denied"
    r"|image \S+ not found|manifest for \S+ not found|manifest unknown",
    re.IGNORECASE,
)
_NAMED = re.compile(r'(?:pull|pulling) image "([^"]{1,1024})"(?: for container "?([\w.-]{1,64}))?')
_EVENT = re.compile(r"(?:Normal|Warning)\s{1,20}(\w{1,40})\s{1,20}(.*)")
_EVENT_IMAGE = re.compile(
    r"(?:Pulling image|Successfully pulled image|Container image|Failed to pull image"
    r'|Back-off pulling image) "([^"]{1,1024})"'
)
_LIMIT = re.compile(r"toomanyrequests|reached your (?:\w+ )?pull rate limit", re.IGNORECASE)
_FATAL = re.compile(r"ERROR: (?:Job|Build|Preparation) failed")


class _Reader:
    """Gathers what the lines of one trace say."""

    def __init__(self) -> None:
        self._images: dict[tuple[Reference, Kind], TraceImage] = {}
        self._services: list[str] = []
        """Services that are starting and whose image no line has named yet, as printed."""
        self._last: Reference | None = None
        """The image that was named last: an old runner's failure is about that one."""
        self._main: Reference | None = None
        self._executor: str | None = None
        self._default = self._fatal = self._limited = False
        self._tools = _Tools()

    def trace(self) -> Trace:
        images = (*self._images.values(), *self._tools.images())
        return Trace(
            images,
            self._default,
            self._fatal and (self._last is None or any(image.failed for image in images)),
            self._limited,
            self._executor,
        )

    def tool_line(self, text: str) -> None:
        self._tools.line(text)

    def runner_line(self, text: str, belief: _Belief) -> None:
        """Read a line that the runner printed."""
        if self._read_failure(text) or self._read_event(text) or belief is _Belief.PULLS:
            return
        if self._executor is None or text.startswith("Preparing the "):
            for pattern in _EXECUTORS:
                if found := pattern.match(text):
                    self._executor = found[1].lower()
        self._default = self._default or _DEFAULT.match(text) is not None
        self._read_image(text)

    def _read_image(self, text: str) -> None:
        if found := _MAIN.fullmatch(text):
            self._main = self._name(found[1], "image") or self._main
        elif found := _SERVICE.fullmatch(text):
            self._services.append(found[1])
            del self._services[:-RUNNER_IMAGES]
        elif found := _HELPER.fullmatch(text):
            self._name(found[1], "helper")
        elif found := _PULLING.fullmatch(text):
            self._name(found[1])
        elif found := _USED.fullmatch(text):
            self._name(found[1], used=True, content=found[2])
        elif found := _USED_9.fullmatch(text):
            kind: Kind = "service" if found[3] == "service" else "image"
            self._name(found[1], "helper" if found[2] == "predefined" else kind, used=True)
        elif (found := _POLICY.fullmatch(text)) and (self._executor or "").startswith("docker"):
            # On Kubernetes this names containers.
            self._name(found[1])

    def _name(
        self, text: str, kind: Kind | None = None, *, used: bool = False, content: str | None = None
    ) -> Reference | None:
        """Record an image; without a kind, the one that the lines before it say."""
        reference = _reference(text)
        if reference is None:
            return None
        self._last = reference
        for each in (kind,) if kind else self._kinds(reference):
            key = (reference, each)
            if key not in self._images and len(self._images) >= RUNNER_IMAGES:
                continue
            before = self._images.get(key) or TraceImage(text, each)
            self._images[key] = TraceImage(
                before.text,
                each,
                before.digest or _digest(reference, content),
                before.failed and not used,
            )
        return reference

    def _kinds(self, reference: Reference) -> tuple[Kind, ...]:
        known = tuple(kind for image, kind in self._images if image == reference)
        for printed in self._services:
            if _is_started(reference, printed):
                self._services.remove(printed)
                return tuple(dict.fromkeys((*known, "service")))
        if known:
            return known
        if self._main is None and not _is_helper(reference):
            return ("image",)
        return ("helper",)

    def _read_failure(self, text: str) -> bool:
        """Read a warning or an error; False where the line is neither."""
        if not _FAILURE.match(text):
            return False
        if _FAILED_PULL.search(text) is None:
            return True
        self._limited = self._limited or _LIMIT.search(text) is not None
        self._fatal = self._fatal or _FATAL.match(text) is not None
        failed = self._last
        if named := _NAMED.search(text):
            failed = self._name(named[1], self._kind_in_pod(named[1], named[2])) or failed
        self._fail(failed)
        return True

    def _read_event(self, text: str) -> bool:
        """Read an event of a pod (FF_PRINT_POD_EVENTS); False where the line is none."""
        event = _EVENT.fullmatch(text)
        image = event and _EVENT_IMAGE.match(event[2])
        if event is None or image is None:
            return False
        named = self._name(image[1], self._kind_in_pod(image[1], None), used=event[1] == "Pulled")
        if event[1] in ("Failed", "BackOff"):
            self._limited = self._limited or _LIMIT.search(event[2]) is not None
            self._fail(named)
        return True

    def _kind_in_pod(self, text: str, container: str | None) -> Kind | None:
        """Return what a container of a pod is for; None where other lines say it already."""
        reference = _reference(text)
        if reference is None or any(image == reference for image, _ in self._images):
            return None
        if container == "build":
            return "image"
        if container in ("helper", "init-permissions") or _is_helper(reference):
            return "helper"
        if container is None and self._main is None:
            return "image"
        return "service"

    def _fail(self, reference: Reference | None) -> None:
        for (image, kind), found in self._images.items():
            if image == reference:
                self._images[image, kind] = TraceImage(found.text, kind, found.digest, failed=True)


def _reference(text: str) -> Reference | None:
    """Return the image that a line names, or None where the text is no image's name.

    Variables, `[MASKED]`, bare ids and everything that no registry could hold are none.
    """
    if len(text) > _LINE_MAX or text.startswith("sha256:"):
        return None
    try:
        reference = parse(text)
    except InvalidReference:
        return None
    return None if reference.repository == "library/scratch" else reference


def _digest(reference: Reference, content: str | None) -> str | None:
    """Return the digest in `repository@digest`; it may be another repository's, then None."""
    if reference.digest:
        return reference.digest
    other = _reference(content) if content else None
    return other.digest if other and other.name == reference.name else None


def _is_started(reference: Reference, printed: str) -> bool:
    """Whether `Starting service` printed this image: without the port of its registry."""
    started = _reference(printed)
    host = reference.registry.partition(":")[0]
    return started is not None and f"{host}/{reference.repository}" in (
        started.name,
        started.repository,
    )


def _is_helper(reference: Reference) -> bool:
    return reference.repository.rpartition("/")[2] == "gitlab-runner-helper"


# --- what build tools say ---

_FROM: Final = r"(?:--platform=\S{1,100} )?(\S+)(?: [Aa][Ss] (\S{1,128}))?"
_STAGES: Final = (
    re.compile(rf"Step \d+/\d+ : (?:FROM|from) {_FROM}"),
    re.compile(rf"(?:\[\d+/\d+\] )?STEP \d+(?:/\d+)?: FROM {_FROM}"),
    re.compile(r"INFO\[\d+\] Resolved base name (\S+) to (\S{1,128})"),
)
_TOOLS: Final = (
    # BuildKit and buildx, --progress=plain.
    re.compile(r"#\d+ \[(?:\S{1,100} )?internal\] load metadata for (\S+)"),
    re.compile(r"#\d+ \[[^\]]{1,200}\] FROM (\S+)"),
    re.compile(r"#\d+ resolve (\S+@sha256:[0-9a-f]{64})(?: .{0,40})?"),
    re.compile(r"#\d+ resolve image config for (?:docker-image://)?(\S+)"),
    re.compile(r"#\d+ pulling image (\S+)(?: [\d.]+s)?(?: done)?"),
    # docker run and pull, also under compose.
    re.compile(r"Unable to find image '(\S+)' locally"),
    re.compile(r"Status: (?:Downloaded newer image for|Image is up to date for) (\S+)"),
    # kaniko; buildah and podman.
    re.compile(r"INFO\[\d+\] Retrieving image manifest (\S+)"),
    re.compile(r"INFO\[\d+\] Retrieving image (\S+) from (?:mapped )?registry \S+"),
    re.compile(r"Trying to pull (\S+?)\.\.\."),
)
_FIRST_WORDS: Final = ("#", "Step ", "STEP ", "[", "INFO[", "Unable ", "Status: ", "Trying ")


class _Tools:
    """Gathers the images that build tools print; the author of a script controls every word."""

    def __init__(self) -> None:
        self._images: dict[Reference, TraceImage] = {}
        self._stages: set[str] = set()

    def images(self) -> tuple[TraceImage, ...]:
        return tuple(self._images.values())

    def line(self, text: str) -> None:
        """Read a line that any program may have printed."""
        if len(self._images) >= TOOL_IMAGES:
            return
        for piece in text.split("\r", 8)[:8]:
            if piece.startswith(_FIRST_WORDS):
                self._read(piece.strip())

    def _read(self, text: str) -> None:
        for pattern in _STAGES:
            if found := pattern.fullmatch(text):
                self._name(found[1])
                if found[2] and len(self._stages) < 1000:
                    self._stages.add(found[2].lower())
                return
        for pattern in _TOOLS:
            if found := pattern.fullmatch(text):
                self._name(found[1])
                return

    def _name(self, text: str) -> None:
        if text.lower() in self._stages:
            return
        named, _, digest = text.partition("@")
        reference = _reference(text)
        if reference is None:
            return
        if reference.digest and reference.tag:
            # A tag that a tool resolved: what the author wrote is the tag.
            text, reference = named, reference.with_tag(reference.tag)
        before = self._images.get(reference) or TraceImage(text, "tool", trust="tool")
        self._images[reference] = TraceImage(
            before.text, "tool", before.digest or digest or None, trust="tool"
        )
