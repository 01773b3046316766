"""What the docs show is what the commands print."""

from __future__ import annotations

from pathlib import Path

from tests.support.tour import play, recordings, shape, site


def test_commands_print_what_the_docs_show(tmp_path: Path) -> None:
    with site(tmp_path) as stage:
        played = play(stage)
    shown = {name: shape(text) for name, text in recordings().items()}
    assert {name: shape(text) for name, text in played.items()} == shown, (
        "make docs RECORD=--record"
    )


def test_shape_masks_what_differs_from_run_to_run_and_nothing_else() -> None:
    first = "\x1b[32mcopy\x1b[0m   1 pull, 1.2 MiB in 0.4 s, next Tue 24 Nov 13:44 UTC\n"
    again = "copy 1 pull, 9.5 KiB in 11.0 s, next Wed 25 Nov 03:00 UTC\n"
    assert shape(first) == shape(again.replace("copy 1", "copy  1"))
    assert shape(first) != shape(first.replace("1 pull", "2 pulls"))
