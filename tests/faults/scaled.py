"""prewarm with short time limits, so that a hang is measured soon: `python -m tests.faults.scaled`.

Only how long is waited changes, never how often something is tried.
"""

from __future__ import annotations

import importlib
from typing import Final

LIMITS: Final[dict[str, dict[str, object]]] = {
    "prewarm.transport": {"CONNECT_TIMEOUT": 3.0, "READ_TIMEOUT": 3.0},
    "prewarm.registry": {"_BACKOFF": (0.02, 0.1), "_LIMITED_BACKOFF": (0.02, 0.1)},
    "prewarm.gitlab_client": {"TIMEOUT": 2.0, "_BACKOFF": 0.01},
    "prewarm.postgresql": {"PATIENCE": 1.0, "FIRST_PATIENCE": 0.5},
    "prewarm.observe": {"_PAUSES": (0.02, 0.1)},
    "prewarm.purchase": {"_PAUSE": (0.02, 0.1)},
    "prewarm.copying": {"_BASE_TIMEOUT": 20.0, "_PAUSE": (0.02, 0.1)},
}
"""By module, in the order in which to import them: some take another's when they are loaded."""


def main() -> None:
    """Run prewarm's command line with these limits."""
    for name, limits in LIMITS.items():
        module = importlib.import_module(name)
        for limit, value in limits.items():
            assert hasattr(module, limit), f"{name} has no {limit} any more"
            setattr(module, limit, value)
    from prewarm.cli import main as prewarm
    from prewarm.gitlab_client import Client

    defaults = Client.__init__.__kwdefaults__
    assert defaults is not None
    assert "timeout" in defaults
    defaults["timeout"] = LIMITS["prewarm.gitlab_client"]["TIMEOUT"]
    prewarm()


if __name__ == "__main__":
    main()
