"""Sizes, durations and URLs as people read them."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.text import (
    duration_words,
    escaped_json,
    parse_duration,
    printable_lines,
    size_words,
    url_words,
)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (500_000, "488.3 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (10 * 2**30, "10.0 GiB"),
        (100 * 2**40, "100.0 TiB"),
        (3 * 2**50, "3.0 PiB"),
        (2**62, "4096.0 PiB"),
    ],
)
def test_size_words_of_a_size_are_in_the_unit_that_fits(size: int, words: str) -> None:
    assert size_words(size) == words


@given(st.integers(0, 2**60))
def test_size_words_of_any_size_are_short_and_near_it(size: int) -> None:
    number, unit = size_words(size).split()
    assert len(number) <= 6
    worth = float(number) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(worth - size) <= 0.06 * size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "5s"),
        (90, "90s"),
        (5400, "90m"),
        (21600, "6h"),
        (21600.0, "6h"),
        (86400, "1d"),
        (14 * 86400, "14d"),
        (0, "0s"),
        (0.25, "0.25s"),
    ],
)
def test_duration_words_of_a_duration_are_as_written(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@given(st.integers(1, 3650 * 86400))
def test_duration_words_of_whole_seconds_are_exact_in_the_file(seconds: int) -> None:
    words = duration_words(seconds)
    assert re.fullmatch(r"[0-9]+[smhd]", words)
    assert parse_duration(words) == seconds


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://hub.example.org/v2/a/manifests/1", "https://hub.example.org/v2/a/manifests/1"),
        ("https://cdn.example.org/blob?Signature=secret#x", "https://cdn.example.org/blob"),
        ("http://acme:secret@127.0.0.1:5000/v2/?n=1", "http://127.0.0.1:5000/v2/"),
        ("https://acme:secret@hub.example.org", "https://hub.example.org"),
        (
            "https://hub.example.org/a@b/\x1b[0m",
            "https://hub.example.org/a@b/\N{REPLACEMENT CHARACTER}[0m",
        ),
    ],
)
def test_url_words_hold_no_secret_and_no_control_character(url: str, words: str) -> None:
    assert url_words(url) == words


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://hooks.example.org/services/T0/s3cr3t?x=1", "https://hooks.example.org/…"),
        ("https://acme:secret@cdn.example.org/", "https://cdn.example.org/"),
        ("https://hooks.example.org#s3cr3t", "https://hooks.example.org"),
    ],
)
def test_url_words_without_the_path_hold_the_host_alone(url: str, words: str) -> None:
    assert url_words(url, path=False) == words


HOSTILE = "a\x1b[31m\x7f\x9b1m\u202e\u2028\u2029\u200b\ufeff\u00ad\U000e0001\N{GRINNING FACE}é"


def test_escaped_json_means_the_same_and_shows_as_it_is() -> None:
    document = {HOSTILE: [HOSTILE, 1, None]}
    text = escaped_json(json.dumps(document, indent=2, ensure_ascii=False))
    assert json.loads(text) == document
    assert all(line.isprintable() for line in text.split("\n"))
    assert "é" in text


def test_printable_lines_keep_only_line_breaks_and_tabs() -> None:
    text = printable_lines(f"\tone\n{HOSTILE}\r\n")
    assert text.startswith("\tone\na\N{REPLACEMENT CHARACTER}[31m")
    assert all(letter.isprintable() or letter in "\t\n" for letter in text)
