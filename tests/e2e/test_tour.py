"""What the docs show is what the commands print."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from tests.support.docs import DOCS
from tests.support.tour import keys_of, play, recordings, shape, site


def documented(command: str) -> set[str]:
    """Return the keys that docs/json.md tells of a command."""
    page = (DOCS / "json.md").read_text()
    section = page.partition(f"## {command}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def apart(keys: Collection[str], told: Collection[str]) -> set[str]:
    """Return keys that are not told, and what is told and no key; one may stand for all below."""

    def covers(one: str, key: str) -> bool:
        return key == one or key.startswith((f"{one}.", f"{one}["))

    missing = {key for key in keys if not any(covers(one, key) for one in told)}
    return missing | {one for one in told if not any(covers(one, key) for key in keys)}


def test_commands_print_what_the_docs_show(tmp_path: Path) -> None:
    """One test for all, as the tour takes its time."""
    with site(tmp_path) as stage:
        play(stage)
    shown = {name: shape(text) for name, text in recordings().items()}
    played = {name: shape(text) for name, text in stage.scenes.items()}
    assert played == shown, "make docs RECORD=--record"
    for command, keys in stage.keys.items():
        assert apart(keys, documented(command)) == set(), f"docs/json.md, {command}"


def test_shape_masks_what_differs_from_run_to_run_and_nothing_else() -> None:
    first = "\x1b[32mcopy\x1b[0m   1 pull, 1.2 MiB in 0.4 s, next Tue 24 Nov 13:44 UTC\n"
    again = "copy 1 pull, 9.5 KiB in 11.0 s, next Wed 25 Nov 03:00 UTC\n"
    assert shape(first) == shape(again.replace("copy 1", "copy  1"))
    assert shape(first) != shape(first.replace("1 pull", "2 pulls"))


def test_keys_are_told_once_with_what_is_below_them() -> None:
    document = {"images": [{"mirrors": {"http://m": {"state": "fresh"}}, "error": None}], "of": []}
    keys = set(keys_of(document))
    assert keys == {"images[].mirrors.<mirror>.state", "images[].error", "of[]"}
    assert apart(keys, {"images[].mirrors.<mirror>", "images[].error", "of"}) == set()
    assert apart(keys, {"images", "old"}) == {"of[]", "old"}
