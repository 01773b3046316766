"""Runs a reader on hostile inputs: known-good texts that are mutated, and texts that grow.

A target is a reader with what must hold for every input. `run` lets hypothesis look for an input
that breaks it; `grow` repeats a piece of text and looks at the processor time it takes.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "150"))
"""Inputs for each target: some seconds in all by default, `make fuzz` takes minutes."""
SECONDS: Final = 8.0
"""Processor time that one input may take: far above any honest one, far below a hang."""
_SHORT, _TIMES = 3000, 8
_GROWTH: Final = 3.0
"""How much more than the length may the time grow, and noise with it; quadratic: 8."""
_NOTICED: Final = 0.15
"""Seconds below which nothing is said about growth."""
_HIDDEN: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})
"""Controls, line separators, surrogates: what a terminal may obey."""
_BIDI: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


@dataclass(frozen=True)
class Target:
    """A reader of hostile input."""

    name: str
    check: Callable[[bytes], None]
    """Read the input; AssertionError or any other exception where a promise is broken."""
    seeds: Sequence[str]
    """Good inputs."""
    tokens: Sequence[str]
    """What has a meaning in the grammar."""
    documents: Sequence[Any] = ()
    """Good inputs as values, of which some are replaced; they are given as JSON, which is YAML."""
    grows: bool = True
    """Whether the time is proportional to the length; where not, it has another bound."""


class TooSlowError(AssertionError):
    """An input took more processor time than it may."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooSlowError when the block has used SECONDS of this process's processor time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {SECONDS} s of processor time")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def plain(text: str, longest: int) -> None:
    """Assert that a text for people is short enough and cannot move a terminal's cursor."""
    assert len(text) <= longest, f"{len(text)} characters: {text[:200]!r}…"
    hidden = {
        character
        for character in text
        if unicodedata.category(character) in _HIDDEN
        or unicodedata.bidirectional(character) in _BIDI
    }
    assert not hidden, f"{hidden} in {text[:200]!r}"


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return good inputs with some mutations, texts of tokens, and any bytes."""
    tokens = [token.encode() for token in target.tokens]
    piece = st.one_of(
        st.sampled_from(tokens), st.text(max_size=8).map(_encoded), st.binary(max_size=4)
    )

    @st.composite
    def mutated(draw: st.DrawFn) -> bytes:
        text = draw(st.sampled_from([seed.encode() for seed in target.seeds]))
        for _ in range(draw(st.integers(1, 6))):
            start = draw(st.integers(0, len(text)))
            end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 4, 20])))
            middle = draw(st.one_of(piece, st.just(text[start:end])))
            middle *= draw(st.sampled_from([1, 1, 1, 2, 40, 120]))
            text = text[:start] + middle + text[end:]
        return text

    found = [mutated(), mutated(), st.lists(piece, max_size=30).map(b"".join)]
    if target.documents:
        found += [_documents(target.documents)] * 2
    return st.one_of(found)


_ODD: Final[st.SearchStrategy[Any]] = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 10**30, 1.5, "", [], {}, [[]], [{}], {"": {}}, float("nan")]
    ),
    st.text(max_size=12),
    st.integers(),
    st.sampled_from(["x" * 5000, "\u202e\x9b\n", "linux/amd64", "sha256:", "a:1"]),
)


@st.composite
def _documents(draw: st.DrawFn, documents: Sequence[Any]) -> bytes:
    """Return a document in which some values are others, gone, or there twice."""
    document = copy.deepcopy(draw(st.sampled_from(list(documents))))
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(document))
        if not places:
            break
        inside, at = draw(st.sampled_from(places))
        match draw(st.sampled_from(["odd", "odd", "gone", "moved", "many"])):
            case "odd":
                inside[at] = copy.deepcopy(draw(_ODD))
            case "gone":
                del inside[at]
            case "moved":
                other, there = draw(st.sampled_from(places))
                with suppress(KeyError, IndexError):
                    inside[at] = copy.deepcopy(other[there])
            case _:
                inside[at] = [inside[at]] * draw(st.sampled_from([1, 2, 300]))
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "replace")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each collection within a value with each of its keys or positions."""
    for at in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, at
        if isinstance(value[at], dict | list):
            yield from _places(value[at])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def run(target: Target, examples: int = EXAMPLES, **options: Any) -> None:
    """Raise what the first input found raises, if there is one."""

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        **options,
    )
    @given(inputs(target))
    def any_input(data: bytes) -> None:
        with limited():
            target.check(data)

    any_input()


def found(target: Target, examples: int) -> bool:
    """Whether fuzzing finds anything; always the same inputs, and none is made smaller."""
    try:
        run(target, examples, derandomize=True, phases=(Phase.generate,))
    except Exception:
        return True
    return False


def grow(target: Target, examples: int = EXAMPLES // 5, seed: int | None = None) -> None:
    """Repeat pieces of text; TooSlowError where the time grows faster than the length."""
    chance = random.Random(seed)
    for _ in range(examples):
        head, piece, tail = (_text(target, chance) for _ in range(3))
        growth(target, head, piece or b"x", tail)


def growth(target: Target, head: bytes, piece: bytes, tail: bytes) -> None:
    """Assert that the time of `head`, many times `piece` and `tail` is in proportion to them."""
    number = _SHORT // len(piece) + 1
    long = head + piece * number * _TIMES + tail
    if (took := _seconds(target, long)) < _NOTICED:
        return
    short = max(0.001, min(_seconds(target, head + piece * number + tail) for _ in range(2)))
    if took / short > _TIMES * _GROWTH:
        took = min(took, _seconds(target, long))  # another process may have had the caches
    if target.grows and took > _NOTICED and took / short > _TIMES * _GROWTH:
        raise TooSlowError(
            f"{_TIMES} times the length takes {took / short:.0f} times as long ({took:.2f} s): "
            f"{head[:80]!r} + {piece[:80]!r} * {number * _TIMES} + {tail[:80]!r}"
        )


def _text(target: Target, chance: random.Random) -> bytes:
    """Return some tokens, or a part of a seed, or nothing."""
    if (kind := chance.randrange(4)) == 0:
        return b""
    if kind == 1:
        seed = chance.choice(target.seeds).encode()
        start = chance.randrange(len(seed) + 1)
        return seed[start : start + chance.randrange(1, 200)]
    return "".join(chance.choice(target.tokens) for _ in range(chance.randrange(1, 4))).encode()


def _seconds(target: Target, data: bytes) -> float:
    started = time.thread_time()
    with limited():
        target.check(data)
    return time.thread_time() - started
