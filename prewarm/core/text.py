"""Text for people: numbers, sizes, times and durations, written and read."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Final

_UNUSUAL: Final = re.compile(r"[^ -~\n\t]+")
_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def printable(text: str) -> str:
    """Return the text without control characters: names and answers come from anybody."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def printable_lines(text: str) -> str:
    """Return the text without control characters but line breaks and tabs."""
    return _UNUSUAL.sub(lambda found: printable(found[0]), text)


def escaped_json(text: str) -> str:
    """Return JSON that a terminal shows as it is: control, bidi and separator characters escaped.

    They stand in strings alone, so it means the same.
    """
    return _UNUSUAL.sub(lambda found: "".join(map(_escaped, found[0])), text)


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    # json escapes no DEL (U+007F).
    return json.dumps(letter)[1:-1] if ord(letter) > 0xFFFF else f"\\u{ord(letter):04x}"


def counted(number: int, noun: str) -> str:
    """Return how many there are of something: `1 pull`, `2 pulls`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def url_words(url: str, *, path: bool = True) -> str:
    """Return a URL for the log: without its user, query and fragment, which may hold secrets.

    So may the path of a webhook or of a signed URL: without `path` it is left out, too.
    """
    scheme, _, rest = url.partition("#")[0].partition("?")[0].partition("://")
    host, slash, tail = rest.partition("/")
    shown = f"{slash}{tail}" if path else "/…" if tail else slash
    return printable(f"{scheme}://{host.rpartition('@')[2]}{shown}")


def size_words(size: float) -> str:
    """Return a size of so many bytes in the largest binary unit that it fills: `1.5 MiB`."""
    words = f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        # What would be rounded to 1024.0 is one of the next unit.
        if abs(size) < (1023.5 if unit == "KiB" else 1023.95):
            break
        size /= 1024
        words = f"{size:.1f} {unit}"
    return words


def duration_words(seconds: float) -> str:
    """Return a duration as `images.yml` spells it: exact, in the largest unit, such as `90m`."""
    for unit, length in _UNITS:
        if seconds and seconds % length == 0:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:g}s"


def iso(at: float | None) -> str | None:
    """Return a time in UTC, ISO 8601 with `Z`."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def when(at: float) -> str:
    """Return a time for people, in UTC as everywhere else."""
    return datetime.fromtimestamp(at, UTC).strftime("%a %d %b %H:%M UTC")


class Refused(ValueError):  # noqa: N818 - the name says what happened to the value
    """A value that a key does not accept, with a problem and a cure in words of its own."""

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.cure = cure


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_YEARS_10: Final = 3650 * 86400
_DURATION: Final = re.compile(r"([0-9]{1,10})([smhdw])", re.ASCII)


def parse_duration(text: str) -> int:
    """Return the seconds of `90s`, `15m`, `6h`, `14d` or `2w`; at most ten years."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(text)
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > _YEARS_10:
        raise Refused("is longer than ten years", "write a shorter one")
    return seconds
