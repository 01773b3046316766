"""Variables: what the runner (Go) and GitLab (Rails) make of a text, as tables."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.discovery.ci_variables import (
    LONGEST,
    PER_RUN,
    Scope,
    TooLong,
    Variable,
    go_expand,
    names_in,
    of_project,
    slug,
    unknown,
    without_unknown,
)

VALUES = {"A": "alpine", "T": "3.19", "NEST": "$T", "EMPTY": "", "A_x": "other"}

ONE_PASS = [
    ("$A:${T}-slim", "alpine:3.19-slim"),
    ("$A_x:1", "other:1"),
    ("$A-x:1", "alpine-x:1"),
    ("img/linux$EMPTY:$T", "img/linux:3.19"),
    ("$$A", "$A"),
    ("$A:$NEST", "alpine:$T"),
    ("%A%:1", "%A%:1"),
    ("$(A)", "$(A)"),
    ("a$", "a$"),
    ("$ y", "$ y"),
    ("$/x", "$/x"),
    ("$1abc", "abc"),
    ("a${}b", "ab"),
    ("a${A", "aA"),
    ("${$}A", "$A"),
    ("$@x$#y$!z$?", "xyz"),
    # What Go would replace by nothing keeps its spelling.
    ("$UNDEF/app:1", "$UNDEF/app:1"),
    ("${UNDEF}/app:1", "${UNDEF}/app:1"),
    ("${A:-busybox}:1", "${A:-busybox}:1"),
    ("$[[ inputs.x ]]", "$[[ inputs.x ]]"),
]


@pytest.mark.parametrize(("text", "expected"), ONE_PASS)
def test_go_expand_one_pass_is_what_the_runner_makes(text: str, expected: str) -> None:
    assert go_expand(text, VALUES.get) == expected


SCOPES: list[tuple[str, int, Mapping[str, str], str]] = [
    ("two passes undo $$", 2, {"A": "alpine", "I": ""}, "$$A -> alpine"),
    ("one pass keeps $$", 1, {"A": "alpine"}, "$$A -> $A"),
    ("nested", 1, {"T": "3.19", "N": "v$T", "M": "${N}-x"}, "a:$M -> a:v3.19-x"),
    ("windows form inside values only", 1, {"T": "1", "N": "%T%"}, "%T%:$N -> %T%:1"),
    ("an unknown one inside", 1, {"N": "$HOST/app"}, "$N:1 -> $HOST/app:1"),
]


@pytest.mark.parametrize(
    ("passes", "values", "case"), [row[1:] for row in SCOPES], ids=[row[0] for row in SCOPES]
)
def test_scope_expand_values_in_values_are_filled_in(
    passes: int, values: Mapping[str, str], case: str
) -> None:
    text, _, expected = case.partition(" -> ")
    scope = Scope([{name: Variable(value) for name, value in values.items()}])
    assert scope.expand(text, passes) == expected


def test_scope_expand_first_layer_beats_the_others() -> None:
    scope = Scope([{"X": Variable("job")}, {"X": Variable("global"), "Y": Variable("$X")}])
    assert scope.expand("$X $Y") == "job job"


def test_scope_expand_raw_variable_is_expanded_by_the_second_pass_only() -> None:
    scope = Scope([{"R": Variable("a:$T", raw=True), "T": Variable("1"), "N": Variable("$R")}])
    assert scope.expand("$R") == "a:$T"
    assert scope.expand("$N") == "a:$T"
    assert scope.expand("$R", passes=2) == "a:1"


def test_scope_expand_circle_keeps_a_name_and_is_defined() -> None:
    scope = Scope([{"A": Variable("$B"), "B": Variable("$A")}])
    assert unknown(scope.expand("x:$A", passes=2)) == ("A",)
    assert scope.defined("A")
    assert not scope.defined("C")


def test_scope_expand_variable_of_itself_keeps_its_name() -> None:
    assert unknown(Scope([{"P": Variable("$P:x")}]).expand("img$P", passes=2)) == ("P",)


def test_scope_expand_bomb_of_doubling_variables_stays_unknown() -> None:
    layer = {f"A{n}": Variable(f"$A{n - 1}$A{n - 1}") for n in range(1, 60)}
    scope = Scope([{"A0": Variable("x" * 10), **layer}])
    text = scope.expand("$A59", passes=2)
    assert len(text) <= LONGEST
    assert unknown(text)


def test_scope_expand_long_text_raises() -> None:
    scope = Scope([{"A": Variable("x" * LONGEST)}])
    with pytest.raises(TooLong):
        scope.expand("$A$A")


def test_scope_expand_chain_of_many_variables_does_not_exhaust_the_stack() -> None:
    scope = Scope([{f"A{n}": Variable(f"$A{n + 1}") for n in range(5000)}])
    assert unknown(scope.expand("$A0"))


@pytest.mark.parametrize("text", ["${" * 500_000, "${A" * 500_000, "$" * 500_000, "%A" * 500_000])
def test_go_expand_endless_text_is_refused_unread(text: str) -> None:
    started = time.process_time()
    with pytest.raises(TooLong):
        go_expand(text, lambda _: "")
    with pytest.raises(TooLong):
        Scope([]).expand(text, 2)
    assert Scope([{"A": Variable(text)}]).value("A") is None
    assert names_in(text) == frozenset()
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("text", ["${" * 4000, "${A" * 2700, "$A${" * 2000, "}" + "${" * 4000])
def test_go_expand_braces_without_end_take_linear_time(text: str) -> None:
    started = time.process_time()
    for _ in range(20):
        unknown(text)
        go_expand(text, lambda _: None)
    assert time.process_time() - started < 2  # quadratic, they took 15 seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a${B", "aB"),
        ("${a${B}c", "[a${B]c"),
        ("${A}${B", "[A]B"),
        ("${${${", ""),
        ("}${A", "}A"),
        ("${A\nB}", "[A\nB]"),
        ("${}${A", "A"),
    ],
)
def test_go_expand_braces_end_where_the_runner_finds_it(text: str, expected: str) -> None:
    assert go_expand(text, lambda name: f"[{name}]") == expected


def test_unknown_names_each_once_in_order() -> None:
    assert unknown("$B/${A}:$B-$[[ x ]]") == ("B", "A")
    assert without_unknown("a${B}:$C-1") == "a:-1"


@settings(deadline=None)
@given(st.text(alphabet="$%{}A1_ :/-", max_size=40))
def test_names_in_text_holds_whatever_expansion_asks_for(text: str) -> None:
    asked: set[str] = set()

    def lookup(name: str) -> str | None:
        asked.add(name)
        return None

    go_expand(go_expand(text, lookup), lookup)
    assert asked <= names_in(text)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_go_expand_text_without_dollar_is_unchanged(text: str) -> None:
    text = text.replace("$", "")
    assert go_expand(text, lambda _: "never") == text


def test_of_project_record_gives_the_predefined_variables() -> None:
    found = of_project(
        "Team/sub/App.one",
        url="https://gitlab.example.org",
        default_branch="feature/X",
        registry_image="registry.example.org:5050/team/sub/app.one",
        project_id=7,
    )
    assert found["CI_PROJECT_PATH"] == "Team/sub/App.one"
    assert found["CI_PROJECT_NAMESPACE"] == "Team/sub"
    assert found["CI_PROJECT_ROOT_NAMESPACE"] == "Team"
    assert found["CI_PROJECT_NAME"] == "App.one"
    assert found["CI_PROJECT_PATH_SLUG"] == "team-sub-app-one"
    assert found["CI_DEFAULT_BRANCH"] == "feature/X"
    assert found["CI_REGISTRY"] == "registry.example.org:5050"
    assert found["CI_TEMPLATE_REGISTRY_HOST"] == "registry.gitlab.com"
    assert (
        found["CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX"]
        == "gitlab.example.org:443/team/dependency_proxy/containers"
    )
    assert (
        found["CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX"]
        == "gitlab.example.org:443/team/sub/dependency_proxy/containers"
    )
    assert not any(PER_RUN.fullmatch(name) for name in found)


def test_of_project_without_registry_leaves_its_variables_out() -> None:
    found = of_project("a/b", url="http://git.example.org:8080/")
    assert "CI_REGISTRY" not in found
    assert "CI_REGISTRY_IMAGE" not in found
    assert found["CI_SERVER_URL"] == "http://git.example.org:8080"
    assert found["CI_DEPENDENCY_PROXY_SERVER"] == "git.example.org:8080"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CI_COMMIT_SHA", True),
        ("CI_COMMIT_REF_SLUG", True),
        ("CI_PIPELINE_ID", True),
        ("CI_JOB_ID", True),
        ("CI_MERGE_REQUEST_IID", True),
        ("CI_JOB_NAME", False),
        ("CI_REGISTRY_IMAGE", False),
        ("CI_PROJECT_ID", False),
        ("MY_CI_COMMIT_SHA", False),
    ],
)
def test_per_run_name_matches_what_changes_with_each_run(name: str, expected: bool) -> None:
    assert bool(PER_RUN.fullmatch(name)) is expected


def test_slug_text_is_cut_and_without_dashes_at_the_ends() -> None:
    assert slug("-Feature/ÄX_" + "y" * 80) == "feature--x-" + "y" * 51
