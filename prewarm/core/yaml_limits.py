"""Limits on hostile YAML that every reader of it checks first."""

from __future__ import annotations

import itertools
import re
from typing import Final

DIRECTIVES_MAX: Final = 50
"""Lines that begin with `%`: libyaml takes quadratic time for `%TAG`, in which no signal comes."""
_DIRECTIVE: Final = re.compile(r"(?:\A\ufeff?|[\n\r\x85\u2028\u2029])%")


def crowded_directives(text: str) -> int:
    """Return the line of the first directive that is one too many; 0 where there is none."""
    found = next(itertools.islice(_DIRECTIVE.finditer(text), DIRECTIVES_MAX, None), None)
    return 0 if found is None else text.count("\n", 0, found.end()) + 1
