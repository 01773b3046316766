"""Kubernetes: an admission policy that rewrites images of pods to the mirror.

A rewritten image has no way back to its registry, so only what is known to be on a mirror is
rewritten. The expressions use what every Kubernetes with MutatingAdmissionPolicy v1 (1.36) has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prewarm.clients.files import ClientMirror, File, quoted, reachable, remarks
from prewarm.core.records import Known
from prewarm.core.reference import DOCKER_HUB, InvalidReference, Reference, folder_of, parse
from prewarm.core.settings import Settings
from prewarm.core.text import counted
from prewarm.planning.plan import SERVED

_CONTAINERS: Final = 32
"""Of each list in a pod this many are looked at: CEL counts only over a list that is written."""
_EXPRESSION_MAX: Final = 90_000
"""Characters in one expression: the parser of the API server takes 100 000."""

_LINE: Final = ",\n      "
"""Between images: each has a line of the folded YAML."""
_LISTS: Final = ("containers", "initContainers", "ephemeralContainers")


@dataclass(frozen=True, slots=True)
class _Held:
    """Images that a mirror serves, in a variable of their own."""

    variable: str
    mirror: ClientMirror
    images: tuple[Reference, ...]

    def holds(self, image: str) -> str:
        """Return the test whether the image, an expression, is one of them."""
        return f"{image} in variables.{self.variable}"


def kubernetes(settings: Settings, known: tuple[Known, ...] = ()) -> tuple[File, ...]:
    """Return the policy and its binding for the images that the state knows to be on a mirror."""
    found = reachable(settings, "kubernetes", "there each node finds only itself")
    held = tuple(_held(found, known))
    count = sum(len(one.images) for one in held)
    head = remarks(
        "kubectl apply --server-side -f prewarm-mirror.yaml, Kubernetes 1.36 or later. Only where "
        "nodes cannot be touched; else prewarm client-config containerd, which needs no rewriting "
        "and falls back to the registry.",
        f"{counted(count, 'image')} known to be on the mirror, by the last "
        "sync, and no other: a rewritten image has no fallback, its pod waits in ImagePullBackOff "
        "when the mirror loses it. Write and apply this file again after a sync that adds images "
        "or a prune that removes some.",
        "" if count else "There is none yet, so that this does nothing: run prewarm sync first.",
        *(
            f"{mirror.url} is plain HTTP: nodes refuse that unless their engine is told otherwise. "
            "Give the mirror TLS."
            for mirror in found
            if mirror.plain
        ),
        *(
            f"Nodes must trust the CA of {mirror.host} ({mirror.settings.ca}), in the trust store "
            "of their system."
            for mirror in found
            if mirror.private
        ),
        "failurePolicy Ignore: a pod starts, from the registry, when the policy itself fails. "
        "reinvocationPolicy IfNeeded: containers that another webhook adds are rewritten, too. An "
        "image that was rewritten is in no list, so that nothing is rewritten twice.",
    )
    return (File("prewarm-mirror.yaml", head + _policy(held) + _BINDING),)


def _held(found: tuple[ClientMirror, ...], known: tuple[Known, ...]) -> Iterator[_Held]:
    """Yield what each mirror serves and none before it does, in parts that fit an expression."""
    taken: set[str] = set()
    for number, mirror in enumerate(found, 1):
        images = [
            one.image
            for one in known
            if one.mirror == mirror.settings.url and one.state in SERVED and one.image not in taken
        ]
        taken.update(images)
        references = [reference for image in images for reference in _readable(image)]
        for part, some in enumerate(_parts(references), 1):
            yield _Held(f"mirror{number}_{part}", mirror, some)


def _readable(image: str) -> Iterator[Reference]:
    """Yield the image, unless it has no path on a mirror."""
    try:
        reference = parse(image)
        _ = reference.mirror_repository
    except InvalidReference:
        return
    yield reference


def _parts(references: list[Reference]) -> Iterator[tuple[Reference, ...]]:
    part: list[Reference] = []
    size = 0
    for reference in references:
        length = len(str(reference)) + 4  # quotes, comma, space
        if size + length > _EXPRESSION_MAX:
            yield tuple(part)
            part, size = [], 0
        part.append(reference)
        size += length
    if part:
        yield tuple(part)


def _policy(held: tuple[_Held, ...]) -> str:
    lists = [
        _variable(one.variable, f"[{_LINE.join(quoted(str(image)) for image in one.images)}]")
        for one in held
    ]
    lists += [_variable(containers, _canonical(containers)) for containers in _LISTS]
    mutations = [
        "  - patchType: JSONPatch\n    jsonPatch:\n"
        f"      expression: >-\n        {_mutation(containers, held)}\n"
        for containers in _LISTS
    ]
    return "".join([_HEAD, *lists, _variable("old", _OLD), "  mutations:\n", *mutations])


def _variable(name: str, expression: str) -> str:
    return f"  - name: {name}\n    expression: >-\n      {expression}\n"


def _canonical(containers: str) -> str:
    """Return what reads the images of a list of containers as docker does.

    Each step maps the texts of the one before: a registry, no other spelling of Docker Hub's, its
    `library/`, a tag.
    """
    spec = f"object.spec.{containers}"
    return (
        f"(has({spec}) ? {spec} : []).map(c, has(c.image) ? c.image : '')"
        ".map(x, x.matches('^([^/]*[.:][^/]*|localhost)/') ? x : 'docker.io/' + x)"
        ".map(x, x.startsWith('index.docker.io/') ? 'docker.io/' + x.substring(16) : x)"
        ".map(x, x.startsWith('registry-1.docker.io/') ? 'docker.io/' + x.substring(21) : x)"
        ".map(x, x.matches('^docker[.]io/[^/]+$') ? 'docker.io/library/' + x.substring(10) : x)"
        ".map(x, x.matches('[:@][^/]*$') ? x : x + ':latest')"
    )


def _mutation(containers: str, held: tuple[_Held, ...]) -> str:
    """Return what replaces each image of a list of containers that is on a mirror."""
    image = f"variables.{containers}[i]"
    numbers = ", ".join(map(str, range(_CONTAINERS)))
    wanted = f"({' || '.join(one.holds(image) for one in held) or 'false'})"
    if containers == "ephemeralContainers":
        # Those that run cannot be changed: an update that tries is refused.
        wanted += f" && !(object.spec.{containers}[i].name in variables.old)"
    else:
        wanted += " && request.operation == 'CREATE'"
    return (
        f"[{numbers}].filter(i, i < size(variables.{containers}) && {wanted})"
        f".map(i, JSONPatch{{op: 'replace', path: '/spec/{containers}/' + string(i) + '/image', "
        f"value: {_host(image, held)} + {_path(image, held)}}})"
    )


def _host(image: str, held: tuple[_Held, ...]) -> str:
    """Return the host of the mirror that has the image, with its slash."""
    choices = "".join(f"{one.holds(image)} ? {quoted(f'{one.mirror.host}/')} : " for one in held)
    return f"({choices}'')"


def _path(image: str, held: tuple[_Held, ...]) -> str:
    """Return the path on the mirror: the Hub's at the root, a port's `:` written `_`."""
    hosts = sorted({reference.registry for one in held for reference in one.images})
    ports = "".join(
        f"{image}.startsWith({quoted(f'{host}/')}) ? "
        f"{quoted(folder_of(host))} + {image}.substring({len(host)}) : "
        for host in hosts
        if ":" in host
    )
    return (
        f"({image}.startsWith('{DOCKER_HUB}/') ? {image}.substring({len(DOCKER_HUB) + 1}) : "
        f"{ports}{image})"
    )


_OLD: Final = (
    "request.operation == 'UPDATE' && has(oldObject.spec.ephemeralContainers) ? "
    "oldObject.spec.ephemeralContainers.map(c, c.name) : []"
)
_HEAD: Final = """\
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata:
  name: prewarm-mirror
spec:
  failurePolicy: Ignore
  reinvocationPolicy: IfNeeded
  matchConstraints:
    resourceRules:
    - apiGroups: [""]
      apiVersions: ["v1"]
      operations: ["CREATE"]
      resources: ["pods"]
    - apiGroups: [""]
      apiVersions: ["v1"]
      operations: ["UPDATE"]
      resources: ["pods/ephemeralcontainers"]
  variables:
"""
_BINDING: Final = """\
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata:
  name: prewarm-mirror
spec:
  policyName: prewarm-mirror
  # Never the pods of the cluster itself: they must start whatever becomes of the mirror.
  matchResources:
    namespaceSelector:
      matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: NotIn
        values: ["kube-system"]
"""
