"""Kubernetes' own judgement on manifests: the API's schemas, and no key that they do not know."""

from __future__ import annotations

from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]

NEWEST: Final = str(kubernetes_validate.latest_version())
"""The newest version whose schemas are at hand, such as 1.37.0."""


def assert_manifest_is_valid(manifest: dict[str, Any], version: str = NEWEST) -> None:
    """The API server of that version knows every key, type and kind of the manifest."""
    minor = ".".join(version.split(".")[:2])
    # It falls back to an older version where it does not know the one asked for.
    assert kubernetes_validate.validate(manifest, minor, strict=True) == minor
