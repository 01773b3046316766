"""YAML as GitLab reads it: Psych's scalars and merges, and work that stays bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.discovery.ci_yaml import (
    DEPTH_MAX,
    File,
    Quotation,
    Unreadable,
    read,
    read_with_header,
    scalar,
    text_of,
)


def value(text: str) -> Any:
    (document,) = read(text.encode()).documents
    return document


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("nullable", "nullable"),
        ("yes", True),
        ("On", True),
        ("false", False),
        ("NO", False),
        ("12", 12),
        ("-1", -1),
        ("1_000", 1000),
        ("010", 8),
        ("08", "08"),
        ("0x1F", 31),
        ("0b11", 3),
        ("3.10", 3.1),
        (".5", 0.5),
        ("1.", 1.0),
        (".", "."),
        ("1e3", "1e3"),
        ("1.5e+3", 1500.0),
        ("1.2.3", "1.2.3"),
        ("2024-01-01", "2024-01-01"),
        ("9" * 5000, "9" * 5000),
        ("-", "-"),
        ("0x_", "0x_"),
        ("٣", "٣"),
    ],
)
def test_scalar_plain_text_is_what_psych_reads(text: str, expected: object) -> None:
    found = scalar(text)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (True, "true"),
        (False, "false"),
        (3.1, "3.1"),
        (8, "8"),
        ("x", "x"),
        (None, None),
        ([], None),
    ],
)
def test_text_of_scalar_is_gitlabs_text(found: object, expected: str | None) -> None:
    assert text_of(found) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: '3.10'", {"a": "3.10"}),
        ('a: "yes"', {"a": "yes"}),
        ("yes: 1", {"yes": 1}),
        ("1: x", {"1": "x"}),
        ("a: !foo 3", {"a": "3"}),
        ("a: !!python/object/apply:os.system [x]", {"a": ["x"]}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("&k a: 1\nb: *k", {"a": 1, "b": "a"}),
        ("x: &x {a: 1, b: 1}\ny: {<<: *x, b: 2}", {"x": {"a": 1, "b": 1}, "y": {"a": 1, "b": 2}}),
        # In Psych << overwrites what stands before it.
        ("x: &x {b: 1}\ny: {b: 2, <<: *x}", {"x": {"b": 1}, "y": {"b": 1}}),
        ("x: &x {a: 1}\nz: &z {a: 2}\ny: {<<: [*x, *z]}",
         {"x": {"a": 1}, "z": {"a": 2}, "y": {"a": 1}}),
        ("x: &x {a: 1}\nz: &z {b: 2}\ny:\n  <<: *x\n  <<: *z",
         {"x": {"a": 1}, "z": {"b": 2}, "y": {"a": 1, "b": 2}}),
        ("y: {'<<': {a: 1}}", {"y": {"<<": {"a": 1}}}),
        ("y: {<<: text}", {"y": {"<<": "text"}}),
        ("a: !reference [.x, image]", {"a": Quotation((".x", "image"))}),
        ("a: [!reference [.x, 1]]", {"a": [Quotation((".x", "1"))]}),
    ],
)  # fmt: skip
def test_read_document_is_gitlabs(text: str, expected: object) -> None:
    assert value(text) == expected


def test_read_alias_is_the_object_of_its_anchor() -> None:
    document = value("a: &a [1]\nb: *a")
    assert document["a"] is document["b"]


def test_read_documents_are_all_returned_and_anchors_end_with_theirs() -> None:
    assert read(b"a: &x 1\n---\nb: 2\n").documents == ({"a": 1}, {"b": 2})
    with pytest.raises(Unreadable, match="alias"):
        read(b"a: &x 1\n---\nb: *x\n")


def test_read_duplicate_key_is_noted_with_its_line_and_the_last_wins() -> None:
    file = read(b"j:\n  a: 1\n  b: 2\n  a: 3\nj2: {a: 1}\n")
    assert file.documents == ({"j": {"a": 3, "b": 2}, "j2": {"a": 1}},)
    (note,) = file.notes
    assert note.line == 4
    assert "'a'" in note.problem


def test_read_key_over_a_merged_one_is_no_duplicate() -> None:
    assert read(b"x: &x {a: 1}\ny: {<<: *x, <<: *x, a: 2}").notes == ()


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        (b"a: [1", 1, "not YAML"),
        (b"a: 1\n\tb: 2", 2, "not YAML"),
        (b"a: *b", 1, "alias"),
        (b"\na: &a [*a]", 2, "what it stands in"),
        (b"\n? [a]\n: b", 2, "key"),
        (b"a: 1\nb: \x00", 2, "control character"),
        (b"a: 1\nb: \xff", 2, "UTF-8"),
        (b"a: !reference x\n", 1, None),
        (b"a: !reference []\n", 1, "no path"),
        (b"a: !reference [[x]]\n", 1, "no path"),
        (b"[" * 100_000, 1, "nested"),
        (b"{a: " * 5_000, 1, "nested"),
    ],
)
def test_read_what_gitlab_refuses_is_named_with_its_line(
    data: bytes, line: int, problem: str | None
) -> None:
    if problem is None:
        assert read(data).documents == ({"a": "x"},)
        return
    with pytest.raises(Unreadable, match=problem) as caught:
        read(data)
    assert caught.value.line == line


def test_read_nesting_at_the_limit_is_read() -> None:
    assert read(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX).documents


def test_read_large_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Unreadable, match="10 MB"):
        read(b"a: {" * 3_000_000, most=10_000_000)


def test_read_bomb_of_merges_is_refused() -> None:
    keys = ", ".join(f"k{n}: 1" for n in range(5000))
    text = f"a: &a {{{keys}}}\n" + "".join(f"b{n}: {{<<: *a}}\n" for n in range(5000))
    with pytest.raises(Unreadable, match="merges"):
        read(text.encode())


@settings(deadline=None)
@given(st.text(max_size=80) | st.text(alphabet="abc:&*<>-[]{}!?'\"#|\n ,", max_size=80))
def test_read_any_text_is_read_or_refused(text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    _read_or_refused(data)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_read_any_bytes_are_read_or_refused(data: bytes) -> None:
    _read_or_refused(data)


def _read_or_refused(data: bytes) -> None:
    refused = None
    try:
        read(data)
    except Unreadable as error:
        refused = error
    if refused is not None:
        assert 1 <= refused.line <= data.count(b"\n") + 1
        assert "\n" not in str(refused)


DIRECTIVES = [f"%TAG !x{number}! y" for number in range(100_000)]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(DIRECTIVES),
        "\r".join(DIRECTIVES),
        "\x85".join(DIRECTIVES),
        "\u2028".join(DIRECTIVES),
        "\n--- a\n...\n".join(DIRECTIVES),
        "a: 1\n...\n" + "\n".join(DIRECTIVES),
    ],
)
@pytest.mark.parametrize("reader", [read, read_with_header])
def test_read_flood_of_directives_is_refused_before_libyaml_sees_it(
    reader: Callable[[bytes], File], text: str
) -> None:
    with pytest.raises(Unreadable, match="begin with %"):
        reader(text.encode())


def test_read_some_directives_are_fine() -> None:
    text = "%YAML 1.1\n%TAG ! tag:example.org,2000:\n--- {a: 50%}\n" + "# %\n" * 1000
    assert read(text.encode()).documents == ({"a": "50%"},)


FLOODS: dict[str, Callable[[int], str]] = {
    "anchors": lambda n: "".join(f"- &a{i} x\n" for i in range(n // 11)),
    "aliases": lambda n: "- &a x\n" + "- *a\n" * (n // 5),
    "documents": lambda n: "--- a\n" * (n // 6),
    "a plain text of many lines": lambda n: "a: " + "x\n  " * (n // 4),
    "blank lines": lambda n: "a: x" + "\n" * n + "  y",
    "quoted": lambda n: 'a: "' + "x\n " * (n // 3) + '"',
    "folded": lambda n: "a: >\n" + "  x\n\n" * (n // 5),
    "comments": lambda n: "# x\n" * (n // 4),
    "tabs": lambda n: "a:" + "\t" * n + "b",
    "flow": lambda n: "[" + ("[" * 50 + "]" * 50 + ",") * (n // 101) + "]",
    "flow never closed": lambda n: "[" * n,
    "keys": lambda n: "? a\n" * (n // 4),
    "merges": lambda n: "a: &a {k: 1}\nb: {<<: [" + "*a," * (n // 3) + "]}",
    "tags": lambda n: "- !foo x\n" * (n // 9),
    "one long tag": lambda n: "- !" + "x" * n + " y",
}


@pytest.mark.parametrize("make", FLOODS.values(), ids=FLOODS.keys())
def test_read_takes_time_in_proportion_to_the_size(make: Callable[[int], str]) -> None:
    def seconds(size: int) -> float:
        data = make(size).encode()
        started = time.process_time()
        with suppress(Unreadable):
            read(data)
        return time.process_time() - started

    # Quadratic would be 64 times as much.
    assert seconds(400_000) < 24 * min(seconds(50_000) for _ in range(3)) + 1
