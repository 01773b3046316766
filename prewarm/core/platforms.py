"""Platforms: what an image runs on, and which entry of an index serves a wanted one.

The normalisation is containerd's (platforms/database.go): amd64 has no variant v1, arm64 none v8,
and arm without a variant is v7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_WORD = re.compile(r"[a-z0-9_.-]+")
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An operating system, an architecture and, where it matters, its variant; normalised."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


All = Literal["all"]
ALL: Final = "all"
Wanted = tuple[Platform, ...] | All
"""The platforms of an image to mirror: some, or all (the index is then kept byte for byte)."""

DEFAULT: Final = (Platform("linux", "amd64"),)


def normalise(os: str, architecture: str, variant: str = "") -> Platform:
    """Return the platform in its normal form, so that equal platforms compare equal."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    if architecture == "armhf":
        architecture, variant = "arm", "v7"
    elif architecture == "armel":
        architecture, variant = "arm", "v6"
    elif architecture == "i386":
        architecture, variant = "386", ""
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture == "arm":
        variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    elif (architecture, variant) in {("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")}:
        variant = ""
    return Platform(os, architecture, variant)


def well_formed(*parts: str) -> bool:
    """Whether each part can stand in a platform: a short word without `/`, `,` or control."""
    return all(len(part) <= 64 and _WORD.fullmatch(part.lower()) for part in parts)


def parse_platform(text: str) -> Platform:
    """Return the platform that `os/architecture[/variant]` names; ValueError says what is wrong."""
    parts = text.strip().split("/")
    if not 2 <= len(parts) <= 3 or not well_formed(*parts):
        raise ValueError(f"{text!r} is not os/architecture[/variant], such as linux/arm64")
    return normalise(*parts)
