"""The host's containers-registries.conf: whose requests does it send elsewhere?

podman, buildah, CRI-O and skopeo obey it (containers-registries.conf(5)). prewarm's own copies read
and write through its gate on loopback, so no redirect reaches them; but skopeo starts with no file
that it cannot read (measured with skopeo 1.9.3).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SYSTEM: Final = Path("/etc/containers")


@dataclass(frozen=True, slots=True)
class Entry:
    """A `[[registry]]` of the file, as far as it says where requests go."""

    prefix: str
    """`host[:port][/path]`, or `*.domain`."""
    targets: tuple[str, ...]
    """Where requests go instead, or first: `host[:port][/path]`."""
    blocked: bool

    def concerns(self, host: str) -> bool:
        """Whether it speaks of images of the registry `host[:port]`, all or some of them."""
        if self.prefix.startswith("*."):
            return host.partition(":")[0].endswith(self.prefix[1:])
        return self.prefix == host or self.prefix.startswith(f"{host}/")


@dataclass(frozen=True, slots=True)
class File:
    """A registries.conf that is there; `broken` says why it cannot be used, else it is empty."""

    path: Path
    system: bool
    """It is the host's, not one user's: the skopeo that prewarm starts reads it, too."""
    entries: tuple[Entry, ...] = ()
    broken: str = ""


def read_files(
    home: Path | None, environ: Mapping[str, str], system: Path = SYSTEM
) -> tuple[File, ...]:
    """Return the files that are there: the system's and the user's, each with its drop-ins."""
    folders = [(system, True)]
    if home is not None:
        folders.append((home / ".config/containers", False))
    if (config := environ.get("XDG_CONFIG_HOME", "")).startswith("/"):
        folders.append((Path(config, "containers"), False))
    found: dict[Path, File] = {}
    for folder, is_system in folders:
        for path in _paths(folder):
            if path not in found and (file := _read(path, is_system)) is not None:
                found[path] = file
    return tuple(found.values())


def _paths(folder: Path) -> Iterator[Path]:
    yield folder / "registries.conf"
    yield from sorted((folder / "registries.conf.d").glob("*.conf"))


def _read(path: Path, system: bool) -> File | None:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return File(path, system, broken=f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        # The error of tomllib may quote the file.
        return File(path, system, broken="is not TOML")
    return File(path, system, entries(document))


def entries(document: Mapping[str, Any]) -> tuple[Entry, ...]:
    """Return the entries of a document of version 2; what has another form is left out."""
    listed = document.get("registry")
    found = []
    for table in listed if isinstance(listed, list) else []:
        if not isinstance(table, dict):
            continue
        location = _text(table, "location")
        prefix = _text(table, "prefix") or location
        mirrors = table.get("mirror")
        places = [_text(m, "location") for m in mirrors or () if isinstance(m, dict)]
        moved = [location] if location and location != prefix else []
        targets = tuple(filter(None, (*places, *moved)))
        if prefix:
            found.append(Entry(prefix, targets, table.get("blocked") is True))
    return tuple(found)


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    return value.strip().rstrip("/").lower() if isinstance(value, str) else ""
