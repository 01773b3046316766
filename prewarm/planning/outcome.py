"""Outcomes: what came of each step of a plan, and who is told of it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prewarm.core.manifest import Manifest
from prewarm.planning.plan import Holding, Step


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step."""

    step: Step
    """The step as it ended: a copy that met an empty quota has become a Defer."""
    content: Manifest | None = None
    """What lies, or should lie, under the tag."""
    holdings: tuple[Holding, ...] = ()
    pulls: int | None = 0
    """As charged in the ledger; in a dry run an upper bound, None where nobody can know."""
    gets: int | None = 0
    """Manifest GETs sent upstream."""
    moved: int = 0
    """Bytes of blobs read from upstream or another mirror."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the blobs of each single manifest, where known."""
    seconds: float = 0.0


class Progress(Protocol):
    """Where the run is, for a person who watches."""

    def begin(self, images: int) -> None:
        """So many more images are to be carried."""

    def expect(self, amount: int) -> None:
        """So many more bytes of blobs may be moved."""

    def moved(self, amount: int) -> None:
        """So many bytes have been moved."""

    def done(self, outcome: Outcome) -> None:
        """A step has ended."""
