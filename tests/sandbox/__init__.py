"""A Docker Hub on loopback before real registries, for tests, the demo and the benchmarks."""

from tests.sandbox.access import Access, AccessLog
from tests.sandbox.cdn import Cdn
from tests.sandbox.faults import Fault, disk_full
from tests.sandbox.hub import Hub, Rules
from tests.sandbox.images import Image, Layer, build_image, push
from tests.sandbox.names import Names
from tests.sandbox.quota import Quota
from tests.sandbox.registry import Registry
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.tap import Tap

__all__ = [
    "Access",
    "AccessLog",
    "Cdn",
    "Fault",
    "Hub",
    "Image",
    "Layer",
    "Names",
    "Quota",
    "Registry",
    "Rules",
    "Sandbox",
    "Tap",
    "build_image",
    "disk_full",
    "push",
]
