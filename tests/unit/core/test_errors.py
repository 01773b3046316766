"""Failures as values: no text is longer than a person reads, however it was made."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.cli.main import _cut_lines
from prewarm.core.errors import (
    TEXT_MAX,
    ConfigError,
    Failure,
    PrewarmError,
    Problem,
    RegistryError,
    shortened,
)

LONG = f"registry: {'x' * 4_000_000}: connection refused"


@pytest.mark.parametrize(
    "make",
    [
        lambda text: Failure("code", text, text),
        lambda text: PrewarmError("code", text, text),
        lambda text: PrewarmError("code", text, text).failure,
        lambda text: RegistryError("code", text, text, status=500),
        lambda text: Problem("error", "code", text, text, text),
        lambda text: Problem("error", "code", "images.yml:1", text, text).line,
    ],
)
def test_text_of_any_length_is_cut_where_a_failure_is_made(make: Callable[[str], object]) -> None:
    found = str(make(LONG))
    assert len(found) < 4 * TEXT_MAX
    assert "registry: xxx" in found
    assert "…" in found
    assert found.endswith("connection refused")


def test_config_error_keeps_all_its_problems() -> None:
    problems = tuple(Problem("error", "key", f"images.yml:{n}", "x" * 90, "y") for n in range(99))
    error = ConfigError(problems)
    assert str(error).count("\n") == error.text.count("\n") == 98


@given(st.text(), st.integers(1, 20))
def test_shortened_is_the_text_or_its_ends(text: str, most: int) -> None:
    found = shortened(text, most)
    assert len(found) == min(len(text), most)
    if len(text) > most:
        head, tail = found.split("…", 1) if text.count("…") == 0 else ("", "")
        assert text.startswith(head)
        assert text.endswith(tail)
    else:
        assert found == text


def test_lines_of_the_log_are_cut_each_by_itself() -> None:
    text = "\n".join(["short", "x" * 4_000_000, *["y" * 100] * 100])
    record = logging.LogRecord("prewarm", logging.INFO, "", 0, "%s", (text,), None)
    assert _cut_lines(record)
    lines = record.getMessage().split("\n")
    assert (lines[0], len(lines[1]), lines[2:]) == ("short", 4000, ["y" * 100] * 100)
