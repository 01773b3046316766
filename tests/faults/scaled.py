"""prewarm with short time limits, so that a hang is measured soon: `python -m tests.faults.scaled`.

Only how long is waited changes, never how often something is tried.
"""

from __future__ import annotations

import importlib
from typing import Final

LIMITS: Final[dict[str, dict[str, object]]] = {
    "prewarm.registry.transport": {"CONNECT_TIMEOUT": 3.0, "READ_TIMEOUT": 3.0},
    "prewarm.registry.client": {"_BACKOFF": (0.02, 0.1), "_LIMITED_BACKOFF": (0.02, 0.1)},
    "prewarm.discovery.gitlab_client": {"TIMEOUT": 2.0, "_BACKOFF": 0.01},
    "prewarm.state.postgresql": {"PATIENCE": 1.0, "FIRST_PATIENCE": 0.5},
    "prewarm.sync.inspect": {"_PAUSES": (0.02, 0.1)},
    "prewarm.sync.fetch": {"_PAUSE": (0.02, 0.1)},
    "prewarm.sync.executor": {"_BASE_TIMEOUT": 20.0, "_PAUSE": (0.02, 0.1)},
}
"""By module, in the order in which to import them: some take another's when they are loaded."""


def main() -> None:
    """Run prewarm's command line with these limits."""
    for name, limits in LIMITS.items():
        module = importlib.import_module(name)
        for limit, value in limits.items():
            assert hasattr(module, limit), f"{name} has no {limit} any more"
            setattr(module, limit, value)
    from prewarm.cli.main import main as prewarm
    from prewarm.discovery.gitlab_client import Client

    defaults = Client.__init__.__kwdefaults__
    assert defaults is not None
    assert "timeout" in defaults
    defaults["timeout"] = LIMITS["prewarm.discovery.gitlab_client"]["TIMEOUT"]
    prewarm()


if __name__ == "__main__":
    main()
