"""The session: what every command that looks at registries works with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from prewarm.core.budget import Window, window_for
from prewarm.core.settings import Settings
from prewarm.planning.plan import Quota
from prewarm.state.clock import Clock
from prewarm.state.ledger import Ledger
from prewarm.sync.connections import Edges
from prewarm.sync.inspect import Observer, UpstreamSite


@dataclass(frozen=True)
class Session:
    """What every command that looks at registries works with."""

    settings: Settings
    edges: Edges
    ledger: Ledger
    clock: Clock
    use_reserve: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the run is to end: nothing new is begun then."""
    ended: Callable[[], int | None] = lambda: None
    """The exit code of a run that a signal ends."""

    @property
    def observer(self) -> Observer:
        return Observer(
            self.edges.upstreams,
            self.edges.mirrors,
            self.ledger,
            self.clock,
            most_children=self.settings.limits.pulls_per_image,
        )

    def window(self, upstream: UpstreamSite) -> tuple[Window, str]:
        """Return the window of an upstream as it is known now, and where it comes from."""
        return window_for(
            upstream.settings.name,
            upstream.settings.budget,
            upstream.limit,
            reachable=upstream.answered,
            use_reserve=self.use_reserve,
        )

    def quota(self, upstream: UpstreamSite) -> Quota:
        """Return what an upstream still gives."""
        window, source = self.window(upstream)
        now = self.clock()
        account = upstream.account_name
        counted = window.counted_account(account)
        spends = self.ledger.spends(upstream.settings.name, counted, now, window.seconds)
        closed = upstream.closed or self.ledger.lost
        return Quota(account, window, source, spends, upstream.limit, closed=closed)

    def quotas(self) -> dict[str, Quota]:
        """Return the quotas by registry, and those of accounts that only some paths are asked as.

        The latter have names of their own: `quay.io as robot` (see `Seen.payer`).
        """
        return {
            account.quota_name or name: self.quota(account)
            for name, upstream in self.edges.upstreams.items()
            for account in upstream.accounts
        }
