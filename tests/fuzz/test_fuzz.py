"""Readers of hostile input under fuzzing: `make fuzz` looks longer than `make check`.

Nothing but the declared error is raised, the time is bounded and in proportion to the input, texts
for people hold no control characters, and what is printed reads back the same. A planted bug for
each reader shows that these checks would see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from prewarm.config import reader, schema
from prewarm.core import manifest, reference
from prewarm.discovery import ci_jobs, ci_yaml, job_log, runner_log
from prewarm.registry import headers
from tests.fuzz import engine
from tests.fuzz.engine import Target, TooSlowError
from tests.fuzz.targets import TARGETS

BY_NAME: Final = {target.name: target for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_reader_of_any_input_keeps_its_promises(target: Target) -> None:
    engine.run(target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_reader_of_a_long_input_takes_time_in_proportion(target: Target) -> None:
    engine.grow(target)


def pattern(text: str) -> Callable[[Any], Any]:
    """Replace a pattern by this one."""
    return lambda old: re.compile(text, re.DOTALL)


def value(new: Any) -> Callable[[Any], Any]:
    """Replace anything by this."""
    return lambda old: new


def _keeping_backslashes(parse: Any) -> Any:
    def parsed(values: Any) -> Any:
        return tuple(
            replace(one, parameters={k: v.replace('"', '\\"') for k, v in one.parameters.items()})
            for one in parse(values)
        )

    return parsed


def _believing(read: Any) -> Any:
    def parsed(text: str) -> Any:
        try:
            return read(text)
        except reference.InvalidReference:
            return reference.Reference("docker.io", text, "latest")

    return parsed


PLANTED: Final = [
    ("reference", reference, "_TAG", pattern(r"[\w./-]+")),
    ("reference", reference, "_SHOWN_MAX", value(10**6)),
    ("reference", reference, "_PORT_LIKE_END", pattern(r"(?!)")),
    ("challenges", headers, "parse_challenges", _keeping_backslashes),
    ("headers", headers, "_COUNT", pattern(r"\s*(-?[0-9]+)\s*(?:;w=([0-9]+))?.*")),
    ("headers", headers, "_SOURCE", pattern(r".{1,128}")),
    ("manifest", manifest, "valid_digest", value(bool)),
    ("definition", ci_jobs, "parse", _believing),
    ("yaml", ci_yaml._Builder, "_alias", value(lambda builder, event: object())),
    ("yaml", ci_yaml, "_integer", value(lambda text, base: int(text))),
    ("trace", job_log, "_MARK", pattern(r"(?!)")),
    ("trace", job_log, "_EXECUTOR", value("01")),
    ("trace", job_log, "parse", _believing),
    ("runner log", runner_log, "_is_image", value(bool)),
    ("configuration", schema, "shown", value(str)),
    ("configuration", reader, "_Checks", value(lambda *args: 1 / 0)),
]
"""Bugs: the target that must find it, and what is broken there, by what."""


@pytest.mark.parametrize(
    ("name", "module", "attribute", "broken"),
    PLANTED,
    ids=lambda part: getattr(part, "__name__", part),
)
def test_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, module: Any, attribute: str, broken: Any
) -> None:
    monkeypatch.setattr(module, attribute, broken(getattr(module, attribute)))
    assert engine.found(BY_NAME[name], 4000)


SLOW: Final[dict[str, Callable[[bytes], Any]]] = {
    "a quadratic pattern": lambda data: re.search(rb"(?:x|z)+y", data),
    "a loop": lambda data: [sum(data[:n]) for n in range(0, len(data), 2)],
}


@pytest.mark.parametrize("name", SLOW)
def test_growth_is_found(name: str) -> None:
    target = Target(name, SLOW[name], ["x"], ["x"])
    with pytest.raises(TooSlowError):
        engine.growth(target, b"", b"x", b"")


def endless(data: bytes) -> None:
    while True:
        pass


def test_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS", 0.2)
    assert engine.found(Target("endless", endless, ["x"], ["x"]), 1)
