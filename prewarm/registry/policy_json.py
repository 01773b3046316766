"""The host's containers-policy.json: may this image be copied here?

skopeo asks its policy about the name it reads from. prewarm lets skopeo read from a gate on
loopback, so the policy must be asked here, about the upstream's own name
(containers-policy.json(5), "docker:").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from prewarm.core.errors import PrewarmError
from prewarm.core.reference import Reference

SYSTEM_POLICY: Final = Path("/etc/containers/policy.json")


class Policy:
    """A policy.json, read."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path = path
        self._document = document

    def refusal(self, reference: Reference) -> PrewarmError | None:
        """Return why the policy does not let the image in, or None where it does."""
        for requirement in self._requirements(reference):
            kind = requirement.get("type") if isinstance(requirement, dict) else None
            if kind == "insecureAcceptAnything":
                continue
            if kind == "reject":
                text = f"{reference.name}: {self.path} rejects it"
            else:
                text = (
                    f"{reference.name}: {self.path} demands a signature ({kind}), "
                    "which prewarm cannot check"
                )
            cure = f"allow docker: {reference.name} in {self.path}, or take the image out"
            return PrewarmError("policy", text, cure)
        return None

    def _requirements(self, reference: Reference) -> list[Any]:
        transports = self._document.get("transports")
        scopes = transports.get("docker") if isinstance(transports, dict) else None
        if isinstance(scopes, dict):
            for scope in _scopes(reference):
                if scope in scopes:
                    return _listed(scopes[scope])
        return _listed(self._document.get("default"))


def _listed(requirements: object) -> list[Any]:
    """The requirements as they stand; where they are none, which skopeo refuses too: a reject."""
    if isinstance(requirements, list) and requirements:
        return requirements
    return [{"type": "reject"}]


def _scopes(reference: Reference) -> list[str]:
    """The scopes that can speak of a reference, the most specific first."""
    selector = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    scopes = [reference.name + selector]
    parts = reference.name.split("/")
    scopes += ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    labels = reference.registry.partition(":")[0].split(".")
    scopes += ["*." + ".".join(labels[start:]) for start in range(1, len(labels))]
    return [*scopes, ""]


def read_policy(home: Path | None, system: Path = SYSTEM_POLICY) -> Policy:
    """Read the policy where skopeo would; PrewarmError `policy-missing` or `policy` if it cannot.

    Looked for at ~/.config/containers/policy.json, then at /etc/containers/policy.json.
    """
    own = (home / ".config/containers/policy.json",) if home else ()
    for path in (*own, system):
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise PrewarmError(
                "policy", f"{path} cannot be read as JSON", "repair it or reinstall skopeo"
            ) from error
        if not isinstance(document, dict):
            raise PrewarmError("policy", f"{path} is not a JSON object", "repair it")
        return Policy(path, document)
    raise PrewarmError(
        "policy-missing",
        f"there is no {system}, so skopeo copies nothing",
        'install skopeo\'s configuration (Debian: apt install golang-github-containers-common), or write {"default": [{"type": "insecureAcceptAnything"}]} there',  # noqa: E501
    )
