"""Definitions from files: includes, inputs, extends, !reference, and what must not hang."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.errors import UsageError
from prewarm.discovery.checkout import Checkout, Unavailable, find_root
from prewarm.discovery.ci_evaluate import Evaluation, evaluate, evaluate_file
from prewarm.discovery.ci_jobs import JobImage

ROOT = ".gitlab-ci.yml"


def repository(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def evaluated(folder: Path, files: Mapping[str, str] | str, root: str = ROOT) -> Evaluation:
    repository(folder, {ROOT: files} if isinstance(files, str) else files)
    return evaluate_file(folder / root, folder)


def shown(image: JobImage) -> str:
    """Return an image in a line: `job: name`, `job + service`; `?` open, `~` not certain."""
    mark = "? " if image.reference is None else "" if image.certain else "~ "
    return f"{image.job}{':' if image.kind == 'image' else ' +'} {mark}{image.text}"


def problems(found: Evaluation) -> str:
    return "\n".join(str(problem) for problem in found.problems)


CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    # extends
    "extends": ({ROOT: ".a: {image: x}\nj: {extends: .a, script: y}"}, ["j: x"]),
    "extends a chain": (
        {ROOT: ".a: {image: x}\n.b: {extends: .a}\n.c: {extends: [.b]}\nj: {extends: .c}"},
        ["j: x"],
    ),
    "extends a visible job": (
        {ROOT: "a: {image: x, script: y}\nj: {extends: a}"},
        ["a: x", "j: x"],
    ),
    "of several the later wins": (
        {ROOT: ".a: {image: x, services: [s]}\n.b: {image: y}\nj: {extends: [.a, .b]}"},
        ["j: y", "j + s"],
    ),
    "maps merge": (
        {
            ROOT: """
            .a: {image: {name: x, entrypoint: ['']}, variables: {V: "1", W: "1"}}
            j: {extends: .a, image: {name: "y:$V-$W"}, variables: {W: "2"}}
            """
        },
        ["j: y:1-2"],
    ),
    "a text replaces a map": (
        {ROOT: ".a: {image: {name: x}}\nj: {extends: .a, image: y}"},
        ["j: y"],
    ),
    "lists are replaced": (
        {ROOT: ".a: {services: [s, t]}\nj: {extends: .a, services: [u]}"},
        ["j + u"],
    ),
    "extends into a trigger": ({ROOT: ".a: {trigger: p}\nj: {extends: .a, image: x}"}, []),
    "matrix two levels up is replaced": (
        {
            ROOT: """
            .a: {parallel: {matrix: [{V: [1, 2, 3]}]}}
            .b: {extends: .a, parallel: {matrix: [{V: [1, 2]}]}}
            .c: {image: "img:$V"}
            j: {extends: [.b, .c], script: x}
            """
        },
        ["j: img:1", "j: img:2"],
    ),
    "a template with the job's name": (
        {ROOT: ".t: {script: x, image: 'ci/$CI_JOB_NAME'}\na: {extends: .t}\nb: {extends: .t}"},
        ["a: ci/a", "b: ci/b"],
    ),
    "rules of a template choose": (
        {
            ROOT: """
            .t:
              image: $IMG
              variables: {IMG: $CI_REGISTRY/team/ci-$NAME}
              rules: [{if: a}, {if: b, variables: {IMG: $BASE}}]
            j: {extends: .t, script: x, variables: {NAME: deb, BASE: "debian:13"}}
            """
        },
        ["j: ? $CI_REGISTRY/team/ci-deb", "j: ~ debian:13"],
    ),
    "a missing target is carried past": (
        {ROOT: "default: {image: d}\nj: {extends: .missing, script: x}"},
        ["j: d"],
    ),
    "dead templates": (
        {ROOT: "image: dead\n.h: {image: dead2}\nj: {image: x, script: y}\n.k: {image: dead3}"},
        ["j: x"],
    ),
    # !reference, anchors
    "reference to an image": (
        {ROOT: ".a: {image: x}\nj: {image: !reference [.a, image]}"},
        ["j: x"],
    ),
    "reference into a map": (
        {ROOT: ".a: {image: {name: x}}\nj: {image: !reference [.a, image, name]}"},
        ["j: x"],
    ),
    "reference to what extends gives": (
        {ROOT: ".a: {image: x}\n.b: {extends: .a}\nj: {image: !reference [.b, image]}"},
        ["j: x"],
    ),
    "reference to a reference": (
        {ROOT: ".a: {v: x}\n.b: {w: !reference [.a, v]}\nj: {image: !reference [.b, w]}"},
        ["j: x"],
    ),
    "reference through a reference": (
        {ROOT: ".a: {v: {w: x}}\n.b: {i: !reference [.a, v]}\nj: {image: !reference [.b, i, w]}"},
        ["j: x"],
    ),
    "reference among services": (
        {ROOT: ".a: {services: [s, t]}\nj: {services: [u, !reference [.a, services]]}"},
        ["j + u", "j + s", "j + t"],
    ),
    "reference to variables and rules": (
        {
            ROOT: """
            .a: {variables: {V: "1"}, rules: [{if: x, variables: {W: "2"}}]}
            j:
              image: "x:$V-$W"
              variables: !reference [.a, variables]
              rules: [!reference [.a, rules]]
            """
        },
        ["j: x:1-2"],
    ),
    "reference to one variable": (
        {ROOT: ".a: {v: {V: y}}\nj: {image: $I, variables: {I: !reference [.a, v, V]}}"},
        ["j: y"],
    ),
    "reference in default": (
        {ROOT: ".a: {image: x}\ndefault: {image: !reference [.a, image]}\nj: {script: y}"},
        ["j: x"],
    ),
    "reference to a whole job": ({ROOT: ".a: {name: x}\nj: {image: !reference [.a]}"}, ["j: x"]),
    "reference to nothing": (
        {ROOT: "j: {image: !reference [.a, image], services: [!reference [.b, c]]}"},
        ["j: ? !reference [.a, image]", "j + ? !reference [.b, c]"],
    ),
    "reference to nothing in a variable": (
        {ROOT: "variables: {I: !reference [.a, variables, I]}\nj: {image: $I}"},
        ["j: ? $I"],
    ),
    "a whole job as alias, two merge keys": (
        {
            ROOT: """
            .x: &x {image: x}
            .s: &s {services: [s]}
            .py: &py
              <<: *x
              <<: *s
            j: *py
            """
        },
        ["j: x", "j + s"],
    ),
    "duplicate variables, the last wins": (
        {ROOT: "j:\n  variables: {V: '1'}\n  image: x:$V\n  variables: {V: '2'}"},
        ["j: x:2"],
    ),
    # include
    "include as text": ({ROOT: "include: a.yml", "a.yml": "j: {image: x}"}, ["j: x"]),
    "include as list of texts": (
        {
            ROOT: "include: [a.yml, /sub/b.yml]",
            "a.yml": "j: {image: x}",
            "sub/b.yml": "k: {image: y}",
        },
        ["j: x", "k: y"],
    ),
    "include as map": ({ROOT: "include: {local: /a.yml}", "a.yml": "j: {image: x}"}, ["j: x"]),
    "including file wins": (
        {ROOT: "include: a.yml\nj: {image: y}", "a.yml": "j: {image: x, services: [s]}"},
        ["j: y", "j + s"],
    ),
    "later include wins": (
        {ROOT: "include: [a.yml, b.yml]", "a.yml": "j: {image: x}", "b.yml": "j: {image: y}"},
        ["j: y"],
    ),
    "nested, from the root of the repository": (
        {
            ROOT: "include: sub/a.yml",
            "sub/a.yml": "include: /sub/b.yml",
            "sub/b.yml": "j: {image: x}",
        },
        ["j: x"],
    ),
    "template in one file, job in another": (
        {ROOT: "include: [a.yml, b.yml]", "a.yml": "j: {extends: .t}", "b.yml": ".t: {image: x}"},
        ["j: x"],
    ),
    "one star": (
        {
            ROOT: "include: ci/*.yml",
            "ci/b.yml": "j: {image: x}",
            "ci/a.yml": "k: {image: y}",
            "ci/c.yaml": "l: {image: z}",
            "ci/sub/d.yml": "m: {image: z}",
        },
        ["k: y", "j: x"],
    ),
    "two stars": (
        {
            ROOT: "include: {local: /ci/**.yml}",
            "ci/a.yml": "j: {image: x}",
            "ci/sub/deep/b.yml": "k: {image: y}",
            "other.yml": "l: {image: z}",
        },
        ["j: x", "k: y"],
    ),
    "include that never comes": (
        {ROOT: "include: {local: a.yml, rules: [{if: x, when: never}]}", "a.yml": "j: {image: x}"},
        [],
    ),
    "variables of an include": (
        {ROOT: "include: v.yml\nj: {image: 'x:$V'}", "v.yml": "variables: {V: '1'}"},
        ["j: x:1"],
    ),
    "default of an include": (
        {ROOT: "include: d.yml\nj: {script: y}", "d.yml": "default: {image: x}"},
        ["j: x"],
    ),
    # includes that exclude each other
    "exclusive includes are a union": (
        {
            ROOT: """
            include:
              - {local: a.yml, rules: [{if: $X == "a"}]}
              - {local: b.yml, rules: [{if: $X == "b"}]}
            """,
            "a.yml": "j: {image: x}\nk: {image: y}",
            "b.yml": "j: {image: z}\ntrigger: {image: t}",
        },
        ["j: ~ x", "k: y", "j: ~ z", "trigger: t"],
    ),
    "exclusive variables are a union": (
        {
            ROOT: """
            include:
              - {local: a.yml, rules: [{if: x}]}
              - {local: b.yml, rules: [{if: y}]}
            j: {image: "x:$V"}
            """,
            "a.yml": "variables: {V: '1'}",
            "b.yml": "variables: {V: '2'}",
        },
        ["j: ~ x:1", "j: ~ x:2"],
    ),
    "an include on some pipelines over one on all": (
        {
            ROOT: "include: [a.yml, {local: b.yml, rules: [{if: y}]}]",
            "a.yml": "j: {image: x}",
            "b.yml": "j: {image: y, extends: .t}\n.t: {services: [s]}",
        },
        ["j: ~ y", "j + s", "j: ~ x"],
    ),
    "includes under rules that go together": (
        {
            ROOT: """
            include:
              - {local: a.yml, rules: [{if: x}]}
              - {local: b.yml, rules: [{if: x}]}
            """,
            "a.yml": ".t: {image: x}",
            "b.yml": "j: {extends: .t}",
        },
        ["j: x"],
    ),
    "a state without its template has no such job": (
        {
            ROOT: """
            include:
              - {local: a.yml, rules: [{if: x}]}
              - {local: b.yml, rules: [{if: y}]}
            default: {image: d}
            j: {extends: .only-a, script: x}
            """,
            "a.yml": ".only-a: {image: x}\nk: {image: y}",
            "b.yml": "k: {image: z}",
        },
        ["k: ~ y", "j: x", "k: ~ z"],
    ),
    # inputs
    "inputs: default and given": (
        {
            ROOT: """
            include:
              - {local: t.yml, inputs: {name: one, version: 3.10}}
              - {local: t.yml, inputs: {name: two}}
            """,
            "t.yml": """
            spec:
              inputs:
                name:
                version: {default: "3.12"}
            ---
            "test-$[[ inputs.name ]]":
              script: x
              image: python:$[[ inputs.version ]]
            """,
        },
        ["test-one: python:3.1", "test-two: python:3.12"],
    ),
    "inputs: a list, an alias, a whole value": (
        {
            ROOT: """
            .v: &v ["1", "2"]
            include: {local: t.yml, inputs: {versions: *v, image: {name: "x:$V"}}}
            """,
            "t.yml": """
            spec: {inputs: {versions: {type: array}, image: }}
            ---
            j: {image: "$[[ inputs.image ]]", parallel: {matrix: [{V: "$[[ inputs.versions ]]"}]}}
            """,
        },
        ["j: x:1", "j: x:2"],
    ),
    "inputs: in flow maps": (
        {
            ROOT: """
            include:
              - local: t.yml
                inputs: {arr: [s1, "s2:2"], n: 7, yes: true, name: "é", job: one}
            """,
            "t.yml": """
            ---
            spec:
              inputs:
                arr: {type: array}
                n: {type: number}
                yes: {type: boolean}
                name:
                job:
                d: {default: "d:1"}
            ---
            $[[ inputs.job ]]: {script: x, image: $[[ inputs.d ]], services: $[[ inputs.arr ]]}
            two: {script: x, image: "n:$[[ inputs.n ]]-$[[ inputs.yes ]]"}
            three: {script: x, image: x:$[[ inputs.d | truncate(2,1) ]], tags: [$[[ inputs.name ]]]}
            """,
        },
        ["one: d:1", "one + s1", "one + s2:2", "two: n:7-true", "three: x:1"],
    ),
    "inputs: in flow maps, of each include": (
        {
            ROOT: """
            include:
              - {local: t.yml, inputs: {i: a}}
              - {local: t.yml, inputs: {i: b}}
            """,
            "t.yml": "spec: {inputs: {i: }}\n---\nj-$[[ inputs.i ]]: {image: $[[ inputs.i ]]}",
        },
        ["j-a: a", "j-b: b"],
    ),
    "inputs: passed on": (
        {
            ROOT: "include: {local: a.yml, inputs: {i: x}}",
            "a.yml": """
            spec: {inputs: {i: }}
            ---
            include: {local: b.yml, inputs: {k: "$[[inputs.i]]:1"}}
            """,
            "b.yml": "spec: {inputs: {k: }}\n---\nj: {image: '$[[ inputs.k ]]'}",
        },
        ["j: x:1"],
    ),
    "inputs: functions": (
        {
            ROOT: """
            spec: {inputs: {a: {default: "abcdef"}, b: {default: "$T"}}}
            ---
            j: {image: "x:$[[ inputs.a | truncate(1,3) ]]"}
            k: {image: "x:$[[ inputs.b | expand_vars ]]", variables: {T: "9"}}
            """
        },
        ["j: x:bcd", "k: x:9"],
    ),
    "inputs: nothing under it": ({ROOT: "spec:\n  inputs:\n---\nj: {image: x}"}, ["j: x"]),
    "inputs: none given": (
        {
            ROOT: "include: t.yml",
            "t.yml": "spec: {inputs: {i: }}\n---\nj: {image: 'a:$[[ inputs.i ]]'}",
        },
        ["j: ? a:$[[ inputs.i ]]"],
    ),
    "inputs: no header, no replacement": (
        {ROOT: "j: {image: 'a:$[[ inputs.i ]]'}"},
        ["j: ? a:$[[ inputs.i ]]"],
    ),
    # what is not here
    "outside includes are carried past": (
        {
            ROOT: """
            include:
              - {project: group/templates, file: ci.yml}
              - {template: Jobs/SAST.gitlab-ci.yml}
              - {component: $CI_SERVER_FQDN/a/b@1}
              - {remote: "https://example.org/ci.yml"}
              - https://example.org/other.yml
            j: {image: x, script: y}
            k: {extends: .outside, image: z}
            """
        },
        ["j: x", "k: z"],
    ),
    "a template from outside may have the image": (
        {
            ROOT: """
            include: {project: p, file: f}
            default: {image: d}
            .here: {image: h}
            a: {extends: .outside, script: x}
            b: {extends: [.outside, .here], script: x}
            c: {extends: [.here, .outside], script: x}
            d: {script: x}
            """
        },
        ["a: ? d", "b: h", "c: ? h", "d: d"],
    ),
    "a job of the same name outside may have the image": (
        {
            ROOT: """
            include: {template: T.gitlab-ci.yml}
            .mine: {image: m, tags: [x]}
            .full: {image: f, script: x}
            q: {extends: .mine}
            secret_detection: {extends: .full}
            other: {extends: .full}
            own: {extends: .mine, image: o}
            """
        },
        ["q: ? m", "secret_detection: ? f", "other: ~ f", "own: o"],
    ),
    "a missing local include is carried past": (
        {ROOT: "include: gone.yml\nj: {image: x}"},
        ["j: x"],
    ),
    "broken include is carried past": (
        {
            ROOT: "include: [bad.yml, a.yml]\nj: {image: x}",
            "bad.yml": "a: [",
            "a.yml": "k: {image: y}",
        },
        ["k: y", "j: x"],
    ),
    "an include that is no mapping": (
        {ROOT: "include: a.yml\nj: {image: x}", "a.yml": "- a"},
        ["j: x"],
    ),
    "an empty include": ({ROOT: "include: a.yml\nj: {image: x}", "a.yml": "# nothing"}, ["j: x"]),
    "nulls and empty lists": (
        {ROOT: "image: null\ndefault: {services: []}\nj: {script: x}\nk: {services: []}\ninclude:"},
        [],
    ),
}


@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_evaluate_file_definition_names_what_gitlab_would_run(
    tmp_path: Path, files: dict[str, str], expected: list[str]
) -> None:
    assert [shown(image) for image in evaluated(tmp_path, files).images] == expected


def test_evaluate_file_root_file_below_the_root_counts_includes_from_the_root(
    tmp_path: Path,
) -> None:
    files = {"ci/main.yml": "include: ci/a.yml", "ci/a.yml": "j: {image: x}"}
    assert [i.text for i in evaluated(tmp_path, files, "ci/main.yml").images] == ["x"]


def test_evaluate_file_clean_definition_has_no_problem(tmp_path: Path) -> None:
    found = evaluated(tmp_path, {ROOT: "include: a.yml\nj: {image: x}", "a.yml": "k: {image: y}"})
    assert found.problems == ()
    assert found.outside == ()
    assert found.jobs == ("k", "j")
    assert [image.text for image in found.resolved] == ["y", "x"]
    assert found.unresolved == ()


def test_evaluate_file_jobs_without_image_are_listed(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "j: {script: x}\nk: {image: y}\nl: {script: x, services: [s]}")
    assert found.bare == ("j", "l")


def test_evaluate_file_outside_includes_are_named(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "include: [{template: T}, {project: p, file: [a, b]}]\nj: {}")
    assert found.outside == ("template: T", "project: p")
    assert [problem.severity for problem in found.problems] == ["warning", "warning"]


@pytest.mark.parametrize(
    ("files", "where", "problem"),
    [
        ({ROOT: "j: {image: x, image: y}"}, f"{ROOT}:1", "'image' twice"),
        ({ROOT: "include: a.yml\nj: {}", "a.yml": "\nj:\n  a: 1\n  a: 2"}, "a.yml:4", "'a' twice"),
        ({ROOT: "include: gone.yml"}, ROOT, "'gone.yml' does not exist"),
        ({ROOT: "include: g/*.yml"}, ROOT, "matches no file"),
        ({ROOT: "include: $X/a.yml"}, ROOT, "'$X/a.yml'"),
        ({ROOT: "include: sub", "sub/a": ""}, ROOT, "is a folder"),
        ({ROOT: "include: a.yml", "a.yml": "x: ["}, "a.yml:1", "not YAML"),
        ({ROOT: "include: a.yml", "a.yml": "x"}, "a.yml", "no mapping"),
        ({ROOT: "include: a.yml", "a.yml": "include: b.yml", "b.yml": "include: a.yml"},
         "b.yml", "in a circle"),
        ({ROOT: "j: {extends: k}\nk: {extends: j}"}, ROOT, "circle"),
        ({ROOT: "j: {extends: j}"}, ROOT, "circle"),
        ({ROOT: "j: {extends: .gone}"}, ROOT, "'.gone', which is not defined"),
        ({ROOT: "j: {image: !reference [j, image]}"}, ROOT, "in a circle"),
        ({ROOT: "include: t.yml", "t.yml": "spec: {inputs: {i: }}\n---\nj: {}"}, "t.yml", "'i'"),
        ({ROOT: "include: {local: t.yml, inputs: {zz: 1}}",
          "t.yml": "spec: {inputs: {i: {default: x}}}\n---\nj: {}"},
         "t.yml", "no input 'zz'"),
        ({ROOT: "include: {local: t.yml, inputs: {i: c}}",
          "t.yml": "spec: {inputs: {i: {options: [a, b]}}}\n---\nj: {}"},
         "t.yml", "the input 'i' as 'c'"),
        ({ROOT: "include: t.yml",
          "t.yml": "spec: {inputs: {i: {default: c}}}\n---\nk: {}\nj: {image: $[[ inputs.i ]]}}"},
         "t.yml:4", "not YAML"),
        ({ROOT: "".join(f"a{n}: {{extends: a{n + 1}}}\n" for n in range(200))},
         ROOT, "more levels"),
    ],
)  # fmt: skip
def test_evaluate_file_what_gitlab_refuses_is_a_problem_with_its_place(
    tmp_path: Path, files: dict[str, str], where: str, problem: str
) -> None:
    found = evaluated(tmp_path, files)
    lines = [str(one).removeprefix(f"{tmp_path}/") for one in found.problems]
    assert any(line.startswith(f"{where}: ") and problem in line for line in lines), lines
    assert all(one.severity == "warning" and one.cure for one in found.problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("j: [", "not YAML"),
        ("spec: [\n---\nj: {image: $[[ inputs.i ]]}", ":2: is not YAML"),
        ("j: {image: $[[ inputs.i ]]}", "not YAML"),
        ("- a\n- b", "no mapping"),
        ("just text", "no mapping"),
        ("[" * 1000, "nested"),
        ("a: \x01", "control"),
    ],
)
def test_evaluate_file_unreadable_root_is_one_problem(
    tmp_path: Path, text: str, problem: str
) -> None:
    found = evaluated(tmp_path, text)
    assert found.images == ()
    assert problem in problems(found)


def test_evaluate_file_empty_file_names_nothing(tmp_path: Path) -> None:
    assert evaluated(tmp_path, "# nothing yet\n") == Evaluation()


def test_evaluate_file_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        evaluate_file(tmp_path / "none.yml", tmp_path)
    with pytest.raises(UsageError, match="directory"):
        evaluate_file(tmp_path, tmp_path)


def test_evaluate_fall_back_fills_in_what_the_record_and_the_variables_say(tmp_path: Path) -> None:
    repository(tmp_path, {"ci/app.yml": "j: {image: '$CI_REGISTRY/$X:$Y'}"})
    data = b"variables: {Y: '1'}\ninclude: ci/$CI_PROJECT_NAME.yml"
    record = {"CI_REGISTRY": "r.io", "CI_PROJECT_NAME": "app"}
    found = evaluate(data, "app", Checkout(tmp_path), record, {"X": "x", "Y": "2"})
    assert [image.text for image in found.images] == ["r.io/x:2"]
    assert found.problems == ()


# Outside of the repository


@pytest.mark.parametrize(
    "path", ["../secret.yml", "/../secret.yml", "a/../../secret.yml", "../*.yml", "**/../*.yml"]
)
def test_evaluate_file_include_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.yml").write_text("leak: {image: secret}")
    root = tmp_path / "repo"
    (root / "a").mkdir(parents=True)
    found = evaluated(root, f"include: {{local: '{path}'}}\nj: {{image: x}}")
    assert [image.text for image in found.images] == ["x"]
    assert "leads out of the repository" in problems(found)


@pytest.mark.parametrize("path", ["link.yml", "folder/secret.yml", "folder/*.yml", "*.yml"])
def test_evaluate_file_include_through_a_symbolic_link_is_refused(
    tmp_path: Path, path: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.yml").write_text("leak: {image: secret}")
    root = tmp_path / "repo"
    root.mkdir()
    (root / "link.yml").symlink_to(tmp_path / "out" / "secret.yml")
    (root / "folder").symlink_to(tmp_path / "out")
    found = evaluated(root, f"include: {{local: '{path}'}}\nj: {{image: x}}", root=ROOT)
    assert [image.text for image in found.images if image.job == "leak"] == []
    assert found.problems != ()


def test_evaluate_file_include_of_a_named_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yml")
    found = evaluated(tmp_path, "include: pipe.yml\nj: {image: x}")
    assert "no regular file" in problems(found)


def test_checkout_match_hostile_pattern_is_quick(tmp_path: Path) -> None:
    (tmp_path / ("a" * 200)).write_text("")
    started = time.process_time()
    assert Checkout(tmp_path).match("*a" * 100 + "b") == ()
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.yml", ("a.yml", "b.yml")),
        ("/**.yml", ("a.yml", "b.yml", "s/c.yml", "s/t/d.yml")),
        ("s/*.yml", ("s/c.yml",)),
        ("s/**/*.yml", ("s/t/d.yml",)),
        ("*/c.yml", ("s/c.yml",)),
        ("**/*.yml", ("s/c.yml", "s/t/d.yml")),
        ("x*.yml", ()),
        ("none/*.yml", ()),
    ],
)
def test_checkout_match_stars_stop_at_slashes(
    tmp_path: Path, pattern: str, expected: tuple[str, ...]
) -> None:
    files = ("a.yml", "b.yml", "c.txt", "s/c.yml", "s/t/d.yml", ".git/e.yml")
    repository(tmp_path, dict.fromkeys(files, ""))
    assert Checkout(tmp_path).match(pattern) == expected


@pytest.mark.parametrize("path", ["", "/", "..", "a/../b", ".git/config", "a\0b"])
def test_checkout_read_path_outside_is_refused(tmp_path: Path, path: str) -> None:
    repository(tmp_path, {".git/config": "[core]", "b": ""})
    with pytest.raises(Unavailable):
        Checkout(tmp_path).read(path, 10)


def test_find_root_git_checkout_else_the_files_folder(tmp_path: Path) -> None:
    repository(tmp_path, {"repo/.git/HEAD": "", "repo/a/b/ci.yml": "", "plain/ci.yml": ""})
    assert find_root(tmp_path / "repo/a/b/ci.yml") == tmp_path / "repo"
    if not any((parent / ".git").exists() for parent in tmp_path.parents):
        assert find_root(tmp_path / "plain/ci.yml") == tmp_path / "plain"


# Bombs: each would take hours, or all memory, if it were walked


def doubling(first: str, more: str) -> str:
    """Return anchors a0 to a59, of which each holds the one before twice."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {more.format(f'*a{n - 1}')}" for n in range(1, 60)]
    return "\n".join(lines) + "\n"


LISTS = doubling("[x]", "[{0}, {0}]")
MAPS = doubling("{x: 1}", "{{x: {0}, y: {0}}}")
VARIABLES = "".join(f"  A{n}: $A{n - 1}$A{n - 1}\n" for n in range(1, 60))
CHAIN = "".join(f"  A{n}: $A{n - 1}\n" for n in range(1, 5000))

BOMBS: dict[str, dict[str, str]] = {
    "lists of lists": {
        ROOT: f"{LISTS}j: {{image: x, services: *a59, rules: *a59, parallel: {{matrix: *a59}}}}"
    },
    "lists behind references": {
        ROOT: f"{LISTS}.r: *a59\nj: {{image: x, services: [!reference [.r]], rules: *a59}}"
    },
    "maps merged by extends": {
        ROOT: f"{MAPS}.a: {{image: x, variables: *a59}}\n.b: {{variables: *a58}}\n"
        "j: {extends: [.a, .b]}"
    },
    "maps merged by include": {
        ROOT: f"include: b.yml\n{MAPS}j: {{image: x, variables: *a59}}",
        "b.yml": f"{MAPS}j: {{variables: *a59}}",
    },
    "maps with inputs": {
        ROOT: f"spec: {{inputs: {{i: {{default: x}}}}}}\n---\n{MAPS}j: {{image: x, script: *a59}}"
    },
    "inputs that double": {
        ROOT: "include: {local: t0.yml, inputs: {i: xxxxxxxxxx}}\n",
        **{
            f"t{n}.yml": "spec: {inputs: {i: }}\n---\n"
            f"include: {{local: t{n + 1}.yml, inputs: {{i: '$[[ inputs.i ]]$[[ inputs.i ]]'}}}}\n"
            for n in range(40)
        },
        "t40.yml": "spec: {inputs: {i: }}\n---\nj: {image: 'x:$[[ inputs.i ]]'}",
    },
    "inputs that grow text": {
        ROOT: "include: [" + "{local: t.yml, inputs: {i: " + "x" * 90_000 + "}}," * 100 + "]",
        "t.yml": "spec: {inputs: {i: }}\n---\nj: {image: $[[ inputs.i ]]}\n"
        + "# $[[ inputs.i ]]\n" * 1000,
    },
    "lists in inputs": {
        ROOT: f"{LISTS}include: {{local: t.yml, inputs: {{i: *a59}}}}",
        "t.yml": "spec: {inputs: {i: {options: [y]}}}\n---\nj: {services: $[[ inputs.i ]]}",
    },
    "inputs without end": {
        ROOT: "spec: {inputs: {i: }}\n---\nj: {image: '" + "$[[inputs.i|" * 300_000 + "'}"
    },
    "many long names": {
        ROOT: "".join(f"k{n}: {{script: x, image: '{n}{'${' * 4080}'}}\n" for n in range(400))
    },
    "a long name": {ROOT: "k: {image: '" + "${" * 1_000_000 + "'}"},
    "variables": {ROOT: f"variables:\n  A0: x\n{VARIABLES}j: {{image: 'x:$A59'}}"},
    "a chain of variables in many jobs": {
        ROOT: f"variables:\n  A0: x\n{CHAIN}"
        + "".join(f"j{n}: {{image: $A4999}}\n" for n in range(300))
    },
    "includes of includes": {
        ROOT: "include: [a0.yml, a0.yml]",
        **{f"a{n}.yml": f"include: [a{n + 1}.yml, a{n + 1}.yml]" for n in range(40)},
        "a40.yml": "j: {image: x}",
    },
    "a matrix": {
        ROOT: ".m: &m {matrix: [{"
        + ", ".join(f"A{n}: [1, 2, 3, 4, 5]" for n in range(20))
        + "}]}\n"
        + "".join(f"j{n}: {{image: 'x:$A19', parallel: *m}}\n" for n in range(300))
    },
    "extends of extends": {
        ROOT: ".t0: {image: x}\n"
        + "".join(f".t{n}: {{extends: [.t{n - 1}, .t{n - 1}, .t{n - 1}]}}\n" for n in range(1, 40))
        + "j: {extends: .t39}\n"
    },
    "ten megabytes": {ROOT: "j: {image: x}\n" + "# more of the same\n" * 600_000},
    "many jobs": {ROOT: "".join(f"job{n}: {{image: 'x:{n}'}}\n" for n in range(20_000))},
}


@pytest.mark.parametrize("files", BOMBS.values(), ids=BOMBS)
def test_evaluate_file_bomb_ends_soon(tmp_path: Path, files: dict[str, str]) -> None:
    started = time.process_time()
    found = evaluated(tmp_path, files)
    assert time.process_time() - started < 10
    assert found.images or found.problems
    assert len(found.problems) <= 500


def test_evaluate_file_ten_megabytes_are_a_clear_problem(tmp_path: Path) -> None:
    found = evaluated(tmp_path, BOMBS["ten megabytes"])
    assert "larger than 4 MB" in problems(found)


def test_evaluate_file_deep_job_is_carried_past(tmp_path: Path) -> None:
    deep = "{a: " * 98 + "1" + "}" * 98
    found = evaluated(tmp_path, f".a: {{variables: {deep}}}\nj: {{extends: .a, image: x}}")
    assert [image.text for image in found.images] == ["x"]


KEYS = ["j", ".t", "default", "include", "image", "services", "variables", "extends", "rules"]
KEYS += ["parallel", "matrix", "name", "local", "inputs", "spec", "trigger", "script", "workflow"]
TEXTS = st.sampled_from([".t", "j", "a.yml", "*.yml", "$A", "x:1", "$[[ inputs.a ]]"])
YAML: Any = st.recursive(
    TEXTS | st.integers(0, 9) | st.none() | st.sampled_from(["!reference [.t, image]", "''"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(map(str, items))}]")
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4).map(
            lambda items: "{" + ", ".join(f"{k}: {v}" for k, v in items.items()) + "}"
        )
    ),
    max_leaves=15,
)


class Same:
    """A repository in which every file holds the same."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, path: str, most: int) -> bytes:
        return self._data[: most + 1]

    def match(self, pattern: str) -> tuple[str, ...]:
        return ("b.yml", "c.yml")


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), YAML, min_size=1, max_size=5), st.booleans())
def test_evaluate_any_definition_is_read_without_a_crash(tree: dict[str, Any], spec: bool) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in tree.items())
    header = "spec: {inputs: {a: {default: x}}}\n---\n" if spec else ""
    data = (header + text).encode()
    found = evaluate(data, "x", Same(data))
    for image in found.images:
        assert (image.reference is None) is (image.unresolved is not None)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="jimage: x$\n[]{}&*!<'\"-.#", max_size=60))
def test_evaluate_any_text_is_read_without_a_crash(text: str) -> None:
    assert isinstance(evaluate(text.encode(), "x", Same(b"")), Evaluation)
