"""The readers of hostile input, each with what must hold whatever it is given.

Every input here was written by a stranger: the author of a `.gitlab-ci.yml`, of a job's script or
of an image, a registry, or whoever may append to a log.
"""

# ruff: noqa: E501 - the lines of logs stand as they are printed

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any, Final

from prewarm.config import reader as config
from prewarm.config.schema import example
from prewarm.core.errors import ConfigError, UsageError
from prewarm.core.manifest import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    ManifestError,
    covers,
    index_for,
    upstream_digest,
    valid_digest,
    wanted_children,
)
from prewarm.core.platforms import ALL, Platform, Wanted
from prewarm.core.reference import (
    DOCKER_HUB,
    InvalidReference,
    folder_of,
    parse,
    parse_registry,
    parse_repository,
)
from prewarm.discovery import ci_yaml
from prewarm.discovery.checkout import Unavailable
from prewarm.discovery.ci_evaluate import evaluate
from prewarm.discovery.ci_yaml import Quotation, Unreadable
from prewarm.discovery.job_log import RUNNER_IMAGES, TOOL_IMAGES, Trace, read
from prewarm.discovery.runner_log import Use, read_entry, read_line
from prewarm.registry import headers
from tests.fuzz.engine import Target, plain

_DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
_CONTROLS: Final = ("\x00", "\x1b[31m", "\r", "\n", "\u202e", "\u2028", "\x9b", "\t", "\ufeff")
_LINE: Final = 1500
"""Characters of an error for people; what it quotes is cut."""


def _tokens(written: str, *more: str) -> tuple[str, ...]:
    """Return what stands between the bars, and what moves a terminal's cursor."""
    return (*written.split("¦"), *more, *_CONTROLS)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# --- references ---


def _reference(data: bytes) -> None:
    text = _decoded(data)
    for reader in (parse, parse_repository):
        try:
            found = reader(text)
        except InvalidReference as error:
            plain(str(error), _LINE)
            continue
        assert reader(str(found)) == found
        assert reader(found.familiar) == found
        assert len(found.repository) <= 255
        assert found.tag is None or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", found.tag)
        try:
            path = found.mirror_repository
        except InvalidReference as error:
            plain(str(error), _LINE)
            continue
        assert re.fullmatch(r"[a-z0-9][a-z0-9._/-]{0,254}", path), path
        assert not {"", ".", ".."} & set(path.split("/")), path
        folder = "" if found.registry == DOCKER_HUB else folder_of(found.registry) + "/"
        assert path == folder + found.repository
        # No other registry's image has this path: its first part is no host.
        assert folder or not re.fullmatch(r".*\..*|localhost|.*_[0-9]+", path.split("/")[0])
    try:
        host = parse_registry(text)
    except InvalidReference as error:
        plain(str(error), _LINE)
    else:
        assert parse_registry(host) == host == host.lower()


# --- what a registry sends ---


def _challenges(data: bytes) -> None:
    text = _decoded(data)
    found = headers.parse_challenges([text])
    parameters = [pair for one in found for pair in one.parameters.items()]
    assert len(found) + len(parameters) <= 8192
    for challenge in found:
        assert re.fullmatch(r"\S+", challenge.scheme)
        assert challenge.scheme == challenge.scheme.lower()
    written = [
        challenge.scheme
        + " "
        + ", ".join(
            '{}="{}"'.format(name, re.sub(r'(["\\])', r"\\\1", value))
            for name, value in challenge.parameters.items()
        )
        for challenge in found
    ]
    if len(", ".join(written)) < 8192:
        assert headers.parse_challenges([", ".join(written)]) == found


def _header(data: bytes) -> None:
    """Whatever the header holds: Link, Retry-After, Content-Range, Date and the limits."""
    text = _decoded(data)
    link = headers.next_link(text)
    assert link is None or (link in text and not set("<>") & set(link))
    for wait in (
        headers.retry_after({"retry-after": text}),
        headers.retry_after({"retry-after": text, "date": "Wed, 25 Nov 2026 00:00:00 GMT"}),
    ):
        assert wait is None or 0 <= wait < 10**12
    at = headers.http_date(text)
    assert at is None or math.isfinite(at)
    span = headers.content_range(text)
    assert span is None or (span[0] >= 0 and (span[1] is None or span[1] >= 0))
    limit = headers.read_limit({"ratelimit-remaining": text, "ratelimit-limit": text})
    if limit is not None:
        assert abs(limit.remaining) < 10**12
        assert limit.window is None or 0 <= limit.window < 10**9
    named = headers.read_limit({"ratelimit-remaining": "1", "docker-ratelimit-source": text})
    assert named is not None
    plain(named.source, 128)


_WANTED: Final[tuple[Wanted, ...]] = (
    ALL,
    (Platform("linux", "amd64"),),
    (Platform("linux", "amd64"), Platform("linux", "arm64"), Platform("windows", "amd64")),
)


def _manifest(data: bytes) -> None:
    for media_type in (OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX):
        manifest = Manifest(media_type, data)
        for wanted in _WANTED:
            try:
                _read_manifest(manifest, wanted)
            except ManifestError as error:
                plain(str(error), _LINE)


def _read_manifest(manifest: Manifest, wanted: Wanted) -> None:
    assert valid_digest(upstream_digest(manifest))
    for part in (*manifest.blobs, *(child.descriptor for child in manifest.children)):
        assert part.size >= 0
        assert valid_digest(part.digest)
    for child in manifest.children:
        if child.platform is not None:
            plain(str(child.platform), 600)
    covers(manifest, wanted)
    chosen = wanted_children(manifest, wanted)
    made = index_for(manifest, wanted)
    if not manifest.is_index:
        return
    assert [one.descriptor.digest for one in wanted_children(made, wanted)] == [
        one.descriptor.digest for one in chosen
    ]
    assert index_for(manifest, wanted).content == made.content
    if made.digest != manifest.digest:
        assert upstream_digest(made) == manifest.digest
        assert covers(made, wanted)
        assert len(made.content) <= 10 * len(manifest.content) + 10_000


# --- what a CI author writes ---


class _Files:
    """A repository of which each file holds the same."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, path: str, most: int) -> bytes:
        if "missing" in path:
            raise Unavailable("does not exist", "add it")
        return self._data[: most + 1]

    def match(self, pattern: str) -> Iterable[str]:
        return ("a.yml", "b.yml")


def _definition(data: bytes) -> None:
    found = evaluate(data, ".gitlab-ci.yml", _Files(data), {"CI_PROJECT_PATH": "team/app"})
    for image in found.images:
        assert (image.reference is None) is (image.unresolved is not None)
        assert image.names
        plain(image.text, 2000)
        plain(image.unresolved or "", _LINE)
        if image.reference is not None and image.via is None and not image.guessed:
            assert parse(image.text) == image.reference
    assert len(found.problems) <= 1000
    for problem in found.problems:
        plain(problem.problem, _LINE)
        plain(problem.cure, _LINE)


def _yaml(data: bytes) -> None:
    try:
        found = ci_yaml.read(data)
    except Unreadable as error:
        plain(str(error), _LINE)
        return
    for note in found.notes:
        plain(note.problem, _LINE)
    assert len(found.notes) <= 100
    for document in found.documents:
        for value in _values(document):
            assert value is None or isinstance(value, str | int | float | bool | Quotation)
    text = ci_yaml.text_of(found.documents[0]) if found.documents else None
    if text is not None:
        assert ci_yaml.read(json.dumps(text, ensure_ascii=False).encode()).documents == (text,)


def _values(document: Any) -> Iterator[Any]:
    """Yield the scalars of a document, each collection once: aliases may name one a million
    times."""
    todo, seen = [(document, 1)], set()
    while todo:
        value, depth = todo.pop()
        if not isinstance(value, dict | list):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            assert depth <= 100
            inner = value.values() if isinstance(value, dict) else value
            todo += [(one, depth + 1) for one in inner]


# --- what a job prints, and what a runner logs ---

_HEAD: Final = (
    "Running with gitlab-runner 17.5.0 (abcdef01)\n"
    "section_start:1700000000:prepare_executor\r\x1b[0K"
    'Preparing the "docker" executor\n'
    "Using Docker executor with image rust:1.80 ...\n"
    "Starting service redis:7 ...\n"
    f"Using docker image {_DIGEST} for rust:1.80 with digest rust@{_DIGEST} ...\n"
    "section_end:1700000009:prepare_executor\r\x1b[0K"
)
_SCRIPT: Final = (
    _HEAD + "section_start:1700000010:get_sources\r\x1b[0KGetting source from Git repository\n"
)


def _by_the_runner(trace: Trace) -> list[tuple[str, str, str | None, bool]]:
    return [
        (one.text, one.kind, one.digest, one.failed)
        for one in trace.images
        if one.trust == "runner"
    ]


def _trace(data: bytes) -> None:
    trace = read(data)
    assert read(_decoded(data)) == trace
    assert len(trace.images) <= RUNNER_IMAGES + TOOL_IMAGES
    for image in trace.images:
        plain(image.text, 1000)
        parse(image.text)
        assert image.digest is None or valid_digest(image.digest), image.digest
    plain(trace.executor or "", 40)
    # What a script prints is never taken for the runner's word.
    honest, forged = read(_SCRIPT), read(_SCRIPT.encode() + data)
    assert _by_the_runner(forged) == _by_the_runner(honest)
    assert not forged.pull_failed
    assert not forged.rate_limited
    stamp = b"2026-03-04T05:06:07.000000Z "
    stamped = b"".join(stamp + b"00O " + line + b"\n" for line in _HEAD.encode().splitlines())
    lines = b"".join(stamp + b"01O " + line + b"\n" for line in data.split(b"\n"))
    assert _by_the_runner(read(stamped + lines)) == _by_the_runner(read(stamped))


_NOW: Final = 1_790_000_000.0


def _runner_log(data: bytes) -> None:
    text = _decoded(data)
    for line in (text, *text.splitlines()[:20]):
        if (use := read_line(line, _NOW, UTC)) is not None:
            _check_use(use)
        cursor, use = read_entry(line, UTC)
        assert cursor is None or isinstance(cursor, str)
        if use is not None:
            _check_use(use)


def _check_use(use: Use) -> None:
    plain(use.text, 1000)
    parse(use.text)
    assert use.time is None or math.isfinite(use.time)
    assert 0 <= use.job < 10**18
    assert 0 <= use.project < 10**18
    for text in (use.project_path, use.runner, use.platform):
        plain(text or "", 1024)


# --- what an operator writes ---


def _check_problems(error: ConfigError) -> None:
    assert 1 <= len(error.problems) <= 1001
    for problem in error.problems:
        plain(problem.line, _LINE)
        assert problem.where.startswith("images.yml")
        assert problem.cure


def _configuration(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="prewarm-fuzz-") as folder:
        path = Path(folder) / "images.yml"
        path.write_bytes(data)
        try:
            settings = config.load(path, home=Path(folder))
        except ConfigError as error:
            _check_problems(error)
            return
        except UsageError as error:
            plain(str(error), _LINE)
            return
        # What was read is in order: the same file gives the same.
        assert config.load(path, home=Path(folder)) == settings
        for pin in settings.pins:
            assert str(pin)


_FIELDS: Final = "job=12 namespace_id=5 project=3 project_full_path=team/app runner=t1_AbCdEf"
_LOGGED: Final = f"Image configured for job                            image_name=node:22 {_FIELDS}"
_MESSAGE: Final = {
    "msg": "Image configured for job",
    "image_name": "node:22",
    "job": 1,
    "project": 2,
}
_ENTRY: Final = {"__CURSOR": "s=1", "__REALTIME_TIMESTAMP": "1790000000000000", "MESSAGE": _LOGGED}
_OCI: Final = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": _DIGEST,
        "size": 7,
    },
    "layers": [{"mediaType": "application/x", "digest": _DIGEST, "size": 9, "urls": []}],
    "annotations": {"a": "b"},
}
_CHILDREN: Final = [
    {
        "mediaType": OCI_MANIFEST,
        "digest": "sha256:" + f"{number:064x}",
        "size": 5,
        "platform": {"os": os, "architecture": architecture, "variant": variant},
    }
    for number, (os, architecture, variant) in enumerate(
        [
            ("linux", "amd64", ""),
            ("linux", "arm64", "v8"),
            ("windows", "amd64", ""),
            ("unknown", "unknown", ""),
        ]
    )
]
_INDEX: Final = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": _CHILDREN}
_YAML_TOKENS: Final = _tokens(
    "image: ¦services: ¦variables:\n¦  A: $B\n¦extends: ¦- ¦x: &a ¦*a¦<<: *a\n¦[¦]¦{¦}¦, ¦? ¦: ¦\"¦'¦"
    "|\n¦>-\n¦#¦---\n¦...\n¦!!binary ¦!reference [a, image]\n¦include: a.yml\n¦\n¦\n  ¦\n    ¦$A¦${A}¦"
    "$$¦%A%¦parallel:\n    matrix:\n¦rules:\n¦spec:\n  inputs:\n¦$[[ inputs.a ]]¦default:\n¦0x1f¦1_0¦"
    "010¦~¦null¦yes¦.5¦1e3¦j:\n  ¦.h:\n  ",
    "[" * 101 + "]" * 101,
    "%TAG !x! y\n",
)
_JOBS: Final = {
    "include": [{"local": "a.yml", "inputs": {"a": "b"}, "rules": [{"if": "$A"}]}],
    "variables": {"A": "1.2", "B": {"value": "$A", "expand": False}},
    "default": {"image": "golang:$A", "services": [{"name": "redis:${B}", "alias": "db"}]},
    ".base": {"image": {"name": "quay.io/team/app:1", "docker": {"platform": "linux/arm64"}}},
    "test": {
        "extends": [".base"],
        "inherit": {"default": ["image"], "variables": False},
        "parallel": {"matrix": [{"V": ["1", "2"], "W": "x"}]},
        "image": "a:$V",
        "rules": [{"if": "$A", "variables": {"V": "22"}}],
    },
    "many": {"parallel": 3, "image": "$CI_REGISTRY/app", "services": ["a", ["b"]]},
}
_SETTINGS: Final = {
    "version": 1,
    "mirrors": ["http://127.0.0.1:5000", {"url": "https://m", "keep": "30d", "max_size": "9GiB"}],
    "registries": {
        "docker.io": {"budget": {"pulls": 9, "window": "6h", "reserve": 1}, "platforms": "all"},
        "quay.io": {},
    },
    "gitlab": {"url": "https://g", "groups": ["a/b"], "runners": {"ids": [1], "tags": ["x"]}},
    "images": ["golang:1", {"image": "python", "tags": {"match": "3.*", "newest": 2}}],
    "include": ["images.d/*.yml"],
    "skip": ["*:a"],
    "limits": {"parallel": 2, "image_size": "1GiB"},
    "schedule": ["19:00"],
    "notify": {"command": ["/bin/true"], "on": ["failure"]},
}
_CI: Final = """\
include:
  - local: a.yml
    inputs: {name: one}
variables: {A: "1.2", B: $A}
default: {image: "golang:$A", services: [{name: "redis:${B}", alias: db}]}
.base: {image: {name: "quay.io/team/app:1", docker: {platform: linux/arm64}}}
test:
  extends: .base
  parallel: {matrix: [{V: ["1", "2"], W: [x]}]}
  script: [make]
build:
  image: node:$V
  rules: [{if: $A, variables: {V: "22"}}, {variables: {V: "20"}}]
copy:
  image: !reference [.base, image]
  services: [*a]
"""

TARGETS: Final = (
    Target(
        "reference",
        _reference,
        [
            "golang:1.22",
            f"quay.io:443/a/b-c__d@{_DIGEST}",
            "localhost/x/y:z",
            "[::1]:5000/a",
            "a_1/b",
        ],
        _tokens(
            "/¦:¦@¦.¦_¦-¦A¦0¦z¦1_5000/a¦__¦docker.io/¦index.docker.io/¦library/¦sha256:¦localhost¦"
            "1_5000¦http://¦$X¦é¦xn--a.b:5",
            _DIGEST,
            "a" * 130,
        ),
    ),
    Target(
        "challenges",
        _challenges,
        [
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull"',
            'Basic realm="x", Bearer realm=y, error="invalid_token"',
            "Negotiate abc==, Basic",
            r'Bearer realm="a \"quoted\" word"',
        ],
        _tokens(
            'Bearer ¦Basic¦,¦=¦"¦\\¦\\"¦ ¦realm=¦scope¦;¦a',
        ),
    ),
    Target(
        "headers",
        _header,
        [
            '</v2/a/tags/list?last=b&n=2>; rel="next"',
            "100;w=21600",
            "bytes 5-9/10",
            "120",
            "Wed, 25 Nov 2026 00:00:09 GMT",
            "192.0.2.7",
            "2001:db8::7%eth0",
        ],
        _tokens(
            '<¦>¦;¦rel=¦"next"¦next¦,¦=¦w¦-¦/¦*¦bytes ¦GMT¦+9999¦ ¦:¦2026¦Nov¦a=¦"',
            "9" * 12,
        ),
    ),
    Target(
        "manifest",
        _manifest,
        [json.dumps(one) for one in (_OCI, _INDEX, {**_INDEX, "annotations": {"a": "b"}})],
        _tokens(
            '"size": ¦1e400¦-1¦null¦true¦[¦]¦{¦}¦"¦,¦:¦NaN¦"platform": ¦"urls": ["http://a"]¦'
            '"digest": ¦"os": "linux"¦\\u202e¦"architecture": "amd64"¦"variant": ¦"annotations": ¦'
            '"io.prewarm.platforms": ""¦\ufeff',
            "9" * 30,
            f'"{_DIGEST}"',
        ),
        documents=[
            _OCI,
            _INDEX,
            {**_INDEX, "annotations": {"io.prewarm.platforms": "linux/amd64"}},
        ],
    ),
    Target(
        "definition",
        _definition,
        [
            _CI,
            "spec: {inputs: {a: {default: x}}}\n---\nj: {image: 'a:$[[ inputs.a | truncate(0,1) ]]'}\n",
            "j: {image: 'golang:1', services: ['redis:7', $A:1]}\n",
            "image: node:22\n",
        ],
        _YAML_TOKENS,
        documents=[_JOBS],
        # Its work is counted in steps, which may be many for few bytes.
        grows=False,
    ),
    Target(
        "yaml",
        _yaml,
        [
            _CI,
            "a: &a {b: [1, 2]}\nc: {<<: *a, d: *a}\n",
            '"text"',
            "[0x1f, 0b11, 010, 1_000, -5, 1.5e3]\n",
        ],
        _YAML_TOKENS,
        documents=[_JOBS],
    ),
    Target(
        "trace",
        _trace,
        [
            _HEAD,
            _SCRIPT
            + "$ docker build .\nStep 1/2 : FROM alpine:3\n#5 [1/2] FROM docker.io/library/busybox:1\n",
            'ERROR: Job failed: failed to pull image "a:1" with specified policies [always]: toomanyrequests\n',
            "2026-03-04T05:06:07.000000Z 00O Using Docker executor with image a:1 ...\n",
        ],
        _tokens(
            "section_start:1:prepare_executor¦section_end:1:prepare_executor¦\r\x1b[0K¦\x1b[0;m¦"
            "section_start:1:prepare_script¦[collapsed=true]¦Using Docker executor with image ¦"
            " ...\n¦Starting service ¦Using docker image sha256:0 for ¦ with digest ¦ERROR: ¦"
            'WARNING: ¦Failed to pull image "a:1"¦toomanyrequests¦2026-03-04T05:06:07.000000Z 00O ¦'
            "01O+¦=1B[0K¦Running on ¦$ ¦Preparing environment\n¦FROM ¦#5 [1/2] ¦a:1¦\n",
        ),
    ),
    Target(
        "runner log",
        _runner_log,
        [
            _LOGGED,
            f"Mar  4 05:06:07 host gitlab-runner[7]: {_LOGGED}",
            'time="2026-03-04T05:06:07Z" level=info msg="Image configured for job" image_name="a:1" job=1 project=2',
            json.dumps(_MESSAGE),
            json.dumps(
                {"log": json.dumps(_MESSAGE) + "\n", "time": "2026-03-04T05:06:07.123456789Z"}
            ),
            json.dumps(_ENTRY, separators=(",", ":")),
        ],
        _tokens(
            'Image configured for job ¦image_name=¦job=¦project=¦ ¦"¦\\¦{¦}¦[¦]¦,¦:¦time=¦msg=¦'
            "null¦Feb 29 00:00:00 ¦0001-01-01T00:00:00¦\x1b[0;m",
            "9" * 18,
        ),
        documents=[_MESSAGE, _ENTRY, {"log": json.dumps(_MESSAGE), "time": "2026-03-04T05:06:07Z"}],
    ),
    Target(
        "configuration",
        _configuration,
        [
            example(),
            "version: 1\nmirrors: [http://127.0.0.1:5000]\nimages: [golang:1, {image: a, tags: [3.10, '2']}]\n",
            "version: 1\nmirrors: [{url: https://m, mode: push, keep: 30d}]\nregistries: {docker.io: "
            "{budget: {pulls: 10, window: 6h, reserve: 1}}}\nskip: ['*:a']\nlimits: {parallel: 2}\n",
        ],
        _tokens(
            "version: 1\n¦mirrors: ¦images: ¦image: ¦tags: ¦budget: ¦url: ¦http://a:b@c/¦- ¦[¦]¦{¦"
            "}¦, ¦: ¦\"¦'¦&a ¦*a¦!!int ¦\n¦\n  ¦10GiB¦15m¦-1¦~¦registries: ¦docker.io¦none¦match: ¦"
            "newest: ",
            "9" * 20,
        ),
        documents=[_SETTINGS],
    ),
)
