"""What the jobs of a merged definition name: GitLab's rules as a table."""

from __future__ import annotations

import textwrap
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.usage import base_name
from prewarm.discovery.ci_jobs import (
    PARALLEL_MAX,
    RESERVED,
    Definition,
    JobImage,
    Work,
    read_definition,
)
from prewarm.discovery.ci_variables import of_project
from prewarm.discovery.ci_yaml import read

DIGEST = "sha256:" + "0123456789abcdef" * 4


def merged(text: str) -> dict[str, Any]:
    (document,) = read(textwrap.dedent(text).encode()).documents
    assert isinstance(document, dict)
    return document


def images_of(*arguments: Any, **options: Any) -> tuple[JobImage, ...]:
    return read_definition(*arguments, **options).images


def shown(image: JobImage) -> str:
    """Return an image in a line: `job: name`, `job + service`; `?` open, `~` not certain."""
    mark = "? " if image.reference is None else "" if image.certain else "~ "
    platform = f" [{image.platform}]" if image.platform else ""
    return f"{image.job}{':' if image.kind == 'image' else ' +'} {mark}{image.text}{platform}"


def named(text: str, **predefined: str) -> list[str]:
    return [shown(image) for image in images_of(merged(text), predefined)]


JOB = "j: {script: x, image: %s}"

CASES: dict[str, tuple[str, list[str]]] = {
    # Forms of image and services.
    "image as text": ("j: {script: x, image: 'alpine:3'}", ["j: alpine:3"]),
    "image as map": ("j: {script: x, image: {name: 'alpine:3'}}", ["j: alpine:3"]),
    "image map with everything": (
        """
        j:
          script: x
          image:
            name: registry.example.org:5000/team/app:1
            entrypoint: [""]
            pull_policy: [always, if-not-present]
            docker: {user: nobody}
            kubernetes: {user: "1000"}
        """,
        ["j: registry.example.org:5000/team/app:1"],
    ),
    "image with digest": (JOB % f"'alpine@{DIGEST}'", [f"j: alpine@{DIGEST}"]),
    "image with tag and digest": (JOB % f"'alpine:3@{DIGEST}'", [f"j: alpine:3@{DIGEST}"]),
    "docker platform": (
        "j: {script: x, image: {name: alpine, docker: {platform: linux/arm64/v8}}}",
        ["j: alpine [linux/arm64]"],
    ),
    "docker platform from a variable": (
        "j: {script: x, variables: {P: linux/arm64}, image: {name: a, docker: {platform: $P}}}",
        ["j: a [linux/arm64]"],
    ),
    "docker platform unknown": (
        "j: {script: x, image: {name: alpine, docker: {platform: $P}}}",
        ["j: alpine"],
    ),
    "docker platform empty": ("j: {script: x, image: {name: alpine, docker: }}", ["j: alpine"]),
    "trailing comment": ("j:\n  script: x\n  image: alpine:3 # the small one\n", ["j: alpine:3"]),
    "flow map over lines with its brace at the key's column": (
        "j:\n  script: x\n  image: {\n    name: alpine,\n    entrypoint: ['']\n  }\n",
        ["j: alpine"],
    ),
    "services as texts and maps": (
        "j: {script: x, image: a, services: [postgres:16, {name: redis, alias: 'c,d'}]}",
        ["j: a", "j + postgres:16", "j + redis"],
    ),
    "service with platform": (
        "j: {script: x, services: [{name: redis, docker: {platform: linux/386}}]}",
        ["j + redis [linux/386]"],
    ),
    "service that is a variable": (
        "{variables: {S: 'mysql:8'}, j: {script: x, services: [$S]}}",
        ["j + mysql:8"],
    ),
    "service with and without digest": (
        f"j: {{script: x, services: [redis, 'redis@{DIGEST}']}}",
        ["j + redis", f"j + redis@{DIGEST}"],
    ),
    "service twice": ("j: {script: x, services: [redis, redis]}", ["j + redis"]),
    "service with a port in its registry": (
        "j: {script: x, services: ['r.example.org:8443/db:1']}",
        ["j + r.example.org:8443/db:1"],
    ),
    "lists in the list of services": (
        "j: {script: x, services: [[redis, [mysql]], postgres]}",
        ["j + redis", "j + mysql", "j + postgres"],
    ),
    "run with a function from a registry": (
        """
        j:
          run:
            - {name: a, step: {oci: {registry: r.example.org, repository: fn/echo, tag: "2"}}}
            - {name: b, func: {oci: {registry: docker.io, repository: team/fn}}}
            - {name: c, step: ./local}
            - {name: d, script: echo}
        """,
        ["j: r.example.org/fn/echo:2", "j: docker.io/team/fn"],
    ),
    "run with an expression stays open": (
        "j: {run: [{step: {oci: {registry: r.io, repository: 'a${{ job.X }}', tag: '1'}}}]}",
        ["j: ? r.io/a${{ job.X }}:1"],
    ),
    # What is a job.
    "hidden job": ("{.h: {script: x, image: a}, j: {script: x, image: b}}", ["j: b"]),
    "trigger jobs": (
        """
        t: {trigger: group/project, image: a}
        u: {trigger: {include: child.yml}, image: b}
        trigger: {script: x, image: c}
        """,
        ["trigger: c"],
    ),
    "job named pages": ("pages: {script: x, image: a}", ["pages: a"]),
    "reserved words are no jobs": (
        """
        cache: {image: a}
        workflow: {image: b}
        variables: {image: c}
        spec: {image: d}
        include: {image: e}
        stages: [image]
        """,
        [],
    ),
    "job without script": ("j: {image: a}", ["j: a"]),
    "keys that are no maps": ("{j: [image], k: image, l: 1, m: null, n: {script: x}}", []),
    "job that never runs": ("j: {script: x, image: a, rules: [{when: never}]}", ["j: a"]),
    "manual job": ("j: {script: x, image: a, when: manual, only: [tags]}", ["j: a"]),
    "job switched off with a dot": ("{.j: {script: x, image: a}, k: {script: x}}", []),
    # default, the top, inherit.
    "default": ("{default: {image: d, services: [s]}, j: {script: x}}", ["j: d", "j + s"]),
    "top level": ("{image: d, services: [s], j: {script: x}}", ["j: d", "j + s"]),
    "default before the top": ("{image: t, default: {image: d}, j: {script: x}}", ["j: d"]),
    "default without image, top with one": (
        "{image: t, default: {tags: [x]}, j: {script: x}}",
        ["j: t"],
    ),
    "default that every job replaces": (
        "{default: {image: dead}, j: {script: x, image: a}, k: {script: x, image: b}}",
        ["j: a", "k: b"],
    ),
    "job takes its image whole": (
        "{default: {image: {name: d, docker: {platform: linux/386}}}, j: {image: {name: a}}}",
        ["j: a"],
    ),
    "no services": ("{default: {services: [s]}, j: {script: x, services: []}}", []),
    "services replace": ("{services: [s], j: {script: x, services: [t]}}", ["j + t"]),
    "null inherits": ("{default: {image: d}, j: {script: x, image: }}", ["j: d"]),
    "null in default": ("{image: null, default: {services: []}, j: {script: x}}", []),
    "default in a map": ("{image: {name: t}, j: {script: x}}", ["j: t"]),
    "inherit default false": (
        "{image: t, services: [s], j: {script: x, inherit: {default: false}}}",
        [],
    ),
    "inherit default true": ("{image: t, j: {script: x, inherit: {default: true}}}", ["j: t"]),
    "inherit default image only": (
        "{default: {image: d, services: [s]}, j: {script: x, inherit: {default: [image]}}}",
        ["j: d"],
    ),
    "inherit default without image": (
        "{default: {image: d, services: [s]}, j: {script: x, inherit: {default: [services]}}}",
        ["j + s"],
    ),
    "inherit default does not touch the job's own": (
        "{image: t, j: {script: x, image: a, inherit: {default: false}}}",
        ["j: a"],
    ),
    "inherit variables false": (
        "{variables: {V: '1'}, j: {script: x, image: 'a/$V', inherit: {variables: false}}}",
        ["j: ? a/$V"],
    ),
    "inherit variables list": (
        "{variables: {V: '1', W: '2'}, j: {image: 'r.io/a:$V-$W', inherit: {variables: [V]}}}",
        ["j: ~ r.io/a:1-"],
    ),
    # Variables.
    "global variable": ("{variables: {V: '3'}, j: {script: x, image: 'a:$V'}}", ["j: a:3"]),
    "braces": ("{variables: {V: '3'}, j: {script: x, image: 'a:${V}'}}", ["j: a:3"]),
    "job beats global": (
        "{variables: {V: '3'}, j: {script: x, variables: {V: '4'}, image: 'a:$V'}}",
        ["j: a:4"],
    ),
    "numbers as GitLab reads them": (
        "j: {variables: {A: 3.10, B: 010, C: yes, D: 1e3, E: 0x1f}, image: 'a:$A-$B-$C-$D-$E'}",
        ["j: a:3.1-8-true-1e3-31"],
    ),
    "quoted numbers are texts": ("j: {variables: {A: '3.10'}, image: 'a:$A'}", ["j: a:3.10"]),
    "three levels": (
        """
        variables: {HOST: r.example.org, PREFIX: $HOST/products}
        j:
          script: x
          variables: {TAG: "4", SUFFIX: "", IMG: "$PREFIX/semgrep:$TAG$SUFFIX"}
          image: {name: $IMG}
        """,
        ["j: r.example.org/products/semgrep:4"],
    ),
    "empty in the middle": (
        "{variables: {S: '', T: v1}, j: {script: x, image: 'img/linux$S:$T'}}",
        ["j: img/linux:v1"],
    ),
    "null is empty": ("{variables: {S: }, j: {script: x, image: 'img/linux$S'}}", ["j: img/linux"]),
    "long form": (
        """
        variables:
          V: {value: "1", description: the version}
          W: {value: "2", options: ["2", "3"]}
        j: {script: x, image: "a:$V", services: ["b:$W"]}
        """,
        ["j: a:1", "j + b:2"],
    ),
    "description alone has no value": (
        "{variables: {V: {description: which}}, j: {image: 'a/$V', services: ['b:$V']}}",
        ["j: ? a/$V", "j + ? b:$V"],
    ),
    "expand false": (
        "{variables: {T: '1', V: {value: 'a:$T', expand: false}}, j: {image: $V, services: [$V]}}",
        ["j: a:1", "j + ? a:$T"],
    ),
    "undefined": (JOB % "$UNDEF/app:1", ["j: ? $UNDEF/app:1"]),
    "undefined keeps its braces": (JOB % "'${UNDEF}/app:$T'", ["j: ? ${UNDEF}/app:$T"]),
    "known parts of an open name": (
        "{variables: {T: '1', I: '$CI_REGISTRY/team/app:$T'}, j: {script: x, image: $I}}",
        ["j: ? $CI_REGISTRY/team/app:1"],
    ),
    "shell's defaults are no defaults": (JOB % "'${A:-busybox}:1'", ["j: ? ${A:-busybox}:1"]),
    "two dollars": (
        "j: {variables: {A: alpine}, image: $$A, services: [$$A]}",
        ["j: alpine", "j + ? $A"],
    ),
    "windows spelling": ("j: {variables: {A: alpine}, image: '%A%:1'}", ["j: ? %A%:1"]),
    "circle": ("j: {variables: {A: $B, B: $A}, image: 'x:$A'}", ["j: ? x:$A"]),
    "empty name": ("j: {variables: {A: ''}, image: $A}", ["j: ? $A"]),
    "job name": ("lint: {script: x, image: 'r.io/ci/$CI_JOB_NAME:1'}", ["lint: r.io/ci/lint:1"]),
    "job stage": ("j: {script: x, stage: build, image: 'ci/$CI_JOB_STAGE'}", ["j: ci/build"]),
    "job stage by default": ("j: {script: x, image: 'ci/$CI_JOB_STAGE'}", ["j: ci/test"]),
    # A variable that other jobs set and this one does not is empty: the short name, not certain.
    "left empty here": (
        """
        variables: {C: "fam:${VER}-${BOARD}${HOST}"}
        default: {image: r.io/x/$C}
        a: {script: x, variables: {VER: "5", BOARD: arm, HOST: -h}}
        b: {script: x, variables: {VER: "6", BOARD: arm}}
        """,
        ["a: r.io/x/fam:5-arm-h", "b: ~ r.io/x/fam:6-arm"],
    ),
    "a registry is never left empty": (
        "{a: {variables: {R: r.io/}, image: '${R}app:1'}, b: {script: x, image: '${R}app:1'}}",
        ["a: r.io/app:1", "b: ? ${R}app:1"],
    ),
    "a tag is never left empty": (
        "{a: {variables: {T: '1'}, image: 'app:$T'}, b: {script: x, image: 'app:$T'}}",
        ["a: app:1", "b: ? app:$T"],
    ),
    "GitLab's own are never left empty": (
        "{a: {variables: {CI_X: '1'}, image: 'app$CI_X'}, b: {image: 'app$CI_X'}}",
        ["a: app1", "b: ? app$CI_X"],
    ),
    # Alternatives.
    "rules choose": (
        """
        j:
          script: x
          variables: {NAME: deb, BASE: "debian:13", IMG: "$CI_REGISTRY/team/ci-$NAME"}
          image: $IMG
          rules:
            - {if: a, when: never}
            - {if: b, variables: {IMG: $BASE}}
            - {if: c}
        """,
        ["j: ~ debian:13", "j: ? $CI_REGISTRY/team/ci-deb"],
    ),
    "rules that all choose": (
        "j: {image: $I, rules: [{if: a, variables: {I: 'a:1'}}, {if: b, variables: {I: 'a:2'}}]}",
        ["j: ~ a:1", "j: ~ a:2"],
    ),
    "rules that choose something else": (
        "j: {image: a, rules: [{if: a, variables: {I: b}}, {if: b}]}",
        ["j: a"],
    ),
    "rules that never": (
        "j: {image: 'a:$T', variables: {T: '1'}, rules: [{when: never, variables: {T: '2'}}]}",
        ["j: a:1"],
    ),
    "rules in lists": (
        "j: {image: 'a:$T', rules: [[{if: a, variables: {T: '2'}}]]}",
        ["j: a:2"],
    ),
    "workflow chooses": (
        """
        variables: {V: "1"}
        workflow: {rules: [{if: a, variables: {V: "2"}}, {if: b}]}
        j: {script: x, image: "a:$V"}
        k: {script: x, image: "a:$V", variables: {V: "9"}}
        l: {script: x, image: "a:b$V", inherit: {variables: false}}
        """,
        ["j: ~ a:2", "j: ~ a:1", "k: a:9", "l: ~ a:b"],
    ),
    "rules beat the matrix": (
        """
        j:
          image: "a:$V"
          parallel: {matrix: [{V: ["1", "2"]}]}
          rules: [{if: a, variables: {V: "3"}}]
        """,
        ["j: a:3"],
    ),
    # parallel.
    "matrix": (
        "j: {image: 'a:$V', parallel: {matrix: [{V: ['1', 2, 3.10]}]}}",
        ["j: a:1", "j: a:2", "j: a:3.1"],
    ),
    "matrix of a global's part": (
        """
        variables: {GO: "1", IMG: "reg.io/x-go${GO}:t"}
        default: {image: $IMG}
        j: {script: x}
        k: {script: x, parallel: {matrix: [{GO: ["1", "2"]}]}}
        """,
        ["j: reg.io/x-go1:t", "k: reg.io/x-go1:t", "k: reg.io/x-go2:t"],
    ),
    "matrix value with a variable": (
        "j: {variables: {B: deb}, image: $I, parallel: {matrix: [{I: ['$B:1', '$B:2']}]}}",
        ["j: deb:1", "j: deb:2"],
    ),
    "matrix in services": (
        "j: {services: ['pg:$V'], parallel: {matrix: [{V: ['1', '2']}]}}",
        ["j + pg:1", "j + pg:2"],
    ),
    "matrix with single values": (
        "j: {image: '$A:$B', parallel: {matrix: [{A: x, B: '1'}, {A: y, B: '2'}]}}",
        ["j: x:1", "j: y:2"],
    ),
    "matrix of nothing": ("j: {image: a, parallel: {matrix: []}}", ["j: a"]),
    "matrix with an empty list": ("j: {image: a, parallel: {matrix: [{V: []}]}}", ["j: a"]),
    "parallel": ("j: {image: 'a:$CI_NODE_INDEX', parallel: 2}", ["j: a:1", "j: a:2"]),
    "name's slug": ("'My job: ä1!': {image: 'a:$CI_JOB_NAME_SLUG'}", ["My job: ä1!: a:my-job---1"]),
    "slugs of parallel jobs": (
        "j: {image: 'a:$CI_JOB_NAME_SLUG', parallel: 2}",
        ["j: a:j-1-2", "j: a:j-2-2"],
    ),
    "templates' registry": (
        "j: {image: '$CI_TEMPLATE_REGISTRY_HOST/a/b:1'}",
        ["j: registry.gitlab.com/a/b:1"],
    ),
    "templates' registry set": (
        "variables: {CI_TEMPLATE_REGISTRY_HOST: r.io}\nj: {image: $CI_TEMPLATE_REGISTRY_HOST/a:1}",
        ["j: r.io/a:1"],
    ),
    "parallel total": ("j: {image: 'a:$CI_NODE_TOTAL', parallel: 2}", ["j: a:2"]),
    "matrix in the job's name": (
        "j: {image: 'a:$CI_JOB_NAME', parallel: {matrix: [{V: ['1']}]}}",
        ["j: ? a:j: [1]"],
    ),
    # What is no container's image, and rubbish.
    "machines": (
        "{a: {image: macos-15-xcode-16}, b: {image: 'windows:10-b'}, c: {image: 'freebsd:13-b'}}",
        ["a: ? macos-15-xcode-16", "b: ? windows:10-b", "c: ? freebsd:13-b"],
    ),
    "no machine": (
        "{a: {image: team/macos}, b: {image: 'r.io/windows:1'}}",
        ["a: team/macos", "b: r.io/windows:1"],
    ),
    "masked": (JOB % "'r.io/[MASKED]/a'", ["j: ? r.io/[MASKED]/a"]),
    "upper case": (JOB % "'r.io/Team/App'", ["j: ? r.io/Team/App"]),
    "white space": (JOB % "'a b'", ["j: ? a b"]),
    "image as list": ("j: {script: x, image: [a]}", []),
    "image map without name": ("j: {script: x, image: {entrypoint: ['']}}", []),
    "image as number": ("j: {script: x, image: 3.10}", []),
    "image empty": ("j: {script: x, image: ''}", []),
    "services as text": ("j: {script: x, image: a, services: redis}", ["j: a"]),
    "rubbish everywhere": (
        """
        variables: [a]
        default: 3
        workflow: {rules: x}
        j: {image: a, variables: [b], rules: 7, parallel: x, inherit: [default], run: 1, stage: []}
        """,
        ["j: a"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_images_of_definition_names_what_gitlab_would_run(text: str, expected: list[str]) -> None:
    assert named(text) == expected


def test_images_of_predefined_variables_are_below_the_definition() -> None:
    text = "{variables: {B: yaml}, j: {image: '$A/$B:1'}}"
    assert named(text, A="r.io", B="server") == ["j: r.io/yaml:1"]


def test_images_of_overrides_beat_the_definition_and_its_rules() -> None:
    text = "j: {image: 'a:$V', variables: {V: '1'}, rules: [{variables: {V: '2'}}]}"
    (image,) = images_of(merged(text), {}, {"V": "9"})
    assert shown(image) == "j: a:9"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("r.io/a:$CI_COMMIT_SHA", "run to run"),
        ("$CI_REGISTRY_IMAGE/ci:$CI_COMMIT_REF_SLUG", "run to run"),
        ("$CI_REGISTRY_IMAGE/ci:1", "own registry"),
        ("$FROM_OUTSIDE/ci:1", "$FROM_OUTSIDE"),
        ("a:$[[ inputs.x ]]", "input"),
        ("macos-15", "virtual machine"),
    ],
)
def test_images_of_open_name_says_why(name: str, why: str) -> None:
    (image,) = images_of({"j": {"image": name}})
    assert image.reference is None
    assert image.unresolved is not None
    assert why in image.unresolved
    assert not image.wanted


def test_images_of_variable_of_the_run_is_never_taken_from_the_record() -> None:
    (image,) = images_of({"j": {"image": "a:$CI_COMMIT_SHA"}}, {"CI_COMMIT_SHA": "abc"})
    assert image.text == "a:$CI_COMMIT_SHA"


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("r.example.org/team/app:1", True),
        ("r.example.org/team/app/ci/base:1", True),
        ("$CI_REGISTRY_IMAGE/x", True),
        ("r.example.org/team/apple:1", False),
        ("$CI_REGISTRY/team/other:1", False),
    ],
)
def test_images_of_own_registry_is_no_demand(text: str, own: bool) -> None:
    record = of_project("team/app", url="https://g.io", registry_image="r.example.org/team/app")
    (image,) = images_of({"j": {"image": text}}, record)
    assert (image.reference is None) is own
    assert image.wanted is not own
    if own:
        assert image.unresolved == "is of the project's own registry: its CI builds it"


PREFIX = "$CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX"


@pytest.mark.parametrize("mode", ["report", "map"])
@pytest.mark.parametrize(
    ("text", "behind"),
    [
        (f"{PREFIX}/alpine:3", "docker.io/library/alpine:3"),
        ("${CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX}/a/b", "docker.io/a/b:latest"),
        ("g.io:443/other/sub/dependency_proxy/containers/a:1", "docker.io/library/a:1"),
    ],
)
def test_images_of_dependency_proxy_is_docker_hubs_image(text: str, behind: str, mode: Any) -> None:
    record = of_project("Team/sub/app", url="https://g.io")
    (image,) = images_of({"j": {"image": text}}, record, dependency_proxy=mode)
    assert str(image.reference) == behind
    assert image.via == "dependency-proxy"
    assert image.wanted is (mode == "map")
    assert image.text.startswith("g.io:443/")


def test_images_of_dependency_proxy_unknown_prefix_is_open_and_named() -> None:
    (image,) = images_of({"j": {"image": f"{PREFIX}/alpine:3"}}, dependency_proxy="map")
    assert (image.text, image.reference, image.via) == (
        f"{PREFIX}/alpine:3",
        None,
        "dependency-proxy",
    )


def test_images_of_dependency_proxy_as_the_projects_own_variable_is_found() -> None:
    text = "{variables: {P: g.io/team/dependency_proxy/containers}, j: {image: '$P/alpine:3'}}"
    (image,) = images_of(merged(text))
    assert (image.via, str(image.reference)) == ("dependency-proxy", "docker.io/library/alpine:3")


def test_images_of_virtual_registry_is_named_and_no_demand() -> None:
    name = "g.io/virtual_registries/container/7/library/alpine:3"
    (image,) = images_of({"j": {"image": name}}, dependency_proxy="map")
    assert (image.via, image.wanted, image.text) == ("virtual-registry", False, name)


def test_images_of_matrix_names_are_those_of_history() -> None:
    text = """
    j:
      image: py:$V
      parallel:
        matrix:
          - {V: ["3.11", "3.12"], ARCH: [arm, x86]}
          - {V: "3.13", ARCH: arm}
    """
    assert {image.text: image.names for image in images_of(merged(text))} == {
        "py:3.11": ("j: [3.11, arm]", "j: [3.11, x86]"),
        "py:3.12": ("j: [3.12, arm]", "j: [3.12, x86]"),
        "py:3.13": ("j: [3.13, arm]",),
    }


def test_images_of_parallel_names_are_those_of_history() -> None:
    (image,) = images_of(merged("j: {image: a, parallel: 3}"))
    assert image.names == ("j 1/3", "j 2/3", "j 3/3")
    assert image.certain


def test_images_of_job_alone_has_its_own_name() -> None:
    (image,) = images_of(merged("'a b: c': {image: a}"))
    assert image.names == ("a b: c",)


def test_images_of_cells_with_alternatives_are_uncertain_only_there() -> None:
    text = """
    j:
      image: a:$V
      parallel: {matrix: [{V: ["$W", "2"]}]}
      rules: [{variables: {W: "1"}}, {variables: {W: "3"}}]
    """
    found = {image.text: (image.certain, image.names) for image in images_of(merged(text))}
    assert found == {
        "a:1": (False, ("j: [$W]",)),
        "a:3": (False, ("j: [$W]",)),
        "a:2": (True, ("j: [2]",)),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test", "test"),
        ("test: [3.12, arm]", "test"),
        ("test 1/3", "test"),
        ("a: b: [x]", "a: b"),
        ("deploy: prod", "deploy: prod"),
        ("build 1/2/3", "build 1/2/3"),
    ],
)
def test_base_name_history_name_is_the_definitions(name: str, expected: str) -> None:
    assert base_name(name) == expected


def test_read_definition_jobs_are_all_that_a_runner_can_run() -> None:
    found = read_definition(
        merged("{.h: {}, t: {trigger: x}, a: {script: x}, b: {image: y, parallel: 2}}")
    )
    assert found.jobs == ("a", "b 1/2", "b 2/2")
    assert found.bare == ("a",)


@pytest.mark.parametrize(
    "text",
    [
        "j: {script: x, image: [a]}",
        "j: {script: x, image: {entrypoint: ['']}}",
        "j: {script: x, image: 3.10}",
        "j: {script: x, services: redis}",
        "j: {script: x, services: [{alias: db}]}",
        "j: {script: x, image: a, parallel: 100000}",
    ],
)
def test_read_definition_what_gitlab_refuses_is_one_problem(text: str) -> None:
    (problem,) = read_definition(merged(text), where="team/app").problems
    assert problem.where == "team/app"
    assert problem.severity == "warning"
    assert "'j'" in problem.problem


@pytest.mark.parametrize(
    "parallel",
    [
        {"matrix": [{name: [str(n) for n in range(10)] for name in "ABCDEFGHIJKL"}]},
        {"matrix": [{"A": [str(n) for n in range(PARALLEL_MAX)]}, {"A": "1"}]},
        PARALLEL_MAX + 1,
        100_000,
    ],
)
def test_read_definition_parallel_beyond_gitlabs_limit_is_a_problem_without_images(
    parallel: Any,
) -> None:
    found = read_definition({"j": {"image": "a:$A$L", "parallel": parallel}, "k": {"image": "b"}})
    assert found.jobs == ("k",)
    assert [image.text for image in found.images] == ["b"]
    (problem,) = found.problems
    assert "'j' is to run more than 200 times in parallel" in problem.problem


@pytest.mark.parametrize(
    "parallel", [PARALLEL_MAX, {"matrix": [{"A": [str(n) for n in range(PARALLEL_MAX)]}]}]
)
def test_read_definition_parallel_at_gitlabs_limit_is_read(parallel: Any) -> None:
    found = read_definition({"j": {"image": "a", "parallel": parallel}})
    assert (len(found.jobs), len(found.images), found.problems) == (PARALLEL_MAX, 1, ())


def test_read_definition_variable_of_other_jobs_is_guessed_and_told() -> None:
    text = "{a: {image: 'x:1$V', variables: {V: -b}}, b: {image: 'x:1${V}'}}"
    known, guessed = images_of(merged(text))
    assert (known.text, known.certain, known.guessed) == ("x:1-b", True, "")
    assert (guessed.text, guessed.certain, guessed.guessed) == ("x:1", False, "x:1${V}")
    assert guessed.guess == "holds variables that other jobs set and this one does not ($V)"


@pytest.mark.parametrize(
    "prefix",
    [
        "${CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX}",
        "$CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX",
    ],
)
def test_images_of_dependency_proxy_unknown_says_that_it_is_one(prefix: str) -> None:
    (image,) = images_of({"j": {"image": f"{prefix}/alpine:3"}})
    assert (image.reference, image.via) == (None, "dependency-proxy")
    assert (image.unresolved or "").startswith("is behind GitLab's dependency proxy")


def test_images_of_dependency_proxy_with_unknown_tag_names_the_tag() -> None:
    (image,) = images_of({"j": {"image": "$CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX/alpine:$TAG"}})
    assert image.via == "dependency-proxy"
    assert "$TAG" in (image.unresolved or "")


@pytest.mark.parametrize("name", ["${" * 4080, "$A" * 4080, "$[[" * 2700])
def test_read_definition_long_names_are_charged_by_their_length(name: str) -> None:
    jobs = {f"j{n}": {"image": f"{n}{name}"} for n in range(2000)}
    started = time.process_time()
    found = read_definition(jobs)
    assert time.process_time() - started < 10
    assert [one.problem.partition(" needs ")[1] for one in found.problems] == [" needs "]


def test_images_of_endless_text_with_password_is_shown_soon() -> None:
    started = time.process_time()
    for text in ("x://" + ":" * 100_000 + "@", "x://" * 100_000 + "@", "://a:pw@" + "$" * 9000):
        (image,) = images_of({"j": {"image": text}})
        assert "pw" not in image.text
    assert time.process_time() - started < 2


def test_read_definition_too_much_work_is_a_problem_and_keeps_what_was_found() -> None:
    jobs = {f"j{n}": {"image": "a"} for n in range(100)}
    found = read_definition(jobs, work=Work(1000))
    assert 0 < len(found.images) < 100
    assert "more work" in found.problems[-1].problem


def test_read_definition_doubt_makes_a_job_open_or_uncertain() -> None:
    jobs = {"j": {"image": "a", "services": ["b"]}, "k": {"image": "c"}}
    doubts = {("j", "image"): "may be another", ("k", "image"): ""}
    found = read_definition(jobs, doubts=doubts)  # type: ignore[arg-type]
    assert [shown(image) for image in found.images] == ["j: ? a", "j + b", "k: ~ c"]
    assert found.images[0].unresolved == "may be another"


def test_read_definition_text_for_people_has_neither_control_nor_password() -> None:
    jobs = {"j": {"image": "https://user:geheim@r.io/\x1b[31mx/$Y"}, "k": {"image": "x" * 9000}}
    texts = [image.text for image in read_definition(jobs).images]
    assert "geheim" not in texts[0]
    assert "\x1b" not in texts[0]
    assert len(texts[1]) <= 500


KEYS = [*RESERVED, "name", "rules", "parallel", "matrix", "inherit", "run", "docker", "platform"]
KEYS += ["value", "expand", "when", "step", "oci", "registry", "repository", "trigger", "stage"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted(KEYS)),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["j", ".h", "default", "image", "variables"]), VALUES))
def test_read_definition_any_values_are_read_without_a_crash(jobs: dict[str, Any]) -> None:
    found = read_definition(jobs)
    assert isinstance(found, Definition)
    for image in found.images:
        assert (image.reference is None) is (image.unresolved is not None)
        assert image.names
